"""Picture of what a partition knows: a bar for each variable, highest first."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pyro_mixtures.diagnostics.partition_information.report import Knowledge, PartitionInformation
from pyro_mixtures.errors import OptionError
from pyro_mixtures.options import check_flag, check_number, check_whole

_COLORS = {"feature": "#0072B2", "outcome": "#E69F00", "all features": "#009E73"}  # Okabe & Ito's
_SLIM: dict[str, float] = {"columnspacing": 1.2, "handlelength": 1.0, "handletextpad": 0.5}
_PALE = 0.35  # opacity of what was not found
_LONGEST = 40  # characters of a name; twice as many would leave the bars no room


def plot_information(
    result: PartitionInformation,
    ax: Axes | None = None,
    *,
    level: float = 0.05,
    count: int = 30,
    labels: Mapping[str, str] | None = None,
    legend: bool = True,
) -> Axes:
    """I(z; variable) in nats, the highest at the top; pale where independence was not rejected.

    :param ax: axes to draw in; None makes a figure, not one of pyplot's.
    :param level: of adjusted p-values.
    :param count: draw at most so many variables.
    :param labels: what to write for variables of these names ("x" is all features together, "y" the
        outcome). Names are drawn as they are, without mathematics between dollars; beyond 40
        characters their middle is left out.
    :param legend: say above the axes what the colours mean.
    :raises OptionError: for a ``count`` below one, a level outside (0, 1], labels of unknown
        variables, or a result without variables.

    >>> known = [Knowledge("a", "feature", 0.5, 0.01, 0.02), Knowledge("y", "outcome", 0.0, 0.6, 0.6)]
    >>> ax = plot_information(PartitionInformation(known, [], 0.7, 100), labels={"y": "diagnosis"})
    >>> [tick.get_text() for tick in ax.get_yticklabels()]
    ['a', 'diagnosis']
    """
    _check(result, level, count, legend)
    written = _written(result, labels or {})
    shown = result.knowledge[:count]
    if ax is None:
        longest = max(len(written[line.name]) for line in shown)
        size = (
            max(7.5, 5.5 + 0.1 * longest),
            1.3 + 0.28 * len(shown),
        )  # inches, of which the bars get about half
        ax = Figure(figsize=size, dpi=150, layout="constrained").subplots()
    bars = ax.barh(
        range(len(shown)),
        [line.nats for line in shown],
        color=[_COLORS[line.kind] for line in shown],
    )
    for bar, line in zip(bars, shown, strict=True):
        bar.set_alpha(1.0 if _found(line, level) else _PALE)
    ax.axvline(0, color="#555555", linewidth=0.8)
    ax.axvline(result.entropy, color="#555555", linestyle="--", linewidth=1)
    ax.set_yticks(range(len(shown)), [written[line.name] for line in shown], parse_math=False)
    ax.invert_yaxis()
    _decorate(ax, result, pad=24 if legend else None)  # the legend stands between title and axes
    if legend:
        _add_legend(ax, shown, level)
    return ax


def _check(result: PartitionInformation, level: float, count: int, legend: bool) -> None:
    check_whole(count=count)
    check_flag(legend=legend)
    check_number(positive=True, level=level)
    if level > 1:
        raise OptionError(f"level={level} must be 1 at most")
    if not result.knowledge:
        raise OptionError("the result has no variables: nothing to plot")


def _written(result: PartitionInformation, labels: Mapping[str, str]) -> dict[str, str]:
    """What stands at each variable's bar."""
    names = {line.name: line.name for line in result.knowledge}
    for name in labels:
        if name not in names:
            raise OptionError(
                f"labels for {name!r}, which is no variable of the result: give names of its knowledge"
            )
    return {name: _short(text) for name, text in (names | dict(labels)).items()}


def _short(text: str) -> str:
    """Without its middle, because names often begin alike."""
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}…{text[1 - half :]}"


def _found(line: Knowledge, level: float) -> bool:
    return line.adjusted is None or line.adjusted <= level


def _decorate(ax: Axes, result: PartitionInformation, pad: float | None) -> None:
    ax.set_title("What the partition knows", loc="left", pad=pad)
    ax.set_xlabel(f"I(z; variable) (nats); dashed: H(z) = {result.entropy:.2f}")
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _add_legend(ax: Axes, shown: list[Knowledge], level: float) -> None:
    kinds = [
        Patch(color=color, label=kind)
        for kind, color in _COLORS.items()
        if kind in {s.kind for s in shown}
    ]
    pale = [Patch(color="#777777", alpha=_PALE, label=f"adjusted p > {level:g}")]
    handles = kinds + (pale if not all(_found(line, level) for line in shown) else [])
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        frameon=False,
        borderaxespad=0.2,
        **_SLIM,
    )
