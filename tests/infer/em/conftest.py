"""Fixtures of the tests of EM and of the fit loop."""

import sys

import pytest
import torch

from tests.infer.em.clusters import FAMILIES
from tests.infer.em.strategies import F64, STRATEGIES, C, D, N


@pytest.fixture
def x():
    """Overlapping clusters, on which EM needs many epochs."""
    first_feature = 1.5 * torch.arange(N, dtype=F64).remainder(C).unsqueeze(-1)
    return first_feature + torch.randn(N, D, dtype=F64)


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    return STRATEGIES[request.param]


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture
def small_batches(monkeypatch):
    """Fits take the smallest batches, as if no parameters fitted into a cache."""
    fitting = sys.modules["pyro_mixtures.infer.em.batching"]
    monkeypatch.setattr(fitting, "_BATCH_BYTES", 1)
    monkeypatch.setattr(fitting, "_CACHED_BYTES", 0)
