"""Shared by the plots: figures outside pyplot, input arrays, colors, and the style of axes.

A figure made here is a plain ``matplotlib.figure.Figure``: pyplot does not keep it open, and no
display is needed. Save it with ``ax.figure.savefig(...)``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_mixtures.errors import DataError

Array = Tensor | np.ndarray | Sequence[Any]

# Colors of Okabe & Ito, which color-blind readers can tell apart. Components beyond them repeat
# the colors with other markers.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GRAY = "#555555"
LIGHT_GRAY = "#AAAAAA"
MAX_DRAWN_ROWS = 3000
MAX_NUMBERED = 40  # components up to which each is labeled with its number
_MAX_ASPECT = 5  # ratio of the sides of a picture up to which both axes have the same scale
_COMPACT: dict[str, float] = {
    "borderaxespad": 0.2,
    "borderpad": 0,
    "columnspacing": 1.5,
    "handlelength": 1.8,
}


def figure(size: tuple[float, float], *, layout: Any = "constrained") -> Figure:
    """Return an empty figure of a ``size`` in inches."""
    return Figure(figsize=size, dpi=150, layout=layout)


def to_array(values: Array, name: str = "the array") -> np.ndarray:
    """Convert a tensor, array or list of numbers to float64 on the CPU."""
    if isinstance(values, Tensor):
        if values.layout is not torch.strided:
            raise DataError(f"{name} must be dense, not {values.layout}: pass its to_dense()")
        return values.detach().cpu().double().numpy()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must hold numbers: {error}") from error


def to_finite(name: str, values: Array) -> np.ndarray:
    """Convert as :func:`to_array`, and refuse NaN and infinity."""
    array = to_array(values, name)
    if not np.isfinite(array).all():
        position = np.argwhere(~np.isfinite(array))[0].tolist()
        raise DataError(f"{name} contains NaN or infinity at {position}")
    return array


def to_numbers(name: str, values: Array | None, items: str, count: int) -> np.ndarray:
    """Convert to integers (``count``,), one per item; 0, 1, ... by default."""
    numbers = np.arange(count) if values is None else to_finite(name, values)
    if numbers.shape != (count,):
        raise DataError(f"{name} {numbers.shape} for {count} {items}: pass one per item")
    return numbers.astype(int)


def label(ax: Axes, title: str, x: str, y: str, *, legend: bool = False) -> None:
    """Set title and axis labels; the legend is placed between title and axes, off the data."""
    ax.set_title(title, loc="left", pad=24 if legend else 8)
    if legend:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, **_COMPACT)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)


def set_aspect(ax: Axes) -> None:
    """Give both axes the same scale, unless that would reduce one of them to a line."""
    short, long = sorted((ax.dataLim.width, ax.dataLim.height))
    if long <= _MAX_ASPECT * short:
        ax.set_aspect("equal", adjustable="datalim")


def color_of(component: int) -> str:
    """Return the color of a component, which is the same in all plots."""
    return COLORS[component % len(COLORS)]


def marker_of(component: int) -> str:
    """Return the marker of a component, which distinguishes components of the same color."""
    return MARKERS[component // len(COLORS) % len(MARKERS)]


def evenly_spaced(rows: int) -> slice:
    """Select at most 3000 of the rows, evenly spaced."""
    return slice(None, None, max(1, -(-rows // MAX_DRAWN_ROWS)))


def draw_labeled_rows(ax: Axes, positions: np.ndarray, labels: np.ndarray) -> None:
    """Draw rows at ``positions`` (N, 2) in the colors of their components; gray without one."""
    for component in np.unique(labels).tolist():
        selected = positions[labels == component]
        ax.scatter(
            selected[:, 0],
            selected[:, 1],
            s=7,
            color=LIGHT_GRAY if component < 0 else color_of(component),
            marker=marker_of(max(component, 0)),
            linewidths=0,
            alpha=0.5,
            zorder=0,
        )


def write_number(ax: Axes, position: np.ndarray, number: int) -> None:
    """Write a component's number on a white background."""
    style: dict[str, Any] = {"fontsize": 7, "ha": "center", "va": "center", "zorder": 4}
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    ax.text(position[0], position[1], str(number), bbox=box, **style)
