"""Maximum likelihood of softmax distributions over items: optima, ascent, maxima stay."""

import pytest
import torch
from torch import Tensor

from pyro_mixtures.ops.logits import item_covariance, log_table, running_log_totals
from pyro_mixtures.ops.optimize.item_softmax import ItemSoftmaxProblem, fit_thetas

F64 = torch.float64


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request) -> torch.dtype:
    return request.param


def problem(dtype: torch.dtype, size: float = 1.0) -> tuple[Tensor, Tensor]:
    """Thetas of 7 components, and the features of 300 items."""
    generator = torch.Generator("cpu").manual_seed(0)
    theta, x = (torch.randn(n, 4, generator=generator, dtype=F64).to(dtype) for n in (7, 300))
    return size * theta, x


def mean_features(theta: Tensor, x: Tensor) -> Tensor:
    """Means under each component by definition, in float64."""
    return (theta.double() @ x.double().T).softmax(-1) @ x.double()


@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("solver", ["newton", "gradient"])
def test_fits_reach_the_optimum_of_l_bfgs(dtype, ridge, solver):
    theta, x = problem(dtype, size=2.0)
    counts = torch.rand(7, 300, generator=torch.Generator().manual_seed(3), dtype=F64) ** 4
    target = (counts / counts.sum(-1, keepdim=True)) @ x.double()
    fitting = ItemSoftmaxProblem(x, target, ridge, item_covariance(x), newton=solver == "newton")
    best = l_bfgs(target, x.double(), ridge)
    for known in (log_table(theta, x), running_log_totals(theta, x)):
        found = fit_thetas(fitting, theta, known, steps=None)
        torch.testing.assert_close(
            found.double(), best, rtol=0, atol=5e-3 if dtype == torch.float32 else 1e-5
        )
        height = [fitting.value(t, running_log_totals(t, x)) for t in (best.to(dtype), found)]
        assert (height[1] >= height[0] - (5e-6 if dtype == torch.float32 else 1e-10)).all()


def l_bfgs(target: Tensor, x: Tensor, ridge: float) -> Tensor:
    theta = torch.zeros_like(target).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=1000,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (
            (theta @ x.T).logsumexp(-1) - (theta * target).sum(-1) + ridge * theta.square().sum(-1)
        ).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return theta.detach()


def test_components_at_their_maximum_are_left_alone():
    theta, x = problem(F64)
    fitting = ItemSoftmaxProblem(x, mean_features(theta, x), 0.0, item_covariance(x), newton=True)
    assert torch.equal(fit_thetas(fitting, theta, running_log_totals(theta, x), steps=3), theta)


@pytest.mark.parametrize("size", [5.0, 15.0])
@pytest.mark.parametrize("newton", [True, False])
def test_each_step_climbs_from_far_away(dtype, newton, size):
    """A full Newton step goes much too far where the covariance is nearly that of one item."""
    theta, x = problem(dtype, size=size)
    fitting = ItemSoftmaxProblem(
        x, mean_features(problem(F64)[0], x), 0.0, item_covariance(x), newton
    )
    heights = []
    for _ in range(15):
        total = running_log_totals(theta, x)
        heights.append(fitting.value(theta, total))
        theta = fit_thetas(fitting, theta, total, steps=1)
    rises = torch.stack(heights).diff(dim=0)
    assert (rises >= (-1e-5 if dtype == torch.float32 else 0)).all()  # rounding of logits of 50
    assert (heights[-1] > heights[0] + 1).all()
    if newton and dtype == torch.float64:
        best = fitting.value(problem(F64)[0], running_log_totals(problem(F64)[0], x))
        assert (heights[-1] > best - 0.2).all()
