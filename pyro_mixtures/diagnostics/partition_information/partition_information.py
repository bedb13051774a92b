"""Information of a partition about features and outcome, and dependences within its clusters."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.diagnostics.partition_information.labeled_rows import LabeledRows, read_rows
from pyro_mixtures.diagnostics.partition_information.report import (
    ClusterDependence,
    PartitionInformation,
    VariableInformation,
)
from pyro_mixtures.errors import DataError
from pyro_mixtures.infer.scoring.posteriors import Responsibilities
from pyro_mixtures.information.hypercontractivity import MIN_ROWS, hypercontractivity
from pyro_mixtures.information.mutual_information import mutual_information
from pyro_mixtures.information.permutation import Generator, adjust_p_values
from pyro_mixtures.information.variables import Array, as_columns, near_one, varying
from pyro_mixtures.options import check_whole

_MAX_SETS = 4  # of rows, over which the coefficients of all rows are averaged
_STEPS, _STARTS = 50, 5  # half of hypercontractivity's defaults, because there are many estimates


def partition_information(
    partition: Array | Responsibilities,
    x: Array,
    y: Array | None = None,
    *,
    names: Sequence[str] | None = None,
    neighbors: int = 5,
    permutations: int = 499,
    rows: int = 2000,
    cluster_rows: int = 200,
    clusters: int = 10,
    generator: Generator = None,
) -> PartitionInformation:
    """Measure which features and which outcome the labels z of a partition carry information about.

    The first table ranks I(z; feature) for each feature, I(z; x) for all features together and
    I(z; y), and tests independence. It uses :func:`mutual_information` with nominal z, so a single
    variable's units do not matter. For I(z; x), and if y has several columns, the columns are
    scaled to equal spread.

    The second table shows where y depends on which feature. It has the
    :func:`hypercontractivity` of (feature, y) within each cluster and over all rows. Both are
    estimated from ``cluster_rows`` random rows, because coefficients of different numbers of rows
    cannot be compared. The one over all rows is the mean of up to four such sets, so the most
    stable choice of ``cluster_rows`` is the size of the smallest cluster of interest.
    :meth:`PartitionInformation.local_dependences` selects dependences that hold in some clusters
    only.

    Rows without a cluster (negative labels, which masked rows have) are left out. An adjusted
    p-value is at least (number of tests) / (rejections * (permutations + 1)): increase
    ``permutations`` if there are many features and clusters.

    :param partition: labels (N,), whole numbers, or responsibilities, from which labels are drawn.
    :param x: (N, D) features, a tensor, array or list.
    :param y: (N,) or (N, m) numeric outcome, a tensor, array or list.
    :param names: distinct names of the features; "x0", "x1", ... by default.
    :param neighbors: number of nearest neighbors of the mutual information.
    :param permutations: maximum number of permutations per test; 0 for no tests.
    :param rows: maximum number of random rows for mutual information.
    :param cluster_rows: number of rows per coefficient; smaller clusters are not examined.
    :param clusters: maximum number of clusters to examine, the largest first.
    :param generator: source of randomness, on the CPU; torch's global one by default.
    :returns: both tables, the entropy of z, and the number of rows used.
    :raises DataError: for mismatched shapes, NaN or infinity, or invalid responsibilities; for a
        single cluster, or a constant feature or outcome, among the rows drawn.
    :raises OptionError: for numbers that are out of range or not whole (``cluster_rows`` below 4),
        or ``names`` of the wrong number or with duplicates.

    >>> generator = torch.Generator().manual_seed(0)
    >>> noise = torch.randn(200, 2, generator=generator, device="cpu")
    >>> z = torch.arange(200, device="cpu") % 2
    >>> x = noise + torch.stack([5.0 * z, 0.0 * z], 1)
    >>> options = {"names": ["shifted", "noise"], "permutations": 19, "generator": generator}
    >>> information = partition_information(z, x, **options)
    >>> features = [line for line in information.variables if line.kind == "feature"]
    >>> [(line.name, abs(round(line.nats, 1)), line.p_value <= 0.05) for line in features]
    [('shifted', 0.7, True), ('noise', 0.0, False)]
    """
    check_whole(neighbors=neighbors, rows=rows, clusters=clusters)
    check_whole(minimum=MIN_ROWS, cluster_rows=cluster_rows)
    check_whole(minimum=0, permutations=permutations)
    data = read_rows(partition, x, y, names, generator)
    sample = data.take(_draw_rows(len(data.x), rows, generator))
    variables = _variables(sample, neighbors, permutations, generator)
    dependences = (
        []
        if data.y is None
        else _dependences(data, cluster_rows, clusters, permutations, generator)
    )
    return PartitionInformation(variables, dependences, _entropy(sample.labels), len(sample.x))


def _draw_rows(n: int, rows: int, generator: Generator) -> Tensor:
    """At most ``rows`` of n row numbers, in ascending order."""
    return torch.randperm(n, generator=generator, device="cpu")[:rows].sort().values


def _entropy(labels: Tensor) -> float:
    share = labels.unique(return_counts=True)[1].double() / len(labels)
    return float(-(share * share.log()).sum())


def _variables(
    sample: LabeledRows, neighbors: int, permutations: int, generator: Generator
) -> list[VariableInformation]:
    variables = _read_variables(sample)
    estimate = partial(
        mutual_information,
        discrete="x",
        neighbors=neighbors,
        permutations=permutations,
        generator=generator,
    )
    estimates = [estimate(sample.labels, values) for _, _, values in variables]
    adjusted = _adjust([information.p_value for information in estimates])
    lines = [
        VariableInformation(name, kind, information.nats, information.p_value, adjusted_p)
        for (name, kind, _), information, adjusted_p in zip(
            variables, estimates, adjusted, strict=True
        )
    ]
    return sorted(lines, key=lambda line: -line.nats)


def _read_variables(sample: LabeledRows) -> list[tuple[str, str, Tensor]]:
    """Name, kind and values of each variable of the first table, checked not to be constant."""
    context = f", among the {len(sample.x)} rows drawn,"
    if bool((sample.labels == sample.labels[0]).all()):
        raise DataError(
            f"the partition has one cluster{context} which carries no information: "
            "pass a partition of at least two clusters"
        )
    variables = [
        (name, "feature", sample.x[:, feature]) for feature, name in enumerate(sample.names)
    ]
    for name, _, values in variables:
        as_columns(values, f"feature {name!r}{context}")
    variables.append(("x", "all features", _equalize_spread(sample.x)))
    if sample.y is not None:
        varying_columns = varying(sample.y)
        outcome = varying_columns if varying_columns.shape[1] else sample.y
        variables.append(("y", "outcome", _equalize_spread(as_columns(outcome, f"y{context}"))))
    return variables


def _equalize_spread(values: Tensor) -> Tensor:
    """Columns (n, m) of equal spread. A single column stays unchanged, which preserves its ties."""
    if values.shape[1] == 1:
        return values
    values = near_one(values)
    return values / values.std(0)


def _dependences(
    data: LabeledRows, cluster_rows: int, clusters: int, permutations: int, generator: Generator
) -> list[ClusterDependence]:
    overall = _overall_coefficients(data, cluster_rows, generator)
    lines = []
    for cluster, size in _largest_clusters(data.labels, cluster_rows, clusters):
        members = (data.labels == cluster).nonzero()[:, 0].cpu()
        sample = data.take(members[_draw_rows(size, cluster_rows, generator)])
        for feature, name in enumerate(data.names):
            within, p = _coefficient(sample, feature, permutations, generator)
            lines.append(ClusterDependence(name, cluster, size, within, overall[feature], p, None))
    adjusted = _adjust([line.p_value for line in lines])
    lines = [line._replace(adjusted_p_value=p) for line, p in zip(lines, adjusted, strict=True)]
    return sorted(lines, key=lambda line: (data.names.index(line.feature), line.cluster))


def _overall_coefficients(
    data: LabeledRows, cluster_rows: int, generator: Generator
) -> list[float]:
    """The mean coefficient of each feature, over disjoint sets of ``cluster_rows`` random rows."""
    order = torch.randperm(len(data.x), generator=generator, device="cpu")
    n_sets = max(1, min(_MAX_SETS, len(order) // cluster_rows))
    row_sets = [data.take(rows) for rows in order.split(cluster_rows)[:n_sets]]
    return [
        _mean([_coefficient(rows, feature, 0, generator)[0] for rows in row_sets])
        for feature in range(len(data.names))
    ]


def _mean(coefficients: list[float]) -> float:
    """Mean of the values that are not NaN."""
    defined = [value for value in coefficients if not np.isnan(value)]
    return float(np.mean(defined)) if defined else np.nan


def _largest_clusters(labels: Tensor, cluster_rows: int, clusters: int) -> list[tuple[int, int]]:
    """Numbers and sizes of the clusters to examine."""
    numbers, sizes = labels.unique(return_counts=True)
    order = sizes.argsort(descending=True, stable=True)[:clusters]
    largest = zip(numbers[order].tolist(), sizes[order].tolist(), strict=True)
    return [(cluster, size) for cluster, size in largest if size >= cluster_rows]


def _coefficient(
    rows: LabeledRows, feature: int, permutations: int, generator: Generator
) -> tuple[float, float | None]:
    """Coefficient of a feature and the outcome, and its p-value; NaN if either is constant."""
    assert rows.y is not None
    x, y = rows.x[:, feature], varying(rows.y)
    if not y.shape[1] or not bool((x != x[0]).any()):
        return np.nan, np.nan if permutations else None
    estimate = hypercontractivity(
        x, y, steps=_STEPS, starts=_STARTS, permutations=permutations, generator=generator
    )
    return estimate.coefficient, estimate.p_value


def _adjust(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values, or None for each if no tests were made."""
    tested = [p for p in p_values if p is not None]
    return [*adjust_p_values(tested)] if tested else [None] * len(p_values)
