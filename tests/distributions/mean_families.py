"""Families given by their means, with rows, oracles and constant arguments, for tests of all."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributions as stock

from pyro_mixtures.distributions import (
    Bernoullis,
    Components,
    DirectionalNormals,
    Exponentials,
    Gammas,
    KnownPrecisionNormals,
    Multinomials,
    Poissons,
    UnitNormals,
)

FEATURES = 4
ROWS = 50
PRECISION = torch.tensor(
    [[2.0, 0.5, 0, 0], [0.5, 1.0, 0, 0.2], [0, 0, 3.0, 0], [0, 0.2, 0, 0.7]],
    dtype=torch.float64,
    device="cpu",
)


CONCENTRATION = torch.tensor([0.5, 1.0, 2.0, 7.5], dtype=torch.float64, device="cpu")


def _multinomial(x: Tensor, mean: Tensor) -> Tensor:
    """By the formula: the stock distribution takes a single total and normalizes."""
    coefficient = (x.sum(-1) + 1).lgamma() - (x + 1).lgamma().sum(-1)
    return coefficient.unsqueeze(-1) + (x.unsqueeze(-2) * mean.log()).sum(-1)


def _cosine(x: Tensor, mean: Tensor) -> Tensor:
    return -0.5 * (x.unsqueeze(-2) - mean).square().sum(-1)


def _stock(make: Callable[[Tensor], stock.Distribution]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, mean: make(mean).log_prob(x.unsqueeze(-2)).sum(-1)


class Case(NamedTuple):
    """A family, its constant arguments, and how to make means, rows and the oracle."""

    family: type[Components]
    means: Callable[[torch.Generator, tuple[int, ...]], Tensor]
    rows: Callable[[torch.Generator, int], Tensor]
    oracle: Callable[[Tensor, Tensor], Tensor]  # rows (N, D), means (C, D) -> (N, C)
    constants: dict[str, Tensor] = {}

    def build(
        self, components: int = 5, dtype=torch.float64, lead: tuple[int, ...] = ()
    ) -> Components:
        mean = self.means(generator(0), (*lead, components, FEATURES))
        return self.at(mean.to(dtype).requires_grad_())

    def at(self, mean: Tensor) -> Components:
        return self.family(
            mean, **{name: value.to(mean.dtype) for name, value in self.constants.items()}
        )

    def draw(self, count: int = ROWS, seed: int = 1) -> Tensor:
        return self.rows(generator(seed), count)


def generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def uniform(g: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=g, dtype=torch.float64, device="cpu")


def normal(g: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64, device="cpu")


def _counts(g: torch.Generator, n: int) -> Tensor:
    return torch.poisson(4 * uniform(g, (n, FEATURES)), generator=g)


def proportions(g: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    sizes = uniform(g, shape) + 0.1
    return sizes / sizes.sum(-1, keepdim=True)


CASES = {
    "kl": Case(Poissons, lambda g, s: 0.5 + 4 * uniform(g, s), _counts, _stock(stock.Poisson)),
    "logistic": Case(
        Bernoullis,
        lambda g, s: 0.1 + 0.8 * uniform(g, s),
        lambda g, n: (uniform(g, (n, FEATURES)) < 0.5).double(),
        _stock(lambda mean: stock.Bernoulli(mean)),
    ),
    "itakura_saito": Case(
        Exponentials,
        lambda g, s: 0.5 + 4 * uniform(g, s),
        lambda g, n: -2 * uniform(g, (n, FEATURES)).log(),
        _stock(lambda mean: stock.Exponential(1 / mean)),
    ),
    "gamma": Case(
        Gammas,
        lambda g, s: 0.5 + 4 * uniform(g, s),
        lambda g, n: -2 * uniform(g, (n, FEATURES)).log(),
        _stock(lambda mean: stock.Gamma(CONCENTRATION.to(mean), CONCENTRATION.to(mean) / mean)),
        {"concentration": CONCENTRATION},
    ),
    "multinomial": Case(Multinomials, proportions, _counts, _multinomial),
    "squared": Case(
        UnitNormals,
        normal,
        lambda g, n: normal(g, (n, FEATURES)),
        _stock(lambda mean: stock.Normal(mean, 1.0)),
    ),
    "mahalanobis": Case(
        KnownPrecisionNormals,
        normal,
        lambda g, n: normal(g, (n, FEATURES)),
        lambda x, mean: stock.MultivariateNormal(mean, precision_matrix=PRECISION).log_prob(
            x.unsqueeze(-2)
        ),
        {"precision": PRECISION},
    ),
    "cosine": Case(
        DirectionalNormals,
        lambda g, s: torch.nn.functional.normalize(normal(g, s), dim=-1),
        lambda g, n: torch.nn.functional.normalize(normal(g, (n, FEATURES)), dim=-1),
        _cosine,
    ),
}
BILINEAR = ["kl", "logistic", "itakura_saito", "multinomial"]
