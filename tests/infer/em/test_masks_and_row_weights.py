"""EM with masked rows, row weights, and scales."""

import pyro
import pytest
import torch
from pyro import poutine

from pyro_mixtures import (
    EM,
    DiagonalNormals,
    MixtureWeights,
    data_plate,
)
from pyro_mixtures.errors import DataError
from pyro_mixtures.guides import FullPartition
from tests.infer.em.two_normals import base, params, rows


def test_row_weights_of_one_site_reach_its_m_step():
    x, row_weights = rows(), torch.rand(200) + 0.1
    em = EM(base, FullPartition(base, components=2))
    for _ in range(200):
        em.step(x, scale=row_weights)
    loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        base, FullPartition(base, components=2), x, scale=row_weights
    )
    (slope,) = torch.autograd.grad(loss, [pyro.param("loc").unconstrained()])
    assert slope.abs().max() < 0.05


def test_a_global_scale_changes_nothing_about_em():
    x = rows()
    scaled = poutine.scale(base, scale=1 / len(x))
    EM(scaled, FullPartition(scaled, components=2)).step(x)
    found = pyro.param("loc").detach().clone()
    pyro.clear_param_store()
    EM(base, FullPartition(base, components=2)).step(x)
    torch.testing.assert_close(found, pyro.param("loc").detach())


def test_masked_placeholders_of_one_site_never_reach_the_params():
    x = rows()
    seen = torch.arange(len(x)) % 4 > 0
    holes = torch.where(seen.unsqueeze(-1), x, torch.nan)
    em = EM(base, FullPartition(base, components=2))
    with pyro.validation_enabled(False):
        em.step(holes, mask=seen)
    found = pyro.param("loc").detach().clone()
    pyro.clear_param_store()
    EM(base, FullPartition(base, components=2)).step(x[seen])
    torch.testing.assert_close(found, pyro.param("loc").detach())


def test_a_masked_distribution_is_read_like_a_mask():
    x, seen = rows(), torch.arange(200) % 4 > 0

    def model(x):
        weights, loc, sd = params()
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(weights))
            pyro.sample("x", DiagonalNormals(loc, sd)[z].mask(seen), obs=x)

    EM(model, FullPartition(model, components=2)).step(x)
    found = pyro.param("loc").detach().clone()
    pyro.clear_param_store()
    EM(base, FullPartition(base, components=2)).step(x, mask=seen)
    torch.testing.assert_close(found, pyro.param("loc").detach())


def masked(x, mask, index=None, size=None):
    """All of a row is masked, z too."""
    with poutine.mask(mask=mask):
        base(x, index=index, size=size)


def test_batches_of_masked_rows_add_nothing():
    x, seen = rows(), torch.arange(200) < 100
    em = EM(masked, FullPartition(masked, components=2))
    loss = sum(em.accumulate(x[some], seen[some]) for some in (slice(0, 100), slice(100, 200)))
    em.maximize()
    found = pyro.param("loc").detach().clone()
    pyro.clear_param_store()
    assert EM(base, FullPartition(base, components=2)).step(x[seen]) == pytest.approx(loss)
    torch.testing.assert_close(found, pyro.param("loc").detach())


def test_nothing_but_masked_rows_is_refused():
    em = EM(masked, FullPartition(masked, components=2))
    with pytest.raises(DataError, match="all 200 rows have weight zero, or are masked"):
        em.step(rows(), torch.zeros(200, dtype=torch.bool))


def test_stepwise_em_survives_a_minibatch_of_masked_rows():
    em = EM(masked, FullPartition(masked, components=2), step_size=lambda t: 0.5)
    em.step(rows(), torch.ones(200, dtype=torch.bool))
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    em.step(rows(), torch.zeros(200, dtype=torch.bool))
    for name, value in before.items():  # the statistics shrink, what they fit does not
        torch.testing.assert_close(pyro.param(name).detach(), value)
