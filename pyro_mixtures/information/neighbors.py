"""Exact k-th neighbor distances and neighbor counts, in the maximum norm, for rows with ties."""

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from pyro_mixtures.information.variables import Variable

_SERIAL_QUERIES = 10_000  # fewer queries are done before other threads have started


class Neighborhoods(NamedTuple):
    """The neighborhoods of the m distinct points of the joint space (x, y).

    Rows at the same point share one.
    """

    first: np.ndarray  # (m,) number of one row at the point
    ties: np.ndarray  # (m,) number of rows at the point
    radius: np.ndarray  # (m,) distance from such a row to its k-th neighbor, itself excluded
    closer: np.ndarray  # (m,) number of rows strictly closer than the radius, or at distance 0
    reached: np.ndarray  # (m,) k, or fewer if fewer rows lie at a finite distance


def neighborhoods(x: Variable, y: Variable, neighbors: int, *, workers: int = -1) -> Neighborhoods:
    """Find the k-th neighbor of each distinct point, k being ``neighbors``.

    The search tree holds distinct points with their numbers of rows, so that ties are cheap.
    """
    far = _far_distance(x, y)
    joint = np.hstack([v.points * far if v.nominal else v.points for v in (x, y)])
    first, ties = _distinct_points(joint)
    points = joint[first]
    radius, reached = np.zeros(len(points)), np.full(len(points), neighbors)
    closer = ties.copy()
    # Where more than k rows coincide, the k-th neighbor lies at the same point.
    searched = np.flatnonzero(ties <= neighbors)
    if len(searched):
        # At most k other points are needed, and the tree also returns the point itself.
        ranks = np.arange(1, min(neighbors + 1, len(points)) + 1)
        distance, index = cKDTree(points).query(
            points[searched], ranks, p=np.inf, workers=_threads(workers, len(searched))
        )
        other_rows = np.where(distance < far / 2, ties[index], 0).cumsum(1) - 1
        reached[searched] = np.minimum(other_rows[:, -1], neighbors)
        kth = (other_rows >= reached[searched, None]).argmax(1)
        radius[searched] = distance[np.arange(len(searched)), kth]
        is_closer = (distance < radius[searched, None]) | (distance == 0)
        closer[searched] = np.where(is_closer, ties[index], 0).sum(1)
    return Neighborhoods(first, ties, radius, closer, reached)


def rows_closer(
    variable: Variable, first: np.ndarray, radius: np.ndarray, *, workers: int = -1
) -> np.ndarray:
    """Count the rows (m,) strictly closer than ``radius`` (m,) to the rows ``first`` (m,).

    Rows at distance 0, including the row itself, always count.
    """
    points = variable.points
    if variable.nominal:
        labels = points[:, 0].astype(np.int64)
        return np.bincount(labels)[labels[first]]
    if points.shape[1] == 1:
        return _closer_on_a_line(points[:, 0], points[first, 0], radius)
    # The tree counts distances of at most the given one. A radius of 0 stays 0.
    largest_distance = np.nextafter(radius, 0)
    threads = _threads(workers, len(first))
    counts: np.ndarray = cKDTree(points).query_ball_point(
        points[first], largest_distance, p=np.inf, workers=threads, return_length=True
    )
    return counts


def sample_entropy(variable: Variable) -> float:
    """Return the entropy of the values in nats, or infinity for numbers without ties."""
    ties = _distinct_points(variable.points)[1]
    if len(ties) == len(variable.points) and not variable.nominal:
        return float(np.inf)
    share = ties / len(variable.points)
    return float(-(share * np.log(share)).sum())


def _threads(workers: int, queries: int) -> int:
    return workers if queries > _SERIAL_QUERIES else 1


def _distinct_points(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One row number per distinct row, and the multiplicities.

    This is several times faster than ``np.unique(axis=0)``.
    """
    order = np.lexsort(points.T)
    changes = (points[order[1:]] != points[order[:-1]]).any(1)
    starts = np.flatnonzero(np.concatenate([[True], changes]))
    return order[starts], np.diff(starts, append=len(points))


def _far_distance(x: Variable, y: Variable) -> float:
    """A distance larger than twice all finite ones, which stands for infinity between labels."""
    if not (x.nominal or y.nominal):
        return np.inf
    ranges = (np.ptp(v.points, axis=0).max() for v in (x, y) if not v.nominal)
    return 1.0 + 2.0 * float(max(ranges, default=0.0))


def _closer_on_a_line(values: np.ndarray, centers: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """The counts of :func:`rows_closer` for one column, from its sorted values.

    Ties must count exactly. The ends of the intervals are rounded, so they are corrected until the
    differences to the centers, which decide, agree.
    """
    distinct, ties = np.unique(values, return_counts=True)
    rows_before = np.concatenate([[0], ties.cumsum()])
    low = np.searchsorted(distinct, centers - radius)
    high = np.searchsorted(distinct, centers + radius, side="right") - 1

    def is_closer(index: np.ndarray) -> np.ndarray:
        exists = (index >= 0) & (index < len(distinct))
        difference = np.abs(distinct[index.clip(0, len(distinct) - 1)] - centers)
        closer: np.ndarray = exists & ((difference < radius) | (difference == 0))
        return closer

    for end, outwards in ((low, -1), (high, 1)):
        while (extended := is_closer(end + outwards)).any():
            end[extended] += outwards
        while (shortened := ~is_closer(end)).any():
            end[shortened] -= outwards
    counts: np.ndarray = rows_before[high + 1] - rows_before[low]
    return counts
