"""(row, component) pairs sorted by component: what every sparse computation of this package works on."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.errors import PartitionError
from pyro_mixtures.ops import numba_backend
from pyro_mixtures.ops.backend import on_numba


class Pairs(NamedTuple):
    """``P`` pairs in the order of their component.

    ``rows`` (P,) is each pair's row; ``order`` (P,) its position in the flat array of all slots; pairs of component c
    are ``starts[c] : starts[c + 1]``, ``starts`` (C + 1,). Padding slots (component -1) have no pair.
    """

    rows: Tensor
    order: Tensor
    starts: Tensor

    @property
    def components(self) -> Tensor:
        """The component of each pair, (P,)."""
        numbers = torch.arange(len(self.starts) - 1, device=self.starts.device)
        return torch.repeat_interleave(numbers, self.starts.diff(), output_size=len(self.rows))


def sort_pairs(z: Tensor, rows: Tensor, components: int) -> Pairs:
    """Sort slots by component. ``z`` and ``rows`` are integer tensors of one shape; ``z`` in [-1, components).

    >>> pairs = sort_pairs(torch.tensor([2, 0, -1, 2]), torch.tensor([0, 1, 2, 3]), 3)
    >>> pairs.rows.tolist(), pairs.starts.tolist()
    ([1, 0, 3], [0, 1, 1, 3])
    """
    if _all_with_all(z, components):
        return _every_pair(rows, components)
    flat = z.reshape(-1)
    if flat.numel() and not (int(flat.min()) >= -1 and int(flat.max()) < components):
        raise PartitionError(
            f"component numbers lie in [{int(flat.min())}, {int(flat.max())}], not in [0, {components})"
        )
    if on_numba(flat, None):
        sorted_positions, bounds = numba_backend.sort_pairs(flat.numpy(), components)
        order, starts = torch.from_numpy(sorted_positions), torch.from_numpy(bounds)
    else:
        order, starts = _sort_pairs_torch(flat, components)
    return Pairs(rows.reshape(-1)[order], order, starts)


def _all_with_all(z: Tensor, components: int) -> bool:
    """Whether ``z`` is 0, ..., C - 1, each expanded over all rows: then the pairs are sorted as they stand."""
    if (
        z.dim() < 2
        or not z.numel()
        or len(z) != components
        or any(z.stride(dim) and z.shape[dim] > 1 for dim in range(1, z.dim()))
    ):
        return False
    return torch.equal(z.flatten(1)[:, 0], torch.arange(components, device=z.device))


def _every_pair(rows: Tensor, components: int) -> Pairs:
    flat = rows.reshape(-1)
    order = torch.arange(len(flat), device=flat.device)
    starts = torch.arange(components + 1, device=flat.device) * (len(flat) // components)
    return Pairs(flat, order, starts)


def _sort_pairs_torch(flat: Tensor, components: int) -> tuple[Tensor, Tensor]:
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat + 1, minlength=components + 1)
    return order[counts[0] :], counts.cumsum(0) - counts[0]
