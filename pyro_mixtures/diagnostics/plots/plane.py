"""The plane of two features or principal axes in which rows and components are drawn."""

from typing import NamedTuple

import numpy as np

from pyro_mixtures.diagnostics.plots.drawing import Array, to_finite
from pyro_mixtures.errors import DataError

_TINY = 1e-300  # keeps quotients finite


class Plane(NamedTuple):
    """Two orthonormal axes through a center."""

    center: np.ndarray  # (D,)
    axes: np.ndarray  # (2, D), orthonormal
    names: tuple[str, str]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return the coordinates (N, 2) of rows (N, D)."""
        coordinates: np.ndarray = (rows - self.center) @ self.axes.T
        return coordinates


def plane_of(loc: np.ndarray, covariance: np.ndarray | None, rows: Array | None) -> Plane:
    """Return the features themselves if there are two, otherwise the first two principal axes.

    The principal axes are those of the rows, or without rows those of the mixture with equal
    weights.

    :raises DataError: for fewer than two features, or rows with other features than the means.
    """
    features = loc.shape[1]
    points = loc if rows is None else to_finite("rows", rows)
    if features < 2 or points.ndim != 2 or points.shape[1] != features:
        raise DataError(
            f"a plane needs rows (N, D) of two features or more, as many as the means have, not "
            f"{points.shape}"
        )
    if features == 2:
        return Plane(np.zeros(2), np.eye(2), ("Feature 0", "Feature 1"))
    center = points.mean(0)
    scatter = (points - center).T @ (points - center) / len(points)
    if rows is None and covariance is not None:
        scatter = scatter + covariance.mean(0)
    values, vectors = np.linalg.eigh(scatter)
    axes = vectors[:, :-3:-1].T
    # The largest entry of an axis is positive, so that signs are the same on every machine.
    largest = axes[np.arange(2), np.abs(axes).argmax(1)]
    axes = axes * np.sign(largest)[:, None]
    share = values[:-3:-1] / max(values.sum(), _TINY)
    names = (f"Principal axis 1 ({share[0]:.0%})", f"Principal axis 2 ({share[1]:.0%})")
    return Plane(center, axes, names)
