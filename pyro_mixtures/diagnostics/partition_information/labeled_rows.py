"""Labels, features and outcome of the same rows, read from user input and checked."""

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


class LabeledRows(NamedTuple):
    """N rows, each of which belongs to a cluster."""

    labels: Tensor  # (N,)
    x: Tensor  # (N, D)
    y: Tensor | None  # (N, m)
    names: Sequence[str]

    def take(self, rows: Tensor) -> "LabeledRows":
        """Select rows by number."""
        rows = rows.to(self.x.device)
        outcome = None if self.y is None else self.y[rows]
        return self._replace(labels=self.labels[rows], x=self.x[rows], y=outcome)


def read_rows(
    partition: Array | Responsibilities,
    x: Array,
    y: Array | None,
    names: Sequence[str] | None,
    generator: Generator,
) -> LabeledRows:
    """Return the rows that belong to a cluster.

    :raises DataError: for shapes that do not match, values that are not finite, labels that are not
        whole numbers, or if no row belongs to a cluster.
    :raises OptionError: for ``names`` of the wrong number, or equal ones.
    """
    features = as_rows(x)
    if features.dim() != 2:
        raise DataError(f"x has shape {tuple(features.shape)}: pass the features of N rows, (N, D)")
    labels = _labels(partition, generator).to(features.device)
    features = as_columns(features, "x")
    outcome = None if y is None else as_columns(y, "y").to(features.device)
    if labels.shape != (len(features),):
        raise DataError(
            f"labels have shape {tuple(labels.shape)}, but x has {len(features)} rows: "
            "pass one label per row"
        )
    if outcome is not None and len(outcome) != len(features):
        raise DataError(
            f"y has {len(outcome)} rows, but x has {len(features)} rows: pass the same rows of both"
        )
    clustered = (labels >= 0).nonzero()[:, 0]
    if not len(clustered):
        raise DataError("no row belongs to a cluster: all labels are negative")
    all_rows = LabeledRows(labels, features, outcome, _names(names, features.shape[1]))
    return all_rows.take(clustered)


def _labels(partition: Array | Responsibilities, generator: Generator) -> Tensor:
    if isinstance(partition, Responsibilities):
        return _draw_labels(partition, generator).long()
    values = as_rows(partition).detach()
    labels = values.long()
    if not bool((labels == values).all()):
        raise DataError("labels must be whole numbers: pass the number of each row's cluster")
    return labels


def _names(names: Sequence[str] | None, features: int) -> list[str]:
    if names is None:
        return [f"x{feature}" for feature in range(features)]
    feature_names = [str(name) for name in names]
    if len(feature_names) != features:
        raise OptionError(f"names= has {len(feature_names)} names for {features} features")
    name, count = Counter(feature_names).most_common(1)[0]
    if count > 1:
        raise OptionError(f"{count} features have the name {name!r}: pass distinct names")
    return feature_names


def _draw_labels(responsibilities: Responsibilities, generator: Generator) -> Tensor:
    """One label (N,) per row, drawn from its responsibilities."""
    components = as_rows(responsibilities.components)
    probs = as_rows(responsibilities.probs).detach().cpu()
    if components.dim() != 2 or components.shape != probs.shape:
        raise DataError(
            f"components {tuple(components.shape)} and probs {tuple(probs.shape)} must both be "
            "(N, S)"
        )
    valid = (probs >= 0).all(1) & (probs.sum(1) > 0) & probs.isfinite().all(1)
    if not bool(valid.all()):
        row = int((~valid).int().argmax())
        raise DataError(
            f"row {row} of the responsibilities must hold finite, non-negative numbers that are "
            "not all zero"
        )
    candidate = torch.multinomial(probs, 1, generator=generator)
    return components.gather(1, candidate.to(components.device))[:, 0]
