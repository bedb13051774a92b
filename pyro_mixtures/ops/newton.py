r"""Newton's method for many small convex problems at once: each component's loss over its own rows.

A problem is one component c and one output m: minimise over :math:`\beta` the sum over the component's pairs of
:math:`q\, \ell(\beta^T x, t_m)`, and :math:`q \sum_p d_p \beta_p^2` for each pair's share of the penalty d.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.ops.pairs import Pairs
from pyro_mixtures.ops.tiles import tiles

_STEPS = 200
# Where Newton's model promises less than this a row, a problem is solved; nats.
_TOLERANCE = 1e-11
_SUFFICIENT = 1e-4  # Armijo's condition
_SHORTEST = 1e-10  # of a Newton step: what is left is rounding


class RowLoss(NamedTuple):
    """A convex loss of a linear predictor and a target, both (...)."""

    value: Callable[[Tensor, Tensor], Tensor]
    derivatives: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # slope and curvature in the predictor


class Expansion(NamedTuple):
    """Losses of C x M problems to second order about their coefficients, penalties included; in float64."""

    count: Tensor  # type: ignore[assignment]  # (C, 1)  sum q; shadows tuple.count
    value: Tensor  # (C, M)
    gradient: Tensor  # (C, M, Q)
    hessian: Tensor  # (C, M, Q, Q)


class PairedRows(NamedTuple):
    """Rows, and the (row, component) pairs that the problems are made of."""

    design: Tensor  # (N, Q)
    targets: Tensor  # (N, M)
    pairs: Pairs  # z (1, L)
    weight: Tensor  # (L,)  q


def expand(loss: RowLoss, rows: PairedRows, coefficients: Tensor, penalty: Tensor) -> Expansion:
    """The problems about ``coefficients`` (C, M, Q), with ``penalty`` (Q,); memory is bounded by tiles."""
    outputs, wide = coefficients.shape[1:]
    like = torch.zeros_like(coefficients)
    hessian = like.new_zeros(*like.shape, wide)
    out = Expansion(like.new_zeros(len(like), 1), like.new_zeros(like.shape[:2]), like, hessian)
    for tile in tiles(rows.pairs.sorted, wide * (1 + outputs * (1 + wide // 32))):
        x, weight = rows.design[tile.rows].double(), rows.weight[tile.slots].double() * tile.valid
        eta, target = x @ coefficients[tile.components].mT, rows.targets[tile.rows]
        slope, curvature = (d * weight.unsqueeze(-1) for d in loss.derivatives(eta, target))
        value = (loss.value(eta, target) * weight.unsqueeze(-1)).sum(1)
        bent = (x.unsqueeze(1) * curvature.mT.unsqueeze(-1)).mT @ x.unsqueeze(1)
        for total, part in zip(out, (weight.sum(1, keepdim=True), value, slope.mT @ x, bent), strict=True):
            total.index_add_(0, tile.components, part)
    return _penalised(out, coefficients, penalty)


def _penalised(e: Expansion, coefficients: Tensor, penalty: Tensor) -> Expansion:
    share = e.count.unsqueeze(-1) * penalty  # (C, 1, Q)
    value = e.value + (share * coefficients.square()).sum(-1)
    return Expansion(e.count, value, e.gradient + 2 * share * coefficients, e.hessian + (2 * share).diag_embed())


def minimize(loss: RowLoss, rows: PairedRows, start: Tensor, penalty: Tensor) -> Tensor:
    """Coefficients (C, M, Q) of the minima, from ``start``; no problem's loss ever rises.

    Newton steps are halved until they bring what Armijo's condition asks for. A problem without a minimum (classes
    that a hyperplane separates, without a penalty) is left where its loss has all but stopped falling.
    """
    # Coefficients from elsewhere may overflow (Poisson); zero never does.
    usable = expand(loss, rows, start, penalty).value.isfinite().unsqueeze(-1)
    at = torch.where(usable, start, 0.0)
    here = expand(loss, rows, at, penalty)
    step, promise = _direction(here)
    length = torch.ones_like(here.value)
    for _ in range(_STEPS):
        unsolved = (promise > _TOLERANCE * here.count) & (length > _SHORTEST)
        if not bool(unsolved.any()):
            break
        trial = at + (length * unsolved).unsqueeze(-1) * step
        there = expand(loss, rows, trial, penalty)
        good = there.value <= here.value - 2 * _SUFFICIENT * length * promise
        at = torch.where(good.unsqueeze(-1), trial, at)
        here = _choose(good, there, here)
        step, promise = _direction(here)
        length = torch.where(good, 1.0, 0.5 * length)
    return at


def _direction(e: Expansion) -> tuple[Tensor, Tensor]:
    """Newton steps (C, M, Q), and how much each problem's loss falls by Newton's model (C, M)."""
    factor, failed = torch.linalg.cholesky_ex(e.hessian)
    step = -torch.cholesky_solve(e.gradient.unsqueeze(-1), factor).squeeze(-1)
    bad = (failed > 0) | ~step.isfinite().all(-1)
    if bool(bad.any()):
        step[bad] = -(torch.linalg.pinv(e.hessian[bad], hermitian=True) @ e.gradient[bad].unsqueeze(-1)).squeeze(-1)
    return step, -0.5 * (step * e.gradient).sum(-1)


def _choose(good: Tensor, there: Expansion, here: Expansion) -> Expansion:
    shapes = [good, good.unsqueeze(-1), good.unsqueeze(-1).unsqueeze(-1)]
    pairs = zip(shapes, there[1:], here[1:], strict=True)
    return Expansion(here.count, *(torch.where(mine, new, old) for mine, new, old in pairs))
