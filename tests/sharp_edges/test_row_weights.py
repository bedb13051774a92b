"""Row weights: they scale rows in the guide, and are refused in model-side enumeration."""

import pyro
import pytest
import torch
from pyro import poutine
from torch.testing import assert_close

from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.poutine import truncate
from tests.sharp_edges.program import (
    ELBO,
    N,
    draw_rows,
    frozen_guide,
    gradients,
    mixture_params,
    no_guide,
    params_after_em,
)


def weighted(x, row_weight):
    weights, loc, scale = mixture_params()
    with pyro.plate("data", len(x), device=x.device), poutine.scale(scale=row_weight):
        z = pyro.sample("z", MixtureWeights(weights))
        pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)


@pytest.mark.meta
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition])
def test_row_of_weight_two_counts_twice_and_of_weight_zero_not_at_all(strategy, zeros):
    row_weight = torch.tensor(
        [2.0, 0, 1, 1, 2, 0, 1, 2, 1, 1, 0, 1] if zeros else [2.0, 1, 1] * 4, device="cpu"
    )
    x, copies = (
        draw_rows(),
        torch.repeat_interleave(torch.arange(N, device="cpu"), row_weight.long()),
    )
    ones = torch.ones(len(copies), device="cpu")
    # Pyro's validation requires positive scales; without it, a scale of zero is allowed.
    with pyro.validation_enabled(not zeros):
        guide = frozen_guide(strategy, weighted, x, row_weight)
        table = guide.sets.table[copies] if strategy is TruncatedPartition else None
        repeated = frozen_guide(strategy, weighted, x[copies], ones, table=table)
        loss = ELBO.loss(weighted, guide, x, row_weight)
        assert_close(loss, ELBO.loss(weighted, repeated, x[copies], ones), rtol=1e-6, atol=0)
        assert_close(loss, EM(weighted, guide).evaluate_loss(x, row_weight), rtol=1e-6, atol=0)
        theirs = gradients(weighted, repeated, x[copies], ones)
        assert_close(gradients(weighted, guide, x, row_weight), theirs, rtol=1e-4, atol=1e-4)
        after = params_after_em(weighted, guide, x, row_weight)
        assert_close(
            after, params_after_em(weighted, repeated, x[copies], ones), rtol=1e-5, atol=1e-5
        )


def test_model_side_enumeration_refuses_row_weights():
    sets = torch.arange(3, device="cpu").expand(N, 3)
    with pytest.raises(ValueError, match=r"scalar poutine\.scale"):
        ELBO.loss(
            truncate(weighted, "z", sets),
            no_guide,
            draw_rows(),
            torch.full((N,), 2.0, device="cpu"),
        )
