"""Minimal losses of parts without one of their rows, by refits from the parts' own coefficients."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.ops import Pairs
from pyro_mixtures.ops.bilinear import pair_products
from pyro_mixtures.ops.optimize.newton import PairedRows

# Numbers of rows and Hessians that are alive at once.
_NUMBERS = 1 << 22

Solve = Callable[
    [PairedRows, Tensor], tuple[Tensor, Tensor]
]  # -> coefficients (C, M, Q), losses (C, M)


class Leavers(NamedTuple):
    """Rows (B,) that leave their parts, each its own."""

    design: Tensor  # (B, Q)
    targets: Tensor  # (B, M)
    part: Tensor  # (B,)
    weight: Tensor  # (B,)

    def some(self, rows: Tensor) -> "Leavers":
        return Leavers(*(t[rows] for t in self))


def hinge_losses_without(
    parts: PairedRows, rows: Leavers, start: Tensor, solve: Solve, *, width: float
) -> Tensor:
    r"""Minimal losses (B, M) of the parts without each of the ``rows``, where losses are hinges of signs.

    Where the margins of rows i and j are larger than one at the minimum of :math:`S \setminus i`,
    that is the minimum of :math:`S \setminus j`, too: both losses and their slopes are zero there,
    and rows of one weight have one share of the penalty. (It is not the minimum of S, which has
    that share.) So of each part one refit serves all rows that are no support vectors, and each of
    the others takes one: O(rows times support vectors).

    :param start: (C, M, Q), the parts' own coefficients.
    :param width: about the kink, where ``solve`` takes a margin for one.
    """
    margin = (rows.targets * _predictors(rows, start, rows.part)).amin(-1)
    group, first = _furthest(rows, margin)
    found, least = _solve_without(parts, rows.some(first), start, solve)
    free = ((rows.targets * _predictors(rows, found, group)) > 1 + width).all(-1)
    out = least[group]
    left = (~(free & free[first][group])).index_fill(0, first, False).nonzero()[:, 0]
    if len(left):
        out[left] = _solve_without(parts, rows.some(left), start, solve)[1]
    return out


def _predictors(rows: Leavers, coefficients: Tensor, index: Tensor) -> Tensor:
    pairs = Pairs(index.unsqueeze(0), len(coefficients))
    return pair_products(rows.design.double(), coefficients, pairs)[0]


def _furthest(rows: Leavers, margin: Tensor) -> tuple[Tensor, Tensor]:
    """Groups (B,) of rows of one part and weight, and of each group (G,) the row of the largest ``margin``."""
    kinds = torch.stack([rows.part.double(), rows.weight.double()], -1)
    _, group, counts = kinds.unique(dim=0, return_inverse=True, return_counts=True)
    order = margin.argsort()
    order = order[group[order].argsort(stable=True)]
    return group, order[counts.cumsum(0) - 1]


def _solve_without(
    parts: PairedRows, rows: Leavers, start: Tensor, solve: Solve
) -> tuple[Tensor, Tensor]:
    """Coefficients (B, M, Q) and losses (B, M) of the parts without each of the ``rows``; memory is bounded."""
    outputs, wide = start.shape[1:]
    sizes = parts.pairs.sorted.starts.diff()[rows.part]
    chunk = (sizes * wide + outputs * wide * wide).cumsum(0) // _NUMBERS
    found = []
    for some in torch.arange(len(chunk), device=chunk.device).split(
        chunk.unique_consecutive(return_counts=True)[1].tolist()
    ):
        leaving = rows.some(some)
        found.append(solve(_without(parts, leaving), start[leaving.part]))
    coefficients, losses = (torch.cat(each) for each in zip(*found, strict=True))
    return coefficients, losses


def _without(parts: PairedRows, rows: Leavers) -> PairedRows:
    """One problem a row: all pairs of its part, and the row itself once more, of negative weight."""
    known, problems = parts.pairs.sorted, torch.arange(len(rows.part), device=rows.part.device)
    begin, counts = known.starts[rows.part], known.starts.diff()[rows.part]
    problem = problems.repeat_interleave(counts)
    position = (
        begin[problem]
        + torch.arange(len(problem), device=problem.device)
        - (counts.cumsum(0) - counts)[problem]
    )
    z, numbers = (
        torch.cat([problem, problems]),
        torch.cat([known.rows[position], len(parts.design) + problems]),
    )
    weight = torch.cat([parts.weight[known.order[position]].double(), -rows.weight.double()])
    design, targets = (
        torch.cat([parts.design, rows.design]),
        torch.cat([parts.targets, rows.targets]),
    )
    return PairedRows(design, targets, Pairs(z.unsqueeze(0), len(problems), numbers), weight)
