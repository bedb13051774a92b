"""Search spaces of the partial E-step, and the divergence sums from which the neighbour graph is estimated."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.ops.backend import on_numba
from pyro_mixtures.ops.kernels import numba_search
from pyro_mixtures.ops.kernels.threads import for_each, pieces
from pyro_mixtures.ops.memory import empty
from pyro_mixtures.ops.pairs import Pairs

# Components worth a thread's scratch memory.
_LEAST_COMPONENTS = 32


def search_space(candidates: Tensor, neighbors: Tensor, explore: Tensor) -> Tensor:
    """Union of the candidates' neighbourhoods and of ``explore``, one column a row, padded with -1.

    ``candidates`` (B, C'), ``neighbors`` (C, G) with each component its own first neighbour,
    ``explore`` (B, E); integers of one dtype. Returns (S, B) int64 with S = C' G + E, or C if that
    is less.

    >>> search_space(torch.tensor([[0], [2]]), torch.tensor([[0, 1], [1, 2], [2, 0]]), torch.tensor([[1], [1]]))
    tensor([[ 0,  2],
            [ 1,  0],
            [-1,  1]])
    """
    rows = candidates.shape[0]
    width = min(candidates.shape[1] * neighbors.shape[1] + explore.shape[1], len(neighbors))
    if on_numba(candidates, None):
        # One row's slots lie side by side: the kernels after this go by rows.
        out = empty((rows, width), torch.int64)
        known, found = (
            [t.contiguous().numpy() for t in (candidates, neighbors, explore)],
            out.numpy(),
        )
        parts = pieces(rows)
        for_each(
            lambda i: numba_search.search_space(*known, parts[i].start, parts[i].stop, found),
            len(parts),
        )
        return out.T
    members = torch.cat([neighbors[candidates.long()].flatten(1), explore], 1).long().T
    return _distinct(members, len(neighbors))[:width]


def _distinct(members: Tensor, components: int) -> Tensor:
    ordered = members.sort(0).values
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[1:] = ordered[1:] == ordered[:-1]
    ordered = ordered.masked_fill(repeated, components).sort(0).values
    return ordered.masked_fill(ordered == components, -1)


class Best(NamedTuple):
    """The best components of each row, best first."""

    candidates: Tensor  # (C', B) int64, -1 where the search space was smaller
    log_joint: Tensor  # (C', B), -inf there
    log_evidence: Tensor  # (B,) log of the sum of their joints
    evaluations: int  # components in the search spaces of all rows


def keep_best(search: Tensor, log_joint: Tensor, keep: int) -> Best:
    """The ``keep`` components of largest ``log_joint`` (S, B) in each row's search space (S, B), where -1 pads.

    >>> keep_best(torch.tensor([[4], [7], [-1]]), torch.tensor([[-2.0], [-1.0], [9.0]]), 2).candidates
    tensor([[7],
            [4]])
    """
    if on_numba(log_joint, log_joint.dtype):
        rows = search.shape[1]
        kept = torch.empty(rows, keep, dtype=torch.int64, device=search.device)
        log_kept, log_evidence = log_joint.new_empty(rows, keep), log_joint.new_empty(rows)
        given, parts = (_by_row(search), _by_row(log_joint)), pieces(rows)
        found = kept.numpy(), log_kept.numpy(), log_evidence.numpy()
        evaluated = [0] * len(parts)

        def some(i: int) -> None:
            evaluated[i] = numba_search.keep_best(*given, parts[i].start, parts[i].stop, *found)

        for_each(some, len(parts))
        return Best(kept.T, log_kept.T, log_evidence, sum(evaluated))
    valid = search >= 0
    # A component of zero weight stays preferable to padding, which is no component at all.
    rank = torch.where(valid, log_joint.clamp_min(torch.finfo(log_joint.dtype).min), -torch.inf)
    best = rank.topk(keep, dim=0).indices
    kept = search.gather(0, best)
    log_kept = torch.where(kept < 0, -torch.inf, log_joint.gather(0, best))
    return Best(kept, log_kept, log_kept.logsumexp(0), int(valid.sum()))


def add_with_best(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``a + b`` (S, B), and each row's largest entry (B,), or its NaN. No gradients.

    >>> add_with_best(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [0.0]]))[1]
    tensor([4.])
    """
    as_kernels_leave_them = (
        a.shape == b.shape and a.dtype == b.dtype and a.T.is_contiguous() and b.T.is_contiguous()
    )
    if not as_kernels_leave_them or not on_numba(b, b.dtype):
        total = a + b
        return total, total.amax(0)
    slots, rows = b.shape
    total, best, parts = empty((rows, slots), b.dtype), empty((rows,), b.dtype), pieces(rows)
    arrays = [t.detach().numpy() for t in (a.T, b.T, total, best)]
    for_each(
        lambda i: numba_search.add_with_best(*arrays, parts[i].start, parts[i].stop), len(parts)
    )
    return total.T, best


def _by_row(slots: Tensor):
    """(S, B) as a contiguous (B, S) array; no copy where the numba kernels made it."""
    return slots.T.contiguous().numpy()


class Divergences(NamedTuple):
    """Sums over the rows won by c of log p(x|c) - log p(x|k), for the k evaluated there, and the numbers of those rows.

    A sparse matrix on the CPU: the k of c are ``column[starts[c] : starts[c + 1]]``, each once.
    """

    starts: Tensor  # (C + 1,) int64
    column: Tensor  # (K,) int32
    total: Tensor  # (K,) float64
    count: Tensor  # type: ignore[assignment]  # (K,) int32; shadows tuple.count

    @classmethod
    def of_pairs(
        cls, row: Tensor, column: Tensor, total: Tensor, count: Tensor, components: int
    ) -> "Divergences":
        """From distinct pairs (c, k) in any order."""
        order = torch.argsort(row, stable=True)
        starts = torch.zeros(components + 1, dtype=torch.int64, device=row.device)
        starts[1:] = torch.bincount(row, minlength=components).cumsum(0)
        return cls(starts, column[order].int(), total[order].double(), count[order].int())


def divergence_sums(
    winner: Tensor, search: Tensor, log_density: Tensor, components: int
) -> Divergences:
    """Estimate divergences between components from one batch of rows.

    ``winner`` (B,) is each row's best component, ``search`` (S, B) its search space (-1 pads),
    ``log_density`` (S, B) the components' log densities without their weights.
    """
    if not on_numba(log_density, log_density.dtype):
        return _divergence_sums_torch(winner, search, log_density, components)
    pairs = Pairs(winner.unsqueeze(0), components).sorted
    capacity = torch.clamp(pairs.starts.diff() * search.shape[0], max=components)
    room = _Room(capacity)
    given = [
        _by_row(search),
        _by_row(log_density),
        pairs.order.numpy(),
        pairs.starts.numpy(),
        room.slots.numpy(),
    ]
    room.fill(
        lambda some: numba_search.divergence_sums(*given, some.start, some.stop, *room.arrays)
    )
    return room.compact()


class _Room:
    """Ranges of ``capacity`` (C,) entries a component, to be filled by a kernel and then closed up."""

    def __init__(self, capacity: Tensor):
        self.slots = capacity.cumsum(0) - capacity
        self.entries = _entries(int(capacity.sum()))
        self.used = torch.zeros(len(capacity), dtype=torch.int64, device="cpu")
        self.arrays = [t.numpy() for t in (*self.entries, self.used)]

    def fill(self, kernel: Callable[[slice], None]) -> None:
        """Run ``kernel`` for all components, some at a time."""
        parts = pieces(len(self.used), _LEAST_COMPONENTS)
        for_each(lambda i: kernel(parts[i]), len(parts))

    def compact(self) -> Divergences:
        starts = torch.zeros(len(self.used) + 1, dtype=torch.int64, device="cpu")
        torch.cumsum(self.used, 0, out=starts[1:])
        out = _entries(int(starts[-1]))
        ranges, arrays = (
            (self.slots.numpy(), starts.numpy()),
            [*self.arrays[:3], *(t.numpy() for t in out)],
        )
        self.fill(lambda some: numba_search.compact(*ranges, some.start, some.stop, *arrays))
        return Divergences(starts, *out)


def _entries(size: int) -> list[Tensor]:
    return [
        torch.empty(size, dtype=t, device="cpu") for t in (torch.int32, torch.float64, torch.int32)
    ]


def merge(parts: list[Divergences]) -> Divergences:
    """Sums over all rows from the sums of several batches."""
    starts = torch.stack([part.starts for part in parts])
    room = _Room(torch.clamp(starts.diff().sum(0), max=starts.shape[1] - 1))
    shift = torch.tensor([0, *(len(part.column) for part in parts)], device="cpu").cumsum(0)
    entries = [torch.cat([part[i] for part in parts]) for i in (1, 2, 3)]
    given = [t.numpy() for t in (starts, shift, *entries, room.slots)]
    room.fill(lambda some: numba_search.merge(*given, some.start, some.stop, *room.arrays))
    return room.compact()


def nearest(sums: Divergences, old: Tensor) -> Tensor:
    """Neighbourhoods (C, G) int32: each component itself, then the nearest; what was not measured stays, last.

    ``old`` (C, G) int32 are the neighbourhoods so far.
    """
    out = torch.empty_like(old)
    given, parts = [t.numpy() for t in (*sums, old)], pieces(len(old), _LEAST_COMPONENTS)
    for_each(
        lambda i: numba_search.nearest(*given, parts[i].start, parts[i].stop, out.numpy()),
        len(parts),
    )
    return out


def component_order(neighbors: Tensor) -> Tensor:
    """Place (C,) int64 of each component in a walk through the graph ``neighbors`` (C, G) int32, depth first.

    >>> component_order(torch.tensor([[0, 2], [1, 0], [2, 1]], dtype=torch.int32))
    tensor([0, 2, 1])
    """
    place = torch.empty(len(neighbors), dtype=torch.int64, device="cpu")
    numba_search.component_order(neighbors.numpy(), place.numpy())
    return place


def _divergence_sums_torch(
    winner: Tensor, search: Tensor, log_density: Tensor, components: int
) -> Divergences:
    own = torch.where(search == winner, log_density, -torch.inf).amax(0)
    valid = search >= 0
    key = (winner * components + search)[valid]
    keys, inverse, count = torch.unique(key, return_inverse=True, return_counts=True)
    total = torch.zeros(len(keys), dtype=torch.float64, device=key.device)
    total.index_add_(0, inverse, (own - log_density)[valid].double())
    keys, total, count = keys.cpu(), total.cpu(), count.cpu()
    return Divergences.of_pairs(keys // components, keys % components, total, count, components)
