"""Search spaces of the truncated E-step, and the divergences that determine the neighbor graph."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.ops.backend import on_numba
from pyro_mixtures.ops.kernels import numba_search
from pyro_mixtures.ops.kernels.jit import Arguments, Array
from pyro_mixtures.ops.kernels.threads import run_slices
from pyro_mixtures.ops.memory import empty
from pyro_mixtures.ops.pairs import Pairs

# Components for which a thread's scratch memory is worthwhile.
_MINIMUM_COMPONENTS = 32


def search_space(candidates: Tensor, neighbors: Tensor, explore: Tensor) -> Tensor:
    """Unite the neighborhoods of each row's candidates with the components in ``explore``.

    All arguments are integers of one dtype.

    :param candidates: (B, C') candidates of the rows.
    :param neighbors: (C, G) neighbor graph, each component its own first neighbor.
    :param explore: (B, E) components to be evaluated in addition.
    :returns: (S, B) int64, one column per row, padded with -1; S = C' G + E, or C if that is less.

    >>> neighbors = torch.tensor([[0, 1], [1, 2], [2, 0]])
    >>> search_space(torch.tensor([[0], [2]]), neighbors, torch.tensor([[1], [1]]))
    tensor([[ 0,  2],
            [ 1,  0],
            [-1,  1]])
    """
    rows = candidates.shape[0]
    width = min(candidates.shape[1] * neighbors.shape[1] + explore.shape[1], len(neighbors))
    if on_numba(candidates, None):
        # The slots of a row are adjacent in memory, because the kernels that follow go row by row.
        out = empty((rows, width), torch.int64)
        members = (candidates, neighbors, explore)
        arrays: Arguments = (*(t.contiguous().numpy() for t in members), out.numpy())
        run_slices(lambda begin, end: numba_search.search_space(begin, end, *arrays), rows)
        return out.T
    united = torch.cat([neighbors[candidates.long()].flatten(1), explore], 1).long().T
    return _distinct(united, len(neighbors))[:width]


def _distinct(members: Tensor, components: int) -> Tensor:
    """Sort each column and replace repeated members by -1, last."""
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
    """Find the ``keep`` components of largest ``log_joint`` (S, B) in each row's search space.

    :param search: (S, B) search spaces, padded with -1.

    >>> search = torch.tensor([[4], [7], [-1]])
    >>> keep_best(search, torch.tensor([[-2.0], [-1.0], [9.0]]), 2).candidates
    tensor([[7],
            [4]])
    """
    if on_numba(log_joint, log_joint.dtype):
        rows = search.shape[1]
        best = torch.empty(rows, keep, dtype=torch.int64, device=search.device)
        best_log_joint, log_evidence = log_joint.new_empty(rows, keep), log_joint.new_empty(rows)
        inputs = _by_row(search), _by_row(log_joint)
        outputs = best.numpy(), best_log_joint.numpy(), log_evidence.numpy()
        evaluations = run_slices(
            lambda begin, end: numba_search.keep_best(begin, end, *inputs, *outputs), rows
        )
        return Best(best.T, best_log_joint.T, log_evidence, sum(evaluations))
    valid = search >= 0
    # A component of weight zero is preferred to padding, which is no component at all.
    lowest = torch.finfo(log_joint.dtype).min
    rank = torch.where(valid, log_joint.clamp_min(lowest), -torch.inf)
    slots = rank.topk(keep, dim=0).indices
    best = search.gather(0, slots)
    best_log_joint = torch.where(best < 0, -torch.inf, log_joint.gather(0, slots))
    return Best(best, best_log_joint, best_log_joint.logsumexp(0), int(valid.sum()))


def add_with_best(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Add ``a`` and ``b`` (S, B), and find each row's largest entry. No gradients.

    :returns: the sum (S, B), and its largest entries (B,), NaN for rows that contain one.

    >>> add_with_best(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [0.0]]))[1]
    tensor([4.])
    """
    # The kernels before this one leave the slots of a row adjacent in memory.
    contiguous_rows = a.T.is_contiguous() and b.T.is_contiguous()
    alike = a.shape == b.shape and a.dtype == b.dtype
    if not (alike and contiguous_rows and on_numba(b, b.dtype)):
        total = a + b
        return total, total.amax(0)
    slots, rows = b.shape
    total, best = empty((rows, slots), b.dtype), empty((rows,), b.dtype)
    arrays: Arguments = tuple(t.detach().numpy() for t in (a.T, b.T, total, best))
    run_slices(lambda begin, end: numba_search.add_with_best(begin, end, *arrays), rows)
    return total.T, best


def _by_row(slots: Tensor) -> Array:
    """Return (S, B) as a contiguous (B, S) array; no copy of what the numba kernels made."""
    return slots.T.contiguous().numpy()


class Divergences(NamedTuple):
    """Sums and numbers of terms log p(x|c) - log p(x|k), over the rows whose best component is c.

    A sparse matrix on the CPU. The components k evaluated on rows of c are
    ``column[starts[c] : starts[c + 1]]``, each listed once.
    """

    starts: Tensor  # (C + 1,) int64
    column: Tensor  # (P,) int32
    total: Tensor  # (P,) float64
    count: Tensor  # type: ignore[assignment]  # (P,) int32; shadows tuple.count

    @classmethod
    def of_pairs(
        cls, row: Tensor, column: Tensor, total: Tensor, count: Tensor, components: int
    ) -> "Divergences":
        """Build the matrix from distinct pairs (c, k) in any order."""
        order = torch.argsort(row, stable=True)
        starts = torch.zeros(components + 1, dtype=torch.int64, device=row.device)
        starts[1:] = torch.bincount(row, minlength=components).cumsum(0)
        return cls(starts, column[order].int(), total[order].double(), count[order].int())


def divergence_sums(
    winner: Tensor, search: Tensor, log_density: Tensor, components: int
) -> Divergences:
    """Estimate the divergences between components from one batch of rows.

    :param winner: (B,) best component of each row.
    :param search: (S, B) search spaces, padded with -1.
    :param log_density: (S, B) log densities of the components, without their weights.
    """
    if not on_numba(log_density, log_density.dtype):
        return _divergence_sums_torch(winner, search, log_density, components)
    pairs = Pairs(winner.unsqueeze(0), components).sorted
    # A row of c adds at most S entries to c, and c has at most one entry per component.
    sparse = _SparseRows(torch.clamp(pairs.starts.diff() * search.shape[0], max=components))
    inputs: Arguments = (
        _by_row(search),
        _by_row(log_density),
        pairs.order.numpy(),
        pairs.starts.numpy(),
        sparse.offsets.numpy(),
    )
    sparse.run(lambda begin, end: numba_search.divergence_sums(begin, end, *inputs, *sparse.arrays))
    return sparse.compact()


class _SparseRows:
    """Memory for a sparse matrix whose row c gets at most ``limits[c]`` entries from a kernel."""

    def __init__(self, limits: Tensor):
        self.offsets = limits.cumsum(0) - limits
        self.entries = _entries(int(limits.sum()))
        self.sizes = torch.zeros(len(limits), dtype=torch.int64, device="cpu")
        self.arrays: Arguments = tuple(t.numpy() for t in (*self.entries, self.sizes))

    def run(self, kernel: Callable[[int, int], Any]) -> None:
        """Run ``kernel(begin, end)`` for ranges of components."""
        run_slices(kernel, len(self.sizes), minimum=_MINIMUM_COMPONENTS)

    def compact(self) -> Divergences:
        """Return the matrix without the entries that were not used."""
        starts = torch.zeros(len(self.sizes) + 1, dtype=torch.int64, device="cpu")
        torch.cumsum(self.sizes, 0, out=starts[1:])
        entries = _entries(int(starts[-1]))
        positions = self.offsets.numpy(), starts.numpy()
        arrays: Arguments = (*self.arrays[:3], *(t.numpy() for t in entries))
        self.run(lambda begin, end: numba_search.compact(begin, end, *positions, *arrays))
        return Divergences(starts, *entries)


def _entries(size: int) -> list[Tensor]:
    """Allocate columns, totals and counts of ``size`` entries."""
    dtypes = (torch.int32, torch.float64, torch.int32)
    return [torch.empty(size, dtype=dtype, device="cpu") for dtype in dtypes]


def merge(batches: list[Divergences]) -> Divergences:
    """Add up the sums of several batches."""
    starts = torch.stack([batch.starts for batch in batches])
    sparse = _SparseRows(torch.clamp(starts.diff().sum(0), max=starts.shape[1] - 1))
    shift = torch.tensor([0, *(len(batch.column) for batch in batches)], device="cpu").cumsum(0)
    entries = [torch.cat([batch[i] for batch in batches]) for i in (1, 2, 3)]
    inputs: Arguments = tuple(t.numpy() for t in (starts, shift, *entries, sparse.offsets))
    sparse.run(lambda begin, end: numba_search.merge(begin, end, *inputs, *sparse.arrays))
    return sparse.compact()


def nearest(sums: Divergences, old: Tensor) -> Tensor:
    """Find the neighborhoods: each component itself, then the nearest others.

    :param old: (C, G) int32 neighborhoods so far. Neighbors whose divergence was not measured stay,
        after all others.
    :returns: (C, G) int32.
    """
    out = torch.empty_like(old)
    arrays: Arguments = tuple(t.numpy() for t in (*sums, old, out))
    run_slices(
        lambda begin, end: numba_search.nearest(begin, end, *arrays),
        len(old),
        minimum=_MINIMUM_COMPONENTS,
    )
    return out


def component_order(neighbors: Tensor) -> Tensor:
    """Number the components in the order of a depth-first search of the graph.

    :param neighbors: (C, G) int32 neighbor graph.
    :returns: (C,) int64, the place of each component.

    >>> component_order(torch.tensor([[0, 2], [1, 0], [2, 1]], dtype=torch.int32))
    tensor([0, 2, 1])
    """
    place = torch.empty(len(neighbors), dtype=torch.int64, device="cpu")
    numba_search.component_order(neighbors.numpy(), place.numpy())
    return place


def _divergence_sums_torch(
    winner: Tensor, search: Tensor, log_density: Tensor, components: int
) -> Divergences:
    best = torch.where(search == winner, log_density, -torch.inf).amax(0)
    valid = search >= 0
    key = (winner * components + search)[valid]
    keys, inverse, count = torch.unique(key, return_inverse=True, return_counts=True)
    total = torch.zeros(len(keys), dtype=torch.float64, device=key.device)
    total.index_add_(0, inverse, (best - log_density)[valid].double())
    keys, total, count = keys.cpu(), total.cpu(), count.cpu()
    return Divergences.of_pairs(keys // components, keys % components, total, count, components)
