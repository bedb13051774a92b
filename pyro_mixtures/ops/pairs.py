"""Pairs of a row and a component, on which all sparse computations of this package work."""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.errors import PartitionError
from pyro_mixtures.ops.backend import on_numba
from pyro_mixtures.ops.kernels import numba_pairs


class SortedPairs(NamedTuple):
    """P pairs sorted by component: those of component c are ``starts[c] : starts[c + 1]``.

    Padding slots (component -1) have no pair.
    """

    rows: Tensor  # (P,) row of each pair
    order: Tensor  # (P,) position of each pair in the flat array of all slots
    starts: Tensor  # (C + 1,)


class Pairs:
    """Pairs of rows and components, given by the components of each row.

    :param z: (S, B) integers in [-1, components): the components of B rows, one per slot; -1 is
        padding.
    :param components: C.
    :param rows: (B,) row numbers of the columns of ``z``; by default 0, ..., B - 1.

    >>> pairs = Pairs(torch.tensor([[2, 0, -1, 2]]), 3)
    >>> pairs.sorted.rows.tolist(), pairs.sorted.starts.tolist()
    ([1, 0, 3], [0, 1, 1, 3])
    """

    def __init__(self, z: Tensor, components: int, rows: Tensor | None = None):
        self.z, self.components, self.rows = z.long(), components, rows

    @cached_property
    def sorted(self) -> SortedPairs:
        """Pairs sorted by component.

        :raises PartitionError: when a component number is out of range.
        """
        columns = self.z.shape[1]
        if self.all_pairs:
            numbers = torch.arange(columns, device=self.z.device)
            order = torch.arange(self.z.numel(), device=self.z.device)
            starts = torch.arange(self.components + 1, device=self.z.device) * columns
            return SortedPairs(self._row(numbers).repeat(self.components), order, starts)
        flat = self.z.reshape(-1)
        if on_numba(flat, None):
            sorted_arrays = numba_pairs.sort_pairs(flat.numpy(), self.components)
            if sorted_arrays is None:
                raise self.out_of_range()
            order, starts = (torch.from_numpy(array) for array in sorted_arrays)
        else:
            if flat.numel() and not (int(flat.min()) >= -1 and int(flat.max()) < self.components):
                raise self.out_of_range()
            order, starts = _sort_torch(flat, self.components)
        return SortedPairs(self._row(order % max(1, columns)), order, starts)

    def out_of_range(self) -> PartitionError:
        """Return the error to raise for component numbers that do not exist."""
        return PartitionError(
            f"component numbers lie in [{int(self.z.min())}, {int(self.z.max())}], "
            f"not in [0, {self.components})"
        )

    def _row(self, column: Tensor) -> Tensor:
        return column if self.rows is None else self.rows[column]

    @cached_property
    def all_pairs(self) -> bool:
        """Whether ``z`` is 0, ..., C - 1, each expanded over all rows.

        Such pairs are sorted already.
        """
        z = self.z
        if not z.numel() or len(z) != self.components or (z.stride(1) and z.shape[1] > 1):
            return False
        return torch.equal(z[:, 0], torch.arange(self.components, device=z.device))


def _sort_torch(flat: Tensor, components: int) -> tuple[Tensor, Tensor]:
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat + 1, minlength=components + 1)
    return order[counts[0] :], counts.cumsum(0) - counts[0]


def chunk_bounds(starts: Tensor, chunks: int) -> Tensor:
    """Cut the components into at most ``chunks`` ranges of about equally many pairs.

    :returns: bounds of the ranges, from 0 to C.
    """
    targets = torch.linspace(
        0, float(starts[-1]), chunks + 1, dtype=torch.float64, device=starts.device
    )
    bounds = torch.searchsorted(starts, targets.long())
    bounds[0], bounds[-1] = 0, len(starts) - 1
    return bounds
