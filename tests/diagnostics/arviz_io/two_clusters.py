"""Mixtures of two normals with four known means: fits by EM and SVI for tests."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch.distributions import constraints

from pyro_mixtures.distributions import (
    DiagonalNormals,
    MixtureWeights,
)
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models import GaussianMixture
from pyro_mixtures.poutine import data_plate

POINTWISE = "loo_i" if az.__version__.startswith("0.") else "elpd_i"
CENTERS = torch.tensor([[-3.0, 0.0], [3.0, 1.0]], device="cpu")


def two_clusters(rows: int = 40) -> torch.Tensor:
    draws = torch.randn(2, rows, 2, generator=torch.Generator("cpu").manual_seed(1), device="cpu")
    return (CENTERS.unsqueeze(1) + draws).reshape(-1, 2)


def normal_mixture(x, weights, loc, scale) -> torch.Tensor:
    """Log density (N,) by torch alone; loc and scale (..., C, D) give (..., N)."""
    x, weights, loc, scale = (
        torch.as_tensor(np.asarray(t), device="cpu").double() for t in (x, weights, loc, scale)
    )
    per_component = (
        torch.distributions.Normal(loc.unsqueeze(-3), scale.unsqueeze(-3))
        .log_prob(x.unsqueeze(-2))
        .sum(-1)
    )
    return (weights.log() + per_component).logsumexp(-1)


def prior_on_loc(x, index=None, size=None):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    scale = pyro.param("scale", torch.ones(2, 2), constraint=constraints.positive)
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    with data_plate(x, index, size):
        z = pyro.sample("z", MixtureWeights(weights))
        pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)


def stock_mixture(x, index=None, size=None):
    """A program with Pyro's own distributions."""
    weights = pyro.param(
        "weights", torch.tensor([0.3, 0.7], device="cpu"), constraint=constraints.simplex
    )
    loc = pyro.param("loc", CENTERS.clone())
    with data_plate(x, index, size):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], 1.0).to_event(1), obs=x)


def mean_field(model) -> AutoNormal:
    """An autoguide that starts at the cluster means, about as wide as their posterior."""
    start = init_to_value(values={"loc": CENTERS.clone()})
    return AutoNormal(pyro.poutine.block(model, hide=["z"]), init_loc_fn=start, init_scale=0.15)


def fitted_by_svi(rows):
    guide = TruncatedPartition(
        prior_on_loc, components=2, candidates=2, neighbors=2, global_guide=mean_field(prior_on_loc)
    )
    svi = SVI(
        prior_on_loc, guide, pyro.optim.Adam({"lr": 0.02}), TraceEnum_ELBO(max_plate_nesting=1)
    )
    return fit(svi, rows, epochs=5, progress=False)


def fitted_by_em(rows, model=None):
    model = GaussianMixture(components=2, features=2) if model is None else model
    return fit(EM(model, FullPartition(model, components=2)), rows, epochs=4, progress=False)
