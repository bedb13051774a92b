"""Agreement of partitions: adjusted Rand index, and the best one-to-one matching of clusters."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from pyro_mixtures.diagnostics.reports.agreement import agreement
from pyro_mixtures.errors import DataError

pairs = st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 3)), min_size=1, max_size=40)


def dense_matching(a: np.ndarray, b: np.ndarray) -> float:
    table = np.zeros((10, 10))
    np.add.at(table, (a, b), 1)
    return table[linear_sum_assignment(table, maximize=True)].sum() / len(a)


@given(pairs)
def test_equals_references(rows):
    a, b = (torch.tensor(column, device="cpu") for column in zip(*rows, strict=True))
    labeled = (a >= 0) & (b >= 0)
    if not bool(labeled.any()):
        return
    result, both = agreement(a, b), (a[labeled].numpy(), b[labeled].numpy())
    assert result.rand == pytest.approx(adjusted_rand_score(*both), abs=1e-12)
    assert result.matched == pytest.approx(dense_matching(*both), abs=1e-12)


@pytest.mark.meta
def test_does_not_depend_on_the_numbering_of_many_clusters():
    generator = torch.Generator("cpu").manual_seed(0)
    a = torch.randint(3000, (20_000,), generator=generator, device="cpu")
    b = torch.randperm(3000, generator=generator, device="cpu")[a]
    assert agreement(a, b.int()) == (1.0, 1.0)
    b[:2000] = b[:2000].roll(1)
    result = agreement(a, b)
    assert result.rand == pytest.approx(adjusted_rand_score(a.numpy(), b.numpy()), abs=1e-12)
    # A tenth of the rows moved, a few of them to their own cluster.
    assert 0.9 <= result.matched < 0.92


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), r"a is torch.float32 \(3,\)"),
        (torch.zeros(3).long(), torch.zeros(3).bool(), r"b is torch.bool \(3,\)"),
        (torch.zeros(3, 1).long(), torch.zeros(3).long(), r"a is torch.int64 \(3, 1\)"),
        (torch.zeros(3).long(), torch.zeros(4).long(), "labels of 3 rows, b of 4"),
        (torch.full((3,), -1), torch.zeros(3).long(), "no row has a label"),
    ],
)
def test_refusals(a, b, message):
    with pytest.raises(DataError, match=message):
        agreement(a, b)


def test_accepts_arrays_and_lists():
    a, b = torch.tensor([0, 0, 1, -1], device="cpu"), torch.tensor([2, 2, 1, 1], device="cpu")
    assert agreement(a.numpy(), b.tolist()) == agreement(a, b) == (1.0, 1.0)
    with pytest.raises(DataError, match="real numbers"):
        agreement(a, ["w", "x", "y", "z"])
