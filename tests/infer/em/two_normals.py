"""A program of two normal components, for tests of EM."""

import pyro
import torch
from pyro import poutine
from torch.distributions import constraints

from pyro_mixtures import (
    DiagonalNormals,
    MixtureWeights,
    data_plate,
)

LOC = torch.tensor([[-2.0, 0.0], [2.0, 0.5]])


def rows(n: int = 200) -> torch.Tensor:
    return LOC[torch.arange(n) % 2] + torch.randn(n, 2)


def params():
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    loc = pyro.param("loc", LOC + 0.3)
    return weights, loc, pyro.param("scale", torch.ones(2, 2), constraint=constraints.positive)


def base(x, index=None, size=None, scale=1.0, mask=True):
    weights, loc, sd = params()
    with data_plate(x, index, size):
        z = pyro.sample("z", MixtureWeights(weights))
        with poutine.scale(scale=scale), poutine.mask(mask=mask):
            pyro.sample("x", DiagonalNormals(loc, sd)[z], obs=x)
