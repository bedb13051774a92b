"""Plot of a gate over two features: the component to which it assigns each point."""

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
    draw_labeled_rows,
    evenly_spaced,
    figure,
    label,
    to_finite,
    to_numbers,
    write_number,
)
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer.experts.gates import Gate
from pyro_mixtures.options import check_whole

_MARGIN = 0.05  # of the picture around the rows, as a share of their range
_PALENESS = 0.7  # share of white in the color of a region


def plot_gate(
    gate: Gate,
    x: Array,
    *,
    labels: Array | None = None,
    resolution: int = 300,
    ax: Axes | None = None,
) -> Axes:
    """Draw the regions of the components to which a gate assigns rows, and the rows themselves.

    :param gate: of :func:`~pyro_mixtures.infer.fit_gate`, over two features.
    :param x: (N, 2) rows, a tensor, array or list; at most 3000, evenly spaced, are drawn.
    :param labels: (N,) components of the rows, for their colors; by default those of the gate.
    :param resolution: number of grid points along each axis.
    :param ax: axes to draw in; None creates a figure.
    :returns: the axes.
    :raises DataError: if rows are not (N, 2) or not finite, or labels not (N,).
    :raises OptionError: if ``gate`` is not a gate.

    >>> from pyro_mixtures.infer import fit_gate
    >>> x = torch.tensor([[-2.0, 0.0], [-1.0, 1.0], [1.0, 0.0], [2.0, 1.0]])
    >>> gate = fit_gate(x, torch.tensor([0, 0, 2, 2]), 3)
    >>> [text.get_text() for text in plot_gate(gate, x).texts]
    ['0', '2']
    """
    check_whole(resolution=resolution, minimum=2)
    if not isinstance(gate, Gate):
        raise OptionError(
            f"gate is of type {type(gate).__name__}: pass a Gate, as returned by fit_gate()"
        )
    x = as_rows(x)
    if x.dim() != 2 or x.shape[1] != 2 or not len(x):
        raise DataError(f"rows are {tuple(x.shape)}: regions can be drawn for rows (N, 2) only")
    row_labels = None if labels is None else to_numbers("labels", labels, "rows", len(x))
    low, high = _frame(x)
    grid = _assign_grid(gate, x, low, high, resolution)
    ax = figure((6.5, 6)).subplots() if ax is None else ax
    _draw_regions(ax, grid, low, high)
    selected = evenly_spaced(len(x))
    if row_labels is None:
        selected_labels = gate.assign(x[selected]).cpu().numpy()
    else:
        selected_labels = row_labels[selected]
    draw_labeled_rows(ax, to_finite("rows", x[selected]), selected_labels)
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(low[1], high[1])
    title = f"Regions of {len(np.unique(grid))} of {gate.components} components of the gate"
    label(ax, title, "Feature 0", "Feature 1")
    return ax


def _frame(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Corners (2,) of the picture."""
    rows = to_finite("rows", x)
    low, high = rows.min(0), rows.max(0)
    margin = np.where(high > low, _MARGIN * (high - low), 1.0)
    return low - margin, high + margin


def _assign_grid(
    gate: Gate, x: Tensor, low: np.ndarray, high: np.ndarray, resolution: int
) -> np.ndarray:
    """The gate's components (resolution, resolution) at the centers of the cells of a grid.

    The second feature increases with the first index.
    """
    fractions = (np.arange(resolution) + 0.5) / resolution
    across, up = (low[i] + (high[i] - low[i]) * fractions for i in range(2))
    points = np.stack(np.meshgrid(across, up), -1).reshape(-1, 2)
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    components = gate.assign(torch.from_numpy(points).to(x.device, dtype))
    return components.cpu().numpy().reshape(resolution, resolution)


def _draw_regions(ax: Axes, grid: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Draw regions in pale colors, borders between them (colors repeat), and their numbers."""
    components, region = np.unique(grid, return_inverse=True)
    region = region.reshape(grid.shape)
    colors = [
        [1 - (1 - _PALENESS) * (1 - value) for value in to_rgb(color_of(component))]
        for component in components.tolist()
    ]
    options: dict[str, Any] = {
        "cmap": ListedColormap(colors),
        "vmin": -0.5,
        "vmax": len(components) - 0.5,
        "extent": (low[0], high[0], low[1], high[1]),
        "origin": "lower",
        "aspect": "auto",
        "interpolation": "nearest",
        "zorder": -2,
    }
    ax.imshow(region, **options)
    cell = (high - low) / len(grid)
    borders = list(low + cell * _borders(region))
    ax.add_collection(LineCollection(borders, colors="#777777", linewidths=0.8, zorder=-1))
    for number, component in enumerate(components.tolist()):
        cells = np.argwhere(region == number)
        most_central = cells[np.square(cells - cells.mean(0)).sum(1).argmin()]
        write_number(ax, low + (most_central[::-1] + 0.5) * cell, component)


def _borders(region: np.ndarray) -> np.ndarray:
    """Sides (E, 2, 2) between cells of different regions: two ends (across, up), in cells."""
    row, left = np.nonzero(region[:, 1:] != region[:, :-1])
    lower, column = np.nonzero(region[1:] != region[:-1])
    vertical = np.stack([np.stack([left + 1, row], 1), np.stack([left + 1, row + 1], 1)], 1)
    horizontal = np.stack(
        [np.stack([column, lower + 1], 1), np.stack([column + 1, lower + 1], 1)], 1
    )
    return np.concatenate([vertical, horizontal])
