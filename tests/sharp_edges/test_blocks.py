"""Blocks: a poutine.block that hides z from the inference is refused."""

import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.testing import assert_close

from pyro_mixtures.errors import ModelError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.poutine import truncate
from tests.sharp_edges.program import (
    ELBO,
    C,
    N,
    draw_rows,
    exact_loss,
    frozen_guide,
    no_guide,
    plain,
    with_prior,
)

HIDDEN = r"block outside hides the site 'z'.*expose it"


@pytest.mark.meta
def test_block_that_hides_z_of_truncate_is_refused():
    sets = torch.arange(3, device="cpu").expand(N, 3)
    hidden = poutine.block(truncate(plain, "z", sets), hide=["z"])
    with pytest.raises(ModelError, match=HIDDEN):
        ELBO.loss(hidden, no_guide, draw_rows())


@pytest.mark.meta
def test_block_inside_truncate_is_refused():
    sets = torch.arange(3, device="cpu").expand(N, 3)
    with pytest.raises(ModelError, match="no visible sample site 'z'"):
        ELBO.loss(truncate(poutine.block(plain, hide=["z"]), "z", sets), no_guide, draw_rows())


@pytest.mark.meta
@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition])
def test_block_that_hides_z_of_a_guide_is_refused(strategy):
    x = draw_rows()
    guide = frozen_guide(strategy, plain, x)
    with pytest.raises(ModelError, match=HIDDEN):
        poutine.trace(poutine.block(guide, hide=["z"])).get_trace(x)


@pytest.mark.meta
def test_block_that_hides_z_and_not_the_other_latent_sites_is_refused():
    x = draw_rows()
    guide = FullPartition(
        with_prior, components=C, global_guide=AutoNormal(poutine.block(with_prior, hide=["z"]))
    )
    guide(x)
    with pytest.raises(ModelError, match=HIDDEN):
        poutine.trace(poutine.block(guide, hide=["z", "data"])).get_trace(x)


@pytest.mark.meta
@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition])
def test_block_of_everything_is_a_dry_run_and_passes(strategy):
    x, sets = draw_rows(), torch.arange(3, device="cpu").expand(N, 3)
    with poutine.block():
        assert frozen_guide(strategy, plain, x)(x)["z"].shape == (N,)
        truncate(plain, "z", sets)(x)
    # Pyro's dry run, which determines the nesting of plates.
    assert_close(
        TraceEnum_ELBO().loss(plain, FullPartition(plain, components=C), x),
        exact_loss(x),
        rtol=1e-5,
        atol=0,
    )
