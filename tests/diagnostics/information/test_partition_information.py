"""What a partition knows: ranking, tests, dependences inside parts, tables and picture."""

import io
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_mixtures.diagnostics.partition_information import (
    Dependence,
    Knowledge,
    PartitionInformation,
    partition_information,
    plot_information,
)
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer.scoring.posteriors import Responsibilities
from pyro_mixtures.information import hypercontractivity, mutual_information

N = 600
NAMES = ["shifted", "slope", "noise"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(seed=0):
    """Labels shift the first feature; the outcome follows the second in part 1 alone."""
    g = generator(seed)
    z = torch.arange(N, device="cpu") % 2
    x = torch.randn(N, 3, generator=g, device="cpu")
    x[:, 0] += 3 * z
    y = 2 * z * x[:, 1] + torch.randn(N, generator=g, device="cpu")
    return z, x, y


@pytest.mark.parametrize(("part_rows", "sets"), [(50, 4), (150, 4), (250, 2), (300, 2)])
def test_dependences_over_all_rows_are_the_mean_of_sets_as_large_as_those_inside(part_rows, sets):
    z, x, y = mixture()
    found = partition_information(
        z, x[:, :1], y, permutations=0, part_rows=part_rows, generator=generator(3)
    )
    g = generator(3)
    torch.randperm(N, generator=g)  # the rows for mutual information
    some = torch.randperm(N, generator=g).split(part_rows)[:sets]
    options = {"steps": 50, "starts": 5, "generator": g}
    expected = [hypercontractivity(x[rows, 0], y[rows], **options).coefficient for rows in some]
    (overall,) = {line.overall for line in found.dependences}
    assert overall == pytest.approx(sum(expected) / sets, rel=1e-5)


@pytest.fixture(scope="module")
def found():
    with torch.device("cpu"):
        return partition_information(
            *mixture(), names=NAMES, permutations=139, part_rows=60, generator=generator()
        )


def test_ranks_what_the_labels_know(found):
    names = [line.name for line in found.knowledge]
    assert set(names) == {*NAMES, "x", "y"}
    assert set(names[:2]) == {"shifted", "x"}
    assert [line.nats for line in found.knowledge] == sorted(
        (line.nats for line in found.knowledge), reverse=True
    )
    adjusted = {line.name: line.adjusted for line in found.knowledge}
    assert max(adjusted["shifted"], adjusted["x"]) <= 0.05
    assert min(adjusted["noise"], adjusted["slope"]) > 0.05
    assert found.entropy == pytest.approx(0.6931, abs=1e-3)


def test_finds_the_dependence_that_holds_in_one_part(found):
    assert [(line.feature, line.part) for line in found.partial()] == [("slope", 1)]
    line = found.partial()[0]
    assert line.inside > line.overall + 0.1
    assert line.rows == N // 2
    assert len(found.dependences) == 6


def test_estimates_are_those_of_mutual_information():
    z, x, _ = mixture()
    lines = {line.name: line.nats for line in partition_information(z, x, permutations=0).knowledge}
    assert lines["x1"] == mutual_information(z, x[:, 1], discrete="x").nats
    assert lines["x"] == pytest.approx(mutual_information(z, x / x.std(0), discrete="x").nats)


def test_texts_and_frames(found):
    text = str(found).split("\n")
    assert "600 rows" in text[0]
    assert len(text) == 2 + 5 + 2 + 1 + 6
    assert len({len(line) for line in text[1:7]}) == 1
    pytest.importorskip("pandas")
    assert found.to_frame()["name"].tolist() == [line.name for line in found.knowledge]
    assert found.to_frame("dependences").shape == (6, 7)
    with pytest.raises(OptionError, match="'parts'"):
        found.to_frame("parts")


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_tests_or_outcome(dtype):
    z, x, y = mixture()
    plain = partition_information(z, x.to(dtype), permutations=0, generator=generator())
    assert plain.dependences == []
    assert {line.p_value for line in plain.knowledge} == {None}
    untested = partition_information(
        z, x.to(dtype), y.to(dtype), permutations=0, part_rows=60, generator=generator()
    )
    assert {line.adjusted for line in untested.dependences} == {None}
    with pytest.raises(OptionError, match="permutations=199"):
        untested.partial()


def test_responsibilities_are_drawn_from():
    z, x, _ = mixture()
    components = torch.stack([z, 1 - z], 1)
    sure = Responsibilities(components, torch.tensor([[1.0, 0.0]]).expand(N, 2))
    unsure = Responsibilities(components, torch.tensor([[0.5, 0.5]]).expand(N, 2))
    known = [
        partition_information(q, x, permutations=0, generator=generator())
        for q in (z, sure, unsure)
    ]
    nats = [{line.name: line.nats for line in result.knowledge}["x0"] for result in known]
    assert nats[0] == nats[1]
    assert nats[2] < 0.1 < nats[0]


def test_samples_rows_and_largest_parts():
    z, x, y = mixture()
    z = torch.where(torch.arange(N) < 30, 2, z)
    small = partition_information(
        z, x, y, permutations=0, rows=150, part_rows=100, parts=1, generator=generator()
    )
    assert small.rows == 150
    assert len({line.part for line in small.dependences}) == 1
    assert {
        line.part
        for line in partition_information(z, x, y, permutations=0, part_rows=40).dependences
    } == {0, 1}


def test_features_that_are_constant_in_a_part():
    z, x, y = mixture()
    x[:, 2] = torch.where(z == 0, 1.0, x[:, 2])
    lines = partition_information(
        z, x, y, permutations=9, part_rows=50, generator=generator()
    ).dependences
    assert [(d.feature, d.part) for d in lines if d.inside != d.inside] == [("x2", 0)]
    assert [(d.feature, d.part) for d in lines if d.adjusted != d.adjusted] == [("x2", 0)]


def knowledge(*given, **options):
    lines = partition_information(
        *given, permutations=0, generator=generator(), **options
    ).knowledge
    return {line.name: line.nats for line in lines}


@pytest.mark.meta
def test_arrays_and_lists_are_read():
    z, x, y = (values.double() for values in mixture())
    expected = partition_information(z, x, y, permutations=0, part_rows=60, generator=generator())
    for read in (Tensor.numpy, Tensor.tolist):
        given = map(read, (z, x, y))
        assert (
            partition_information(*given, permutations=0, part_rows=60, generator=generator())
            == expected
        )
    drawn = Responsibilities(z[:, None].numpy(), np.ones((N, 1)))
    assert partition_information(drawn, x, permutations=0).knowledge[0].nats > 0.3


@pytest.mark.meta
def test_integers_are_exact():
    z, t = torch.arange(200, device="cpu") // 100, 1_700_000_000 + torch.arange(200, device="cpu")
    assert knowledge(z, t[:, None])["x0"] == pytest.approx(0.6931, abs=0.02)


def test_units_of_the_outcome_do_not_matter():
    z, x, noise = mixture()
    first, *others = (
        knowledge(z, x, torch.stack([z + 0.1 * x[:, 2], scale * noise], 1))["y"]
        for scale in (1, 1e2, 1e-4)
    )
    assert first > 0.4
    assert others == pytest.approx([first, first], abs=1e-6)


def test_outcome_and_features_of_any_size():
    z, x, y = mixture()
    first = knowledge(z, x.double(), torch.stack([y, y + 1], 1).double())
    scaled = knowledge(z, x.double() * 1e200, torch.stack([y, y + 1], 1).double() * 1e-300)
    assert scaled == pytest.approx(first)


def test_rows_without_a_part_do_not_count():
    z, x, y = mixture()
    masked = torch.where(torch.arange(N) < 50, -1, z)
    found = partition_information(masked, x, y, permutations=0, part_rows=60, generator=generator())
    assert found == partition_information(
        z[50:], x[50:], y[50:], permutations=0, part_rows=60, generator=generator()
    )
    assert {line.part for line in found.dependences} == {0, 1}
    with pytest.raises(DataError, match="no row has a part"):
        partition_information(torch.full((N,), -1), x)


def test_columns_of_the_outcome_that_do_not_vary_in_the_sample():
    z, x, y = mixture()
    rare = torch.zeros(N)
    rare[int(torch.randperm(N, generator=generator())[-1])] = 1  # not among the rows drawn
    alone = knowledge(z, x, y, rows=100, part_rows=700)["y"]
    assert knowledge(z, x, torch.stack([rare, y], 1), rows=100, part_rows=700)[
        "y"
    ] == pytest.approx(alone)
    with pytest.raises(DataError, match="y, among the 100 rows drawn, is constant"):
        knowledge(z, x, rare, rows=100, part_rows=700)


def test_partial_leaves_out_what_was_not_tested_or_is_weaker_inside():
    nan = float("nan")

    def lines(feature, *found):
        return [
            Dependence(feature, part, 90, inside, 0.3, p, p)
            for part, (inside, p) in enumerate(found)
        ]

    everywhere = lines("everywhere", (0.5, 0.01), (0.5, 0.01), (nan, nan))  # constant in part 2
    weaker = lines("weaker", (0.2, 0.01), (0.1, 0.6))
    hidden = lines("hidden", (0.1, 0.7), (0.8, 0.01), (0.6, 0.01))
    little = lines("little", (0.7, 0.01), (0.1, 0.7))
    found = PartitionInformation([], everywhere + weaker + little + hidden, 0.7, 180).partial()
    assert [(line.feature, line.part) for line in found] == [
        ("hidden", 1),
        ("little", 0),
        ("hidden", 2),
    ]


def test_names_are_drawn_as_they_are():
    names = ["Revenue ($/100%) vs cost $", "cost_$__$", "a$b$c", "in $ {a $"]
    result = PartitionInformation(
        [Knowledge(name, "feature", 0.5, None, None) for name in names], [], 0.7, 100
    )
    ax = plot_information(result)
    ax.figure.savefig(io.BytesIO(), format="png", dpi=40)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == names
    assert not any(tick.get_parse_math() for tick in ax.get_yticklabels())


def test_long_names_leave_room():
    names = [f"{'very ' * 24}long {which}" for which in ("a", "b")]
    lines = [Knowledge(name, "feature", 0.5, 0.2, 0.2) for name in names]
    lines += [
        Knowledge("x", "all features", 0.5, 0.01, 0.01),
        Knowledge("y", "outcome", 0.5, 0.01, 0.01),
    ]
    ax = plot_information(PartitionInformation(lines, [], 0.7, 100))
    ax.figure.savefig(io.BytesIO(), format="png")
    shown = [tick.get_text() for tick in ax.get_yticklabels()]
    assert max(map(len, shown)) <= 40
    assert [label[-6:] for label in shown[:2]] == ["long a", "long b"]
    assert ax.get_position().width > 0.5
    for text in (ax.get_legend(), ax.xaxis.label, ax.title):
        assert text.get_window_extent().x1 <= ax.figure.bbox.x1


def test_labels_and_legend_of_the_picture(found):
    ax = plot_information(found, labels={"x": "all features", "y": "diagnosis"}, legend=False)
    shown = [tick.get_text() for tick in ax.get_yticklabels()]
    assert shown == [
        {"x": "all features", "y": "diagnosis"}.get(line.name, line.name)
        for line in found.knowledge
    ]
    assert ax.get_legend() is None
    with pytest.raises(OptionError, match="'outcome'"):
        plot_information(found, labels={"outcome": "diagnosis"})
    with pytest.raises(OptionError, match="legend='no'"):
        plot_information(found, legend="no")


def test_picture(found):
    ax = plot_information(found)
    ax.figure.savefig(io.BytesIO(), format="png", dpi=40)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [
        line.name for line in found.knowledge
    ]
    assert [bar.get_width() for bar in ax.patches] == [line.nats for line in found.knowledge]
    pale = [bar.get_alpha() < 1 for bar in ax.patches]
    assert pale == [line.adjusted > 0.05 for line in found.knowledge]
    assert ax.get_legend().get_window_extent().x1 <= ax.figure.bbox.x1
    own = Figure().subplots()
    assert plot_information(found, own, count=2) is own
    assert len(own.get_yticks()) == 2
    with pytest.raises(OptionError, match="count=0"):
        plot_information(found, count=0)
    with pytest.raises(OptionError, match=r"count=2\.5"):
        plot_information(found, count=2.5)


def responsibilities(row):
    """Of two components; row 4 is ``row``."""
    probs = torch.full((N, 2), 0.5)
    probs[4] = torch.tensor(row)
    return Responsibilities(torch.arange(2).expand(N, 2), probs)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(N)}, DataError, r"shape \(600,\)"),
        ({"x": torch.zeros(N, 2)}, DataError, "column 0 of x is constant"),
        ({"partition": torch.zeros(N - 1)}, DataError, "600 rows"),
        ({"partition": torch.zeros(N)}, DataError, "one part"),
        ({"partition": torch.arange(N) // 599, "rows": 9, "neighbors": 2}, DataError, "one part"),
        ({"partition": torch.arange(N) / 2}, DataError, "whole numbers"),
        ({"partition": ["a", "b"] * (N // 2)}, DataError, "real numbers"),
        ({"partition": responsibilities([0.0, 0.0])}, DataError, "row 4 of the responsibilities"),
        (
            {"partition": responsibilities([math.nan, 1.0])},
            DataError,
            "row 4 of the responsibilities",
        ),
        ({"partition": responsibilities([-1.0, 1.0])}, DataError, "row 4 of the responsibilities"),
        ({"x": torch.eye(N).to_sparse()}, DataError, "to_dense"),
        ({"names": ["a", "b", "a"]}, OptionError, "'a'"),
        ({"neighbors": 2.5}, OptionError, "neighbors=2.5"),
        ({"rows": 50.5}, OptionError, "rows=50.5"),
        ({"part_rows": 50.5}, OptionError, "part_rows=50.5"),
        ({"part_rows": 3}, OptionError, "part_rows=3"),
        ({"parts": 1.5}, OptionError, "parts=1.5"),
        ({"y": torch.arange(5.0)}, DataError, "600 rows"),
        ({"names": ["a"]}, OptionError, "1 names for 3"),
        ({"rows": 0}, OptionError, "rows=0"),
        ({"permutations": -2}, OptionError, "permutations=-2"),
    ],
)
def test_bad_input(change, error, message):
    z, x, y = mixture()
    given = {"partition": z, "x": x, "y": y, "permutations": 0} | change
    with pytest.raises(error, match=message):
        partition_information(given.pop("partition"), given.pop("x"), given.pop("y"), **given)
