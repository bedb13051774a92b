"""Bregman soft clustering by EM and SVI, against brute force and stock Pyro."""

import pyro
import pytest
import torch
from pyro.infer import JitTraceEnum_ELBO, TraceEnum_ELBO, config_enumerate

from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.models.bregman import DIVERGENCES
from pyro_mixtures.testing import assert_near, exact_loss
from tests.models.bregman_rows import draw, make, seeds, truth

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(params=list(DIVERGENCES))
def divergence(request) -> str:
    return request.param


@pytest.mark.parametrize("kind", ["full", "truncated"])
def test_soft_clustering_never_lowers_the_free_energy(divergence, kind):
    x, model = draw(divergence), make(divergence, 6)
    model.start_at(seeds(x, 6))
    guide = FullPartition(model, components=6)
    if kind == "truncated":
        guide = TruncatedPartition(model, components=6, candidates=2, neighbors=3, seed=0)
    em = EM(model, guide, empty="keep")
    losses = torch.tensor([em.step(x) for _ in range(12)])
    assert (losses.diff() < 1e-9 * losses[0].abs()).all()
    assert losses[-1] < losses[0]


def test_recovers_the_parameters_of_its_own_draws(divergence):
    x, model = draw(divergence, 3000), make(divergence)
    model.start_at(seeds(x, 3))
    if divergence == "logistic":  # rows have four bits each, so start close to the truth
        model.mean = 0.9 * truth(divergence) + 0.05
    em = EM(model, FullPartition(model, components=3))
    for _ in range(20):
        em.step(x)
    expected = truth(divergence)
    nearest = torch.cdist(expected, model.mean.detach()).argmin(-1)
    assert sorted(nearest.tolist()) == [0, 1, 2]
    size = float(expected.max())
    assert (model.mean.detach()[nearest] - expected).abs().max() < 0.15 * size
    assert (model.weights.detach()[nearest] - torch.tensor([0.5, 0.3, 0.2])).abs().max() < (
        0.1 if divergence == "logistic" else 0.05
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_untruncated_loss_is_minus_the_log_evidence(divergence, dtype):
    x, model = draw(divergence, 60), make(divergence).to(dtype)
    model.start_at(seeds(x, 3))
    x = x.to(dtype)
    family = model.component_distributions()
    expected = -float(
        (family.log_prob(x.unsqueeze(-2)) + model.weights.log()).logsumexp(-1).sum().detach()
    )
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    assert elbo.loss(model, FullPartition(model, components=3), x) == pytest.approx(
        expected, rel=tolerance
    )
    assert exact_loss(model, x) == pytest.approx(expected, rel=tolerance)
    assert EM(model, FullPartition(model, components=3)).evaluate_loss(x) == pytest.approx(
        expected, rel=tolerance
    )


def test_stock_gradients_reach_the_params(divergence):
    x, model = draw(divergence, 60), make(divergence)
    model.start_at(seeds(x, 3))
    guided = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        model, FullPartition(model, components=3), x
    )
    enumerated = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        config_enumerate(model), lambda *_, **__: None, x
    )
    mine, theirs = (
        torch.autograd.grad(loss, list(model.parameters())) for loss in (guided, enumerated)
    )
    for one, other in zip(mine, theirs, strict=True):
        assert one.abs().max() > 0
        assert_near(one, other, 1e-9)


def test_minibatches_make_the_step_of_all_rows(divergence):
    x, found = draw(divergence), []
    for batch in (300, 70):
        model = make(divergence)
        model.start_at(seeds(x, 3))
        em = EM(model, FullPartition(model, components=3))
        for _ in range(2):
            for at in range(0, 300, batch):
                index = torch.arange(at, min(300, at + batch))
                em.accumulate(x[index], index=index, size=300)
            em.maximize()
        found.append(model.mean.detach())
        pyro.clear_param_store()
    torch.testing.assert_close(*found)


def test_traced_losses_are_those_of_the_program(divergence):
    x, model = draw(divergence, 60), make(divergence)
    model.start_at(seeds(x, 3))
    guide = FullPartition(model, components=3)
    expected = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x)
    traced = JitTraceEnum_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)
    assert float(traced.loss_and_grads(model, guide, x)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.meta
def test_steps_take_their_device_from_the_rows(divergence):
    with torch.device("cpu"):
        x, model = draw(divergence, 60), make(divergence)
        model.start_at(seeds(x, 3))
    full, hard = (
        FullPartition(model, components=3),
        HardPartition(model, components=3, score="leave_one_out"),
    )
    for guide in (full, hard):
        em = EM(model, guide)
        losses = [em.step(x) for _ in range(3)]
        assert losses[2] <= losses[0]
    assert model.mean.device == x.device
