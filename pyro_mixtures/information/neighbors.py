"""Neighbours in the maximum norm among rows with ties: distance to the k-th, numbers of closer rows, exactly."""

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from pyro_mixtures.information.variables import Variable

_FEW = 10_000  # searches, which one thread has done before others have started


class Neighborhoods(NamedTuple):
    """Around each of m distinct points of the joint space (x, y); rows at the same point share one."""

    first: np.ndarray  # (m,) a row at the point
    ties: np.ndarray  # (m,) rows at the point
    radius: np.ndarray  # (m,) distance to the k-th neighbour of such a row, itself excluded
    reached: np.ndarray  # (m,) k, or fewer where fewer rows lie at a finite distance


def neighborhoods(x: Variable, y: Variable, neighbors: int, *, workers: int = -1) -> Neighborhoods:
    """Each distinct point's k-th neighbour, from a tree of points with their numbers of rows: ties are cheap."""
    far = _beyond(x, y)
    joint = np.hstack([v.points * far if v.nominal else v.points for v in (x, y)])
    first, ties = _distinct(joint)
    points = joint[first]
    radius, reached = np.zeros(len(points)), np.full(len(points), neighbors)
    some = np.flatnonzero(ties <= neighbors)  # elsewhere the k-th neighbour lies at the same point
    if len(some):
        width = np.arange(
            1, min(neighbors + 1, len(points)) + 1
        )  # the k others at most, and the point itself
        distance, index = cKDTree(points).query(
            points[some], width, p=np.inf, workers=_threads(workers, len(some))
        )
        others = np.where(distance < far / 2, ties[index], 0).cumsum(1) - 1
        reached[some] = np.minimum(others[:, -1], neighbors)
        at = (others >= reached[some, None]).argmax(1)
        radius[some] = distance[np.arange(len(some)), at]
    return Neighborhoods(first, ties, radius, reached)


def rows_closer(
    variable: Variable, first: np.ndarray, radius: np.ndarray, *, workers: int = -1
) -> np.ndarray:
    """Numbers (m,) of rows strictly closer than ``radius`` to rows ``first`` (m,), or equal to them; those included."""
    points = variable.points
    if variable.nominal:
        labels = points[:, 0].astype(np.int64)
        return np.bincount(labels)[labels[first]]
    if points.shape[1] == 1:
        return _closer_on_a_line(points[:, 0], points[first, 0], radius)
    within = np.nextafter(
        radius, 0
    )  # at most this far is strictly closer than the radius; 0 stays 0
    threads = _threads(workers, len(first))
    return cKDTree(points).query_ball_point(
        points[first], within, p=np.inf, workers=threads, return_length=True
    )


def _threads(workers: int, queries: int) -> int:
    return workers if queries > _FEW else 1


def _distinct(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A row number of each distinct row, and their numbers. (Several times faster than np.unique(axis=0).)"""
    order = np.lexsort(points.T)
    begins = np.flatnonzero(
        np.concatenate([[True], (points[order[1:]] != points[order[:-1]]).any(1)])
    )
    return order[begins], np.diff(begins, append=len(points))


def _beyond(x: Variable, y: Variable) -> float:
    """More than twice all finite distances: names become coordinates that far apart, which stands for infinity."""
    if not (x.nominal or y.nominal):
        return np.inf
    return 1.0 + 2.0 * max(
        (np.ptp(v.points, axis=0).max() for v in (x, y) if not v.nominal), default=0.0
    )


def _closer_on_a_line(values: np.ndarray, at: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """By sorting. Ends of intervals are mended until differences, not rounded ends, decide: ties must count exactly."""
    distinct, ties = np.unique(values, return_counts=True)
    before = np.concatenate([[0], ties.cumsum()])
    low = np.searchsorted(distinct, at - radius)
    high = np.searchsorted(distinct, at + radius, side="right") - 1

    def inside(index: np.ndarray) -> np.ndarray:
        known = (index >= 0) & (index < len(distinct))
        difference = np.abs(distinct[index.clip(0, len(distinct) - 1)] - at)
        return known & ((difference < radius) | (difference == 0))

    for end, outwards in ((low, -1), (high, 1)):
        while (more := inside(end + outwards)).any():
            end[more] += outwards
        while (less := ~inside(end)).any():
            end[less] -= outwards
    return before[high + 1] - before[low]
