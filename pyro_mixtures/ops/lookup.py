"""Entries of a table by component number, and sums into one."""

import torch
from torch import Tensor

from pyro_mixtures.errors import PartitionError
from pyro_mixtures.ops.backend import on_numba
from pyro_mixtures.ops.kernels import numba_search
from pyro_mixtures.ops.kernels.threads import for_each, pieces
from pyro_mixtures.ops.memory import empty


def take(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]`` of a table (C,), -inf where the index is the padding value -1. Differentiable in the table.

    >>> take(torch.tensor([0.5, 0.25]), torch.tensor([[1, 0], [-1, 1]]))
    tensor([[0.2500, 0.5000],
            [  -inf, 0.2500]])
    """
    recorded = torch.jit.is_tracing() or (torch.is_grad_enabled() and table.requires_grad)
    if recorded or index.dtype != torch.int64 or not on_numba(table, table.dtype):
        # -1 finds the last entry.
        return torch.cat([table, table.new_full((1,), -torch.inf)])[index]
    # Where the index fills its memory, whatever the order of its dimensions, it is read as it lies.
    out = empty((index.numel(),), table.dtype).as_strided(
        index.shape, torch.empty_like(index, device="meta").stride()
    )
    if out.stride() != index.stride():
        index = torch.empty_like(out, dtype=index.dtype).copy_(index)
    memory = [t.as_strided((t.numel(),), (1,)).numpy() for t in (index, out)]
    parts, known = pieces(index.numel(), 1 << 14), table.detach().contiguous().numpy()
    valid = [False] * len(parts)

    def some(i: int) -> None:
        valid[i] = numba_search.take(known, memory[0], parts[i].start, parts[i].stop, memory[1])

    for_each(some, len(parts))
    if not all(valid):
        raise PartitionError(
            f"component numbers lie in [{int(index.min())}, {int(index.max())}], not in [0, {len(table)})"
        )
    return out


def count_weights(index: Tensor, weight: Tensor, components: int) -> Tensor:
    """Sums (C,) float64 of the ``weight`` (P,) of each component number ``index`` (P,); -1 pads.

    >>> count_weights(torch.tensor([1, -1, 1]), torch.ones(3), 2)
    tensor([0., 2.], dtype=torch.float64)
    """
    if on_numba(weight, weight.dtype):
        counts = torch.zeros(components, dtype=torch.float64, device=weight.device)
        numba_search.count_weights(
            index.contiguous().numpy(), weight.detach().contiguous().numpy(), counts.numpy()
        )
        return counts
    # -1 falls into the place before the first, which is cut off.
    return torch.bincount(index + 1, weight.double(), minlength=components + 1)[1:]
