"""The neighbour graph between components, estimated from the densities that the E-step evaluates anyway."""

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.errors import PartitionError
from pyro_mixtures.ops.search import Divergences, component_order, merge, nearest
from pyro_mixtures.partition.candidates import random_sets

# Entries of sums collected before they are merged.
_ENTRIES = 1 << 21


class NeighborGraph:
    """``neighbors`` (C, G) int32: each component itself, then the G - 1 components nearest to it.

    Nearness is the estimated divergence D(c, k) = mean over rows won by c of log p(x|c) - log
    p(x|k), for every k that was evaluated on those rows (Salwig et al., arXiv 2501.12299). Sums are
    collected batch by batch and turned into a new graph when every row has been seen once. Starts
    at random.
    """

    def __init__(self, *, components: int, neighbors: int, generator: torch.Generator):
        self.neighbors = _with_self(
            random_sets(components, components - 1, neighbors - 1, generator)
        )
        self._pending: list[Divergences] = []
        self._rows_seen = self._merged = 0

    @property
    def components(self) -> int:
        """C."""
        return len(self.neighbors)

    def observe(self, sums: Divergences, *, rows: int, size: int) -> bool:
        """Add the sums of a batch of ``rows`` rows; after ``size`` rows the graph is renewed and True returned."""
        self._pending.append(sums)
        self._rows_seen += rows
        if sum(len(part.column) for part in self._pending) > max(_ENTRIES, 2 * self._merged):
            self._pending = [merge(self._pending)]
            self._merged = len(self._pending[0].column)
        if self._rows_seen < size:
            return False
        self.refresh()
        return True

    def refresh(self) -> None:
        """Build the graph from the sums collected so far; what was not measured keeps its old neighbours, last."""
        if self._pending:
            sums = self._pending[0] if len(self._pending) == 1 else merge(self._pending)
            self.neighbors = nearest(sums, self.neighbors)
        self.forget()

    def forget(self) -> None:
        """Throw away the sums collected since the last renewal."""
        self._pending, self._rows_seen, self._merged = [], 0, 0

    def landmarks(self, limit: int) -> Tensor:
        """Components (L,) int32 whose neighbourhoods cover all others, at most ``limit`` of them.

        Where nothing is known of a row, these are looked at first: the best of them point to the
        regions to search.
        """
        covered = np.zeros(self.components, dtype=bool)
        chosen = []
        for component, neighbors in enumerate(self.neighbors.numpy()):
            if not covered[component]:
                chosen.append(component)
                covered[neighbors] = True
        spread = np.linspace(0, len(chosen) - 1, min(limit, len(chosen))).round().astype(int)
        return torch.from_numpy(np.array(chosen, dtype=np.int32)[spread])

    def component_order(self) -> Tensor:
        """Each component's place (C,) in a walk that goes on to the nearest neighbour not yet seen, or starts anew."""
        return component_order(self.neighbors)

    def check(self) -> None:
        """:raises PartitionError: when a neighbour is out of range, or a component not its own first neighbour."""
        own = torch.arange(self.components, dtype=self.neighbors.dtype, device="cpu")
        inside = bool((self.neighbors >= 0).all()) and bool(
            (self.neighbors < self.components).all()
        )
        if not inside or not torch.equal(self.neighbors[:, 0], own):
            raise PartitionError(
                f"neighbours lie outside [0, {self.components}), or a component is not its own first neighbour"
            )

    def replace(self, component: int, like: int) -> None:
        """Give a re-seeded component the neighbourhood of the component that it was split from, and the reverse."""
        width = self.neighbors.shape[1]
        others = self.neighbors[like, 1:]
        head = self.neighbors.new_tensor([component, like])
        self.neighbors[component] = torch.cat([head, others[others != component]])[:width]
        if width > 1 and not bool((self.neighbors[like] == component).any()):
            self.neighbors[like, -1] = component


def _with_self(others: Tensor) -> Tensor:
    """Prepend each component to its row of others, which are counted without the component itself."""
    own = torch.arange(len(others), dtype=torch.int32, device="cpu").unsqueeze(-1)
    return torch.cat([own, others + (others >= own).int()], 1)
