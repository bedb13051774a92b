"""Picture of what a partition knows: a bar for each variable, highest first."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pyro_mixtures.diagnostics.information.report import Knowledge, PartitionInformation
from pyro_mixtures.errors import OptionError

_COLORS = {"feature": "#0072B2", "outcome": "#E69F00", "all features": "#009E73"}  # Okabe & Ito's
_SLIM: dict[str, float] = {"columnspacing": 1.2, "handlelength": 1.0, "handletextpad": 0.5}
_PALE = 0.35  # opacity of what was not found


def plot_information(
    result: PartitionInformation, ax: Axes | None = None, *, level: float = 0.05, count: int = 30
) -> Axes:
    """I(z; variable) in nats, the highest at the top; pale where independence was not rejected.

    :param ax: axes to draw in; None makes a figure, not one of pyplot's.
    :param level: of adjusted p-values.
    :param count: draw at most so many variables.
    :raises OptionError: for a ``count`` below one, a level outside (0, 1], or a result without variables.

    >>> known = [Knowledge("a", "feature", 0.5, 0.01, 0.02), Knowledge("b", "feature", 0.0, 0.6, 0.6)]
    >>> ax = plot_information(PartitionInformation(known, [], 0.7, 100))
    >>> [tick.get_text() for tick in ax.get_yticklabels()]
    ['a', 'b']
    """
    if count < 1 or not 0 < level <= 1:
        raise OptionError(f"count={count} must be positive and level={level} lie in (0, 1]")
    if not result.knowledge:
        raise OptionError("the result has no variables: nothing to plot")
    shown = result.knowledge[:count]
    if ax is None:
        ax = Figure(figsize=(7.5, 1.3 + 0.28 * len(shown)), dpi=150, layout="constrained").subplots()
    bars = ax.barh(range(len(shown)), [line.nats for line in shown], color=[_COLORS[line.kind] for line in shown])
    for bar, line in zip(bars, shown, strict=True):
        bar.set_alpha(1.0 if _found(line, level) else _PALE)
    ax.axvline(0, color="#555555", linewidth=0.8)
    ax.axvline(result.entropy, color="#555555", linestyle="--", linewidth=1)
    ax.set_yticks(range(len(shown)), [line.name for line in shown])
    ax.invert_yaxis()
    _decorate(ax, result, shown, level)
    return ax


def _found(line: Knowledge, level: float) -> bool:
    return line.adjusted is None or line.adjusted <= level


def _decorate(ax: Axes, result: PartitionInformation, shown: list[Knowledge], level: float) -> None:
    kinds = [Patch(color=color, label=kind) for kind, color in _COLORS.items() if kind in {s.kind for s in shown}]
    pale = [Patch(color="#777777", alpha=_PALE, label=f"adjusted p > {level:g}")]
    handles = kinds + (pale if not all(_found(line, level) for line in shown) else [])
    ax.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, borderaxespad=0.2, **_SLIM
    )
    ax.set_title("What the partition knows", loc="left", pad=24)  # the legend stands between title and axes
    ax.set_xlabel(f"I(z; variable) (nats); dashed: H(z) = {result.entropy:.2f}")
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
