"""Picture of a fit's history: its objective and what it cost."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from pyro_mixtures.diagnostics.plots.drawing import GREY, figure, label
from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer import History
from pyro_mixtures.options import check_whole

_AXES = {"epochs": "Epoch", "seconds": "Time (s)"}
_COLORS = {"warm-up": "#E69F00", "EM": "#0072B2", "SVI": "#009E73"}


def plot_history(
    history: History, *, against: str = "epochs", full: int | None = None, axes: Any = None
) -> np.ndarray:
    """ELBO (nats per row) and joint evaluations of a fit, epoch by epoch; phases of the fit told apart.

    :param against: ``"epochs"`` or ``"seconds"``, the horizontal axis.
    :param full: N x C, the evaluations of one exact pass: draws what as many exact passes would
        have taken, on a logarithmic axis.
    :param axes: two axes to draw in, the ELBO's first; None makes a figure.
    :returns: the two axes, as an array.
    :raises OptionError: for an unknown ``against``, a ``full`` that is no whole number above zero,
        another number of axes, or a history without epochs.

    >>> from pyro_mixtures.infer import Epoch
    >>> history = History([Epoch("warm-up", -3.0, 100, 5, 0, 0, 0.5), Epoch("EM", -2.0, 200, 5, 0, 0, 1.5)])
    >>> [ax.get_ylabel() for ax in plot_history(history, full=1000)]
    ['ELBO (nats per row)', 'Joint evaluations']
    """
    if against not in _AXES:
        raise OptionError(f"unknown against={against!r}; choose one of {tuple(_AXES)}")
    if full is not None:
        check_whole(full=full)
    if not len(history):
        raise OptionError("the history has no epochs: nothing to plot")
    axes = np.asarray(figure((10, 3.8)).subplots(1, 2) if axes is None else axes)
    if axes.shape != (2,):
        raise OptionError(f"plot_history draws in two axes, not in {axes.shape}")
    x = np.arange(1, len(history) + 1) if against == "epochs" else history["seconds"]
    _plot_phases(axes[0], x, history["elbo"], history["phase"])
    _plot_phases(axes[1], x, history["evaluations"], history["phase"])
    if full is not None:
        _plot_full(axes[1], x, full, int(history["evaluations"][-1]))
    else:
        axes[1].set_ylim(bottom=0)
        axes[1].yaxis.set_major_formatter(EngFormatter())
    _decorate(axes[0], "Objective", _AXES[against], "ELBO (nats per row)")
    _decorate(axes[1], "Cost", _AXES[against], "Joint evaluations")
    return axes


def _plot_phases(ax: Axes, x: np.ndarray, y: np.ndarray, phase: np.ndarray) -> None:
    """One line a stretch of a phase, joined to that before it; its own epochs are marked while they are few."""
    marker = "o" if len(x) <= 40 else None
    colors: dict[str, Any] = dict(_COLORS)
    for inside in np.split(np.arange(len(x)), np.flatnonzero(phase[1:] != phase[:-1]) + 1):
        name, joined = str(phase[inside[0]]), int(inside[0] > 0)
        points = np.arange(inside[0] - joined, inside[-1] + 1)
        every = slice(joined, None) if marker else None
        known = name in phase[: inside[0]]  # has its line in the legend
        style: dict[str, Any] = {"color": colors.get(name), "label": None if known else name}
        drawn = ax.plot(x[points], y[points], marker=marker, markevery=every, ms=3.5, **style)
        colors[name] = drawn[0].get_color()


def _plot_full(ax: Axes, x: np.ndarray, full: int, evaluations: int) -> None:
    exact = full * np.arange(1, len(x) + 1)
    ratio = exact[-1] / max(evaluations, 1)
    ax.plot(x, exact, color=GREY, linestyle="--", label=f"N × C a pass ({ratio:.3g}×)")
    ax.set_yscale("log")


def _decorate(ax: Axes, title: str, x: str, y: str) -> None:
    label(ax, title, x, y, legend=True)
    if x == _AXES["epochs"]:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(alpha=0.3)
