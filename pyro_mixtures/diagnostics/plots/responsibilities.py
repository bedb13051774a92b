"""Heat map of the responsibilities of some rows."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pyro_mixtures.diagnostics.plots.drawing import (
    MAX_NUMBERED,
    Array,
    figure,
    label,
    to_array,
    to_numbers,
)
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer.scoring.posteriors import Responsibilities
from pyro_mixtures.options import check_whole

_ORDERS = ("uncertain", "first")
_MAX_DIGITS = 80  # that fit side by side below the picture
_MIN_SHOWN = 0.01  # responsibility from which on a component is shown
_ROUNDING = 1e-3  # by which probabilities may exceed 1


def plot_responsibilities(
    responsibilities: Responsibilities,
    *,
    count: int = 40,
    order: str = "uncertain",
    numbers: Array | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the responsibilities of some rows as a heat map, grouped by their best component.

    Components are left out if they are not the most probable one of any row and have a
    responsibility below 0.01 for all rows shown.

    :param responsibilities: of :func:`~pyro_mixtures.infer.responsibilities`: (N, S) components and
        their probabilities.
    :param count: number of rows to show.
    :param order: ``"uncertain"`` for the rows whose most probable component is least probable, or
        ``"first"`` for the first rows.
    :param numbers: (N,) numbers of the rows, if they are a sample.
    :param ax: axes to draw in; None creates a figure.
    :returns: the axes.
    :raises OptionError: for an unknown order or a count below one.
    :raises DataError: if shapes do not match, or probabilities do not lie between 0 and 1.

    >>> import torch
    >>> components = torch.tensor([[0, 2], [2, 0]])
    >>> probs = torch.tensor([[0.6, 0.4], [0.7, 0.3]])
    >>> ax = plot_responsibilities(Responsibilities(components, probs))
    >>> ax.get_images()[0].get_array().shape
    (2, 2)
    """
    check_whole(count=count)
    if order not in _ORDERS:
        raise OptionError(f"unknown order={order!r}: choose one of {_ORDERS}")
    components, probs = _read(responsibilities)
    row_numbers = to_numbers("numbers", numbers, "rows", len(probs))
    rows = _select_rows(components, probs, count, order)
    columns, table = _table(components[rows], probs[rows])
    ax = figure((8.5, 1.8 + 0.13 * len(rows))).subplots() if ax is None else ax
    image = ax.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="Responsibility", pad=0.02)
    _number_ticks(ax.yaxis, row_numbers[rows])
    _number_ticks(ax.xaxis, columns, rotation=90 if _n_digits(columns) > _MAX_DIGITS else 0)
    kind = "least certain" if order == "uncertain" else "first"
    title = f"Responsibilities of the {kind} {len(rows)} of {len(probs)} rows"
    label(ax, title, "Component", "Row")
    return ax


def _read(responsibilities: Responsibilities) -> tuple[np.ndarray, np.ndarray]:
    components = to_array(responsibilities.components).astype(int)
    probs = to_array(responsibilities.probs)
    if components.shape != probs.shape or probs.ndim != 2 or not probs.size:
        raise DataError(
            f"components {components.shape} and probabilities {probs.shape} must both be (N, S)"
        )
    if not ((probs >= 0) & (probs <= 1 + _ROUNDING)).all():
        raise DataError("probabilities must lie between 0 and 1, but some do not, or are NaN")
    return components, probs


def _select_rows(components: np.ndarray, probs: np.ndarray, count: int, order: str) -> np.ndarray:
    """Numbers of the rows to show, sorted by their best component and its probability."""
    best_prob = probs.max(1)
    if order == "uncertain":
        rows = np.argsort(best_prob, kind="stable")[:count]
    else:
        rows = np.arange(min(count, len(best_prob)))
    best_component = components[rows, probs[rows].argmax(1)]
    selected: np.ndarray = rows[np.lexsort((-best_prob[rows], best_component))]
    return selected


def _table(components: np.ndarray, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The components to show (K,), and their probabilities (rows, K)."""
    best_component = components[np.arange(len(probs)), probs.argmax(1)]
    columns = np.union1d(best_component, components[probs >= _MIN_SHOWN])
    table = np.zeros((len(probs), len(columns)))
    position = np.searchsorted(columns, components).clip(max=len(columns) - 1)
    row, slot = np.nonzero(columns[position] == components)
    np.add.at(table, (row, position[row, slot]), probs[row, slot])
    return columns, table


def _n_digits(numbers: np.ndarray) -> int:
    return sum(len(str(number)) for number in numbers)


def _number_ticks(axis: Axis, numbers: np.ndarray, rotation: int = 0) -> None:
    """Label each tick with its number, or some of them if there are many."""
    if len(numbers) <= MAX_NUMBERED:
        axis.set_ticks(range(len(numbers)), numbers, fontsize=7, rotation=rotation)
        return

    def number_at(position: float, _: int | None) -> str:
        return str(numbers[int(position)]) if 0 <= position < len(numbers) else ""

    axis.set_major_locator(MaxNLocator(10, integer=True))
    axis.set_major_formatter(FuncFormatter(number_at))
