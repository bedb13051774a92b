"""Mixtures and brute-force scores for tests of scoring and prediction."""

import pyro
import torch
from pyro import distributions as dist

from pyro_mixtures.distributions import Categoricals, DiagonalNormals, MixtureWeights
from pyro_mixtures.guides import TruncatedPartition
from pyro_mixtures.models import GaussianMixture, MixtureOfFactorAnalyzers
from pyro_mixtures.poutine import data_plate

C, D, N = 6, 3, 50


F64 = torch.float64


FAMILIES = ["isotropic", "diagonal", "full", "factor"]


def mixture(family="diagonal", components=C, spread=2.0, dtype=F64):
    """A mixture with parameters that all differ."""
    if family == "factor":
        model = MixtureOfFactorAnalyzers(components=components, features=D, factors=2)
    else:
        model = GaussianMixture(components=components, features=D, covariance=family)
    model.to(dtype)
    with torch.no_grad():
        model.loc = spread * torch.randn(components, D, dtype=dtype)
        model.weights = torch.arange(2.0, components + 2, dtype=dtype) / (
            torch.arange(2.0, components + 2).sum()
        )
        if family == "factor":
            model.factor, model.noise = (
                torch.randn_like(model.factor),
                0.5 + torch.rand_like(model.noise),
            )
        elif family == "full":
            tril = 0.5 * torch.randn_like(model.scale_tril).tril(-1)
            model.scale_tril = tril + (0.5 + torch.rand(components, D, dtype=dtype)).diag_embed()
        else:
            model.scale = 0.5 + torch.rand_like(model.scale)
    return model


def covariances(model):
    """(C, D, D)."""
    if hasattr(model, "factor"):
        return model.factor @ model.factor.mT + model.noise.diag_embed()
    if model.covariance == "full":
        return model.scale_tril @ model.scale_tril.mT
    return model.scale.square().reshape(model.components, -1).expand(-1, D).diag_embed()


def brute(model, x):
    """log p(c, x) (N, C)."""
    normals = torch.distributions.MultivariateNormal(model.loc, covariances(model))
    return (model.weights.log() + normals.log_prob(x.unsqueeze(1))).detach()


def rows(count=N):
    return 2 * torch.randn(count, D, dtype=F64)


def trained(model, x, **options):
    """A truncated guide that has searched ``x``."""
    settings = {
        "components": model.components,
        "candidates": 3,
        "neighbors": 5,
        "seed": 0,
        **options,
    }
    guide = TruncatedPartition(model, **settings)
    for _ in range(8):
        guide.posterior(x)
    return guide


def two_observations(x, label, index=None, size=None):
    weights = pyro.param(
        "weights", torch.tensor([0.5, 0.3, 0.2], dtype=F64), constraint=dist.constraints.simplex
    )
    loc = pyro.param("loc", lambda: torch.randn(3, D, dtype=F64))
    table = pyro.param(
        "table",
        lambda: torch.rand(3, 4, dtype=F64).softmax(-1),
        constraint=dist.constraints.simplex,
    )
    with data_plate(x, index, size):
        z = pyro.sample("z", MixtureWeights(weights))
        pyro.sample("x", DiagonalNormals(loc, torch.ones(D, dtype=F64))[z], obs=x)
        pyro.sample("label", Categoricals(table)[z], obs=label)
