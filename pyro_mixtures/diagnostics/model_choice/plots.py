"""Plot of a comparison: one criterion against the number of components, one line per family."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pyro_mixtures.diagnostics.model_choice.score import PREDICTIVE, Comparison, Score
from pyro_mixtures.diagnostics.plots.drawing import GRAY, color_of, figure, label

_TITLES = {
    "bic": "BIC (nats, small is good)",
    "aic": "AIC (nats, small is good)",
    "icl": "ICL (nats, small is good)",
    "heldout": "Held-out log evidence (nats, large is good)",
    "loo": "PSIS-LOO (nats, large is good)",
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def plot_comparison(
    result: Comparison, *, criterion: str | None = None, ax: Axes | None = None
) -> Axes:
    """Plot one criterion of all fits against their numbers of components; a ring marks the choice.

    Error bars of held-out log evidence and PSIS-LOO are one standard error of the difference to the
    largest value, which therefore has no bar. The simplest of the fits whose bars reach it is
    chosen. Families are shifted horizontally by one hundredth of the axis each, so that equal
    scores do not hide each other.

    :param result: the comparison.
    :param criterion: the comparison's own criterion by default.
    :param ax: axes to draw in; a new figure by default.
    :returns: the axes.
    :raises OptionError: if the criterion is unknown or was not computed.

    >>> import torch
    >>> from pyro_mixtures.diagnostics import compare_fits
    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.infer import EM
    >>> from pyro_mixtures.models import GaussianMixture
    >>> def build(components):
    ...     model = GaussianMixture(components=components, features=2)
    ...     return EM(model, FullPartition(model, components=components))
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> result = compare_fits({"diagonal": build}, x, components=[1, 2], progress=False)
    >>> plot_comparison(result, criterion="icl").get_ylabel()
    'ICL (nats, small is good)'
    """
    criterion = result.criterion if criterion is None else criterion
    best = result.best_by(criterion)
    ax = figure((7, 4)).subplots() if ax is None else ax
    shifts = _shifts(result)
    for number, (family, scores) in enumerate(result.families().items()):
        ax.errorbar(
            [score.components + shifts[family] for score in scores],
            [score.value(criterion) for score in scores],
            yerr=_errors(result, scores, criterion),
            capsize=3,
            color=color_of(number),
            marker=_MARKERS[number % len(_MARKERS)],
            ms=4,
            label=family,
        )
    ax.scatter(
        [best.components + shifts[best.family]],
        [best.value(criterion)],
        s=140,
        facecolors="none",
        edgecolors=GRAY,
        linewidths=1.5,
        zorder=3,
    )
    title = f"Chosen: {best.family}, {best.components} components"
    label(ax, title, "Components", _TITLES[criterion])
    ax.legend(frameon=False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    return ax


def _shifts(result: Comparison) -> dict[str, float]:
    """Return each family's horizontal distance from its number of components."""
    sizes = [score.components for score in result.scores]
    families = list(result.families())
    step = 0.01 * max(1, max(sizes) - min(sizes))
    center = (len(families) - 1) / 2
    return {family: step * (number - center) for number, family in enumerate(families)}


def _errors(result: Comparison, scores: list[Score], criterion: str) -> np.ndarray | None:
    """Return the standard errors (fits,) of the differences to the largest value of all fits."""
    if criterion not in PREDICTIVE:
        return None
    leader = result.best_by(criterion, errors=0).predictive(criterion)
    return np.array([leader.error_against(score.predictive(criterion)) for score in scores])
