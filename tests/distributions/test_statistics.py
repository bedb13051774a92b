"""Sufficient statistics add up, blend, and move to another center."""

import pytest
import torch

from pyro_mixtures.distributions import Categoricals, MixtureWeights
from pyro_mixtures.distributions.statistics import (
    FactorStatistics,
    NormalStatistics,
    add,
    blend,
    scaled,
    subset,
)
from pyro_mixtures.ops import Moments, Pairs, pair_moments

F64 = torch.float64


def statistics_about(center, x, q, z):
    """NormalStatistics with outer products, about any center."""
    eye = torch.eye(2, dtype=F64).expand(3, 2, 2)
    moments = pair_moments(x, center, eye, q.reshape(-1), Pairs(z.reshape(-1, len(x)), 3))
    assert isinstance(moments, Moments)
    return NormalStatistics(center, *moments)


def assert_equal(mine, theirs):
    for left, right in zip(mine, theirs, strict=True):
        torch.testing.assert_close(left, right)


@pytest.fixture
def rows():
    return torch.randn(20, 2, dtype=F64), torch.rand(20, dtype=F64), torch.randint(3, (20,))


def test_recentered_statistics_are_those_about_the_new_center(rows):
    old, new = torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64)
    assert_equal(statistics_about(old, *rows).recentered(new), statistics_about(new, *rows))


def test_recentered_factor_statistics_are_those_about_the_new_center(rows):
    x, q, z = rows
    old, new = torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64)
    f = torch.randn(20, 1, dtype=F64)  # any factors: here they do not depend on the center

    def about(center):
        s = statistics_about(center, x, q, z)
        hot = torch.nn.functional.one_hot(z, 3) * q.unsqueeze(-1)
        away = x - center[z]
        sums = [
            torch.einsum(e, hot, *t)
            for e, t in (
                ("nc,nh->ch", [f]),
                ("nc,nh,ng->chg", [f, f]),
                ("nc,nh,nd->chd", [f, away]),
            )
        ]
        return FactorStatistics(center, s.count, s.first, s.second, *sums)

    assert_equal(about(old).recentered(new), about(new))


def test_statistics_add_over_disjoint_rows_and_blend_about_the_new_center(rows):
    x, q, z = rows
    old, new = torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64)
    whole = statistics_about(new, x, q, z)
    batches = [
        statistics_about(new, x[numbers], q[numbers], z[numbers])
        for numbers in torch.arange(20).split(7)
    ]
    assert_equal(add(add(batches[0], batches[1]), batches[2]), whole)
    assert_equal(scaled(whole, 2.0), statistics_about(new, x, 2 * q, z))
    mixed = blend(statistics_about(old, x, q, z), statistics_about(new, x, 3 * q, z), 0.25)
    assert_equal(mixed, statistics_about(new, x, 1.5 * q, z))


def test_weights_and_labels_blend_without_a_center():
    counts = MixtureWeights(torch.full((2,), 0.5)).statistics(
        torch.tensor([0, 0, 1]), torch.ones(3)
    )
    assert blend(counts, scaled(counts, 3.0), 0.5).counts.tolist() == [4.0, 2.0]
    labels = Categoricals(torch.full((2, 2), 0.5))[torch.tensor([0, 1])].statistics(
        torch.tensor([1, 0]), torch.ones(2)
    )
    assert blend(labels, labels, 0.5).counts.tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_statistics_of_a_block_of_components_are_views(rows):
    whole = statistics_about(torch.randn(3, 2, dtype=F64), *rows)
    block = subset(whole, slice(1, 3))
    assert_equal(block, [tensor[1:3] for tensor in whole])
    assert block.outer.data_ptr() == whole.outer[1].data_ptr()
