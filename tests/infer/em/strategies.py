"""Strategies that tests of the fit loop have in common."""

import math

import pyro
import torch
from pyro.infer import SVI, TraceEnum_ELBO

from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.init import Seeds
from pyro_mixtures.models import GaussianMixture

C, D, N = 4, 3, 90


F64 = torch.float64


def mixture(x, components=C):
    """Means at rows, the data's variance: the same start at every call, in a fresh store."""
    pyro.clear_param_store()
    model = GaussianMixture(components=components, features=x.shape[1]).double()
    index = torch.arange(components)
    model.start_at(Seeds(index, x[index], x.var(0, correction=0)))
    return model


def exact(x, **options):
    model = mixture(x)
    return EM(model, FullPartition(model, components=C), **options)


def truncated(x, **options):
    model = mixture(x)
    return EM(
        model, TruncatedPartition(model, components=C, candidates=2, neighbors=3, seed=0), **options
    )


def svi(x, guide=FullPartition, lr=0.05):
    model = mixture(x)
    options = {} if guide is FullPartition else {"candidates": 2, "neighbors": 3, "seed": 0}
    return SVI(
        model,
        guide(model, components=C, **options),
        pyro.optim.Adam({"lr": lr}),
        TraceEnum_ELBO(max_plate_nesting=1),
    )


STRATEGIES = {
    "exact": exact,
    "truncated": truncated,
    "stepwise": lambda x: exact(x, step_size=lambda t: (t + 1) ** -0.6),
    "SVI": svi,
    "truncated SVI": lambda x: svi(x, TruncatedPartition),
}


def quiet(inference, *rows, **options):
    """A fit that no tolerance ends, without a progress bar."""
    return fit(
        inference, *rows, **{"tolerance": -math.inf, "progress": False, "warmup": 2, **options}
    )


def params(model):
    return {
        name: value.detach().clone()
        for name, value in model.state_dict().items()
        if torch.is_tensor(value)
    }


def assert_same(mine, theirs, **tolerance):
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], **tolerance)
