"""What a partition knows: information of its labels on features and outcome, dependences that hold only in a part."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.diagnostics.information.hypercontractivity import hypercontractivity
from pyro_mixtures.diagnostics.information.mutual_information import mutual_information
from pyro_mixtures.diagnostics.information.permutation import Generator, benjamini_hochberg, check_permutations
from pyro_mixtures.diagnostics.information.report import Dependence, Knowledge, PartitionInformation
from pyro_mixtures.diagnostics.information.variables import as_columns
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer.scoring import Responsibilities

_STEPS, _STARTS = 50, 5  # of the many coefficients: half as many as for a single one


class _Data(NamedTuple):
    """Rows of labels, features and outcome that belong together."""

    labels: Tensor  # (N,)
    x: Tensor  # (N, D)
    y: Tensor | None  # (N, m)
    names: Sequence[str]

    def take(self, rows: Tensor) -> "_Data":
        rows = rows.to(self.x.device)
        return self._replace(labels=self.labels[rows], x=self.x[rows], y=None if self.y is None else self.y[rows])


def partition_information(
    partition: Tensor | Responsibilities,
    x: Tensor,
    y: Tensor | None = None,
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

    Mutual information is that of :func:`mutual_information` with nominal z, so it does not depend on the features'
    units; for I(z; x) they are scaled to equal spread. The second table has :func:`hypercontractivity` of (feature, y)
    inside each part next to that over all rows, both from ``part_rows`` random rows, because coefficients of
    different numbers of rows cannot be compared. :meth:`PartitionInformation.partial` picks dependences found in some
    parts only. An adjusted p-value is at least (number of tests) / (rejections (permutations + 1)): with many features
    and parts ask for more permutations.

    :param partition: labels (N,), or responsibilities, from which labels are drawn.
    :param x: (N, D) features; :param y: (N,) or (N, m) outcome, numbers.
    :param names: of the features; "x0", "x1", ... by default.
    :param permutations: of every test, at most; 0 for none.
    :param rows: at most so many random rows for mutual information.
    :param part_rows: rows of a coefficient; smaller parts are not examined.
    :param parts: examine at most so many parts, the largest.
    :param generator: source of randomness, on the CPU; torch's global one by default.
    :raises DataError: for shapes that do not fit, NaN or infinity, a single part, a constant outcome, or a feature
        that is constant among the rows drawn.
    :raises OptionError: for numbers out of range, or names of another number.

    >>> g = torch.Generator().manual_seed(0)
    >>> z, noise = torch.arange(200, device="cpu") % 2, torch.randn(200, 2, generator=g, device="cpu")
    >>> x = noise + torch.stack([5.0 * z, 0.0 * z], 1)
    >>> found = partition_information(z, x, names=["shifted", "noise"], permutations=19, generator=g)
    >>> [(k.name, abs(round(k.nats, 1)), k.p_value <= 0.05) for k in found.knowledge if k.kind == "feature"]
    [('shifted', 0.7, True), ('noise', 0.0, False)]
    """
    check_permutations(permutations)
    if min(rows, part_rows, parts) < 1:
        raise OptionError(f"rows={rows}, part_rows={part_rows} and parts={parts} must be positive")
    data = _read(partition, x, y, names, generator)
    sample = data.take(_draw(len(data.x), rows, generator))
    known = _knowledge(sample, neighbors, permutations, generator)
    local = [] if data.y is None else _dependences(data, part_rows, parts, permutations, generator)
    return PartitionInformation(known, local, _entropy(sample.labels), len(sample.x))


def _read(
    partition: Tensor | Responsibilities, x: Tensor, y: Tensor | None, names: Sequence[str] | None, generator: Generator
) -> _Data:
    if x.dim() != 2:
        raise DataError(f"x has shape {tuple(x.shape)}: give the features of N rows, (N, D)")
    labels = _drawn(partition, generator) if isinstance(partition, Responsibilities) else partition
    columns, outcome = as_columns(x, "x"), None if y is None else as_columns(y, "y")
    if labels.shape != (len(x),) or (outcome is not None and len(outcome) != len(x)):
        raise DataError(f"labels {tuple(labels.shape)} and y {None if y is None else tuple(y.shape)} for {len(x)} rows")
    names = [f"x{d}" for d in range(x.shape[1])] if names is None else list(names)
    if len(names) != x.shape[1]:
        raise OptionError(f"{len(names)} names for {x.shape[1]} features")
    return _Data(labels.to(x.device), columns, None if outcome is None else outcome.to(x.device), names)


def _drawn(given: Responsibilities, generator: Generator) -> Tensor:
    """A label (N,) of each row in proportion to its responsibilities."""
    at = torch.multinomial(given.probs.detach().cpu(), 1, generator=generator)
    return given.components.gather(1, at.to(given.components.device))[:, 0]


def _draw(n: int, rows: int, generator: Generator) -> Tensor:
    """At most ``rows`` row numbers of n."""
    return torch.randperm(n, generator=generator, device="cpu")[:rows].sort().values


def _entropy(labels: Tensor) -> float:
    share = labels.unique(return_counts=True)[1].double() / len(labels)
    return float(-(share * share.log()).sum())


def _knowledge(sample: _Data, neighbors: int, permutations: int, generator: Generator) -> list[Knowledge]:
    variables = [(name, "feature", sample.x[:, d]) for d, name in enumerate(sample.names)]
    for name, _, values in variables:
        as_columns(values, f"feature {name!r}, among the {len(values)} rows drawn,")
    variables.append(("x", "all features", sample.x / sample.x.std(0)))
    if sample.y is not None:
        variables.append(("y", "outcome", sample.y))
    estimate = partial(
        mutual_information, discrete="x", neighbors=neighbors, permutations=permutations, generator=generator
    )
    found = [estimate(sample.labels, values) for _, _, values in variables]
    adjusted = _adjusted([f.p_value for f in found])
    lines = [
        Knowledge(name, kind, f.nats, f.p_value, q)
        for (name, kind, _), f, q in zip(variables, found, adjusted, strict=True)
    ]
    return sorted(lines, key=lambda line: -line.nats)


def _dependences(data: _Data, part_rows: int, parts: int, permutations: int, generator: Generator) -> list[Dependence]:
    everyone = data.take(_draw(len(data.x), part_rows, generator))
    overall = [_coefficient(everyone, d, 0, generator)[0] for d in range(len(data.names))]
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


def _largest(labels: Tensor, part_rows: int, parts: int) -> list[tuple[int, int]]:
    """Labels and sizes of the parts to examine."""
    found, sizes = labels.unique(return_counts=True)
    order = sizes.argsort(descending=True, stable=True)[:parts]
    return [
        (part, size)
        for part, size in zip(found[order].tolist(), sizes[order].tolist(), strict=True)
        if size >= part_rows
    ]


def _coefficient(rows: _Data, d: int, permutations: int, generator: Generator) -> tuple[float, float | None]:
    """Of feature d and the outcome, with its p-value; NaN where one of them does not vary."""
    assert rows.y is not None
    x, y = rows.x[:, d], rows.y[:, (rows.y != rows.y[0]).any(0)]
    if not y.shape[1] or not bool((x != x[0]).any()):
        return np.nan, np.nan if permutations else None
    found = hypercontractivity(x, y, steps=_STEPS, starts=_STARTS, permutations=permutations, generator=generator)
    return found.coefficient, found.p_value


def _adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    """None where no tests were made."""
    made = [p for p in p_values if p is not None]
    return benjamini_hochberg(np.array(made)).tolist() if made else [None] * len(p_values)
