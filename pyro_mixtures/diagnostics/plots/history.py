"""Plot of the history of a fit: objective and cost."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from pyro_mixtures.diagnostics.plots.drawing import GRAY, figure, label
from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer import History
from pyro_mixtures.options import check_whole

_AXES = {"epochs": "Epoch", "seconds": "Time (s)"}
_COLORS = {"warm-up": "#E69F00", "EM": "#0072B2", "SVI": "#009E73"}
_MAX_MARKED = 40  # epochs up to which each has a marker


def plot_history(
    history: History, *, against: str = "epochs", full: int | None = None, axes: Any = None
) -> np.ndarray:
    """Draw the ELBO and the evaluations of the log joint in each epoch of a fit, by phase.

    :param history: of a :class:`~pyro_mixtures.infer.Fit`.
    :param against: ``"epochs"`` or ``"seconds"``, the horizontal axis.
    :param full: N x C, the evaluations of one exact pass: adds the cost of exact passes for
        comparison, on a logarithmic axis.
    :param axes: two axes to draw in, the first for the ELBO; None creates a figure.
    :returns: the two axes, as an array.
    :raises OptionError: for an unknown ``against``, a ``full`` that is not a positive whole number,
        another number of axes, or a history without epochs.

    >>> from pyro_mixtures.infer import Epoch
    >>> warm_up = Epoch("warm-up", -3.0, 100, 5, 0, 0, 0.5)
    >>> history = History([warm_up, Epoch("EM", -2.0, 200, 5, 0, 0, 1.5)])
    >>> [ax.get_ylabel() for ax in plot_history(history, full=1000)]
    ['ELBO (nats per row)', 'Evaluations of the log joint']
    """
    if against not in _AXES:
        raise OptionError(f"unknown against={against!r}: choose one of {tuple(_AXES)}")
    if full is not None:
        check_whole(full=full)
    if not len(history):
        raise OptionError("the history has no epochs: there is nothing to plot")
    axes = np.asarray(figure((10, 3.8)).subplots(1, 2) if axes is None else axes)
    if axes.shape != (2,):
        raise OptionError(f"plot_history draws in two axes, but axes= has shape {axes.shape}")
    x = np.arange(1, len(history) + 1) if against == "epochs" else history["seconds"]
    _plot_phases(axes[0], x, history["elbo"], history["phase"])
    _plot_phases(axes[1], x, history["evaluations"], history["phase"])
    if full is not None:
        _plot_exact_cost(axes[1], x, full, int(history["evaluations"][-1]))
    else:
        axes[1].set_ylim(bottom=0)
        axes[1].yaxis.set_major_formatter(EngFormatter())
    _decorate(axes[0], "Objective", _AXES[against], "ELBO (nats per row)")
    _decorate(axes[1], "Cost", _AXES[against], "Evaluations of the log joint")
    return axes


def _plot_phases(ax: Axes, x: np.ndarray, y: np.ndarray, phase: np.ndarray) -> None:
    """Draw one line per run of a phase, joined to the previous one.

    Only the epochs of the run itself are marked.
    """
    marker = "o" if len(x) <= _MAX_MARKED else None
    colors: dict[str, Any] = dict(_COLORS)
    run_starts = np.flatnonzero(phase[1:] != phase[:-1]) + 1
    for run in np.split(np.arange(len(x)), run_starts):
        name, is_joined = str(phase[run[0]]), int(run[0] > 0)
        points = np.arange(run[0] - is_joined, run[-1] + 1)
        is_in_legend = name in phase[: run[0]]
        (line,) = ax.plot(
            x[points],
            y[points],
            marker=marker,
            markevery=slice(is_joined, None) if marker else None,
            ms=3.5,
            color=colors.get(name),
            label=None if is_in_legend else name,
        )
        colors[name] = line.get_color()


def _plot_exact_cost(ax: Axes, x: np.ndarray, full: int, evaluations: int) -> None:
    exact = full * np.arange(1, len(x) + 1)
    ratio = exact[-1] / max(evaluations, 1)
    ax.plot(x, exact, color=GRAY, linestyle="--", label=f"N × C per pass ({ratio:.3g}×)")
    ax.set_yscale("log")


def _decorate(ax: Axes, title: str, x: str, y: str) -> None:
    label(ax, title, x, y, legend=True)
    if x == _AXES["epochs"]:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(alpha=0.3)
