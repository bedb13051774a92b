"""Rows, models and brute-force losses for tests of hard partitions."""

import math

import pyro
import torch
from hypothesis import settings
from torch import Tensor

from pyro_mixtures.guides.hard import HardPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.models.linear_regressions import MixtureOfRegressions

N, P, K = 90, 2, 3


CONSTANT = 0.5 * math.log(2 * math.pi) + math.log(K)  # of a row, in addition to its loss


few = settings(max_examples=10, deadline=None, derandomize=True)


def rows_of(
    dtype=torch.float64, rows: int = N, seed: int = 0, noise: float = 0.3
) -> tuple[Tensor, Tensor, Tensor]:
    """Covariates, outcomes, and the regression that each row was drawn from."""
    draw = torch.Generator("cpu").manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64, device="cpu")  # noqa: E731
    truth = torch.arange(rows, device="cpu") % K
    x, weight, bias = normal(rows, P), 3 * normal(K, P), 3 * normal(K)
    y = (x * weight[truth]).sum(-1) + bias[truth] + noise * normal(rows)
    return x.to(dtype), y.to(dtype), truth


def mixture(dtype=torch.float64, seed: int = 0, **options) -> MixtureOfRegressions:
    """Regressions of squared error under equal weights, unless ``options`` say otherwise."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    with torch.device("cpu"):
        model = MixtureOfRegressions(
            components=K, features=P, scale=1.0, equal_weights=True, **options
        )
        with torch.no_grad():
            model.weight, model.bias = torch.randn_like(model.weight), torch.randn_like(model.bias)
            model = model.to(dtype)
            model.weights.fill_(1 / K)  # not rounded to float32
    return model


def started(
    labels: Tensor | None = None,
    dtype=torch.float64,
    seed: int = 0,
    empty: str = "keep",
    ridge=0.0,
    **options,
):
    """A model, its guide and EM."""
    model = mixture(dtype, seed, ridge=ridge)
    guide = HardPartition(model, components=K, **options)
    if labels is not None:
        guide.set_labels(labels)
    return model, guide, EM(model, guide, empty=empty)


def random_labels(seed: int, rows: int = N) -> Tensor:
    return torch.randint(
        K, (rows,), generator=torch.Generator("cpu").manual_seed(seed), device="cpu"
    )


def losses(model: MixtureOfRegressions, x: Tensor, y: Tensor) -> Tensor:
    """Half squared errors, and the row's share of the penalty, (N, C)."""
    error = y.unsqueeze(-1) - x @ model.weight.T - model.bias
    return (0.5 * (error.square() + model.ridge * model.weight.square().sum(-1))).detach()


def least(x: Tensor, y: Tensor, ridge: float = 0.0) -> float:
    """Minimal loss of one cluster by least squares."""
    if not len(y):
        return 0.0
    penalty = math.sqrt(ridge * len(y)) * torch.ones_like(x[0]).diag()
    a, b = torch.cat([x - x.mean(0), penalty]), torch.cat([y - y.mean(), y.new_zeros(P)])
    weight = torch.linalg.lstsq(a, b.unsqueeze(-1), driver="gelsd").solution
    return float((b - (a @ weight)[:, 0]).square().sum() / 2)


def objective(x: Tensor, y: Tensor, labels: Tensor, ridge: float = 0.0) -> float:
    """F of a partition by brute force."""
    return sum(least(x[labels == k].double(), y[labels == k].double(), ridge) for k in range(K))
