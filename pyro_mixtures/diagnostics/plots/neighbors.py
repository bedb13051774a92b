"""Picture of the neighbour graph between components."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from pyro_mixtures.diagnostics.plots.drawing import (
    COLORS,
    GREY,
    Array,
    figure,
    label,
    set_aspect,
    to_finite,
)
from pyro_mixtures.diagnostics.plots.places import NUMBERED, plane_of
from pyro_mixtures.errors import DataError
from pyro_mixtures.options import check_whole


def plot_neighbors(
    loc: Array,
    neighbors: Array,
    *,
    sizes: Array | None = None,
    rows: Array | None = None,
    nearest: int = 3,
    ax: Axes | None = None,
) -> Axes:
    """The neighbour graph of components between their means; dark where each of two is among the other's neighbours.

    :param loc: (C, D) means, drawn in the first two principal axes where D > 2.
    :param neighbors: (C, G) of a guide's graph, each component itself first.
    :param sizes: (C,) rows of each component, as areas of the dots; empty components are crosses.
    :param rows: (N, D) whose principal axes are taken; by default those of the means.
    :param nearest: draw edges to so many nearest others.
    :raises DataError: when shapes do not fit, numbers are not finite, neighbours do not exist,
        sizes are negative, or rows have one feature.

    >>> ax = plot_neighbors(np.eye(3)[:, :2], np.array([[0, 1], [1, 0], [2, 1]]))
    >>> [len(lines.get_segments()) for lines in ax.collections[:2]]
    [1, 1]
    """
    check_whole(nearest=nearest)
    loc, graph = to_finite("loc", loc), to_finite("neighbors", neighbors).astype(int)
    if loc.ndim != 2 or graph.ndim != 2 or len(loc) != len(graph):
        raise DataError(f"loc {loc.shape} and neighbors {graph.shape} must be (C, D) and (C, G)")
    if graph.size and not 0 <= graph.min() <= graph.max() < len(loc):
        wrong = graph.min() if graph.min() < 0 else graph.max()
        raise DataError(
            f"neighbors name component {wrong}, but there are {len(loc)}, the first of them 0"
        )
    plane = plane_of(loc, None, rows)
    place = plane(loc)
    ax = figure((6.5, 6)).subplots() if ax is None else ax
    mutual, single = _edges(graph[:, 1 : 1 + nearest])
    width = 0.5 + 10 / (10 + len(loc))
    for edges, color, name in ((single, "#BBBBBB", "one way"), (mutual, GREY, "both ways")):
        ax.add_collection(
            LineCollection(list(place[edges]), colors=color, linewidths=width, label=name, zorder=1)
        )
    _draw_means(ax, place, sizes)
    set_aspect(ax)
    shown = min(nearest, graph.shape[1] - 1)
    label(
        ax, f"{len(loc)} components and their {shown} nearest neighbours", *plane.names, legend=True
    )
    return ax


def _edges(others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges (E, 2) that go both ways, once each, and those that go one way."""
    edges = np.stack([np.repeat(np.arange(len(others)), others.shape[1]), others.ravel()], 1)
    size = len(others)
    key, reverse = edges[:, 0] * size + edges[:, 1], edges[:, 1] * size + edges[:, 0]
    both = np.isin(reverse, key)
    return edges[both & (edges[:, 0] < edges[:, 1])], edges[~both]


def _draw_means(ax: Axes, place: np.ndarray, sizes: Array | None) -> None:
    count = np.ones(len(place)) if sizes is None else to_finite("sizes", sizes)
    if count.shape != (len(place),):
        raise DataError(f"sizes {count.shape} for {len(place)} components")
    if (count < 0).any():
        raise DataError(f"sizes hold {count.min():g}: numbers of rows are not negative")
    live, area = count > 0, 4 + 8000 / (25 + len(place)) * count / max(count.max(), 1e-300)
    ax.scatter(
        place[live, 0],
        place[live, 1],
        s=area[live],
        color=COLORS[0],
        alpha=0.85,
        linewidths=0,
        zorder=2,
    )
    if not live.all():
        ax.scatter(
            place[~live, 0],
            place[~live, 1],
            s=25,
            color=COLORS[5],
            marker="x",
            zorder=3,
            label="no rows",
        )
    if len(place) <= NUMBERED:
        for number, at in enumerate(place):
            ax.annotate(str(number), at, (4, 4), textcoords="offset points", fontsize=7, zorder=4)
