"""The bar chart of partition_information: bars, labels and legend."""

import io

import pytest
from matplotlib.figure import Figure

from pyro_mixtures.diagnostics.partition_information import (
    PartitionInformation,
    VariableInformation,
    plot_information,
)
from pyro_mixtures.errors import OptionError


@pytest.fixture
def result():
    """One significant feature, one insignificant feature, and an insignificant outcome."""
    variables = [
        VariableInformation("shifted", "feature", 0.5, 0.005, 0.01),
        VariableInformation("x", "all features", 0.4, 0.005, 0.01),
        VariableInformation("noise", "feature", 0.02, 0.4, 0.5),
        VariableInformation("y", "outcome", -0.01, 0.6, 0.6),
    ]
    return PartitionInformation(variables, [], 0.7, 100)


def test_names_are_drawn_verbatim():
    names = ["Revenue ($/100%) vs cost $", "cost_$__$", "a$b$c", "in $ {a $"]
    result = PartitionInformation(
        [VariableInformation(name, "feature", 0.5, None, None) for name in names], [], 0.7, 100
    )
    ax = plot_information(result)
    ax.figure.savefig(io.BytesIO(), format="png", dpi=40)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == names
    assert not any(tick.get_parse_math() for tick in ax.get_yticklabels())


def test_long_names_leave_space_for_the_bars():
    names = [f"{'very ' * 24}long {which}" for which in ("a", "b")]
    lines = [VariableInformation(name, "feature", 0.5, 0.2, 0.2) for name in names]
    lines += [
        VariableInformation("x", "all features", 0.5, 0.01, 0.01),
        VariableInformation("y", "outcome", 0.5, 0.01, 0.01),
    ]
    ax = plot_information(PartitionInformation(lines, [], 0.7, 100))
    ax.figure.savefig(io.BytesIO(), format="png")
    shown = [tick.get_text() for tick in ax.get_yticklabels()]
    assert max(map(len, shown)) <= 40
    assert [label[-6:] for label in shown[:2]] == ["long a", "long b"]
    assert ax.get_position().width > 0.5
    for text in (ax.get_legend(), ax.xaxis.label, ax.title):
        assert text.get_window_extent().x1 <= ax.figure.bbox.x1


def test_labels_and_legend(result):
    ax = plot_information(result, labels={"x": "all features", "y": "diagnosis"}, legend=False)
    shown = [tick.get_text() for tick in ax.get_yticklabels()]
    assert shown == [
        {"x": "all features", "y": "diagnosis"}.get(line.name, line.name)
        for line in result.variables
    ]
    assert ax.get_legend() is None
    with pytest.raises(OptionError, match="'outcome'"):
        plot_information(result, labels={"outcome": "diagnosis"})
    with pytest.raises(OptionError, match="legend='no'"):
        plot_information(result, legend="no")


def test_bars(result):
    ax = plot_information(result)
    ax.figure.savefig(io.BytesIO(), format="png", dpi=40)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [
        line.name for line in result.variables
    ]
    assert [bar.get_width() for bar in ax.patches] == [line.nats for line in result.variables]
    pale = [bar.get_alpha() < 1 for bar in ax.patches]
    assert pale == [line.adjusted_p_value > 0.05 for line in result.variables]
    assert ax.get_legend().get_window_extent().x1 <= ax.figure.bbox.x1
    axes = Figure().subplots()
    assert plot_information(result, axes, count=2) is axes
    assert len(axes.get_yticks()) == 2
    with pytest.raises(OptionError, match="count=0"):
        plot_information(result, count=0)
    with pytest.raises(OptionError, match=r"count=2\.5"):
        plot_information(result, count=2.5)
