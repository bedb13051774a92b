"""Plot of covariance ellipses among the rows."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse

from pyro_mixtures.diagnostics.plots.drawing import (
    LIGHT_GRAY,
    MAX_NUMBERED,
    Array,
    color_of,
    draw_labeled_rows,
    evenly_spaced,
    figure,
    label,
    set_aspect,
    to_finite,
    to_numbers,
    write_number,
)
from pyro_mixtures.diagnostics.plots.plane import Plane, plane_of
from pyro_mixtures.errors import DataError
from pyro_mixtures.options import check_number


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
    """Draw normal components as ellipses, in the first two principal axes if D > 2.

    Both axes have the same scale, unless features of different units would reduce one to a line.

    :param loc: (K, D) means.
    :param covariance: (K, D, D) covariances.
    :param rows: (N, D), of which at most 3000, evenly spaced, are drawn as dots. The principal axes
        are theirs; without rows they are those of the mixture with equal weights.
    :param labels: (N,) components of the rows, for their colors.
    :param numbers: (K,) numbers of the components, if they are a selection; 0, 1, ... by default.
    :param deviations: size of the ellipses, in standard deviations.
    :param ax: axes to draw in; None creates a figure.
    :returns: the axes.
    :raises DataError: if shapes do not match, numbers are not finite, or there is one feature only.

    >>> ax = plot_ellipses(np.zeros((2, 2)), np.stack([np.eye(2), np.diag([4.0, 1.0])]))
    >>> [float(patch.width) for patch in ax.patches]
    [4.0, 8.0]
    """
    check_number(positive=True, deviations=deviations)
    means, covariances = to_finite("loc", loc), to_finite("covariance", covariance)
    if means.ndim != 2 or covariances.shape != (*means.shape, means.shape[-1]):
        raise DataError(
            f"loc {means.shape} and covariance {covariances.shape} must be (K, D) and (K, D, D)"
        )
    component_numbers = to_numbers("numbers", numbers, "components", len(means))
    plane = plane_of(means, covariances, rows)
    ax = figure((6.5, 6)).subplots() if ax is None else ax
    if rows is not None:
        _draw_rows(ax, plane, to_finite("rows", rows), labels)
    projected = plane.axes @ covariances @ plane.axes.T
    for number, center, spread in zip(component_numbers, plane(means), projected, strict=True):
        ax.add_patch(_ellipse(center, spread, deviations, color_of(number)))
        if len(means) <= MAX_NUMBERED:
            write_number(ax, center, number)
    ax.autoscale_view()
    set_aspect(ax)
    plural = "s" if len(means) > 1 else ""
    title = f"{len(means)} component{plural} at {deviations:g} standard deviations"
    label(ax, title, *plane.names)
    return ax


def _ellipse(center: np.ndarray, covariance: np.ndarray, deviations: float, color: str) -> Ellipse:
    """The ellipse of a covariance (2, 2)."""
    values, vectors = np.linalg.eigh(covariance)
    width, height = 2 * deviations * np.sqrt(values[::-1].clip(0))
    angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
    return Ellipse(
        tuple(center), width, height, angle=angle, facecolor="none", edgecolor=color, linewidth=1.6
    )


def _draw_rows(ax: Axes, plane: Plane, rows: np.ndarray, labels: Array | None) -> None:
    selected = evenly_spaced(len(rows))
    positions = plane(rows[selected])
    if labels is None:
        ax.scatter(positions[:, 0], positions[:, 1], s=4, color=LIGHT_GRAY, linewidths=0, zorder=0)
        return
    row_labels = to_numbers("labels", labels, "rows", len(rows))
    draw_labeled_rows(ax, positions, row_labels[selected])
