"""What the pictures share: figures of their own, arrays, colours, and how axes look.

A figure made here is a plain ``matplotlib.figure.Figure``, not one of pyplot's: nothing stays open,
and no display is needed. Save it with ``ax.figure.savefig(...)``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_mixtures.errors import DataError

Array = Tensor | np.ndarray | Sequence

# Okabe & Ito's, for colour-blind eyes too; components beyond them begin anew with another marker.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#555555"
# Sides of a picture with equal scales differ at most by this factor.
_LONG = 5
SLIM: dict[str, float] = {
    "borderaxespad": 0.2,
    "borderpad": 0,
    "columnspacing": 1.5,
    "handlelength": 1.8,
}


def figure(size: tuple[float, float], *, layout: Any = "constrained") -> Figure:
    """An empty figure, ``size`` in inches."""
    return Figure(figsize=size, dpi=150, layout=layout)


def to_array(values: Array, name: str = "the array") -> np.ndarray:
    """A tensor, array or list of numbers as float64 on the CPU."""
    if isinstance(values, Tensor):
        if values.layout is not torch.strided:
            raise DataError(f"{name} must be dense, not {values.layout}: give its to_dense()")
        return values.detach().cpu().double().numpy()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must hold numbers: {error}") from error


def to_finite(name: str, values: Array) -> np.ndarray:
    """The same, without NaN and infinity."""
    array = to_array(values, name)
    if not np.isfinite(array).all():
        raise DataError(
            f"{name} holds NaN or infinity at {np.argwhere(~np.isfinite(array))[0].tolist()}"
        )
    return array


def to_numbers(name: str, values: Array | None, of: str, count: int) -> np.ndarray:
    """Integers (``count``,), one of each thing that ``of`` names; 0, 1, ... by default."""
    numbers = np.arange(count) if values is None else to_finite(name, values)
    if numbers.shape != (count,):
        raise DataError(f"{name} {numbers.shape} for {count} {of}")
    return numbers.astype(int)


def label(ax: Axes, title: str, x: str, y: str, *, legend: bool = False) -> None:
    """Title and axis labels; the legend stands between title and axes, where no data are."""
    ax.set_title(title, loc="left", pad=24 if legend else 8)
    if legend:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, **SLIM)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)


def set_aspect(ax: Axes) -> None:
    """Equal scales, unless what is drawn is so much longer than wide that one of them would leave a line."""
    sides = sorted((ax.dataLim.width, ax.dataLim.height))
    if sides[1] <= _LONG * sides[0]:
        ax.set_aspect("equal", adjustable="datalim")


def color_of(component: int) -> str:
    """The colour of a component, the same in every picture."""
    return COLORS[component % len(COLORS)]


def marker_of(component: int) -> str:
    """The marker of a component: it tells apart those of one colour."""
    return MARKERS[component // len(COLORS) % len(MARKERS)]
