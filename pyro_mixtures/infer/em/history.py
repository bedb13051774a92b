"""The history of a fit: one record per epoch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pyro_mixtures.errors import OptionError


class Epoch(NamedTuple):
    """One pass over the data."""

    phase: str  # "warm-up", "EM" or "SVI"
    elbo: float  # nats per row (of weight one), before the update of this epoch
    evaluations: int  # joint densities evaluated since the fit began
    live: int  # components that won at least one row
    reseeded: int  # empty components that were re-seeded
    dropped: int  # empty components whose weight was set to zero
    seconds: float  # since the fit began
    searched: bool = True  # whether the E-steps searched for candidates
    details: Mapping[str, Any] = {}  # what the guide reports of the epoch, by name


@dataclass
class History:
    """Epochs of a fit, whose columns are read by name: ``history["elbo"]`` is an array (epochs,).

    Columns are the fields of :class:`Epoch` and what the guide reports in addition. Those of a hard
    partition are ``"moved"`` (rows that changed their component), ``"objective"`` (sum of the rows'
    losses before the epoch's update, in nats) and ``"sizes"`` (rows of each cluster, (epochs, C)).

    :raises OptionError: for an unknown column.

    >>> history = History()
    >>> history.epochs.append(Epoch("EM", -2.5, 100, 3, 0, 0, 0.1))
    >>> history["elbo"]
    array([-2.5])
    """

    epochs: list[Epoch] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Names of the columns: fields of :class:`Epoch`, then what the guide reports."""
        fields = [name for name in Epoch._fields if name != "details"]
        if not self.epochs:
            return fields
        first, *others = (epoch.details for epoch in self.epochs)
        return fields + [name for name in first if all(name in details for details in others)]

    def __getitem__(self, column: str) -> np.ndarray[Any, Any]:
        return np.array(self._values(column))

    def __len__(self) -> int:
        return len(self.epochs)

    def __repr__(self) -> str:
        last = f", elbo={self.epochs[-1].elbo:.6g}" if self.epochs else ""
        return f"History({len(self)} epochs{last})"

    def to_dict(self) -> dict[str, list[Any]]:
        """Return all columns as plain lists, for JSON."""
        return {name: self._values(name) for name in self.columns}

    def _values(self, column: str) -> list[Any]:
        if column not in self.columns:
            raise OptionError(f"the history has no column {column!r}; choose one of {self.columns}")
        if column in Epoch._fields:
            return [getattr(epoch, column) for epoch in self.epochs]
        return [epoch.details[column] for epoch in self.epochs]
