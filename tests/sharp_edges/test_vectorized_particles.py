"""Vectorized particles and parallel predictions: each draw selects its own components."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import Predictive, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.ops.indexing import Vindex
from torch.testing import assert_close

from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import MixtureError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from tests.sharp_edges.program import CPU, FAMILIES, LOC, WEIGHTS, C, D, draw_rows, exact_loss


def draw_means(style, device):
    """Means (C, D) with a prior, in a plate over components or as one event."""
    if style == "event":
        return pyro.sample("loc", dist.Normal(LOC, 1.0).to_event(2))
    with pyro.plate("components", C, device=device):
        loc = pyro.sample("loc", dist.Normal(LOC, 1.0).to_event(1))
    return loc.unsqueeze(-3) if style == "plate, unsqueezed" else loc


def batched(style, select):
    def model(x, rows=None):
        loc = draw_means(style, CPU)
        with pyro.plate("data", len(x) if rows is None else rows, device="cpu"):
            z = pyro.sample("z", MixtureWeights(WEIGHTS), infer={"enumerate": "parallel"})
            return pyro.sample("x", select(loc, z), obs=x)

    return model


def vectorized_loss(model, x, particles):
    """The loss of vectorized particles, and its exact value for the means that were drawn."""
    global_guide, drawn = AutoNormal(poutine.block(model, hide=["z"])), []
    global_guide(x)

    def guide(x):
        drawn.append(global_guide(x)["loc"].detach())

    elbo = TraceEnum_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    found = elbo.loss(model, guide, x)
    loc = drawn[-1].reshape(particles, C, D)
    q = dist.Normal(global_guide.locs.loc.detach(), global_guide.scales.loc.detach())
    prior = (q.log_prob(loc) - dist.Normal(LOC, 1.0).log_prob(loc)).sum((1, 2))
    each = [float(p) + exact_loss(x, loc=one, scale=0.5) for p, one in zip(prior, loc, strict=True)]
    return found, sum(each) / particles


@pytest.mark.meta
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("style", ["event", "plate, unsqueezed"])
def test_vectorized_particles_select_their_own_components(style, family):
    model = batched(style, lambda loc, z: FAMILIES[family](loc)[z])
    for particles, rows in ((3, 7), (4, 4)):
        pyro.clear_param_store()
        found, expected = vectorized_loss(model, draw_rows(rows), particles)
        assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.meta
@pytest.mark.parametrize("rows", [7, 3])
def test_vectorized_particles_with_means_from_a_plate_are_right_or_refused(rows):
    """With as many rows as particles, wrong shapes broadcast by accident."""
    model = batched("plate", lambda loc, z: FAMILIES["diagonal"](loc)[z])
    try:
        found, expected = vectorized_loss(model, draw_rows(rows), 3)
    except MixtureError as error:
        assert "unsqueeze" in str(error)  # noqa: PT017
        return
    assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.meta
def test_plain_indexing_breaks_under_vectorized_particles_and_vindex_does_not():
    def stock(loc):
        return dist.Normal(loc, 0.5).to_event(1)

    with pytest.raises((IndexError, RuntimeError, ValueError)):
        vectorized_loss(batched("plate", lambda loc, z: stock(loc[z])), draw_rows(7), 3)
    pyro.clear_param_store()
    right = batched("plate, unsqueezed", lambda loc, z: stock(Vindex(loc)[..., z, :]))
    found, expected = vectorized_loss(right, draw_rows(7), 3)
    assert_close(found, expected, rtol=1e-4, atol=0)


def predicted(style, draws, rows, unsqueeze=False):
    """Distances between parallel draws of x and the means of their components (noise is tiny)."""
    scale = torch.full((D,), 1e-3, device="cpu")

    def select(loc, z):
        return DiagonalNormals(loc.unsqueeze(-3) if unsqueeze else loc, scale)[z]

    loc = 5 * torch.randn(draws, C, D, device="cpu")
    predictive = Predictive(
        batched(style, select), {"loc": loc}, return_sites=["z", "x"], parallel=True
    )
    found = predictive(None, rows)
    assert found["z"].shape == (draws, rows)
    means = Vindex(loc.unsqueeze(-3))[..., found["z"], :]
    return float((found["x"] - means).abs().max())


@pytest.mark.meta
@pytest.mark.parametrize("style", ["event", "plate"])
def test_parallel_predictions_come_from_their_own_components(style):
    """Predictive passes means (draws, C, D), to which the dimension of the data plate is added."""
    for draws, rows in ((3, 6), (4, 4)):
        assert predicted(style, draws, rows, unsqueeze=True) < 0.02


@pytest.mark.meta
@pytest.mark.parametrize("rows", [6, 3])
@pytest.mark.parametrize("style", ["event", "plate"])
def test_parallel_predictions_without_unsqueeze_are_right_or_refused(style, rows):
    try:
        assert predicted(style, 3, rows) < 0.02
    except MixtureError as error:
        assert "unsqueeze" in str(error)  # noqa: PT017


@pytest.mark.meta
@pytest.mark.parametrize("particles", [1, 3, C])
@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition])
def test_guides_under_vectorized_particles_are_right_or_refused(strategy, particles):
    """With as many particles as candidates, candidate s could be scored under particle s."""
    model = batched("event", lambda loc, z: FAMILIES["diagonal"](loc)[z])
    x, drawn = draw_rows(7), []
    global_guide = AutoNormal(poutine.block(model, hide=["z"]), init_scale=1.0)
    options = {"candidates": C, "neighbors": C} if strategy is TruncatedPartition else {}
    guide = strategy(model, components=C, global_guide=global_guide, **options)
    guide(x)

    def recorded(x):
        drawn.append(guide(x)["loc"].detach())

    elbo = TraceEnum_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    try:
        found = elbo.loss(model, recorded, x)
    except MixtureError as error:
        assert "vectorize_particles" in str(error)  # noqa: PT017
        return
    loc = drawn[-1].reshape(particles, C, D)
    q = dist.Normal(global_guide.locs.loc.detach(), global_guide.scales.loc.detach())
    prior = (q.log_prob(loc) - dist.Normal(LOC, 1.0).log_prob(loc)).sum((1, 2))
    each = [float(p) + exact_loss(x, loc=one, scale=0.5) for p, one in zip(prior, loc, strict=True)]
    assert_close(found, sum(each) / particles, rtol=1e-4, atol=0)
