"""The best permutation of many components, from a sparse matrix of the pairs that can belong together."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix, csr_matrix, sparray, spmatrix
from scipy.spatial import cKDTree
from torch import Tensor

from pyro_mixtures.errors import DataError
from pyro_mixtures.ops.kernels.numba_matching import match
from pyro_mixtures.options import check_whole
from pyro_mixtures.partition.matching import match_components

# Up to so many components a dense matrix is matched.
_DENSE = 1024


def match_overlap(overlap: spmatrix | sparray, *, dense: int = _DENSE) -> np.ndarray:
    """Permutation p (C,) of the largest total ``overlap[k, p[k]]``, for a matrix (C, C) of numbers >= 0.

    Exact, up to the rounding of float64, at any sparsity. Up to ``dense`` components by the
    Hungarian method on the dense matrix. Beyond, by successive shortest paths in the sparse one,
    where a component may also stay unmatched at no gain: so it need not be possible to match all.
    (Jonker & Volgenant, "A shortest augmenting path algorithm for dense and sparse linear
    assignment problems", Computing 38, 1987; without their row reduction, whose steps may be as
    small as the least difference of two weights.) What stays unmatched has no overlap that would
    raise the total, and is paired in its order.

    :raises DataError: when the matrix is not square, or holds a negative or infinite number or NaN.

    >>> match_overlap(csr_matrix([[0.0, 5.0, 0.0], [4.0, 1.0, 0.0], [0.0, 0.0, 0.0]])).tolist()
    [1, 0, 2]
    """
    overlap = csr_matrix(overlap, dtype=np.float64)
    _check(overlap)
    if overlap.shape[0] <= dense:
        return linear_sum_assignment(overlap.toarray(), maximize=True)[1]
    overlap.eliminate_zeros()
    return _completed(_columns(overlap / -overlap.data.max(initial=1e-300), alone=0.0))


def match_nearest(a: Tensor, b: Tensor, *, neighbors: int = 16, dense: int = _DENSE) -> Tensor:
    """Permutation (C,) of least total distance between ``a[permutation]`` and ``b`` (C, P), of many components.

    Up to ``dense`` components, and when ``neighbors`` says all, this is :func:`match_components`.
    Beyond, only pairs count of which one is among the ``neighbors`` nearest of the other: the least
    total among those matchings, which is the least of all unless a pair farther apart would be in
    it. When no such matching is full (a crowd of components of ``a`` where ``b`` has few) all pairs
    are matched, exactly, with a dense (C, C) matrix.

    :raises DataError: as :func:`match_components`. :raises OptionError: when ``neighbors`` is no
        positive whole number.

    >>> match_nearest(torch.tensor([[5.0], [0.1], [2.0]]), torch.tensor([[0.0], [2.5], [4.0]]), neighbors=1, dense=2)
    tensor([1, 2, 0])
    """
    check_whole(neighbors=neighbors)
    if a.shape != b.shape or a.dim() != 2 or len(a) <= max(dense, neighbors):
        return match_components(a, b)
    if not bool(a.isfinite().all()) or not bool(b.isfinite().all()):
        return match_components(a, b)  # which says where
    mine, other = (t.detach().cpu().double().numpy() for t in (a, b))
    columns = _columns(_distances(mine, other, neighbors), alone=np.inf)
    if columns.min() < 0:
        return match_components(a, b)
    return torch.from_numpy(columns).to(a.device)


def _check(overlap: csr_matrix) -> None:
    if overlap.shape[0] != overlap.shape[1] or not overlap.shape[0]:
        raise DataError(
            f"overlaps are {overlap.shape}: give a square matrix, a row and a column for each component"
        )
    if not np.isfinite(overlap.data).all() or (overlap.data < 0).any():
        raise DataError(
            "overlaps must be finite and not negative: they are sums of products of responsibilities"
        )


def _columns(cost: csr_matrix, *, alone: float) -> np.ndarray:
    """The column (C,) of each row at the least total cost, -1 where it stays alone; only numbers stored are pairs."""
    return match(cost.indptr.astype(np.int64), cost.indices.astype(np.int64), cost.data, alone)


def _completed(partner: np.ndarray) -> np.ndarray:
    """Rows without a partner take the columns that are left, in order."""
    left = np.setdiff1d(np.arange(len(partner)), partner)
    partner[partner < 0] = left
    return partner


def _distances(a: np.ndarray, b: np.ndarray, neighbors: int) -> csr_matrix:
    """Distances between each of ``b`` (rows) and ``a`` (columns) where one is near the other."""
    near_a, near_b = cKDTree(a).query(b, neighbors)[1], cKDTree(b).query(a, neighbors)[1]
    count = np.arange(len(a))
    rows = np.concatenate([np.repeat(count, neighbors), near_b.reshape(-1)])
    columns = np.concatenate([near_a.reshape(-1), np.repeat(count, neighbors)])
    once = np.unique(rows * len(a) + columns)
    rows, columns = once // len(a), once % len(a)
    return coo_matrix((np.linalg.norm(a[columns] - b[rows], axis=1), (rows, columns))).tocsr()
