"""Linear regressions: M-steps and EM, against scikit-learn and stock Pyro."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from sklearn.linear_model import Ridge
from torch import Tensor

from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.testing import TOLERANCE, assert_near, exact_loss
from tests.distributions.regression.linear_rows import (
    COMPONENTS,
    FEATURES,
    OUTPUTS,
    brute_table,
    mixture,
    normal,
    rows_of,
)

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request) -> torch.dtype:
    return request.param


def ridge_of(
    x: Tensor, y: Tensor, q: Tensor, ridge: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted ridge regression by scikit-learn, and the scale of its penalized residuals."""
    x, y, q = (t.detach().double().numpy() for t in (x, y, q))
    known = Ridge(alpha=ridge * q.sum() + 1e-12, solver="cholesky", tol=1e-12).fit(
        x, y, sample_weight=q
    )
    left = (q[:, None] * (y - known.predict(x)).reshape(len(y), -1) ** 2).sum(0)
    weight = known.coef_.reshape(-1, x.shape[1])
    return (
        known.coef_,
        known.intercept_,
        np.sqrt((left + ridge * q.sum() * (weight**2).sum(-1)) / q.sum()),
    )


@pytest.mark.meta
@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_one_em_step_is_weighted_ridge_regression(outputs, ridge, dtype):
    model, (x, y) = mixture(outputs, dtype, ridge=ridge), rows_of(outputs, 200, dtype)
    guide = FullPartition(model, components=COMPONENTS)
    q = guide.posterior(x, y).probs.detach().clone()
    EM(model, guide, variance_floor=0.0, empty="keep").step(x, y)
    assert_near(model.weights, q.mean(1), 20 * TOLERANCE[dtype])
    for c in range(COMPONENTS):
        known = ridge_of(x, y, q[c], ridge)
        found = (model.weight[c], model.bias[c], model.scale[c].reshape(-1))
        for mine, theirs in zip(found, known, strict=True):
            assert_near(
                mine,
                torch.as_tensor(theirs, device="cpu").reshape(mine.shape),
                50 * TOLERANCE[dtype],
            )


def test_scale_alone_is_that_of_the_residuals_under_frozen_coefficients():
    model, (x, y) = mixture(components=1), rows_of(None)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    EM(
        model,
        FullPartition(model, components=1),
        freeze=["weight", "bias"],
        variance_floor=0.0,
        empty="keep",
    ).step(x, y)
    expected = (y - x @ weight[0] - bias[0]).square().mean().sqrt()
    torch.testing.assert_close(model.scale[0].detach(), expected)
    assert torch.equal(model.weight.detach(), weight)


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_empty_components_are_split_off_live_ones(outputs):
    """The default of EM, for outcomes (N,) and (N, M)."""
    x, y = rows_of(outputs)
    model = mixture(outputs)
    with torch.no_grad():
        model.bias[0] = 1e3
    em = EM(model, FullPartition(model, components=COMPONENTS))
    em.step(x, y)
    assert em.last_update is not None
    assert em.last_update.reseeded == 1
    assert bool((model.bias[0].abs() < 100).all())


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_free_energy_never_falls(truncated, ridge, dtype):
    model, (x, y) = mixture(dtype=dtype, ridge=ridge), rows_of(None, 150, dtype)
    guide = FullPartition(model, components=COMPONENTS)
    if truncated:
        guide = TruncatedPartition(
            model, components=COMPONENTS, candidates=2, neighbors=3, explore=1, seed=0
        )
    em = EM(model, guide, empty="keep")
    losses = torch.tensor([em.step(x, y) for _ in range(15)], dtype=torch.float64)
    assert losses[-1] < losses[0]
    assert (losses.diff() / losses[0].abs()).max() <= TOLERANCE[dtype], losses.tolist()


def test_em_recovers_the_regressions_that_the_data_were_drawn_from():
    torch.manual_seed(3)
    truth = mixture(components=2)
    with torch.no_grad():
        truth.weight, truth.bias = (
            3 * torch.randn_like(truth.weight),
            3 * torch.randn_like(truth.bias),
        )
        truth.scale = torch.tensor([0.3, 0.6], dtype=torch.float64)
    x = normal(2000, FEATURES, seed=5)
    y = truth(x).detach()
    known = [t.detach().clone() for t in (truth.weight, truth.bias, truth.scale)]
    pyro.clear_param_store()
    best = None
    for seed in range(4):
        pyro.clear_param_store()
        model = mixture(components=2)
        with torch.no_grad():
            model.weight = normal(2, FEATURES, seed=seed + 10)
        done = fit(
            EM(model, FullPartition(model, components=2), empty="keep"), x, y, progress=False
        )
        best = max(
            best or (-math.inf,),
            (done.elbo, *(t.detach().clone() for t in (model.weight, model.bias, model.scale))),
        )
    _, weight, bias, scale = best
    order = [int((weight - w).norm(dim=-1).argmin()) for w in known[0]]
    for mine, theirs, error in zip((weight, bias, scale), known, (0.1, 0.1, 0.05), strict=True):
        torch.testing.assert_close(mine[order], theirs, rtol=0, atol=error)


@pytest.mark.meta
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_untruncated_loss_is_minus_the_log_evidence_by_stock_enumeration(outputs, dtype):
    model, (x, y) = mixture(outputs, dtype, ridge=0.2), rows_of(outputs, dtype=dtype)
    table, _ = brute_table(model.component_distributions(x), x, y)
    expected = -(table + model.weights.double().log()).logsumexp(-1).sum().item()
    guide = FullPartition(model, components=COMPONENTS)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    for loss in (
        exact_loss(model, x, y),
        elbo.loss(model, guide, x, y),
        EM(model, guide).evaluate_loss(x, y),
    ):
        assert loss == pytest.approx(expected, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_minibatches_add_up_to_the_full_batch(outputs, dtype):
    x, y = rows_of(outputs, 90, dtype)
    found = []
    for size in (90, 16):
        pyro.clear_param_store()
        model = mixture(outputs, dtype, ridge=0.1)
        em, losses = EM(model, FullPartition(model, components=COMPONENTS), empty="keep"), []
        for _ in range(3):
            batches = torch.arange(90).split(size)
            losses.append(
                sum(em.accumulate(x[batch], y[batch], index=batch, size=90) for batch in batches)
            )
            em.maximize()
        found.append((torch.tensor(losses, dtype=dtype), *model.state_dict().values()))
    for whole, in_parts in zip(*found, strict=True):
        assert_near(in_parts, whole, 100 * TOLERANCE[dtype])


def test_saved_and_loaded_model_gives_the_same_loss(tmp_path):
    x, y = rows_of(None)
    model = mixture(scale=2.0, equal_weights=True)
    EM(model, FullPartition(model, components=COMPONENTS), empty="keep").step(x, y)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    before = exact_loss(model, x, y)
    pyro.clear_param_store()
    other = mixture(scale=1.0, equal_weights=True)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert exact_loss(other, x, y) == before
