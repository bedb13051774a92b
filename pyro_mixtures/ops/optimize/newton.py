r"""Newton's method for many small convex problems at once, and the problems that are losses of linear predictors.

A problem of :func:`minimize` is one component c and one output m: minimise over :math:`\beta` the
sum over the component's pairs of :math:`q\, \ell(\beta^T x, t_m)`, and :math:`q \sum_p d_p
\beta_p^2` for each pair's share of the penalty d.
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
_FLAT = 1e-20  # of the largest curvature of one coefficient by itself: rounding, too
_TOLD = 1e-2  # nats a row; what less is promised by curvatures that are rounding is not to be had


class RowLoss(NamedTuple):
    """A convex loss of a linear predictor and a target, both (...)."""

    value: Callable[[Tensor, Tensor], Tensor]
    derivatives: Callable[
        [Tensor, Tensor], tuple[Tensor, Tensor]
    ]  # slope and curvature in the predictor


class Expansion(NamedTuple):
    """Losses of problems (...) to second order about their coefficients, penalties included; in float64."""

    count: Tensor  # type: ignore[assignment]  # (C, 1) or (C,)  sum q; shadows tuple.count
    value: Tensor  # (...)
    gradient: Tensor  # (..., Q)
    hessian: Tensor  # (..., Q, Q)

    def where(self, mine: Tensor, other: "Expansion") -> "Expansion":
        """``mine`` (...) problems from here, the rest from ``other``."""
        pairs = zip(self[1:], other[1:], strict=True)
        chosen = (
            torch.where(mine.reshape(mine.shape + (1,) * i), a, b) for i, (a, b) in enumerate(pairs)
        )
        return Expansion(self.count, *chosen)

    def some(self, mine: Tensor) -> "Expansion":
        """``mine`` (...) problems alone, (K,)."""
        return Expansion(
            self.count.expand(mine.shape)[mine], *(tensor[mine] for tensor in self[1:])
        )


class PairedRows(NamedTuple):
    """Rows, and the (row, component) pairs that the problems are made of."""

    design: Tensor  # (N, Q)
    targets: Tensor  # (N, M)
    pairs: Pairs  # z (1, L)
    weight: Tensor  # (L,)  q


def newton(expand: Callable[[Tensor], Expansion], start: Tensor, at_zero: Tensor) -> Tensor:
    """Coefficients (..., Q) of the minima of convex problems (...), from ``start``; no problem's loss ever rises.

    Newton steps are halved until they bring what Armijo's condition asks for. A problem begins at
    zero where that is better than its start, and once more where it ends although Newton's model
    promises more than its whole loss: far from the data's scale losses may overflow, or have no
    curvature left to go by. One without a minimum (classes that a hyperplane separates, without a
    penalty) is left where its loss has all but stopped falling.

    :param expand: the problems about coefficients (..., Q); losses are not negative.
    :param at_zero: losses (...) at zero.
    """
    first = expand(start)
    usable = first.value <= at_zero
    at = torch.where(usable.unsqueeze(-1), start, 0.0)
    at, here, misled = _descend(expand, at, first if bool(usable.all()) else expand(at))
    misled &= usable
    if bool(misled.any()):
        zero = torch.where(misled.unsqueeze(-1), 0.0, at)
        again, there, _ = _descend(expand, zero, expand(zero))
        better = there.value < here.value
        at, here = torch.where(better.unsqueeze(-1), again, at), there.where(better, here)
    return torch.where((here.value > first.value).unsqueeze(-1), start, at)


def _descend(
    expand: Callable[[Tensor], Expansion], at: Tensor, here: Expansion
) -> tuple[Tensor, Expansion, Tensor]:
    """Where Newton's method leads, and which problems it leaves although its model promises more than there is."""
    step, promise = _direction(here)
    length = torch.ones_like(here.value)
    for _ in range(_STEPS):
        unsolved = (promise > _TOLERANCE * here.count) & (length > _SHORTEST)
        if not bool(unsolved.any()):
            break
        trial = at + (length * unsolved).unsqueeze(-1) * step
        there = expand(trial)
        good = there.value <= here.value - 2 * _SUFFICIENT * length * promise
        at = torch.where(good.unsqueeze(-1), trial, at)
        here = there.where(good, here)
        step, promise = _direction(here)
        length = torch.where(good, 1.0, 0.5 * length)
    return at, here, promise > here.value


