"""Bar chart of the sizes of components."""

import numpy as np
from matplotlib.axes import Axes

from pyro_mixtures.diagnostics.plots.drawing import (
    COLORS,
    GRAY,
    MAX_NUMBERED,
    Array,
    figure,
    label,
    to_finite,
)
from pyro_mixtures.errors import DataError

_LOG_RATIO = 100  # of the largest to the smallest size, from which on the axis is logarithmic
_MAX_NORMAL_FONT = 20  # components up to which numbers have the default font size


def plot_sizes(sizes: Array, *, ax: Axes | None = None) -> Axes:
    """Draw the number of rows of each component as bars, the largest first.

    The axis is logarithmic if the sizes of non-empty components differ by a factor of 100 or more.

    :param sizes: (C,) rows of each component, of a :class:`PartitionReport` for example; they may
        be sums of responsibilities.
    :param ax: axes to draw in; None creates a figure.
    :returns: the axes.
    :raises DataError: if they are not (C,) non-negative numbers, some of them positive.

    >>> plot_sizes(np.array([5, 0, 20])).get_title(loc="left")
    '25 rows in 2 of 3 components'
    """
    counts = to_finite("sizes", sizes)
    if counts.ndim != 1 or not counts.any() or (counts < 0).any():
        raise DataError(
            f"sizes {counts.shape} must be (C,) counts of rows, not negative and not all zero"
        )
    order = np.argsort(-counts, kind="stable")
    ranked, non_empty = counts[order], int((counts > 0).sum())
    ax = figure((7.5, 3)).subplots() if ax is None else ax
    is_numbered = len(ranked) <= MAX_NUMBERED
    if is_numbered:
        ax.bar(range(len(ranked)), ranked, color=COLORS[0])
        font_size = 8 if len(ranked) > _MAX_NORMAL_FONT else None
        ax.set_xticks(range(len(ranked)), order, fontsize=font_size)
    else:
        ax.stairs(ranked, np.arange(len(ranked) + 1) - 0.5, fill=True, color=COLORS[0])
    mean = ranked.mean()
    ax.axhline(mean, color=GRAY, linestyle="--", linewidth=1, label=f"mean {mean:.4g}")
    smallest = ranked[non_empty - 1]
    if ranked[0] >= _LOG_RATIO * smallest:
        ax.set_yscale("log")
        ax.set_ylim(bottom=0.7 * smallest)
    title = f"{_count(counts.sum())} rows in {non_empty} of {len(counts)} components"
    x = "Component, the largest first" if is_numbered else "Rank of the component"
    label(ax, title, x, "Rows", legend=True)
    return ax


def _count(rows: float) -> str:
    is_whole = abs(rows - round(rows)) < 1e-6 * rows
    return f"{rows:.0f}" if is_whole else f"{rows:.4g}"
