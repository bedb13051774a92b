"""Programs, rows and a maximizer for the tests of uncertainty."""

import pyro
import torch
from scipy.optimize import minimize
from torch.distributions import constraints

from pyro_mixtures.distributions import (
    DiagonalNormals,
    MixtureWeights,
)
from pyro_mixtures.infer.uncertainty.exact_likelihood import ExactLikelihood
from pyro_mixtures.poutine import data_plate

F64 = torch.float64
N = 80
DTYPES = [torch.float32, torch.float64]


def alone(family, *rows):
    """Rows of one component."""
    with data_plate(rows[-1]):
        z = pyro.sample("z", MixtureWeights(torch.ones(1, device="cpu")))
        pyro.sample("x", family[z], obs=rows[-1])


def climb(model, *rows):
    """Put the params at the maximum nearby, by scipy."""
    likelihood = ExactLikelihood(model, rows, "z", None, frozenset(), None)

    def loss(u):
        slope, log_evidence = likelihood.slope(torch.from_numpy(u))
        return -log_evidence.sum().item(), -slope.numpy()

    start = likelihood.params.start.numpy()
    u = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 300},
    ).x
    with torch.no_grad():
        parts = torch.from_numpy(u).split(likelihood.params.sizes)
        for handle, part in zip(likelihood.params.handles, parts, strict=True):
            handle.leaf.copy_(part.reshape(handle.leaf.shape))


def two_gaussians(x):
    weights = pyro.param(
        "weights", torch.tensor([0.4, 0.6], dtype=F64, device="cpu"), constraint=constraints.simplex
    )
    loc = pyro.param("loc", torch.tensor([[-1.0], [1.5]], dtype=F64, device="cpu"))
    scale = pyro.param(
        "scale", torch.ones(2, 1, dtype=F64, device="cpu"), constraint=constraints.positive
    )
    with data_plate(x):
        z = pyro.sample("z", MixtureWeights(weights))
        pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)


def groups(rows=300):
    which = (torch.arange(rows, device="cpu") % 5 < 2).double().unsqueeze(-1)
    return torch.randn(rows, 1, dtype=F64, device="cpu") + 1.8 - 3.6 * which
