"""Lookup in tables indexed by component number, and sums into such tables."""

import torch
from torch import Tensor

from pyro_mixtures.errors import PartitionError
from pyro_mixtures.ops.backend import on_numba
from pyro_mixtures.ops.kernels import numba_search
from pyro_mixtures.ops.kernels.threads import run_slices
from pyro_mixtures.ops.memory import empty

# Entries for which a thread is worth waking.
_MINIMUM_ENTRIES = 1 << 14


def take(table: Tensor, index: Tensor) -> Tensor:
    """Look up ``table[index]`` in a ``table`` (C,), -inf where the index is the padding value -1.

    Differentiable in the table.

    :raises PartitionError: when an index is out of range (checked by the CPU kernel only).

    >>> take(torch.tensor([0.5, 0.25]), torch.tensor([[1, 0], [-1, 1]]))
    tensor([[0.2500, 0.5000],
            [  -inf, 0.2500]])
    """
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
    recorded = tracing or (torch.is_grad_enabled() and table.requires_grad)
    if recorded or index.dtype != torch.int64 or not on_numba(table, table.dtype):
        # -1 is the last entry.
        return torch.cat([table, table.new_full((1,), -torch.inf)])[index]
    # A dense index is read in memory order, regardless of the order of its dimensions.
    dense_strides = torch.empty_like(index, device="meta").stride()
    out = empty((index.numel(),), table.dtype).as_strided(index.shape, dense_strides)
    if out.stride() != index.stride():
        index = torch.empty_like(out, dtype=index.dtype).copy_(index)
    flat_index, flat_out = (t.as_strided((t.numel(),), (1,)).numpy() for t in (index, out))
    entries = table.detach().contiguous().numpy()
    valid = run_slices(
        lambda begin, end: numba_search.take(begin, end, entries, flat_index, flat_out),
        index.numel(),
        minimum=_MINIMUM_ENTRIES,
    )
    if not all(valid):
        raise PartitionError(
            f"component numbers lie in [{int(index.min())}, {int(index.max())}], "
            f"not in [0, {len(table)})"
        )
    return out


def count_weights(index: Tensor, weight: Tensor, components: int) -> Tensor:
    """Sum the ``weight`` (P,) of each component number in ``index`` (P,), where -1 is padding.

    :returns: sums (C,) in float64.

    >>> count_weights(torch.tensor([1, -1, 1]), torch.ones(3), 2)
    tensor([0., 2.], dtype=torch.float64)
    """
    if on_numba(weight, weight.dtype):
        counts = torch.zeros(components, dtype=torch.float64, device=weight.device)
        numba_search.count_weights(
            index.contiguous().numpy(), weight.detach().contiguous().numpy(), counts.numpy()
        )
        return counts
    # -1 is counted in a first entry, which is cut off.
    return torch.bincount(index + 1, weight.double(), minlength=components + 1)[1:]
