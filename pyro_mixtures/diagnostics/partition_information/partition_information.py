"""What a partition knows: information of its labels on features and outcome, dependences that hold only in a part."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.diagnostics.partition_information.labelled_rows import LabelledRows, read_rows
from pyro_mixtures.diagnostics.partition_information.report import (
    Dependence,
    Knowledge,
    PartitionInformation,
)
from pyro_mixtures.errors import DataError
from pyro_mixtures.infer.scoring.posteriors import Responsibilities
from pyro_mixtures.information.hypercontractivity import FEWEST, hypercontractivity
from pyro_mixtures.information.mutual_information import mutual_information
from pyro_mixtures.information.permutation import Generator, benjamini_hochberg
from pyro_mixtures.information.variables import Array, as_columns, near_one, varying
from pyro_mixtures.options import check_whole

_SETS = 4  # of rows, at most, whose coefficients over all parts are averaged
_STEPS, _STARTS = 50, 5  # of the many coefficients: half as many as for a single one


def partition_information(
    partition: Array | Responsibilities,
    x: Array,
    y: Array | None = None,
    *,
    names: Sequence[str] | None = None,
    neighbors: int = 5,
    permutations: int = 499,
    rows: int = 2000,
    part_rows: int = 200,
    parts: int = 10,
    generator: Generator = None,
) -> PartitionInformation:
    """I(z; feature) for each feature, I(z; x) and I(z; y), ranked and tested; and where y depends on which feature.

    Mutual information is that of :func:`mutual_information` with nominal z, so it does not depend
    on the units of a single variable; for I(z; x), and where y has several columns, they are scaled
    to equal spread. The second table has :func:`hypercontractivity` of (feature, y) inside each
    part next to that over all rows, both from ``part_rows`` random rows, because coefficients of
    different numbers of rows cannot be compared (over all rows it is the mean of up to four such
    sets: so ``part_rows`` as large as the smallest part that matters gives the steadiest answers).
    :meth:`PartitionInformation.partial` picks dependences found in some parts only. Rows without a
    part (labels below zero, as masked rows have) do not count. An adjusted p-value is at least
    (number of tests) / (rejections (permutations + 1)): with many features and parts ask for more
    permutations.

    :param partition: labels (N,), whole numbers, or responsibilities, from which labels are drawn.
    :param x: (N, D) features; :param y: (N,) or (N, m) outcome, numbers. Tensors, arrays or lists.
    :param names: of the features, each another; "x0", "x1", ... by default.
    :param permutations: of every test, at most; 0 for none.
    :param rows: at most so many random rows for mutual information.
    :param part_rows: rows of a coefficient; smaller parts are not examined.
    :param parts: examine at most so many parts, the largest.
    :param generator: source of randomness, on the CPU; torch's global one by default.
    :raises DataError: for shapes that do not fit, NaN or infinity, responsibilities of a row that
        are no weights; for a single part, or a feature or outcome that is constant, among the rows
        drawn.
    :raises OptionError: for numbers out of range or not whole (``part_rows`` below 4), names of
        another number or two that are equal.

    >>> g = torch.Generator().manual_seed(0)
    >>> z, noise = torch.arange(200, device="cpu") % 2, torch.randn(200, 2, generator=g, device="cpu")
    >>> x = noise + torch.stack([5.0 * z, 0.0 * z], 1)
    >>> found = partition_information(z, x, names=["shifted", "noise"], permutations=19, generator=g)
    >>> [(k.name, abs(round(k.nats, 1)), k.p_value <= 0.05) for k in found.knowledge if k.kind == "feature"]
    [('shifted', 0.7, True), ('noise', 0.0, False)]
    """
    check_whole(neighbors=neighbors, rows=rows, parts=parts)
    check_whole(minimum=FEWEST, part_rows=part_rows)
    check_whole(minimum=0, permutations=permutations)
    data = read_rows(partition, x, y, names, generator)
    sample = data.take(_draw(len(data.x), rows, generator))
    known = _knowledge(sample, neighbors, permutations, generator)
    local = [] if data.y is None else _dependences(data, part_rows, parts, permutations, generator)
    return PartitionInformation(known, local, _entropy(sample.labels), len(sample.x))


def _draw(n: int, rows: int, generator: Generator) -> Tensor:
    """At most ``rows`` row numbers of n."""
    return torch.randperm(n, generator=generator, device="cpu")[:rows].sort().values


def _entropy(labels: Tensor) -> float:
    share = labels.unique(return_counts=True)[1].double() / len(labels)
    return float(-(share * share.log()).sum())


def _knowledge(
    sample: LabelledRows, neighbors: int, permutations: int, generator: Generator
) -> list[Knowledge]:
    variables = [(name, "feature", sample.x[:, d]) for d, name in enumerate(sample.names)]
    drawn = f", among the {len(sample.x)} rows drawn,"
    if bool((sample.labels == sample.labels[0]).all()):
        raise DataError(
            f"the partition has one part{drawn} which tells nothing: give one of two parts or more"
        )
    for name, _, values in variables:
        as_columns(values, f"feature {name!r}{drawn}")
    variables.append(("x", "all features", _spread(sample.x)))
    if sample.y is not None:
        y = varying(sample.y)
        variables.append(
            ("y", "outcome", _spread(as_columns(y if y.shape[1] else sample.y, f"y{drawn}")))
        )
    estimate = partial(
        mutual_information,
        discrete="x",
        neighbors=neighbors,
        permutations=permutations,
        generator=generator,
    )
    found = [estimate(sample.labels, values) for _, _, values in variables]
    adjusted = _adjusted([f.p_value for f in found])
    lines = [
        Knowledge(name, kind, f.nats, f.p_value, q)
        for (name, kind, _), f, q in zip(variables, found, adjusted, strict=True)
    ]
    return sorted(lines, key=lambda line: -line.nats)


def _spread(values: Tensor) -> Tensor:
    """Columns (n, m) of equal spread. A single one stays as it is, with the ties of its distances."""
    if values.shape[1] == 1:
        return values
    values = near_one(values)
    return values / values.std(0)


def _dependences(
    data: LabelledRows, part_rows: int, parts: int, permutations: int, generator: Generator
) -> list[Dependence]:
    order = torch.randperm(len(data.x), generator=generator, device="cpu")
    sets = [
        data.take(some)
        for some in order.split(part_rows)[: max(1, min(_SETS, len(order) // part_rows))]
    ]
    overall = [
        _mean([_coefficient(rows, d, 0, generator)[0] for rows in sets])
        for d in range(len(data.names))
    ]
    lines = []
    for part, size in _largest(data.labels, part_rows, parts):
        members = (data.labels == part).nonzero()[:, 0].cpu()
        inside = data.take(members[_draw(size, part_rows, generator)])
        for d, name in enumerate(data.names):
            coefficient, p = _coefficient(inside, d, permutations, generator)
            lines.append(Dependence(name, part, size, coefficient, overall[d], p, None))
    adjusted = _adjusted([line.p_value for line in lines])
    lines = [line._replace(adjusted=q) for line, q in zip(lines, adjusted, strict=True)]
    return sorted(lines, key=lambda line: (data.names.index(line.feature), line.part))


def _mean(coefficients: list[float]) -> float:
    """Of those that are not NaN."""
    found = [value for value in coefficients if not np.isnan(value)]
    return float(np.mean(found)) if found else np.nan


def _largest(labels: Tensor, part_rows: int, parts: int) -> list[tuple[int, int]]:
    """Labels and sizes of the parts to examine."""
    found, sizes = labels.unique(return_counts=True)
    order = sizes.argsort(descending=True, stable=True)[:parts]
    return [
        (part, size)
        for part, size in zip(found[order].tolist(), sizes[order].tolist(), strict=True)
        if size >= part_rows
    ]


def _coefficient(
    rows: LabelledRows, d: int, permutations: int, generator: Generator
) -> tuple[float, float | None]:
    """Of feature d and the outcome, with its p-value; NaN where one of them does not vary."""
    assert rows.y is not None
    x, y = rows.x[:, d], varying(rows.y)
    if not y.shape[1] or not bool((x != x[0]).any()):
        return np.nan, np.nan if permutations else None
    found = hypercontractivity(
        x, y, steps=_STEPS, starts=_STARTS, permutations=permutations, generator=generator
    )
    return found.coefficient, found.p_value


def _adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    """None where no tests were made."""
    made = [p for p in p_values if p is not None]
    return benjamini_hochberg(np.array(made)).tolist() if made else [None] * len(p_values)
