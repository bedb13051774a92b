"""What happened during a fit, one record an epoch."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class Epoch(NamedTuple):
    """One pass over the data."""

    phase: str  # "warm-up", "EM" or "SVI"
    elbo: float  # nats per row (of weight one), before the pass's update
    evaluations: int  # joint densities evaluated since the fit began
    live: int  # components that won at least one row
    reseeded: int
    dropped: int
    seconds: float  # since the fit began
    moved: int = 0  # rows that changed their component; hard partitions alone count them
    objective: float = (
        math.nan
    )  # of hard partitions: the sum of the rows' losses, before the pass's update
    sizes: tuple[int, ...] = ()  # of the parts of hard partitions
    searched: bool = True  # whether candidates were searched for, or only re-weighed


@dataclass
class History:
    """Epochs of a fit; columns by name, ``history["elbo"]``, as arrays.

    >>> history = History()
    >>> history.epochs.append(Epoch("EM", -2.5, 100, 3, 0, 0, 0.1))
    >>> history["elbo"]
    array([-2.5])
    """

    epochs: list[Epoch] = field(default_factory=list)

    def __getitem__(self, column: str) -> np.ndarray:
        return np.array([getattr(epoch, column) for epoch in self.epochs])

    def __len__(self) -> int:
        return len(self.epochs)

    def to_dict(self) -> dict[str, list]:
        """Columns as plain lists, for JSON; those of hard partitions only where there are any."""
        columns = {name: [getattr(epoch, name) for epoch in self.epochs] for name in Epoch._fields}
        hard = any(columns["sizes"])
        return {
            name: column
            for name, column in columns.items()
            if hard or name not in ("objective", "sizes")
        }
