"""Pictures of a partition: sizes of its parts, responsibilities of its rows."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pyro_mixtures.diagnostics.plots.drawing import (
    COLORS,
    GREY,
    Array,
    figure,
    label,
    to_array,
    to_finite,
    to_numbers,
)
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer.scoring.posteriors import Responsibilities
from pyro_mixtures.options import check_whole

# Parts that get a bar with a number, rows that get one; sizes further apart are drawn on a
# logarithmic axis.
_NUMBERED, _NUMBERED_ROWS, _FAR_APART = 40, 40, 100
# Digits that fit side by side below the picture.
_DIGITS = 80
# A component is shown where it has at least this share of a row.
_SHARE, _ROUNDING = 0.01, 1e-3


def plot_sizes(sizes: Array, *, ax: Axes | None = None) -> Axes:
    """Rows of each part, the largest first; logarithmic where the sizes of live parts differ a hundredfold.

    :param sizes: (C,) rows of each component, of a :class:`PartitionReport` say.
    :param ax: axes to draw in; None makes a figure.
    :raises DataError: when they are not (C,) with rows in some part.

    >>> plot_sizes(np.array([5, 0, 20])).get_title(loc="left")
    '25 rows in 2 of 3 parts'
    """
    counts = to_finite("sizes", sizes)
    if counts.ndim != 1 or not counts.any() or (counts < 0).any():
        raise DataError(
            f"sizes {counts.shape} must be (C,) counts of rows, and not all of them zero"
        )
    order = np.argsort(-counts, kind="stable")
    ranked, live = counts[order], int((counts > 0).sum())
    ax = figure((7.5, 3)).subplots() if ax is None else ax
    if len(ranked) <= _NUMBERED:
        ax.bar(range(len(ranked)), ranked, color=COLORS[0])
        ax.set_xticks(range(len(ranked)), order, fontsize=8 if len(ranked) > 20 else None)
    else:
        ax.stairs(ranked, np.arange(len(ranked) + 1) - 0.5, fill=True, color=COLORS[0])
    ax.axhline(
        ranked.mean(), color=GREY, linestyle="--", linewidth=1, label=f"mean {ranked.mean():.4g}"
    )
    if ranked[0] >= _FAR_APART * ranked[live - 1]:
        ax.set_yscale("log")
        ax.set_ylim(bottom=0.7 * ranked[live - 1])
    numbered = len(ranked) <= _NUMBERED
    x = "Part, the largest first" if numbered else "Rank of the part"
    label(
        ax, f"{_count(counts.sum())} rows in {live} of {len(counts)} parts", x, "Rows", legend=True
    )
    return ax


def _count(rows: float) -> str:
    """Sizes may be sums of responsibilities."""
    return f"{rows:.0f}" if abs(rows - round(rows)) < 1e-6 * rows else f"{rows:.4g}"


def plot_responsibilities(
    found: Responsibilities,
    *,
    count: int = 40,
    order: str = "uncertain",
    numbers: Array | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Heat map of the responsibilities of some rows, a line each, those of one component next to each other.

    Components that are no row's most probable, and have less than one in a hundred of every row
    shown, are left out.

    :param found: of :func:`~pyro_mixtures.infer.responsibilities`: (N, S) components and their
        probabilities.
    :param count: how many rows to show.
    :param order: which: ``"uncertain"``, those with the least probable winners, or ``"first"``.
    :param numbers: (N,) of the rows, where they are a sample of others.
    :raises OptionError: for an unknown order or a count below one.
    :raises DataError: when shapes do not fit, or probabilities do not lie between 0 and 1.

    >>> import torch
    >>> rows = Responsibilities(torch.tensor([[0, 2], [2, 0]]), torch.tensor([[0.6, 0.4], [0.7, 0.3]]))
    >>> plot_responsibilities(rows).get_images()[0].get_array().shape
    (2, 2)
    """
    check_whole(count=count)
    if order not in ("uncertain", "first"):
        raise OptionError(f"unknown order={order!r}; choose 'uncertain' or 'first'")
    components, probs = to_array(found.components).astype(int), to_array(found.probs)
    if components.shape != probs.shape or probs.ndim != 2 or not probs.size:
        raise DataError(
            f"components {components.shape} and probabilities {probs.shape} must both be (N, S)"
        )
    if not ((probs >= 0) & (probs <= 1 + _ROUNDING)).all():
        raise DataError("probabilities must lie between 0 and 1, and some do not, or are NaN")
    names = to_numbers("numbers", numbers, "rows", len(probs))
    rows = _chosen(components, probs, count, order)
    columns, table = _table(components[rows], probs[rows])
    ax = figure((8.5, 1.8 + 0.13 * len(rows))).subplots() if ax is None else ax
    image = ax.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="Responsibility", pad=0.02)
    _number(ax.yaxis, names[rows], _NUMBERED_ROWS)
    _number(ax.xaxis, columns, _NUMBERED)
    kind = "least certain" if order == "uncertain" else "first"
    label(ax, f"Responsibilities: the {kind} {len(rows)} of {len(probs)} rows", "Component", "Row")
    return ax


def _chosen(components: np.ndarray, probs: np.ndarray, count: int, order: str) -> np.ndarray:
    """Row numbers to show, by their winner and how sure it is."""
    best = probs.max(1)
    rows = (
        np.argsort(best, kind="stable")[:count]
        if order == "uncertain"
        else np.arange(min(count, len(best)))
    )
    winner = components[rows, probs[rows].argmax(1)]
    return rows[np.lexsort((-best[rows], winner))]


def _table(components: np.ndarray, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Components that matter (K,), and the probabilities (rows, K) of the rows."""
    winners = components[np.arange(len(probs)), probs.argmax(1)]
    columns = np.union1d(winners, components[probs >= _SHARE])
    table = np.zeros((len(probs), len(columns)))
    place = np.searchsorted(columns, components).clip(max=len(columns) - 1)
    row, slot = np.nonzero(columns[place] == components)
    np.add.at(table, (row, place[row, slot]), probs[row, slot])
    return columns, table


def _number(axis, numbers: np.ndarray, most: int) -> None:
    """Write all ``numbers`` beside the axis while they are few, else some of them."""
    if len(numbers) <= most:
        crowded = axis.axis_name == "x" and sum(len(str(number)) for number in numbers) > _DIGITS
        axis.set_ticks(range(len(numbers)), numbers, fontsize=7, rotation=90 if crowded else 0)
        return
    axis.set_major_locator(MaxNLocator(10, integer=True))
    axis.set_major_formatter(lambda at, _: str(numbers[int(at)]) if 0 <= at < len(numbers) else "")
