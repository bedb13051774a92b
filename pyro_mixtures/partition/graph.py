"""The neighbor graph of the components, estimated from densities that the E-step evaluates."""

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.errors import PartitionError
from pyro_mixtures.ops.search import Divergences, component_order, merge, nearest
from pyro_mixtures.partition.candidates import random_sets

# Entries of sums that are collected before they are merged.
_ENTRIES = 1 << 21


class NeighborGraph:
    """``neighbors`` (C, G) int32: each component itself, then the G - 1 components nearest to it.

    The distance of k from c is the estimated divergence D(c, k): the mean of log p(x|c) - log
    p(x|k) over the rows whose best component is c, for every k that was evaluated on those rows
    (Salwig et al., arXiv 2501.12299). Sums are collected batch by batch, and turned into a new
    graph when every row has been seen once. The graph starts at random.

    :param components: C.
    :param neighbors: G.
    :param generator: source of randomness, on the CPU.

    >>> generator = torch.Generator().manual_seed(0)
    >>> graph = NeighborGraph(components=10, neighbors=3, generator=generator)
    >>> graph.neighbors.shape, graph.neighbors[:4, 0].tolist()
    (torch.Size([10, 3]), [0, 1, 2, 3])
    """

    def __init__(self, *, components: int, neighbors: int, generator: torch.Generator):
        self.neighbors = _with_self(
            random_sets(components, components - 1, neighbors - 1, generator)
        )
        self._pending: list[Divergences] = []
        self._rows_seen = self._merged_entries = 0

    @property
    def components(self) -> int:
        """Number of components, C."""
        return len(self.neighbors)

    def observe(self, sums: Divergences, *, rows: int, size: int) -> bool:
        """Add the sums of a batch of ``rows`` rows, and rebuild the graph after ``size`` rows.

        :returns: whether the graph was rebuilt.
        """
        self._pending.append(sums)
        self._rows_seen += rows
        entries = sum(len(batch.column) for batch in self._pending)
        if entries > max(_ENTRIES, 2 * self._merged_entries):
            self._pending = [merge(self._pending)]
            self._merged_entries = len(self._pending[0].column)
        if self._rows_seen < size:
            return False
        self.rebuild()
        return True

    def rebuild(self) -> None:
        """Build the graph from the sums collected so far, and delete them.

        Neighbors whose divergence was not measured stay, after all others.
        """
        if self._pending:
            sums = self._pending[0] if len(self._pending) == 1 else merge(self._pending)
            self.neighbors = nearest(sums, self.neighbors)
        self.clear()

    def clear(self) -> None:
        """Delete the sums collected since the graph was last rebuilt."""
        self._pending, self._rows_seen, self._merged_entries = [], 0, 0

    def landmarks(self, limit: int) -> Tensor:
        """Return components whose neighborhoods cover all others, at most ``limit`` of them.

        For rows about which nothing is known these are evaluated first: the best of them point to
        the regions to search.

        :returns: (L,) int32.
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
        """Return the place (C,) of each component in a depth-first search of the graph."""
        return component_order(self.neighbors)

    def check(self) -> None:
        """Check the graph.

        :raises PartitionError: when a neighbor is out of range, or a component is not its own first
            neighbor.
        """
        itself = torch.arange(self.components, dtype=self.neighbors.dtype, device="cpu")
        in_range = bool(((self.neighbors >= 0) & (self.neighbors < self.components)).all())
        if not in_range or not torch.equal(self.neighbors[:, 0], itself):
            raise PartitionError(
                f"neighbors lie outside [0, {self.components}), or a component is not its own "
                "first neighbor"
            )

    def replace(self, component: int, like: int) -> None:
        """Place a re-seeded component next to the component ``like`` from which it was split.

        It gets the neighborhood of ``like``, and becomes a neighbor of ``like``.
        """
        width = self.neighbors.shape[1]
        others = self.neighbors[like, 1:]
        head = self.neighbors.new_tensor([component, like])
        self.neighbors[component] = torch.cat([head, others[others != component]])[:width]
        if width > 1 and not bool((self.neighbors[like] == component).any()):
            self.neighbors[like, -1] = component


def _with_self(others: Tensor) -> Tensor:
    """Prepend each component to its row of ``others``, numbers that do not count the component."""
    itself = torch.arange(len(others), dtype=torch.int32, device="cpu").unsqueeze(-1)
    return torch.cat([itself, others + (others >= itself).int()], 1)
