r"""Newton's method for many small convex problems at once, and for losses of linear predictors.

A problem of :func:`minimize` is one component c and one output m: minimize over :math:`\beta` the
sum of :math:`q\, (\ell(\beta^T x, t_m) + \sum_p d_p \beta_p^2)` over the pairs of the component,
with penalties d. Its steps are taken for the component's standardized covariates
(:class:`Standard`), so neither the units of covariates nor their distance from zero spoil them; the
penalty remains that of the given coefficients.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.ops.optimize.line_search import SHORTEST, sufficient_decrease
from pyro_mixtures.ops.pairs import Pairs
from pyro_mixtures.ops.tiles import component_tiles

_STEPS = 200
# A problem is solved when Newton's model promises less than this, in nats per row.
_TOLERANCE = 1e-11
# Curvatures of one coefficient below this, relative to the largest, are rounding errors.
_FLAT = 1e-20
# A covariate that deviates from one of its values by fewer roundings than this is constant.
_CONSTANT = 2
# Gains below this (in nats per row) that are promised by curvatures within rounding are not real.
_REAL_GAIN = 1e-2


class RowLoss(NamedTuple):
    """A convex loss of a linear predictor and a target, both (...)."""

    value: Callable[[Tensor, Tensor], Tensor]
    # Slope and curvature in the predictor.
    derivatives: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Expansion(NamedTuple):
    """Second-order expansions of the losses of problems (...), with penalties; in float64."""

    count: Tensor  # type: ignore[assignment]  # (C, 1) or (C,)  sum q; shadows tuple.count
    value: Tensor  # (...)
    gradient: Tensor  # (..., Q)
    hessian: Tensor  # (..., Q, Q)

    def where(self, condition: Tensor, other: "Expansion") -> "Expansion":
        """Select problems from here where ``condition`` (...) holds, else from ``other``."""
        pairs = zip(self[1:], other[1:], strict=True)
        selected = (
            torch.where(condition.reshape(condition.shape + (1,) * dims), mine, its)
            for dims, (mine, its) in enumerate(pairs)
        )
        return Expansion(self.count, *selected)


class PairedRows(NamedTuple):
    """Rows, and the (row, component) pairs of which the problems consist."""

    design: Tensor  # (N, Q), ones in the last column
    targets: Tensor  # (N, M)
    pairs: Pairs  # z (1, L)
    weight: Tensor  # (L,)  q


class Standard(NamedTuple):
    r"""Standardized covariates of each component, in which problems are well conditioned.

    The predictor :math:`w^T x + b` is :math:`\gamma^T u + \beta` with :math:`u = (x - m) / s`,
    :math:`\gamma = s w` and :math:`\beta = b + w^T m`. Covariates that are constant up to rounding
    become zero, with s = 1.
    """

    center: Tensor  # (C, Q)  m, zero for the bias
    size: Tensor  # (C, Q)  s, one for the bias
    unit: Tensor  # (C, Q)  1 / s, zero for constant covariates

    def rows(self, x: Tensor, components: Tensor) -> Tensor:
        """Standardize rows (T, R, Q) of the ``components`` (T,)."""
        center, unit = self.center[components], self.unit[components]
        return (x - center.unsqueeze(-2)) * unit.unsqueeze(-2)

    def coefficients(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients (C, M, Q) of standardized rows for those of the given rows."""
        level = coefficients @ self.center.unsqueeze(-1)
        standard = coefficients * self.size.unsqueeze(-2)
        return torch.cat([standard[..., :-1], coefficients[..., -1:] + level], -1)

    def given(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients (C, M, Q) of the given rows for those of standardized rows."""
        weight = coefficients / self.size.unsqueeze(-2)
        level = weight @ self.center.unsqueeze(-1)
        return torch.cat([weight[..., :-1], coefficients[..., -1:] - level], -1)

    def penalty(self, penalty: Tensor) -> Tensor:
        """Return the quadratic form (C, Q, Q) of the ``penalty`` (Q,) of the given coefficients."""
        bias = torch.cat([-self.center[:, :-1] / self.size[:, :-1], self.size[:, -1:]], -1)
        of_weights = torch.cat([penalty[:-1], torch.zeros_like(penalty[-1:])]) / self.size.square()
        square = bias.unsqueeze(-1) * bias.unsqueeze(-2)
        return of_weights.diag_embed() + penalty[-1] * square


def standardize(rows: PairedRows) -> Standard:
    """Find means and sizes of each component's covariates, from the magnitudes of the weights.

    Sizes are taken about one row of the component, so they may exceed the standard deviations;
    differences from that row are exact for constant covariates.
    """
    order = rows.pairs.sorted
    shape = rows.pairs.components, rows.design.shape[1]
    sums = rows.design.new_zeros(2, *shape, dtype=torch.float64)
    count, reference = torch.zeros_like(sums[0, :, 0]), torch.zeros_like(sums[0])
    if len(order.rows):
        first = order.starts[:-1].clamp_max(len(order.rows) - 1)
        reference = rows.design[order.rows[first]].double()
    for tile in component_tiles(order, 3 * shape[1]):
        weight = (rows.weight[tile.slots].double() * tile.valid).abs()
        difference = rows.design[tile.rows].double() - reference[tile.components].unsqueeze(1)
        for total, power in zip(sums, (difference, difference.square()), strict=True):
            total.index_add_(0, tile.components, (weight.unsqueeze(1) @ power).squeeze(1))
        count.index_add_(0, tile.components, weight.sum(1))
    mean, square = sums / torch.where(count > 0, count, 1.0).unsqueeze(-1)
    center, deviation = reference + mean, square.sqrt()
    varies = deviation > _CONSTANT * torch.finfo(rows.design.dtype).eps * center.abs()
    size = torch.where(varies, deviation, 1.0)
    unit = torch.where(varies, 1 / size, 0.0)
    center[:, -1], size[:, -1], unit[:, -1] = 0.0, 1.0, 1.0
    return Standard(center, size, unit)


def newton(expand: Callable[[Tensor], Expansion], start: Tensor, at_zero: Tensor) -> Tensor:
    """Minimize convex problems (...) from ``start`` (..., Q); no problem's loss ever rises.

    A problem begins at zero where zero is better than its start. It begins at zero once more if
    Newton's model promises more than the whole loss where it ends: far from the scale of the data,
    losses may overflow or have no curvature left. A problem without a minimum (separable classes
    without a penalty) ends where its loss has all but stopped falling.

    :param expand: returns the expansions about coefficients (..., Q); losses are not negative.
    :param at_zero: (...) losses at zero.
    :returns: (..., Q) coefficients of the minima.
    """
    start_expansion = expand(start)
    usable = start_expansion.value <= at_zero
    point = torch.where(usable.unsqueeze(-1), start, 0.0)
    first = start_expansion if bool(usable.all()) else expand(point)
    point, expansion, stuck = _descend(expand, point, first)
    stuck &= usable
    if bool(stuck.any()):
        restart = torch.where(stuck.unsqueeze(-1), 0.0, point)
        new_point, new_expansion, _ = _descend(expand, restart, expand(restart))
        better = new_expansion.value < expansion.value
        point = torch.where(better.unsqueeze(-1), new_point, point)
        expansion = new_expansion.where(better, expansion)
    worse = expansion.value > start_expansion.value
    return torch.where(worse.unsqueeze(-1), start, point)


def _descend(
    expand: Callable[[Tensor], Expansion], point: Tensor, expansion: Expansion
) -> tuple[Tensor, Expansion, Tensor]:
    """Descend by Newton's method.

    An expansion takes one pass over all rows, however few problems need it. So the line search of
    each problem runs on its own: some problems halve their steps while others take the next one.

    :returns: where the problems end, their expansions there, and which of them are stuck although
        Newton's model promises more than their whole loss.
    """
    step, promise = _newton_step(expansion)
    length = torch.ones_like(expansion.value)
    for _ in range(_STEPS):
        unsolved = (promise > _TOLERANCE * expansion.count) & (length > SHORTEST)
        if not bool(unsolved.any()):
            break
        trial = point + (length * unsolved).unsqueeze(-1) * step
        trial_expansion = expand(trial)
        accepted = sufficient_decrease(
            expansion.value, trial_expansion.value, -2 * length * promise
        )
        point = torch.where(accepted.unsqueeze(-1), trial, point)
        expansion = trial_expansion.where(accepted, expansion)
        step, promise = _newton_step(expansion)
        length = torch.where(accepted, 1.0, 0.5 * length)
    return point, expansion, promise > expansion.value


def _newton_step(expansion: Expansion) -> tuple[Tensor, Tensor]:
    """Compute Newton steps (..., Q), and the decrease of each loss that Newton's model promises.

    The coefficients are first brought to one scale, so that their units do not decide which
    curvatures are taken for rounding errors.
    """
    curvature = expansion.hessian.diagonal(dim1=-2, dim2=-1)
    smallest = _FLAT * curvature.amax(-1, keepdim=True)
    scale = curvature.clamp_min(smallest).rsqrt().where(curvature > 0, 0.0)
    hessian = scale.unsqueeze(-1) * expansion.hessian * scale.unsqueeze(-2)
    gradient = (scale * expansion.gradient).unsqueeze(-1)
    factor, failed = torch.linalg.cholesky_ex(hessian)
    step = -torch.cholesky_solve(gradient, factor)
    rounding = curvature.shape[-1] * torch.finfo(curvature.dtype).eps
    smallest_pivot = factor.diagonal(dim1=-2, dim2=-1).square().amin(-1)
    # Pivots this small may be rounding errors. NaN counts as such a pivot, hence the negation.
    singular = (failed > 0) | ~(smallest_pivot > 16 * rounding)
    if bool(singular.any()):
        count = expansion.count.expand(singular.shape)[singular]
        step[singular] = _regularized_step(hessian[singular], gradient[singular], count, rounding)
    step = scale * step.squeeze(-1)
    return step, -0.5 * (step * expansion.gradient).sum(-1)


def _regularized_step(hessian: Tensor, gradient: Tensor, count: Tensor, rounding: float) -> Tensor:
    """Compute Newton steps (K, Q, 1) whose curvatures are at least ``rounding`` times the largest.

    Curvatures below that are meaningless. Along such a direction the coefficients stay where they
    are if the step promises little, as with collinear covariates. Otherwise they take the step:
    then the rows are only far from where their loss is curved.
    """
    values, vectors = torch.linalg.eigh(hessian)
    smallest = (rounding * values[:, -1:]).clamp_min(torch.finfo(values.dtype).tiny)
    curvature = torch.maximum(values, smallest)
    slope = (vectors.mT @ gradient).squeeze(-1)
    promising = slope.square() > 2 * _REAL_GAIN * count.unsqueeze(-1) * curvature
    step = torch.where((values >= curvature) | promising, slope / curvature, 0.0)
    return -vectors @ step.unsqueeze(-1)


def expand(
    loss: RowLoss,
    rows: PairedRows,
    coefficients: Tensor,
    penalty: Tensor,
    standard: Standard | None = None,
) -> Expansion:
    """Expand the problems about ``coefficients`` (C, M, Q).

    Pairs are processed in tiles of bounded memory.

    :param penalty: (Q,), or quadratic forms (C, Q, Q).
    :param standard: if given, coefficients and penalty are those of standardized rows.
    """
    outputs, width = coefficients.shape[1:]
    zeros = torch.zeros_like(coefficients)
    totals = Expansion(
        zeros.new_zeros(len(zeros), 1),
        zeros.new_zeros(zeros.shape[:2]),
        zeros,
        zeros.new_zeros(*zeros.shape, width),
    )
    for tile in component_tiles(rows.pairs.sorted, width * (1 + outputs * (1 + width // 32))):
        x = rows.design[tile.rows].double()
        if standard is not None:
            x = standard.rows(x, tile.components)
        weight = rows.weight[tile.slots].double() * tile.valid
        predictor, target = x @ coefficients[tile.components].mT, rows.targets[tile.rows]
        slope, curvature = (
            derivative * weight.unsqueeze(-1) for derivative in loss.derivatives(predictor, target)
        )
        value = (loss.value(predictor, target) * weight.unsqueeze(-1)).sum(1)
        hessian = (x.unsqueeze(1) * curvature.mT.unsqueeze(-1)).mT @ x.unsqueeze(1)
        sums = (weight.sum(1, keepdim=True), value, slope.mT @ x, hessian)
        for total, tile_sum in zip(totals, sums, strict=True):
            total.index_add_(0, tile.components, tile_sum)
    return _with_penalty(totals, coefficients, penalty)


def _with_penalty(expansion: Expansion, coefficients: Tensor, penalty: Tensor) -> Expansion:
    form = penalty.diag() if penalty.dim() == 1 else penalty
    scaled = expansion.count.unsqueeze(-1) * form  # (C, Q, Q)
    slope = coefficients @ scaled
    return Expansion(
        expansion.count,
        expansion.value + (slope * coefficients).sum(-1),
        expansion.gradient + 2 * slope,
        expansion.hessian + 2 * scaled.unsqueeze(1),
    )


def minimize(loss: RowLoss, rows: PairedRows, start: Tensor, penalty: Tensor) -> Tensor:
    """Find the coefficients (C, M, Q) of the minima, from ``start``, by :func:`newton`.

    Problems that are at their minimum keep their coefficients.
    """
    standard = standardize(rows)
    form, standard_start = standard.penalty(penalty), standard.coefficients(start)
    solution = newton(
        lambda coefficients: expand(loss, rows, coefficients, form, standard),
        standard_start,
        _losses_at_zero(loss, rows, start),
    )
    moved = (solution != standard_start).any(-1, keepdim=True)
    return torch.where(moved, standard.given(solution), start)


def _losses_at_zero(loss: RowLoss, rows: PairedRows, like: Tensor) -> Tensor:
    """Compute the losses (C, M) of predictors that are zero."""
    target = rows.targets.double()
    row_losses = loss.value(torch.zeros_like(target), target)
    pairs = rows.pairs.sorted
    component = torch.repeat_interleave(pairs.starts.diff(), output_size=len(pairs.rows))
    weight = rows.weight[pairs.order].double().unsqueeze(-1)
    return torch.zeros_like(like[..., 0]).index_add_(0, component, weight * row_losses[pairs.rows])
