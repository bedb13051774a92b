"""Picture of a comparison: one criterion against the number of components, a line a family."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pyro_mixtures.diagnostics.model_choice.score import PREDICTIVE, Comparison, Score
from pyro_mixtures.diagnostics.plots.drawing import GREY, color_of, figure, label

_TITLES = {
    "bic": "BIC (nats, small is good)",
    "aic": "AIC (nats, small is good)",
    "icl": "ICL (nats, small is good)",
    "heldout": "Held-out evidence (nats, large is good)",
    "loo": "PSIS-LOO (nats, large is good)",
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def plot_comparison(
    result: Comparison, *, criterion: str | None = None, ax: Axes | None = None
) -> Axes:
    """One criterion of all fits against their numbers of components; a ring marks the choice by it.

    Bars of held-out evidence and PSIS-LOO are one standard error of the difference to the largest,
    which therefore has none: of the fits whose bars reach it the simplest is chosen. Families stand
    side by side, each a hundredth of the axis from the one before, so that none of equal scores is
    hidden.

    :param criterion: None is that of the comparison.
    :param ax: axes to draw in; None makes a figure.
    :raises OptionError: for a criterion that is unknown or was not computed.
    """
    criterion = result.criterion if criterion is None else criterion
    best = result.best_by(criterion)
    ax = figure((7, 4)).subplots() if ax is None else ax
    shifts = _shifts(result)
    for number, (family, scores) in enumerate(result.families().items()):
        x, y = (
            [score.components + shifts[family] for score in scores],
            [score.value(criterion) for score in scores],
        )
        style: dict[str, Any] = {
            "color": color_of(number),
            "marker": _MARKERS[number % len(_MARKERS)],
            "ms": 4,
            "label": family,
        }
        ax.errorbar(x, y, yerr=_errors(result, scores, criterion), capsize=3, **style)
    ring: dict[str, Any] = {
        "s": 140,
        "facecolors": "none",
        "edgecolors": GREY,
        "linewidths": 1.5,
        "zorder": 3,
    }
    ax.scatter([best.components + shifts[best.family]], [best.value(criterion)], **ring)
    label(
        ax, f"Chosen: {best.family}, {best.components} components", "Components", _TITLES[criterion]
    )
    ax.legend(frameon=False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    return ax


def _shifts(result: Comparison) -> dict[str, float]:
    """How far beside its number of components each family is drawn."""
    sizes, families = [score.components for score in result.scores], list(result.families())
    step = 0.01 * max(1, max(sizes) - min(sizes))
    return {
        family: step * (number - (len(families) - 1) / 2) for number, family in enumerate(families)
    }


def _errors(result: Comparison, scores: list[Score], criterion: str) -> np.ndarray | None:
    """Standard errors (fits,) of the differences to the largest of all."""
    if criterion not in PREDICTIVE:
        return None
    leader = result.best_by(criterion, errors=0).predictive(criterion)
    return np.array([leader.error_against(score.predictive(criterion)) for score in scores])
