"""Clustered rows, and fits of them, for tests of batches and of search epochs."""

import math

import pyro
import torch

from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import fit
from pyro_mixtures.init import Seeds
from pyro_mixtures.models import GaussianMixture, MixtureOfFactorAnalyzers

F32, F64 = torch.float32, torch.float64


FAMILIES = {
    "isotropic": lambda c, d: GaussianMixture(components=c, features=d, covariance="isotropic"),
    "diagonal": lambda c, d: GaussianMixture(components=c, features=d, covariance="diagonal"),
    "full": lambda c, d: GaussianMixture(components=c, features=d, covariance="full"),
    "factors": lambda c, d: MixtureOfFactorAnalyzers(components=c, features=d, factors=2),
}


PARTITIONS = {
    "exact": lambda model: FullPartition(model, components=model.components),
    "truncated": lambda model: TruncatedPartition(
        model, components=model.components, candidates=2, neighbors=4, explore=1, seed=0
    ),
    "all": lambda model: TruncatedPartition(
        model,
        components=model.components,
        candidates=model.components,
        neighbors=model.components,
        seed=0,
    ),
}


def clusters(rows, features, components=6, apart=3.0):
    """Rows (N, D) of alternating clusters: sorting by component changes their order."""
    center = apart * torch.randn(components, features, dtype=F64)
    return center[torch.arange(rows) % components] + torch.randn(rows, features, dtype=F64)


def started(build, x, components, dtype=F64):
    """Means at rows, the data's variance: the same start at every call, in a fresh store."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    rows = x.double()
    model = build(components, x.shape[1]).to(dtype)
    index = torch.arange(components)
    model.start_at(Seeds(index, rows[index], rows.var(0, correction=0)))
    return model


def quiet(inference, *rows, **options):
    """A fit that no tolerance ends, without a progress bar."""
    return fit(
        inference,
        *rows,
        **{"tolerance": -math.inf, "progress": False, "warmup": 2, "epochs": 3, **options},
    )


def params(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def assert_same(mine, theirs, **tolerance):
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], **tolerance)
