"""Minimal losses of clusters without one of their rows, by warm-started refits."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.ops import Pairs
from pyro_mixtures.ops.bilinear import pair_products
from pyro_mixtures.ops.optimize.newton import PairedRows

# Largest number of entries of rows and Hessians in memory at once.
_NUMBERS = 1 << 22

# Fits C problems from starting coefficients: returns coefficients (C, M, Q) and losses (C, M).
Solve = Callable[[PairedRows, Tensor], tuple[Tensor, Tensor]]


class HeldOutRows(NamedTuple):
    """Rows (B,), each of which is left out of its own cluster."""

    design: Tensor  # (B, Q)
    targets: Tensor  # (B, M)
    cluster: Tensor  # (B,)
    weight: Tensor  # (B,)

    def select(self, rows: Tensor) -> "HeldOutRows":
        """Return some of the rows."""
        return HeldOutRows(*(tensor[rows] for tensor in self))


def hinge_losses_without(
    clusters: PairedRows, rows: HeldOutRows, start: Tensor, solve: Solve, *, width: float
) -> Tensor:
    r"""Compute minimal losses (B, M) of clusters without each of the ``rows``, for hinge losses.

    Let rows i and j have margins larger than one at the minimum of :math:`S \setminus i`. Then this
    is also the minimum of :math:`S \setminus j`, since both losses and their slopes are zero
    there, and rows of equal weight have equal shares of the penalty. (It is not the minimum of S,
    whose penalty includes that share.) So one refit per cluster serves all rows that are not
    support vectors, and each other row takes one refit: O(rows times support vectors).

    :param clusters: rows of all clusters.
    :param rows: the rows to leave out.
    :param start: (C, M, Q), the clusters' coefficients.
    :param solve: fits clusters from given coefficients.
    :param width: of the interval around the kink in which ``solve`` takes a margin for one.
    """
    margin = (rows.targets * _predictors(rows, start, rows.cluster)).amin(-1)
    group, first = _largest_margins(rows, margin)
    coefficients, losses = _solve_without(clusters, rows.select(first), start, solve)
    satisfied = ((rows.targets * _predictors(rows, coefficients, group)) > 1 + width).all(-1)
    result = losses[group]
    is_served = (satisfied & satisfied[first][group]).index_fill(0, first, True)
    remaining = (~is_served).nonzero()[:, 0]
    if len(remaining):
        result[remaining] = _solve_without(clusters, rows.select(remaining), start, solve)[1]
    return result


def _predictors(rows: HeldOutRows, coefficients: Tensor, index: Tensor) -> Tensor:
    pairs = Pairs(index.unsqueeze(0), len(coefficients))
    return pair_products(rows.design.double(), coefficients, pairs)[0]


def _largest_margins(rows: HeldOutRows, margin: Tensor) -> tuple[Tensor, Tensor]:
    """Group rows by cluster and weight.

    :returns: the group (B,) of each row, and for each group (G,) the row of the largest margin.
    """
    keys = torch.stack([rows.cluster.double(), rows.weight.double()], -1)
    _, group, counts = keys.unique(dim=0, return_inverse=True, return_counts=True)
    order = margin.argsort()
    order = order[group[order].argsort(stable=True)]
    return group, order[counts.cumsum(0) - 1]


def _solve_without(
    clusters: PairedRows, rows: HeldOutRows, start: Tensor, solve: Solve
) -> tuple[Tensor, Tensor]:
    """Fit clusters without each of the ``rows``, in chunks of bounded memory.

    :returns: coefficients (B, M, Q) and losses (B, M).
    """
    outputs, columns = start.shape[1:]
    sizes = clusters.pairs.sorted.starts.diff()[rows.cluster]
    chunk = (sizes * columns + outputs * columns * columns).cumsum(0) // _NUMBERS
    chunk_sizes = chunk.unique_consecutive(return_counts=True)[1].tolist()
    fits = []
    for numbers in torch.arange(len(chunk), device=chunk.device).split(chunk_sizes):
        chunk_rows = rows.select(numbers)
        fits.append(solve(_without(clusters, chunk_rows), start[chunk_rows.cluster]))
    coefficients, losses = (torch.cat(tensors) for tensors in zip(*fits, strict=True))
    return coefficients, losses


def _without(clusters: PairedRows, rows: HeldOutRows) -> PairedRows:
    """Build one problem per row: the pairs of its cluster, and the row with negative weight."""
    known = clusters.pairs.sorted
    problems = torch.arange(len(rows.cluster), device=rows.cluster.device)
    begin, counts = known.starts[rows.cluster], known.starts.diff()[rows.cluster]
    problem = problems.repeat_interleave(counts)
    offset = (
        torch.arange(len(problem), device=problem.device) - (counts.cumsum(0) - counts)[problem]
    )
    position = begin[problem] + offset
    z = torch.cat([problem, problems])
    numbers = torch.cat([known.rows[position], len(clusters.design) + problems])
    weight = torch.cat([clusters.weight[known.order[position]].double(), -rows.weight.double()])
    design = torch.cat([clusters.design, rows.design])
    targets = torch.cat([clusters.targets, rows.targets])
    return PairedRows(design, targets, Pairs(z.unsqueeze(0), len(problems), numbers), weight)
