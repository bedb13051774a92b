"""k-means by EM, against scikit-learn."""

import math
from functools import cache

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

from pyro_mixtures.errors import DataError
from pyro_mixtures.guides import HardPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.init import Seeds
from pyro_mixtures.models.kmeans import KMeans
from tests.models.bregman_rows import inertia, nothing_moves, seeds

pytestmark = pytest.mark.usefixtures("on_one_thread")


@cache
def digits() -> Tensor:
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().data)


@pytest.mark.parametrize(
    ("components", "dtype"),
    [(10, torch.float64), (50, torch.float32), (50, torch.float64), (200, torch.float64)],
)
def test_k_means_equals_scikit_learn(components, dtype):
    from sklearn.cluster import KMeans as Peer
    from sklearn.cluster import kmeans_plusplus

    x = digits()
    start, index = kmeans_plusplus(x.numpy(), components, random_state=0)
    # Rows of integers may be equally far from two means, and either choice is right.
    start = start + 0.01 * np.random.default_rng(0).standard_normal(start.shape)
    peer = Peer(components, init=start, n_init=1, algorithm="lloyd", tol=0, max_iter=500).fit(
        x.numpy()
    )
    model = KMeans(components=components, features=64).to(dtype)
    model.start_at(Seeds(torch.from_numpy(index), torch.from_numpy(start), x.var(0)))
    guide = HardPartition(model, components=components)
    result = fit(
        EM(model, guide),
        x.to(dtype),
        epochs=500,
        tolerance=0.0,
        progress=False,
        callbacks=[nothing_moves],
    )
    assert guide.moved == 0
    assert int(guide.sizes.min()) > 0
    assert sum(epoch.reseeded for epoch in result.history.epochs) == 0
    assert torch.equal(guide.labels.long(), torch.from_numpy(peer.labels_).long())
    assert inertia(x, model.mean.detach(), guide.labels.long()) == pytest.approx(
        peer.inertia_, rel=1e-6
    )
    constant = len(x) * (math.log(components) + 32 * math.log(2 * math.pi))
    assert -2 * (result.elbo * len(x) + constant) == pytest.approx(peer.inertia_, rel=1e-4)


def test_spherical_k_means_equals_brute_force():
    x = digits()
    unit = x / x.norm(dim=-1, keepdim=True)
    model = KMeans(components=10, features=64, spherical=True).double()
    model.start_at(seeds(x, 10))
    guide = HardPartition(model, components=10)
    em, mean = EM(model, guide), model.mean.detach().clone()
    torch.testing.assert_close(mean.norm(dim=-1), torch.ones(10).double())
    for _ in range(10):
        loss = em.step(x)
        cosine = unit @ mean.T
        labels = cosine.argmax(-1)
        assert torch.equal(guide.labels.long(), labels)
        expected = float((1 - cosine.max(-1).values).sum()) + len(x) * math.log(10)
        assert loss == pytest.approx(expected, rel=1e-10)
        mean = torch.stack([unit[labels == c].sum(0) for c in range(10)])
        mean = mean / mean.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(model.mean.detach(), mean)


def test_spherical_k_means_refuses_rows_without_a_direction():
    x = torch.randn(6, 3)
    x[4] = 0.0
    with pytest.raises(DataError, match=r"row 4 is all zeros"):
        KMeans(components=2, features=3, spherical=True)(x)
    KMeans(components=2, features=3)(x)


def test_far_rows_are_clustered_as_near_ones():
    """The squares of 10^9 leave no digits for the distances, but the rows are exact."""
    x = (
        512 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    ).round().double() / 64
    found = []
    for offset in (0.0, 1e9):
        model = KMeans(components=5, features=3).double()
        start = seeds(x, 5)
        model.start_at(start._replace(loc=start.loc + offset))
        guide = HardPartition(model, components=5)
        fit(EM(model, guide), x + offset, progress=False, callbacks=[nothing_moves])
        found.append(guide.labels)
        pyro.clear_param_store()
    assert torch.equal(*found)
