"""Information of a partition: ranking, tests, dependences within clusters, and tables."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_mixtures.diagnostics.partition_information import (
    ClusterDependence,
    PartitionInformation,
    partition_information,
)
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer.scoring.posteriors import Responsibilities
from pyro_mixtures.information import hypercontractivity, mutual_information

N = 600
NAMES = ["shifted", "slope", "noise"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(seed=0):
    """Labels shift the first feature; the outcome depends on the second in cluster 1 only."""
    g = generator(seed)
    z = torch.arange(N, device="cpu") % 2
    x = torch.randn(N, 3, generator=g, device="cpu")
    x[:, 0] += 3 * z
    y = 2 * z * x[:, 1] + torch.randn(N, generator=g, device="cpu")
    return z, x, y


@pytest.mark.parametrize(("cluster_rows", "sets"), [(50, 4), (150, 4), (250, 2), (300, 2)])
def test_overall_coefficients_are_means_over_sets_of_cluster_rows(cluster_rows, sets):
    z, x, y = mixture()
    information = partition_information(
        z, x[:, :1], y, permutations=0, cluster_rows=cluster_rows, generator=generator(3)
    )
    g = generator(3)
    torch.randperm(N, generator=g)  # draws the rows for mutual information
    row_sets = torch.randperm(N, generator=g).split(cluster_rows)[:sets]
    options = {"steps": 50, "starts": 5, "generator": g}
    expected = [hypercontractivity(x[rows, 0], y[rows], **options).coefficient for rows in row_sets]
    (overall,) = {line.overall for line in information.dependences}
    assert overall == pytest.approx(sum(expected) / sets, rel=1e-5)


@pytest.fixture(scope="module")
def information():
    with torch.device("cpu"):
        return partition_information(
            *mixture(), names=NAMES, permutations=139, cluster_rows=60, generator=generator()
        )


def test_ranks_variables_by_their_information(information):
    names = [line.name for line in information.variables]
    assert set(names) == {*NAMES, "x", "y"}
    assert set(names[:2]) == {"shifted", "x"}
    assert [line.nats for line in information.variables] == sorted(
        (line.nats for line in information.variables), reverse=True
    )
    adjusted = {line.name: line.adjusted_p_value for line in information.variables}
    assert max(adjusted["shifted"], adjusted["x"]) <= 0.05
    assert min(adjusted["noise"], adjusted["slope"]) > 0.05
    assert information.entropy == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.parametrize("decimals", [8, 2, 1])
def test_a_rounded_feature_without_information_is_ranked_last(decimals):
    g = generator()
    z = torch.randint(2, (1000,), generator=g)
    weak = torch.randn(1000, generator=g, dtype=torch.float64) + 0.8 * z
    noise = torch.randn(1000, generator=g, dtype=torch.float64).round(decimals=decimals)
    result = partition_information(
        z, torch.stack([noise, weak], 1), names=["noise", "weak"], permutations=99, generator=g
    )
    lines = {line.name: line for line in result.variables}
    assert [line.name for line in result.variables if line.kind == "feature"] == ["weak", "noise"]
    assert lines["weak"].p_value == 0.01
    assert lines["noise"].p_value > 0.05
    assert max(line.nats for line in result.variables) <= result.entropy


def test_finds_the_dependence_that_holds_in_one_cluster(information):
    assert [(line.feature, line.cluster) for line in information.local_dependences()] == [
        ("slope", 1)
    ]
    line = information.local_dependences()[0]
    assert line.within > line.overall + 0.1
    assert line.rows == N // 2
    assert len(information.dependences) == 6


def test_estimates_are_those_of_mutual_information():
    z, x, _ = mixture()
    lines = {line.name: line.nats for line in partition_information(z, x, permutations=0).variables}
    assert lines["x1"] == mutual_information(z, x[:, 1], discrete="x").nats
    assert lines["x"] == pytest.approx(mutual_information(z, x / x.std(0), discrete="x").nats)


def test_text_and_data_frames(information):
    text = str(information).split("\n")
    assert "600 rows" in text[0]
    assert len(text) == 2 + 5 + 2 + 1 + 6
    assert len({len(line) for line in text[1:7]}) == 1
    pytest.importorskip("pandas")
    assert information.to_frame()["name"].tolist() == [line.name for line in information.variables]
    assert information.to_frame("dependences").shape == (6, 7)
    with pytest.raises(OptionError, match="table='clusters'"):
        information.to_frame("clusters")


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_tests_or_outcome(dtype):
    z, x, y = mixture()
    plain = partition_information(z, x.to(dtype), permutations=0, generator=generator())
    assert plain.dependences == []
    assert {line.p_value for line in plain.variables} == {None}
    untested = partition_information(
        z, x.to(dtype), y.to(dtype), permutations=0, cluster_rows=60, generator=generator()
    )
    assert {line.adjusted_p_value for line in untested.dependences} == {None}
    with pytest.raises(OptionError, match="permutations=199"):
        untested.local_dependences()


def test_labels_are_drawn_from_responsibilities():
    z, x, _ = mixture()
    components = torch.stack([z, 1 - z], 1)
    sure = Responsibilities(components, torch.tensor([[1.0, 0.0]]).expand(N, 2))
    unsure = Responsibilities(components, torch.tensor([[0.5, 0.5]]).expand(N, 2))
    results = [
        partition_information(q, x, permutations=0, generator=generator())
        for q in (z, sure, unsure)
    ]
    nats = [{line.name: line.nats for line in result.variables}["x0"] for result in results]
    assert nats[0] == nats[1]
    assert nats[2] < 0.1 < nats[0]


def test_samples_rows_and_examines_the_largest_clusters():
    z, x, y = mixture()
    z = torch.where(torch.arange(N) < 30, 2, z)
    small = partition_information(
        z, x, y, permutations=0, rows=150, cluster_rows=100, clusters=1, generator=generator()
    )
    assert small.rows == 150
    assert len({line.cluster for line in small.dependences}) == 1
    assert {
        line.cluster
        for line in partition_information(z, x, y, permutations=0, cluster_rows=40).dependences
    } == {0, 1}


def test_features_that_are_constant_in_a_cluster():
    z, x, y = mixture()
    x[:, 2] = torch.where(z == 0, 1.0, x[:, 2])
    lines = partition_information(
        z, x, y, permutations=9, cluster_rows=50, generator=generator()
    ).dependences
    assert [(d.feature, d.cluster) for d in lines if d.within != d.within] == [("x2", 0)]
    assert [(d.feature, d.cluster) for d in lines if d.adjusted_p_value != d.adjusted_p_value] == [
        ("x2", 0)
    ]


def information_by_name(*arrays, **options):
    lines = partition_information(
        *arrays, permutations=0, generator=generator(), **options
    ).variables
    return {line.name: line.nats for line in lines}


@pytest.mark.meta
def test_accepts_arrays_and_lists():
    z, x, y = (values.double() for values in mixture())
    expected = partition_information(
        z, x, y, permutations=0, cluster_rows=60, generator=generator()
    )
    for read in (Tensor.numpy, Tensor.tolist):
        arrays = map(read, (z, x, y))
        assert (
            partition_information(*arrays, permutations=0, cluster_rows=60, generator=generator())
            == expected
        )
    drawn = Responsibilities(z[:, None].numpy(), np.ones((N, 1)))
    assert partition_information(drawn, x, permutations=0).variables[0].nats > 0.3


@pytest.mark.meta
def test_integers_are_exact():
    z, t = torch.arange(200, device="cpu") // 100, 1_700_000_000 + torch.arange(200, device="cpu")
    assert information_by_name(z, t[:, None])["x0"] == pytest.approx(0.6931, abs=0.02)


def test_does_not_depend_on_the_units_of_the_outcome():
    z, x, noise = mixture()
    first, *others = (
        information_by_name(z, x, torch.stack([z + 0.1 * x[:, 2], scale * noise], 1))["y"]
        for scale in (1, 1e2, 1e-4)
    )
    assert first > 0.4
    assert others == pytest.approx([first, first], abs=1e-6)


def test_outcome_and_features_of_any_magnitude():
    z, x, y = mixture()
    first = information_by_name(z, x.double(), torch.stack([y, y + 1], 1).double())
    scaled = information_by_name(
        z, x.double() * 1e200, torch.stack([y, y + 1], 1).double() * 1e-300
    )
    assert scaled == pytest.approx(first)


def test_rows_without_a_cluster_are_left_out():
    z, x, y = mixture()
    masked = torch.where(torch.arange(N) < 50, -1, z)
    information = partition_information(
        masked, x, y, permutations=0, cluster_rows=60, generator=generator()
    )
    assert information == partition_information(
        z[50:], x[50:], y[50:], permutations=0, cluster_rows=60, generator=generator()
    )
    assert {line.cluster for line in information.dependences} == {0, 1}
    with pytest.raises(DataError, match="no row belongs to a cluster"):
        partition_information(torch.full((N,), -1), x)


def test_outcome_columns_that_are_constant_in_the_sample():
    z, x, y = mixture()
    rare = torch.zeros(N)
    rare[int(torch.randperm(N, generator=generator())[-1])] = 1  # not among the rows drawn
    alone = information_by_name(z, x, y, rows=100, cluster_rows=700)["y"]
    assert information_by_name(z, x, torch.stack([rare, y], 1), rows=100, cluster_rows=700)[
        "y"
    ] == pytest.approx(alone)
    with pytest.raises(DataError, match="y, among the 100 rows drawn, is constant"):
        information_by_name(z, x, rare, rows=100, cluster_rows=700)


def test_local_dependences_were_tested_and_are_stronger_within_their_cluster():
    nan = float("nan")

    def lines(feature, *estimates):
        return [
            ClusterDependence(feature, cluster, 90, within, 0.3, p, p)
            for cluster, (within, p) in enumerate(estimates)
        ]

    everywhere = lines("everywhere", (0.5, 0.01), (0.5, 0.01), (nan, nan))  # constant in cluster 2
    weaker = lines("weaker", (0.2, 0.01), (0.1, 0.6))
    hidden = lines("hidden", (0.1, 0.7), (0.8, 0.01), (0.6, 0.01))
    little = lines("little", (0.7, 0.01), (0.1, 0.7))
    dependences = everywhere + weaker + little + hidden
    local = PartitionInformation([], dependences, 0.7, 180).local_dependences()
    assert [(line.feature, line.cluster) for line in local] == [
        ("hidden", 1),
        ("little", 0),
        ("hidden", 2),
    ]


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
        ({"partition": torch.zeros(N)}, DataError, "one cluster"),
        (
            {"partition": torch.arange(N) // 599, "rows": 9, "neighbors": 2},
            DataError,
            "one cluster",
        ),
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
        ({"cluster_rows": 50.5}, OptionError, "cluster_rows=50.5"),
        ({"cluster_rows": 3}, OptionError, "cluster_rows=3"),
        ({"clusters": 1.5}, OptionError, "clusters=1.5"),
        ({"y": torch.arange(5.0)}, DataError, "600 rows"),
        ({"names": ["a"]}, OptionError, "1 names for 3 features"),
        ({"rows": 0}, OptionError, "rows=0"),
        ({"permutations": -2}, OptionError, "permutations=-2"),
    ],
)
def test_bad_input(change, error, message):
    z, x, y = mixture()
    arguments = {"partition": z, "x": x, "y": y, "permutations": 0} | change
    with pytest.raises(error, match=message):
        partition_information(
            arguments.pop("partition"), arguments.pop("x"), arguments.pop("y"), **arguments
        )
