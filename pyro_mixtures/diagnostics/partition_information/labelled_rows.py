"""Rows of labels, features and outcome that belong together, read from what users give and checked."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer.scoring.posteriors import Responsibilities
from pyro_mixtures.information.permutation import Generator
from pyro_mixtures.information.variables import Array, as_columns


class LabelledRows(NamedTuple):
    """N rows, all of which have a part."""

    labels: Tensor  # (N,)
    x: Tensor  # (N, D)
    y: Tensor | None  # (N, m)
    names: Sequence[str]

    def take(self, rows: Tensor) -> "LabelledRows":
        rows = rows.to(self.x.device)
        return self._replace(
            labels=self.labels[rows], x=self.x[rows], y=None if self.y is None else self.y[rows]
        )


def read_rows(
    partition: Array | Responsibilities,
    x: Array,
    y: Array | None,
    names: Sequence[str] | None,
    generator: Generator,
) -> LabelledRows:
    """The rows that have a part."""
    features = as_rows(x)
    if features.dim() != 2:
        raise DataError(f"x has shape {tuple(features.shape)}: give the features of N rows, (N, D)")
    labels = _labels(partition, generator).to(features.device)
    features, outcome = (
        as_columns(features, "x"),
        None if y is None else as_columns(y, "y").to(features.device),
    )
    if labels.shape != (len(features),) or (outcome is not None and len(outcome) != len(features)):
        shape = None if outcome is None else tuple(outcome.shape)
        raise DataError(f"labels {tuple(labels.shape)} and y {shape} for {len(features)} rows")
    some = (labels >= 0).nonzero()[:, 0]
    if not len(some):
        raise DataError("no row has a part: all labels are below zero")
    return LabelledRows(labels, features, outcome, _names(names, features.shape[1])).take(some)


def _labels(partition: Array | Responsibilities, generator: Generator) -> Tensor:
    given = (
        _drawn(partition, generator)
        if isinstance(partition, Responsibilities)
        else as_rows(partition).detach()
    )
    labels = given.long()
    if not bool((labels == given).all()):
        raise DataError(
            "labels of a partition are whole numbers: give the number of each row's part"
        )
    return labels


def _names(names: Sequence[str] | None, features: int) -> list[str]:
    found = [f"x{d}" for d in range(features)] if names is None else [str(name) for name in names]
    if len(found) != features:
        raise OptionError(f"{len(found)} names for {features} features")
    name, times = Counter(found).most_common(1)[0]
    if times > 1:
        raise OptionError(f"{times} features have the name {name!r}: give each another")
    return found


def _drawn(given: Responsibilities, generator: Generator) -> Tensor:
    """A label (N,) of each row in proportion to its responsibilities."""
    components, probs = as_rows(given.components), as_rows(given.probs).detach().cpu()
    if components.dim() != 2 or components.shape != probs.shape:
        raise DataError(
            f"components {tuple(components.shape)} and probs {tuple(probs.shape)}: give (N, S) of both"
        )
    wrong = ~((probs >= 0).all(1) & (probs.sum(1) > 0) & probs.isfinite().all(1))
    if bool(wrong.any()):
        raise DataError(
            f"row {int(wrong.int().argmax())} of the responsibilities holds no weights, some above zero"
        )
    at = torch.multinomial(probs, 1, generator=generator)
    return components.gather(1, at.to(components.device))[:, 0]
