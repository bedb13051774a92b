"""What the pictures share: figures of their own, arrays, colours, and how axes look.

A figure made here is a plain ``matplotlib.figure.Figure``, not one of pyplot's: nothing stays open, and no display is
needed. Save it with ``ax.figure.savefig(...)``.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

Array = Tensor | np.ndarray

# Okabe & Ito's, for colour-blind eyes too; components beyond them begin anew with another marker.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#555555"
SLIM: dict[str, float] = {"borderaxespad": 0.2, "borderpad": 0, "columnspacing": 1.5, "handlelength": 1.8}


def figure(size: tuple[float, float], *, layout: Any = "constrained") -> Figure:
    """An empty figure, ``size`` in inches."""
    return Figure(figsize=size, dpi=150, layout=layout)


def to_array(values: Array) -> np.ndarray:
    """A tensor or array as float64 on the CPU."""
    if isinstance(values, Tensor):
        return values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def label(ax: Axes, title: str, x: str, y: str, *, legend: bool = False) -> None:
    """Title and axis labels; the legend stands between title and axes, where no data are."""
    ax.set_title(title, loc="left", pad=24 if legend else 8)
    if legend:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, **SLIM)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)


def color_of(component: int) -> str:
    """The colour of a component, the same in every picture."""
    return COLORS[component % len(COLORS)]


def marker_of(component: int) -> str:
    """The marker of a component: it tells apart those of one colour."""
    return MARKERS[component // len(COLORS) % len(MARKERS)]
