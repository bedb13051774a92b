"""The four normal families against stock distributions and textbook M-steps."""

import torch
from pyro import distributions as dist

from pyro_mixtures.distributions import (
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    IsotropicNormals,
)
from pyro_mixtures.models import GaussianMixture, MixtureOfFactorAnalyzers
from pyro_mixtures.testing import NormalConformance

FEATURES = 3


def _f64(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def _positive(*shape):
    return 0.5 + torch.rand(*shape, dtype=torch.float64)


class TestIsotropicNormals(NormalConformance):
    family = IsotropicNormals

    def arguments(self, components, lead=()):
        return {"loc": _f64(*lead, components, FEATURES), "scale": _positive(*lead, components)}

    def oracle(self, loc, scale):
        return dist.Normal(loc, scale.unsqueeze(-1)).to_event(1)

    def model(self, components):
        return GaussianMixture(components=components, features=FEATURES, covariance="isotropic")

    def maximizer(self, x, q, loc, scale):
        loc = (q @ x) / q.sum()
        return loc, ((q @ (x - loc) ** 2) / q.sum()).mean().sqrt()


class TestDiagonalNormals(NormalConformance):
    family = DiagonalNormals

    def arguments(self, components, lead=()):
        return {
            "loc": _f64(*lead, components, FEATURES),
            "scale": _positive(*lead, components, FEATURES),
        }

    def oracle(self, loc, scale):
        return dist.Normal(loc, scale).to_event(1)

    def model(self, components):
        return GaussianMixture(components=components, features=FEATURES)

    def maximizer(self, x, q, loc, scale):
        loc = (q @ x) / q.sum()
        return loc, ((q @ (x - loc) ** 2) / q.sum()).sqrt()


class TestFullNormals(NormalConformance):
    family = FullNormals

    def arguments(self, components, lead=()):
        tril = 0.5 * _f64(*lead, components, FEATURES, FEATURES).tril(-1)
        return {
            "loc": _f64(*lead, components, FEATURES),
            "scale_tril": tril + _positive(*tril.shape[:-1]).diag_embed(),
        }

    def oracle(self, loc, scale_tril):
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)

    def model(self, components):
        return GaussianMixture(components=components, features=FEATURES, covariance="full")

    def maximizer(self, x, q, loc, scale_tril):
        loc = (q @ x) / q.sum()
        return loc, torch.linalg.cholesky((q * (x - loc).T) @ (x - loc) / q.sum())


class TestFactorAnalyzers(NormalConformance):
    family = FactorAnalyzers

    def arguments(self, components, lead=()):
        shape = (*lead, components, FEATURES)
        return {"loc": _f64(*shape), "factor": _f64(*shape, 2), "noise": _positive(*shape)}

    def oracle(self, loc, factor, noise):
        return dist.LowRankMultivariateNormal(loc, factor, noise)

    def model(self, components):
        return MixtureOfFactorAnalyzers(components=components, features=FEATURES, factors=2)

    def maximizer(self, x, q, loc, factor, noise):
        """Ghahramani & Hinton (1996), equations for the augmented loadings [A, mu], row by row."""
        rank, n = factor.shape[-1], q.sum()
        covariance = factor @ factor.T + noise.diag()
        beta = factor.T @ covariance.inverse()
        one = torch.ones(1, dtype=x.dtype, device=x.device)
        cross, second = 0, 0
        for row, weight in zip(x, q, strict=True):
            mean = beta @ (row - loc)
            own = torch.eye(rank, dtype=x.dtype, device=x.device) - beta @ factor + mean.outer(mean)
            top = torch.cat([own, mean.unsqueeze(-1)], -1)
            augmented = torch.cat([mean, one])
            second = second + weight * torch.cat([top, augmented.unsqueeze(0)])
            cross = cross + weight * row.outer(augmented)
        loadings = cross @ second.inverse()
        noise = ((q * x.T) @ x - loadings @ cross.T).diagonal() / n
        return loadings[:, rank], loadings[:, :rank], noise
