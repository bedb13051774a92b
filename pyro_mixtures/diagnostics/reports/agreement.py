"""Agreement of two partitions of the same rows, independent of how their clusters are numbered."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError
from pyro_mixtures.partition.sparse_matching import match_overlap

Labels = Tensor | np.ndarray | Sequence[int]


class Agreement(NamedTuple):
    """Agreement of two partitions; both numbers are 1 if they differ in the numbering only."""

    rand: float  # adjusted Rand index: 0 on average for random partitions with the same sizes
    matched: float  # share of rows in clusters that are matched with each other


def agreement(a: Labels, b: Labels) -> Agreement:
    """Measure the agreement of two partitions of the same rows.

    The adjusted Rand index is scikit-learn's (Hubert & Arabie, "Comparing partitions", Journal of
    Classification 2, 1985). For the share of matched rows, clusters are matched one to one such
    that as many rows as possible agree. The assignment is sparse: no array of all pairs of clusters
    is formed.

    :param a, b: integer labels (N,), tensors, arrays or lists. Rows with a negative label in either
        are left out.
    :returns: the adjusted Rand index and the share of matched rows.
    :raises DataError: if the labels are not integers (N,) for the same number of rows, or no row
        has a label in both.

    >>> a = torch.tensor([0, 0, 1, 1], device="cpu")
    >>> agreement(a, 5 - a)
    Agreement(rand=1.0, matched=1.0)
    """
    from sklearn.metrics import adjusted_rand_score  # slow to import

    a_labels, b_labels = _common_rows(a, b)
    rand = float(adjusted_rand_score(a_labels, b_labels))
    return Agreement(rand, _matched_rows(a_labels, b_labels) / len(a_labels))


def _common_rows(a: Labels, b: Labels) -> tuple[np.ndarray, np.ndarray]:
    """The labels of the rows that have a label in both partitions."""
    a_labels, b_labels = _read_labels(a, "a"), _read_labels(b, "b")
    if len(a_labels) != len(b_labels):
        raise DataError(
            f"a has labels of {len(a_labels)} rows, b of {len(b_labels)}: "
            "both partitions must be of the same rows"
        )
    labeled = (a_labels >= 0) & (b_labels >= 0)
    if not labeled.any():
        raise DataError("no row has a label in both partitions: there is nothing to compare")
    return a_labels[labeled], b_labels[labeled]


def _read_labels(values: Labels, name: str) -> np.ndarray:
    labels = as_rows(values)
    if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"{name} is {labels.dtype} {tuple(labels.shape)}: labels must be integers (N,)"
        )
    return labels.to("cpu", torch.int64).numpy()


def _matched_rows(a: np.ndarray, b: np.ndarray) -> float:
    """The maximum number of rows that clusters matched one to one have in common."""
    from sklearn.metrics.cluster import contingency_matrix

    counts = contingency_matrix(a, b, sparse=True)
    # Clusters in excess are matched with empty ones.
    counts.resize((max(counts.shape),) * 2)
    return float(counts[np.arange(counts.shape[0]), match_overlap(counts)].sum())
