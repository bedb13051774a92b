"""Picture of a gate over two features: which part it sends rows to."""

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, to_rgb
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.diagnostics.plots.drawing import (
    Array,
    color_of,
    figure,
    label,
    to_finite,
    to_numbers,
)
from pyro_mixtures.diagnostics.plots.places import draw_labelled, write_number
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer.experts.gates import Gate
from pyro_mixtures.options import check_whole

# Rows drawn, at most; and how far beyond them the picture goes, as a share of their range.
_ROWS, _MARGIN = 3000, 0.05


def plot_gate(
    gate: Gate,
    x: Array,
    *,
    labels: Array | None = None,
    resolution: int = 300,
    ax: Axes | None = None,
) -> Axes:
    """Regions of the parts that ``gate`` sends rows to, numbered, and the rows themselves in their own colours.

    :param gate: of :func:`~pyro_mixtures.infer.fit_gate`, over two features.
    :param x: (N, 2) rows, a tensor, array or list; at most 3000 of them are drawn, evenly spaced.
    :param labels: (N,) parts of the rows; without them they have the colour of where the gate sends
        them.
    :param resolution: points of the grid along each axis.
    :raises DataError: when rows are not (N, 2) or not finite, or labels not (N,).
    :raises OptionError: when ``gate`` is none.

    >>> from pyro_mixtures.infer import fit_gate
    >>> x = torch.tensor([[-2.0, 0.0], [-1.0, 1.0], [1.0, 0.0], [2.0, 1.0]])
    >>> gate = fit_gate(x, torch.tensor([0, 0, 2, 2]), 3)
    >>> [text.get_text() for text in plot_gate(gate, x).texts]
    ['0', '2']
    """
    check_whole(resolution=resolution, minimum=2)
    if not isinstance(gate, Gate):
        raise OptionError(
            f"gate is of type {type(gate).__name__}: give a Gate, as fit_gate() returns it"
        )
    x = as_rows(x)
    if x.dim() != 2 or x.shape[1] != 2 or not len(x):
        raise DataError(f"rows are {tuple(x.shape)}: regions can be drawn of rows (N, 2)")
    known = None if labels is None else to_numbers("labels", labels, "rows", len(x))
    low, high = _frame(x)
    parts = _parts(gate, x, low, high, resolution)
    ax = figure((6.5, 6)).subplots() if ax is None else ax
    _draw_regions(ax, parts, low, high)
    some = slice(None, None, max(1, -(-len(x) // _ROWS)))
    own = gate.assign(x[some]).cpu().numpy() if known is None else known[some]
    draw_labelled(ax, to_finite("rows", x[some]), own)
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(low[1], high[1])
    label(
        ax,
        f"Regions of {len(np.unique(parts))} of the gate's {gate.components} parts",
        "Feature 0",
        "Feature 1",
    )
    return ax


def _frame(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Corners (2,) of the picture."""
    rows = to_finite("rows", x)
    low, high = rows.min(0), rows.max(0)
    margin = np.where(high > low, _MARGIN * (high - low), 1.0)
    return low - margin, high + margin


def _parts(gate: Gate, x: Tensor, low: np.ndarray, high: np.ndarray, resolution: int) -> np.ndarray:
    """The gate's parts (resolution, resolution) at the centres of a grid's cells, the second feature downwards."""
    at = (np.arange(resolution) + 0.5) / resolution
    across, up = (low[i] + (high[i] - low[i]) * at for i in range(2))
    grid = np.stack(np.meshgrid(across, up), -1).reshape(-1, 2)
    kind = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    found = gate.assign(torch.from_numpy(grid).to(x.device, kind))
    return found.cpu().numpy().reshape(resolution, resolution)


def _draw_regions(ax: Axes, parts: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Pale colours, borders between them (colours repeat), and numbers."""
    names, place = np.unique(parts, return_inverse=True)
    place = place.reshape(parts.shape)
    pale = ListedColormap(
        [[1 - 0.3 * (1 - value) for value in to_rgb(color_of(name))] for name in names.tolist()]
    )
    frame: dict[str, Any] = {
        "extent": (low[0], high[0], low[1], high[1]),
        "origin": "lower",
        "aspect": "auto",
    }
    ax.imshow(
        place,
        cmap=pale,
        vmin=-0.5,
        vmax=len(names) - 0.5,
        interpolation="nearest",
        zorder=-2,
        **frame,
    )
    cell = (high - low) / len(parts)
    ax.add_collection(
        LineCollection(
            list(low + cell * _borders(place)), colors="#777777", linewidths=0.8, zorder=-1
        )
    )
    for number, name in enumerate(names.tolist()):
        cells = np.argwhere(place == number)
        inside = cells[np.square(cells - cells.mean(0)).sum(1).argmin()]
        write_number(ax, low + (inside[::-1] + 0.5) * cell, name)


def _borders(place: np.ndarray) -> np.ndarray:
    """Sides (E, 2, 2) between cells of different regions: two ends (across, up) each, in cells."""
    row, left = np.nonzero(place[:, 1:] != place[:, :-1])
    lower, column = np.nonzero(place[1:] != place[:-1])
    upright = np.stack([np.stack([left + 1, row], 1), np.stack([left + 1, row + 1], 1)], 1)
    level = np.stack([np.stack([column, lower + 1], 1), np.stack([column + 1, lower + 1], 1)], 1)
    return np.concatenate([upright, level])
