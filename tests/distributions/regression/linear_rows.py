"""Rows and components of the tests of linear regressions."""

import torch
from hypothesis import settings
from pyro import distributions as dist
from torch import Tensor

from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
from pyro_mixtures.models.linear_regressions import MixtureOfRegressions

ROWS, FEATURES, COMPONENTS = 60, 3, 4
OUTPUTS = [None, 2]
few = settings(max_examples=25, deadline=None, derandomize=True)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        *shape,
        generator=torch.Generator("cpu").manual_seed(seed),
        dtype=torch.float64,
        device="cpu",
    )


def rows_of(outputs: int | None, rows: int = ROWS, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    """Covariates and outcomes."""
    y = normal(rows, outputs or 1, seed=2)
    return normal(rows, FEATURES, seed=1).to(dtype), (y if outputs else y[:, 0]).to(dtype)


def build(
    x: Tensor, outputs: int | None = None, ridge: float = 0.0, components: int = COMPONENTS
) -> LinearRegressions:
    """Components whose arguments are leaves of the covariates' dtype."""
    own = () if outputs is None else (outputs,)
    weight, bias, scale = (
        normal(components, *own, x.shape[1], seed=3),
        normal(components, *own),
        normal(components, *own),
    )
    given = [t.to(x).requires_grad_() for t in (weight, bias, 0.5 + scale.abs())]
    return LinearRegressions(x, *given, ridge=ridge)


def mixture(
    outputs: int | None = None, dtype=torch.float64, components: int = COMPONENTS, **options
):
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = MixtureOfRegressions(
            components=components, features=FEATURES, outputs=outputs, **options
        )
        with torch.no_grad():
            model.weight, model.bias = torch.randn_like(model.weight), torch.randn_like(model.bias)
    return model.to(dtype)


def brute_table(family: LinearRegressions, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Log densities (B, C) with ridge shares by stock Normals in float64, and their leaves."""
    leaves = [t.detach().double().requires_grad_() for t in family.arguments.values()]
    weight, bias, scale = leaves
    wide = weight.reshape(len(weight), -1, weight.shape[-1])
    mean = torch.einsum("np,cmp->ncm", x.double(), wide) + bias.reshape(len(bias), -1)
    sd = scale.reshape(len(scale), -1)
    table = dist.Normal(mean, sd).log_prob(y.double().reshape(len(y), 1, -1)).sum(-1)
    return table - 0.5 * family.ridge * (wide.square().sum(-1) / sd.square()).sum(-1), leaves
