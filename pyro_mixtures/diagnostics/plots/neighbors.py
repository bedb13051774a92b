"""Plot of the neighbor graph between components."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from pyro_mixtures.diagnostics.plots.drawing import (
    COLORS,
    GRAY,
    MAX_NUMBERED,
    Array,
    figure,
    label,
    set_aspect,
    to_finite,
)
from pyro_mixtures.diagnostics.plots.plane import plane_of
from pyro_mixtures.errors import DataError
from pyro_mixtures.options import check_whole

_TINY = 1e-300  # keeps quotients finite
_EDGE_COLORS = {"one-way": "#BBBBBB", "mutual": GRAY}


def plot_neighbors(
    loc: Array,
    neighbors: Array,
    *,
    sizes: Array | None = None,
    rows: Array | None = None,
    nearest: int = 3,
    ax: Axes | None = None,
) -> Axes:
    """Draw the neighbor graph of components between their means; mutual neighbors are dark.

    :param loc: (C, D) means, drawn in the first two principal axes if D > 2.
    :param neighbors: (C, G) of a guide's graph, each component itself first.
    :param sizes: (C,) rows of each component, drawn as areas of the dots; empty components are
        crosses.
    :param rows: (N, D) whose principal axes are used; by default those of the means.
    :param nearest: number of nearest neighbors to which edges are drawn.
    :param ax: axes to draw in; None creates a figure.
    :returns: the axes.
    :raises DataError: if shapes do not match, numbers are not finite, neighbors do not exist, sizes
        are negative, or there is one feature only.

    >>> ax = plot_neighbors(np.eye(3)[:, :2], np.array([[0, 1], [1, 0], [2, 1]]))
    >>> [len(lines.get_segments()) for lines in ax.collections[:2]]
    [1, 1]
    """
    check_whole(nearest=nearest)
    means, graph = _read_graph(loc, neighbors)
    plane = plane_of(means, None, rows)
    positions = plane(means)
    ax = figure((6.5, 6)).subplots() if ax is None else ax
    mutual, one_way = _edges(graph[:, 1 : 1 + nearest])
    width = 0.5 + 10 / (10 + len(means))
    for name, edges in (("one-way", one_way), ("mutual", mutual)):
        lines = LineCollection(
            list(positions[edges]),
            colors=_EDGE_COLORS[name],
            linewidths=width,
            label=name,
            zorder=1,
        )
        ax.add_collection(lines)
    _draw_means(ax, positions, sizes)
    set_aspect(ax)
    shown = min(nearest, graph.shape[1] - 1)
    plural = "s" if shown > 1 else ""
    title = f"{len(means)} components and their {shown} nearest neighbor{plural}"
    label(ax, title, *plane.names, legend=True)
    return ax


def _read_graph(loc: Array, neighbors: Array) -> tuple[np.ndarray, np.ndarray]:
    means, graph = to_finite("loc", loc), to_finite("neighbors", neighbors).astype(int)
    if means.ndim != 2 or graph.ndim != 2 or len(means) != len(graph):
        raise DataError(f"loc {means.shape} and neighbors {graph.shape} must be (C, D) and (C, G)")
    if graph.size and not 0 <= graph.min() <= graph.max() < len(means):
        wrong = graph.min() if graph.min() < 0 else graph.max()
        raise DataError(
            f"neighbors name component {wrong}, but there are {len(means)} components, numbered "
            "from 0"
        )
    return means, graph


def _edges(others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mutual edges (E, 2), once each, and one-way edges."""
    size = len(others)
    edges = np.stack([np.repeat(np.arange(size), others.shape[1]), others.ravel()], 1)
    key, reverse = edges[:, 0] * size + edges[:, 1], edges[:, 1] * size + edges[:, 0]
    is_mutual = np.isin(reverse, key)
    return edges[is_mutual & (edges[:, 0] < edges[:, 1])], edges[~is_mutual]


def _draw_means(ax: Axes, positions: np.ndarray, sizes: Array | None) -> None:
    count = np.ones(len(positions)) if sizes is None else to_finite("sizes", sizes)
    if count.shape != (len(positions),):
        raise DataError(f"sizes {count.shape} for {len(positions)} components: pass one per item")
    if (count < 0).any():
        raise DataError(f"sizes hold {count.min():g}: numbers of rows must not be negative")
    non_empty = count > 0
    area = 4 + 8000 / (25 + len(positions)) * count / max(count.max(), _TINY)
    ax.scatter(
        positions[non_empty, 0],
        positions[non_empty, 1],
        s=area[non_empty],
        color=COLORS[0],
        alpha=0.85,
        linewidths=0,
        zorder=2,
    )
    if not non_empty.all():
        ax.scatter(
            positions[~non_empty, 0],
            positions[~non_empty, 1],
            s=25,
            color=COLORS[5],
            marker="x",
            zorder=3,
            label="empty",
        )
    if len(positions) <= MAX_NUMBERED:
        for number, position in enumerate(positions):
            ax.annotate(
                str(number), position, (4, 4), textcoords="offset points", fontsize=7, zorder=4
            )
