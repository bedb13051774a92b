"""Newton's method: collinear covariates against scikit-learn, starts far from the data's scale."""

import pytest
import torch

from pyro_mixtures.distributions.regression.generalized_regressions import (
    LogisticRegressions,
    PoissonRegressions,
)
from pyro_mixtures.ops.optimize.newton import expand

F64 = torch.float64
BOTH = pytest.mark.parametrize("dtype", [torch.float32, F64])


def labeled(rows: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, 2, dtype=F64)
    return x, (x @ torch.tensor([1.0, -2.0], dtype=F64) + 0.5).sigmoid().bernoulli()


def least_loss(x, y, weight, bias=0.0, family=LogisticRegressions) -> float:
    """Return the loss after the M-step of one component, in float64."""
    components = family(x, weight.unsqueeze(0), torch.full((1,), bias, dtype=weight.dtype))
    z, ones = torch.zeros(len(x), dtype=torch.long), torch.ones(len(x), dtype=weight.dtype)
    statistics = components.statistics_at(z, y.to(weight), ones)
    new = components.maximize(statistics, frozenset({"weight", "bias"}), floor=None)
    found = components.with_arguments(new).coefficients.double()
    return float(expand(components.row_loss, statistics.whole, found, components.penalty).value)


def sklearn_loss(x, y) -> float:
    linear_model = pytest.importorskip("sklearn.linear_model")
    model = linear_model.LogisticRegression(
        C=float("inf"), tol=1e-12, max_iter=10_000, solver="newton-cholesky"
    )
    eta = torch.from_numpy(model.fit(x.numpy(), y.numpy()).decision_function(x.numpy()))
    return float((torch.nn.functional.softplus(eta) - y * eta).sum())


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e6])
@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-6, 1e-7])
def test_nearly_collinear_covariates_have_their_optimum(apart, scale):
    """The optimum is that of scikit-learn with the difference of the covariates instead."""
    x, y = labeled()
    difference = torch.randn(len(x), 1, dtype=F64)
    near = torch.cat([x, scale * (x[:, :1] + apart * difference)], -1)
    expected = sklearn_loss(torch.cat([x, difference], -1), y)
    assert least_loss(near, y, torch.zeros(3, dtype=F64)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("start", [0.0, 5.0])
@pytest.mark.parametrize("scale", [1.0, 2.0**-13, 2.0**20])
@BOTH
def test_a_repeated_covariate_changes_nothing(scale, start, dtype):
    x, y = labeled()
    x = x.to(dtype)
    repeated = torch.cat([x, scale * x[:, :1]], -1)
    found = least_loss(repeated, y, torch.full((3,), start, dtype=dtype))
    assert found == pytest.approx(sklearn_loss(x.double(), y), abs=1e-5)


@pytest.mark.parametrize("apart", [1e-8, 1e-10, 1e-12])
def test_covariates_equal_up_to_rounding_take_few_steps(apart, monkeypatch):
    x, y = labeled()
    near = torch.cat([x, x[:, :1] + apart * torch.randn(len(x), 1, dtype=F64)], -1)
    seen = []
    loss = LogisticRegressions.row_loss
    counted = loss._replace(derivatives=lambda *given: seen.append(1) or loss.derivatives(*given))
    monkeypatch.setattr(LogisticRegressions, "row_loss", counted)
    assert least_loss(near, y, torch.zeros(3, dtype=F64)) <= sklearn_loss(x, y) + 1e-8
    assert len(seen) < 20


@pytest.mark.parametrize("size", [50.0, 1e3, 1e6])
@BOTH
def test_a_start_that_saturates_leads_to_the_optimum(size, dtype):
    x, y = labeled()
    x = x.to(dtype)
    far = least_loss(x, y, torch.full((2,), size, dtype=dtype))
    assert far == pytest.approx(least_loss(x, y, torch.zeros(2, dtype=dtype)), rel=1e-6)


@pytest.mark.parametrize("size", [1e3, 1e4, 1e6])
def test_a_start_better_than_zero_without_curvature_leads_to_the_optimum(size):
    """All rows but one are on their side of the plane, so far away that no curvature is left."""
    x = torch.randn(2000, 4, dtype=F64)
    normal = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=F64)
    y = (x @ normal > 0).double()
    wrong = (x @ normal).abs().argsort()[3]
    y[wrong] = 1 - y[wrong]
    assert least_loss(x, y, size * normal) <= least_loss(x, y, torch.zeros_like(normal)) + 1e-6


@pytest.mark.parametrize("bias", [-50.0, 30.0, 800.0])
def test_rates_far_from_the_counts_lead_to_the_optimum(bias):
    x = torch.randn(200, 2, dtype=F64)
    y = torch.poisson((0.5 * x[:, 0] + 1).exp())
    zero = torch.zeros(2, dtype=F64)
    expected = least_loss(x, y, zero, family=PoissonRegressions)
    assert least_loss(x, y, zero, bias, family=PoissonRegressions) == pytest.approx(
        expected, rel=1e-9
    )
