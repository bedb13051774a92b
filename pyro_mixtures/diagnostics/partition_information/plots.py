"""Bar chart of the information of a partition about each variable."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pyro_mixtures.diagnostics.partition_information.report import (
    PartitionInformation,
    VariableInformation,
)
from pyro_mixtures.errors import OptionError
from pyro_mixtures.options import check_flag, check_number, check_whole

# Colors of Okabe & Ito, which color-blind readers can tell apart.
_COLORS = {"feature": "#0072B2", "outcome": "#E69F00", "all features": "#009E73"}
_COMPACT: dict[str, float] = {"columnspacing": 1.2, "handlelength": 1.0, "handletextpad": 0.5}
_PALE = 0.35  # opacity of bars that are not significant
_MAX_LABEL = 40  # characters; a label twice as long would leave no space for the bars
_LEGEND_HEIGHT = 24  # points between title and axes


def plot_information(
    result: PartitionInformation,
    ax: Axes | None = None,
    *,
    level: float = 0.05,
    count: int = 30,
    labels: Mapping[str, str] | None = None,
    legend: bool = True,
) -> Axes:
    """Draw I(z; variable) in nats as bars, the largest at the top.

    Bars are pale if independence was not rejected.

    :param result: of :func:`partition_information`.
    :param ax: axes to draw in; None creates a figure outside pyplot.
    :param level: significance level for the adjusted p-values.
    :param count: maximum number of variables to draw.
    :param labels: texts to write instead of some variables' names ("x" is all features together,
        "y" the outcome). Texts are drawn verbatim, without mathematics between dollar signs; the
        middle of a text beyond 40 characters is left out.
    :param legend: whether to explain the colors above the axes.
    :returns: the axes.
    :raises OptionError: for a ``count`` below one, a level outside (0, 1], labels of unknown
        variables, or a result without variables.

    >>> variables = [
    ...     VariableInformation("a", "feature", 0.5, 0.01, 0.02),
    ...     VariableInformation("y", "outcome", 0.0, 0.6, 0.6),
    ... ]
    >>> result = PartitionInformation(variables, [], 0.7, 100)
    >>> ax = plot_information(result, labels={"y": "diagnosis"})
    >>> [tick.get_text() for tick in ax.get_yticklabels()]
    ['a', 'diagnosis']
    """
    _check(result, level, count, legend)
    texts = _label_texts(result, labels or {})
    shown = result.variables[:count]
    ax = _new_axes([texts[line.name] for line in shown]) if ax is None else ax
    bars = ax.barh(
        range(len(shown)),
        [line.nats for line in shown],
        color=[_COLORS[line.kind] for line in shown],
    )
    for bar, line in zip(bars, shown, strict=True):
        bar.set_alpha(1.0 if _is_significant(line, level) else _PALE)
    ax.axvline(0, color="#555555", linewidth=0.8)
    ax.axvline(result.entropy, color="#555555", linestyle="--", linewidth=1)
    ax.set_yticks(range(len(shown)), [texts[line.name] for line in shown], parse_math=False)
    ax.invert_yaxis()
    _decorate(ax, result, pad=_LEGEND_HEIGHT if legend else None)
    if legend:
        _add_legend(ax, shown, level)
    return ax


def _check(result: PartitionInformation, level: float, count: int, legend: bool) -> None:
    check_whole(count=count)
    check_flag(legend=legend)
    check_number(positive=True, level=level)
    if level > 1:
        raise OptionError(f"level={level} must be at most 1")
    if not result.variables:
        raise OptionError("the result has no variables: there is nothing to plot")


def _new_axes(texts: list[str]) -> Axes:
    """Axes of a new figure, about half as wide as the figure for labels of any length."""
    inches = (max(7.5, 5.5 + 0.1 * max(map(len, texts))), 1.3 + 0.28 * len(texts))
    return Figure(figsize=inches, dpi=150, layout="constrained").subplots()


def _label_texts(result: PartitionInformation, labels: Mapping[str, str]) -> dict[str, str]:
    """The text at each variable's bar."""
    names = {line.name: line.name for line in result.variables}
    unknown = sorted(set(labels) - set(names))
    if unknown:
        raise OptionError(
            f"labels= names {unknown}, but the variables of the result are {sorted(names)}"
        )
    return {name: _shorten(text) for name, text in (names | dict(labels)).items()}


def _shorten(text: str) -> str:
    """The text without its middle, because names often begin alike."""
    half = _MAX_LABEL // 2
    return text if len(text) <= _MAX_LABEL else f"{text[:half]}…{text[1 - half :]}"


def _is_significant(line: VariableInformation, level: float) -> bool:
    return line.adjusted_p_value is None or line.adjusted_p_value <= level


def _decorate(ax: Axes, result: PartitionInformation, pad: float | None) -> None:
    ax.set_title("Mutual information of the cluster labels", loc="left", pad=pad)
    ax.set_xlabel(f"I(z; variable) in nats; dashed: H(z) = {result.entropy:.2f}")
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _add_legend(ax: Axes, shown: list[VariableInformation], level: float) -> None:
    shown_kinds = {line.kind for line in shown}
    handles = [
        Patch(color=color, label=kind) for kind, color in _COLORS.items() if kind in shown_kinds
    ]
    if not all(_is_significant(line, level) for line in shown):
        handles.append(Patch(color="#777777", alpha=_PALE, label=f"adjusted p > {level:g}"))
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        frameon=False,
        borderaxespad=0.2,
        **_COMPACT,
    )
