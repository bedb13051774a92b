"""A mixture with GatedWeights, its rows, and its log joint."""

import pyro
import torch
from torch.distributions import constraints

from pyro_mixtures.distributions import DiagonalNormals
from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.poutine import data_plate

C, Q, D, N = 3, 2, 2, 60
DTYPES = [torch.float32, torch.float64]


def draw(rows=N, dtype=torch.float64, seed=1):
    """Covariates (N, Q), and rows (N, D) of three groups that depend on the first covariate."""
    g = torch.Generator("cpu").manual_seed(seed)
    u = torch.randn(rows, Q, generator=g, dtype=torch.float64, device="cpu")
    z = (
        (u[:, 0] + 0.7 * torch.randn(rows, generator=g, dtype=torch.float64, device="cpu") + 1)
        .clamp(0, 2)
        .long()
    )
    x = 2.0 * z.unsqueeze(-1) + torch.randn(rows, D, generator=g, dtype=torch.float64, device="cpu")
    return u.to(dtype), x.to(dtype)


def gated_mixture(*, dtype=torch.float64, reference=True, ridge=0.0, components=C, weights=None):
    """z ~ GatedWeights(u, W, b), x ~ Normal(loc[z], scale[z]), from distinct starts."""
    g, own = torch.Generator("cpu").manual_seed(3), components - reference

    def start(*shape):
        return 0.5 * torch.randn(*shape, generator=g, dtype=torch.float64, device="cpu").to(dtype)

    starts = start(own, Q), start(own), 3 * start(components, D)

    def model(u, x=None, index=None, size=None):
        weight, bias = (
            pyro.param("weight", starts[0].clone()),
            pyro.param("bias", starts[1].clone()),
        )
        loc = pyro.param("loc", starts[2].clone())
        scale = pyro.param("scale", torch.ones_like(loc), constraint=constraints.positive)
        gate = GatedWeights(u, weight, bias, ridge=ridge, reference=reference)
        with (
            data_plate(u, index, size),
            pyro.poutine.scale(scale=1.0 if weights is None else weights),
        ):
            z = pyro.sample("z", gate)
            return pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)

    return model


def values():
    """The constrained params."""
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def dense_log_joint(u, x, p, *, reference=True, ridge=0.0):
    """log p(z, x) (N, C), from the definition."""
    weight, bias = p["weight"], p["bias"]
    eta = u @ weight.T + bias
    if reference:
        eta = torch.cat([torch.zeros_like(eta[:, :1]), eta], -1)
    prior = eta - eta.exp().sum(-1, keepdim=True).log() - ridge * weight.square().sum()
    normal = torch.distributions.Normal(p["loc"], p["scale"])
    return prior + normal.log_prob(x.unsqueeze(1)).sum(-1)
