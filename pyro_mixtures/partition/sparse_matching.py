"""Matching of many components, from a sparse matrix of the pairs that may belong together."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix, csr_matrix, sparray, spmatrix
from scipy.spatial import cKDTree
from torch import Tensor

from pyro_mixtures.errors import DataError
from pyro_mixtures.ops.kernels.jit import Array
from pyro_mixtures.ops.kernels.numba_matching import match
from pyro_mixtures.options import check_whole
from pyro_mixtures.partition.matching import match_components

# Up to this number of components a dense matrix is matched.
_DENSE = 1024


def match_overlap(overlap: spmatrix | sparray, *, dense: int = _DENSE) -> Array:
    """Find the permutation p of the largest total ``overlap[k, p[k]]``.

    Exact up to the rounding of float64, at any sparsity. Small matrices are matched by the
    Hungarian method on the dense matrix, others by successive shortest paths on the sparse one.
    There a component may stay unmatched, with no contribution to the total, so a complete matching
    need not exist (Jonker & Volgenant, "A shortest augmenting path algorithm for dense and sparse
    linear assignment problems", Computing 38, 1987; without their row reduction, whose steps may be
    as small as the least difference of two weights). Unmatched components are paired in order; no
    overlap of theirs would raise the total.

    :param overlap: (C, C) sparse matrix of numbers >= 0.
    :param dense: largest number of components for the dense method.
    :returns: (C,) p.
    :raises DataError: when the matrix is not square, or contains a negative or infinite number or
        NaN.

    >>> overlap = csr_matrix([[0.0, 5.0, 0.0], [4.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> match_overlap(overlap).tolist()
    [1, 0, 2]
    """
    overlap = csr_matrix(overlap, dtype=np.float64)
    _check(overlap)
    if overlap.shape[0] <= dense:
        _, columns = linear_sum_assignment(overlap.toarray(), maximize=True)
        return np.asarray(columns)
    overlap.eliminate_zeros()
    cost = overlap / -overlap.data.max(initial=1e-300)
    return _completed(_matched_columns(cost, unmatched_cost=0.0))


def match_nearest(a: Tensor, b: Tensor, *, neighbors: int = 16, dense: int = _DENSE) -> Tensor:
    """Find the permutation of least total distance between ``a[permutation]`` and ``b``.

    For few components, and if ``neighbors`` covers all of them, this is :func:`match_components`.
    Otherwise only pairs are considered of which one is among the ``neighbors`` nearest of the
    other. The result is the least total of such matchings, which is the least of all unless a more
    distant pair would be part of that. If there is no complete matching of such pairs (many
    components of ``a`` where ``b`` has few), all pairs are matched exactly, with a dense (C, C)
    matrix.

    :param a: (C, P).
    :param b: (C, P).
    :param dense: largest number of components for which all pairs are considered.
    :returns: (C,) int64, on the device of ``a``.
    :raises DataError: as :func:`match_components`.
    :raises OptionError: when ``neighbors`` is not a positive integer.

    >>> a, b = torch.tensor([[5.0], [0.1], [2.0]]), torch.tensor([[0.0], [2.5], [4.0]])
    >>> match_nearest(a, b, neighbors=1, dense=2)
    tensor([1, 2, 0])
    """
    check_whole(neighbors=neighbors)
    if a.shape != b.shape or a.dim() != 2 or len(a) <= max(dense, neighbors):
        return match_components(a, b)
    if not bool(a.isfinite().all()) or not bool(b.isfinite().all()):
        return match_components(a, b)  # raises the error that names the row
    a_rows, b_rows = (t.detach().cpu().double().numpy() for t in (a, b))
    columns = _matched_columns(_distances(a_rows, b_rows, neighbors), unmatched_cost=np.inf)
    if columns.min() < 0:
        return match_components(a, b)
    return torch.from_numpy(columns).to(a.device)


def _check(overlap: csr_matrix) -> None:
    if overlap.shape[0] != overlap.shape[1] or not overlap.shape[0]:
        raise DataError(
            f"overlaps are {overlap.shape}, but must be a square matrix with a row and a column "
            "for each component"
        )
    if not np.isfinite(overlap.data).all() or (overlap.data < 0).any():
        raise DataError(
            "overlaps must be finite and not negative: they are sums of products of "
            "responsibilities"
        )


def _matched_columns(cost: csr_matrix, *, unmatched_cost: float) -> Array:
    """Match the stored entries of ``cost``: the column (C,) of each row, -1 if unmatched."""
    starts, columns = cost.indptr.astype(np.int64), cost.indices.astype(np.int64)
    return match(starts, columns, cost.data, unmatched_cost)


def _completed(columns: Array) -> Array:
    """Give the unmatched rows the remaining columns, in order."""
    remaining = np.setdiff1d(np.arange(len(columns)), columns)
    columns[columns < 0] = remaining
    return columns


def _distances(a: Array, b: Array, neighbors: int) -> csr_matrix:
    """Compute the distances of ``b`` (rows) from ``a`` (columns) where one is near the other."""
    nearest_in_a = cKDTree(a).query(b, neighbors)[1]
    nearest_in_b = cKDTree(b).query(a, neighbors)[1]
    numbers = np.repeat(np.arange(len(a)), neighbors)
    rows = np.concatenate([numbers, nearest_in_b.reshape(-1)])
    columns = np.concatenate([nearest_in_a.reshape(-1), numbers])
    distinct = np.unique(rows * len(a) + columns)
    rows, columns = distinct // len(a), distinct % len(a)
    distances = np.linalg.norm(a[columns] - b[rows], axis=1)
    return coo_matrix((distances, (rows, columns))).tocsr()
