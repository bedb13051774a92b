"""A small mixture program, its exact log joint, and helpers of the tests of Pyro's sharp edges."""

import pyro
import torch
from pyro import distributions as dist
from pyro.infer import TraceEnum_ELBO
from torch.distributions import constraints

from pyro_mixtures.distributions import (
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    IsotropicNormals,
    MixtureWeights,
)
from pyro_mixtures.guides import TruncatedPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.poutine import data_plate

CPU = torch.device("cpu")
ELBO = TraceEnum_ELBO(max_plate_nesting=1)
N, C, D = 12, 5, 2
WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], device="cpu")
LOC = torch.linspace(-2.0, 2.0, C, device="cpu").unsqueeze(-1).repeat(1, D)


def draw_rows(rows=N, features=D):
    return 1.5 * torch.randn(rows, features, device="cpu")


def no_guide(*args, **kwargs):
    """A guide without sites: all discrete sites are enumerated in the model."""


def mixture_params():
    weights = pyro.param("weights", lambda: WEIGHTS.clone(), constraint=constraints.simplex)
    loc = pyro.param("loc", lambda: LOC.clone())
    scale = pyro.param(
        "scale", lambda: torch.ones(C, D, device="cpu"), constraint=constraints.positive
    )
    return weights, loc, scale


def plain(x, index=None, size=None):
    weights, loc, scale = mixture_params()
    with data_plate(x, index, size):
        z = pyro.sample("z", MixtureWeights(weights))
        pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)


def log_joint(x, loc=LOC, scale=1.0, weights=WEIGHTS):
    """log p(c, x_n), (N, C), by stock distributions."""
    return dist.Normal(loc, scale).to_event(1).log_prob(x.unsqueeze(1)) + weights.log()


def exact_loss(x, **kwargs):
    return -float(log_joint(x, **kwargs).logsumexp(-1).sum())


def frozen_guide(strategy, model, *args, table=None):
    """A guide that searches once and then keeps its candidate sets, or those of ``table``."""
    options = {"candidates": 2, "neighbors": 3, "seed": 0} if strategy is TruncatedPartition else {}
    guide = strategy(model, components=C, **options)
    guide.posterior(*args)
    if table is not None and strategy is TruncatedPartition:
        guide.sets.table = table.clone()
    return guide.eval()


def params_after_em(model, guide, *args):
    pyro.clear_param_store()
    EM(model, guide, empty="keep").step(*args)
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def gradients(model, guide, *args):
    pyro.clear_param_store()
    ELBO.loss_and_grads(model, guide, *args)
    return {
        name: value.unconstrained().grad.clone() for name, value in pyro.get_param_store().items()
    }


def with_prior(x, index=None, size=None):
    weights = pyro.param("weights", lambda: WEIGHTS.clone(), constraint=constraints.simplex)
    with pyro.plate("components", C, device=x.device):
        loc = pyro.sample("loc", dist.Normal(LOC, 1.0).to_event(1))
    with data_plate(x, index, size):
        z = pyro.sample("z", MixtureWeights(weights))
        pyro.sample("x", DiagonalNormals(loc, torch.ones(D, device=x.device))[z], obs=x)


FAMILIES = {
    "isotropic": lambda loc: IsotropicNormals(loc, torch.full((C,), 0.5, device="cpu")),
    "diagonal": lambda loc: DiagonalNormals(loc, torch.full((D,), 0.5, device="cpu")),
    "full": lambda loc: FullNormals(loc, 0.5 * torch.eye(D, device="cpu")),
    "factors": lambda loc: FactorAnalyzers(
        loc, torch.zeros(C, D, 1, device="cpu"), torch.full((D,), 0.25, device="cpu")
    ),
}