def _direction(e: Expansion) -> tuple[Tensor, Tensor]:
    """Newton steps (..., Q), and how much each problem's loss falls by Newton's model (...).

    Of coefficients brought to one scale, so that their units do not decide what is taken for
    rounding.
    """
    own = e.hessian.diagonal(dim1=-2, dim2=-1)
    scale = own.clamp_min(_FLAT * own.amax(-1, keepdim=True)).rsqrt().where(own > 0, 0.0)
    hessian, gradient = (
        scale.unsqueeze(-1) * e.hessian * scale.unsqueeze(-2),
        (scale * e.gradient).unsqueeze(-1),
    )
    factor, failed = torch.linalg.cholesky_ex(hessian)
    step = -torch.cholesky_solve(gradient, factor)
    rounding = own.shape[-1] * torch.finfo(own.dtype).eps
    # Pivots this small may be rounding: written so that NaN is one.
    flat = (failed > 0) | ~(factor.diagonal(dim1=-2, dim2=-1).square().amin(-1) > 16 * rounding)
    if bool(flat.any()):
        step[flat] = _floored(
            hessian[flat], gradient[flat], e.count.expand(flat.shape)[flat], rounding
        )
    step = scale * step.squeeze(-1)
    return step, -0.5 * (step * e.gradient).sum(-1)


def _floored(hessian: Tensor, gradient: Tensor, count: Tensor, rounding: float) -> Tensor:
    """Newton steps (K, Q, 1) where curvatures below ``rounding``, of the largest, say nothing.

    Such a combination of coefficients stays as it is where it promises little at a curvature of
    that size, as among collinear covariates, and else takes the step of that size: its rows are
    only far from where their loss bends.
    """
    values, vectors = torch.linalg.eigh(hessian)
    curvature = torch.maximum(
        values, (rounding * values[:, -1:]).clamp_min(torch.finfo(values.dtype).tiny)
    )
    slope = (vectors.mT @ gradient).squeeze(-1)
    told = (values >= curvature) | (slope.square() > 2 * _TOLD * count.unsqueeze(-1) * curvature)
    return -vectors @ torch.where(told, slope / curvature, 0.0).unsqueeze(-1)


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
        for total, part in zip(
            out, (weight.sum(1, keepdim=True), value, slope.mT @ x, bent), strict=True
        ):
            total.index_add_(0, tile.components, part)
    return _penalised(out, coefficients, penalty)


def _penalised(e: Expansion, coefficients: Tensor, penalty: Tensor) -> Expansion:
    share = e.count.unsqueeze(-1) * penalty  # (C, 1, Q)
    value = e.value + (share * coefficients.square()).sum(-1)
    return Expansion(
        e.count, value, e.gradient + 2 * share * coefficients, e.hessian + (2 * share).diag_embed()
    )


def minimize(loss: RowLoss, rows: PairedRows, start: Tensor, penalty: Tensor) -> Tensor:
    """Coefficients (C, M, Q) of the minima, from ``start``, by :func:`newton`."""
    return newton(
        lambda at: expand(loss, rows, at, penalty), start, _losses_at_zero(loss, rows, start)
    )


def _losses_at_zero(loss: RowLoss, rows: PairedRows, like: Tensor) -> Tensor:
    """Losses (C, M) of predictors that are zero."""
    target = rows.targets.double()
    each, order = loss.value(torch.zeros_like(target), target), rows.pairs.sorted
    component = torch.repeat_interleave(order.starts.diff(), output_size=len(order.rows))
    weight = rows.weight[order.order].double().unsqueeze(-1)
    return torch.zeros_like(like[..., 0]).index_add_(0, component, weight * each[order.rows])
