"""How far two partitions of the same rows agree, whatever their parts are numbered."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError
from pyro_mixtures.partition.sparse_matching import match_overlap

Labels = Tensor | np.ndarray | Sequence[int]


class Agreement(NamedTuple):
    """Of two partitions; both numbers are 1 where they are the same up to the parts' numbers."""

    rand: float  # adjusted Rand index: 0 on average for partitions drawn at random with these sizes
    matched: float  # share of rows that lie in parts matched with each other


def agreement(a: Labels, b: Labels) -> Agreement:
    """Agreement of labels ``a`` and ``b``, integers (N,); rows with a negative label in either do not count.

    Adjusted Rand index: Hubert & Arabie, "Comparing partitions", Journal of Classification 2
    (1985). Parts are matched one to one so that most rows agree, by a sparse assignment that never
    holds an array of all pairs of parts.

    :param a, b: tensors, arrays or lists.
    :raises DataError: when they are no integers (N,) of as many rows, or no row counts.

    >>> a = torch.tensor([0, 0, 1, 1], device="cpu")
    >>> agreement(a, 5 - a)
    Agreement(rand=1.0, matched=1.0)
    """
    count = _table(a, b)
    return Agreement(_adjusted_rand(count), _matched(count) / float(count.sum()))


def _table(a: Labels, b: Labels) -> csr_array:
    """How many rows each part of ``a`` shares with each part of ``b``, of those that are not empty."""
    both = [as_rows(a), as_rows(b)]
    for name, labels in zip("ab", both, strict=True):
        if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise DataError(
                f"{name} is {labels.dtype} {tuple(labels.shape)}: labels are integers (N,)"
            )
    if len(both[0]) != len(both[1]):
        raise DataError(
            f"labels of {len(both[0])} and of {len(both[1])} rows: both partitions must be of the same rows"
        )
    pair = torch.stack([labels.to("cpu", torch.int64) for labels in both])
    pair = pair[:, (pair >= 0).all(0)]
    if not pair.shape[1]:
        raise DataError("no row has a label in both partitions: nothing to compare")
    place = [np.unique(labels, return_inverse=True)[1] for labels in pair.numpy()]
    ones = np.ones(pair.shape[1], dtype=np.int64)
    return coo_array((ones, tuple(place))).tocsr()  # entries of equal place add up


def _pairs(count: np.ndarray) -> float:
    count = count.astype(np.float64)
    return float((count * (count - 1) / 2).sum())


def _adjusted_rand(count: csr_array) -> float:
    both, first, second = _pairs(count.data), _pairs(count.sum(1)), _pairs(count.sum(0))
    total = _pairs(np.array([count.sum()]))
    expected = first * second / total if total else 0.0
    highest = (first + second) / 2
    # Equal only where both have one part, or every row its own: no other partitions have these
    # sizes.
    return 1.0 if highest == expected else (both - expected) / (highest - expected)


def _matched(count: csr_array) -> float:
    """Most rows that parts matched one to one share."""
    square = count.copy()
    square.resize((max(count.shape),) * 2)  # parts that are too many are matched with empty ones
    return float(square[np.arange(square.shape[0]), match_overlap(square)].sum())
