"""Pictures of where components lie: covariance ellipses among the rows, on two principal axes if need be."""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse

from pyro_mixtures.diagnostics.plots.drawing import (
    Array,
    color_of,
    figure,
    label,
    marker_of,
    set_aspect,
    to_finite,
    to_numbers,
)
from pyro_mixtures.errors import DataError
from pyro_mixtures.options import check_number

# Components that get a number; rows drawn, at most.
NUMBERED, _ROWS = 40, 3000


class Plane(NamedTuple):
    """Two axes to look at rows along."""

    center: np.ndarray  # (D,)
    axes: np.ndarray  # (2, D), orthonormal
    names: tuple[str, str]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Coordinates (N, 2) of rows (N, D)."""
        return (rows - self.center) @ self.axes.T


def plot_ellipses(
    loc: Array,
    covariance: Array,
    *,
    rows: Array | None = None,
    labels: Array | None = None,
    numbers: Array | None = None,
    deviations: float = 2.0,
    ax: Axes | None = None,
) -> Axes:
    """Normal components as ellipses at so many standard ``deviations``; in the first two principal axes where D > 2.

    Both axes have one scale, unless features of different units would leave nothing but a line.

    :param loc: (K, D) means; :param covariance: (K, D, D).
    :param rows: (N, D), at most 3000 of them drawn as dots, evenly spaced; their principal axes are
        taken, or without rows those of the mixture with equal weights.
    :param labels: (N,) components of the rows, for their colours.
    :param numbers: (K,) the components' numbers where some are shown; 0, 1, ... by default.
    :raises DataError: when shapes do not fit, numbers are not finite, or rows have one feature.

    >>> ax = plot_ellipses(np.zeros((2, 2)), np.stack([np.eye(2), np.diag([4.0, 1.0])]))
    >>> [float(patch.width) for patch in ax.patches]
    [4.0, 8.0]
    """
    check_number(positive=True, deviations=deviations)
    loc, covariance = to_finite("loc", loc), to_finite("covariance", covariance)
    if loc.ndim != 2 or covariance.shape != (*loc.shape, loc.shape[-1]):
        raise DataError(
            f"loc {loc.shape} and covariance {covariance.shape} must be (K, D) and (K, D, D)"
        )
    names = to_numbers("numbers", numbers, "components", len(loc))
    plane = plane_of(loc, covariance, rows)
    ax = figure((6.5, 6)).subplots() if ax is None else ax
    if rows is not None:
        _draw_rows(ax, plane, to_finite("rows", rows), labels)
    for name, center, spread in zip(
        names, plane(loc), plane.axes @ covariance @ plane.axes.T, strict=True
    ):
        ax.add_patch(_ellipse(center, spread, deviations, color_of(name)))
        if len(loc) <= NUMBERED:
            write_number(ax, center, name)
    ax.autoscale_view()
    set_aspect(ax)
    label(ax, f"{len(loc)} components at {deviations:g} standard deviations", *plane.names)
    return ax


def plane_of(loc: np.ndarray, covariance: np.ndarray | None, rows: Array | None) -> Plane:
    """The features themselves where there are two; else the principal axes of the rows, or of the mixture.

    :raises DataError: for one feature, or rows of others than the means.
    """
    features = loc.shape[1]
    points = loc if rows is None else to_finite("rows", rows)
    if features < 2 or points.ndim != 2 or points.shape[1] != features:
        raise DataError(
            f"a plane needs rows (N, D) of two features or more, as many as the means: {points.shape}"
        )
    if features == 2:
        return Plane(np.zeros(2), np.eye(2), ("Feature 0", "Feature 1"))
    center = points.mean(0)
    scatter = (points - center).T @ (points - center) / len(points)
    if rows is None and covariance is not None:
        scatter = scatter + covariance.mean(0)
    values, vectors = np.linalg.eigh(scatter)
    axes = vectors[:, :-3:-1].T
    axes = (
        axes * np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])[:, None]
    )  # the same way round on every machine
    share = values[:-3:-1] / max(values.sum(), 1e-300)
    return Plane(
        center, axes, (f"Principal axis 1 ({share[0]:.0%})", f"Principal axis 2 ({share[1]:.0%})")
    )


def _ellipse(center: np.ndarray, spread: np.ndarray, deviations: float, color: str) -> Ellipse:
    """Of a covariance ``spread`` (2, 2)."""
    values, vectors = np.linalg.eigh(spread)
    width, height = 2 * deviations * np.sqrt(values[::-1].clip(0))
    angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
    return Ellipse(
        tuple(center), width, height, angle=angle, facecolor="none", edgecolor=color, linewidth=1.6
    )


def _draw_rows(ax: Axes, plane: Plane, rows: np.ndarray, labels: Array | None) -> None:
    some = slice(None, None, max(1, -(-len(rows) // _ROWS)))
    place = plane(rows[some])
    if labels is None:
        ax.scatter(place[:, 0], place[:, 1], s=4, color="#AAAAAA", linewidths=0, zorder=0)
        return
    draw_labelled(ax, place, to_numbers("labels", labels, "rows", len(rows))[some])


def draw_labelled(ax: Axes, place: np.ndarray, labels: np.ndarray) -> None:
    """Rows at ``place`` (N, 2) in the colours and markers of their components; grey where they have none."""
    for component in np.unique(labels).tolist():
        color = "#AAAAAA" if component < 0 else color_of(component)
        some = place[labels == component]
        ax.scatter(
            some[:, 0],
            some[:, 1],
            s=7,
            color=color,
            marker=marker_of(max(component, 0)),
            linewidths=0,
            alpha=0.5,
            zorder=0,
        )


def write_number(ax: Axes, at: np.ndarray, number: int) -> None:
    """A component's number on a white ground."""
    ground = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    ax.text(at[0], at[1], str(number), fontsize=7, ha="center", va="center", bbox=ground, zorder=4)
