r"""Softmax distributions over p items whose features they share: normalisers, tilted moments, maximum likelihood.

Component c gives item j the probability :math:`A_c(j) = \exp(x_j \cdot \theta_c) / \sum_l \exp(x_l
\cdot \theta_c)`. Its log normaliser has the gradient :math:`E_{A_c} x` and the Hessian
:math:`\mathrm{Cov}_{A_c} x`. All sums over items run in chunks: memory is bounded whatever p and C
are, and features are read once for many components.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SOLVERS = ("newton", "gradient")
# Components and numbers alive at once: logits of a chunk of items stay in the second-level cache.
_COMPONENTS, _NUMBERS = 1024, 1 << 18
# Columns of the products that make covariances, and numbers that they are made of.
_COLUMNS, _SCALED = 2048, 1 << 19
# Steps until convergence, at most, and halvings of one.
_STEPS, _HALVINGS = 100, 30
_SUFFICIENT = 1e-4  # Armijo's condition
_REACH = 10.0  # deviation over items by which a step may change logits
_LONGEST = 1e9  # of steps by a curvature that may be zero
# Where a step promises less than this a draw, a component is at its maximum: nats, and roundings of
# the dtype.
_TOLERANCE, _ROUNDINGS = 1e-11, 2
# Variances below so many roundings of second moments cannot be told from zero.
_SINGULAR = 30


class LogTable(NamedTuple):
    """All log probabilities, where they are few."""

    log_prob: Tensor  # (C, p)
    log_total: Tensor  # (C,) float64


def log_totals(theta: Tensor, features: Tensor) -> Tensor:
    """Log normalisers (C,) of ``theta`` (C, L) over ``features`` (p, L), in their dtype; differentiable in ``theta``.

    >>> log_totals(torch.zeros(1, 2), torch.ones(4, 2)).exp()
    tensor([4.])
    """
    return _LogTotals.apply(theta, features)


class _LogTotals(torch.autograd.Function):
    """Its gradient is made by a second pass over the items: nothing of size p x C is kept."""

    @staticmethod
    def forward(ctx, theta, features):
        totals = running_log_totals(theta, features)
        ctx.save_for_backward(theta, features, totals)
        return totals.to(theta)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return (grad.unsqueeze(-1) * tilted_means(*ctx.saved_tensors)).to(grad), None


def running_log_totals(theta: Tensor, features: Tensor) -> Tensor:
    """Log normalisers (C,) in float64 of ``theta`` (C, L); their sums over chunks lose nothing in float32."""
    if len(theta) > _COMPONENTS:
        return torch.cat([running_log_totals(some, features) for some in theta.split(_COMPONENTS)])
    total = theta.new_full((len(theta),), -torch.inf, dtype=torch.float64)
    for _, logits in _chunks(theta, features):
        total = torch.logaddexp(total, _log_sum_exp(logits))
    return total


def log_table(theta: Tensor, features: Tensor) -> LogTable:
    """Log probabilities of all items: for small p times C."""
    table = theta @ features.T
    totals = [_log_sum_exp(table[:, some].clone()) for some in _slices(len(features), len(theta))]
    total = torch.stack(totals).logsumexp(0)
    return LogTable(table.sub_(total.to(table).unsqueeze(-1)), total)


def _log_sum_exp(logits: Tensor) -> Tensor:
    """Of ``logits`` (C, n), which are overwritten: (C,) in float64."""
    top = logits.amax(1, keepdim=True)
    return top.squeeze(1).double() + logits.sub_(top).exp_().sum(1).double().log()


def tilted_means(
    theta: Tensor, features: Tensor, total: Tensor, table: Tensor | None = None
) -> Tensor:
    """Mean features (C, L) under each component, in float64, given its log normaliser ``total`` (C,).

    :param table: log probabilities (C, p), if they are known.
    """
    if len(theta) > _COMPONENTS and table is None:
        parts = zip(theta.split(_COMPONENTS), total.split(_COMPONENTS), strict=True)
        return torch.cat([tilted_means(some, features, its_total) for some, its_total in parts])
    mean = torch.zeros_like(theta, dtype=torch.float64)
    for x, prob in _probabilities(theta, features, total, table):
        mean += prob @ x
    return mean


def variances_along(
    step: Tensor,
    theta: Tensor,
    features: Tensor,
    total: Tensor,
    mean: Tensor,
    table: Tensor | None = None,
) -> Tensor:
    """Variances (C,) in float64 of the features' products with ``step`` (C, L) under each component."""
    if len(theta) > _COMPONENTS and table is None:
        parts = zip(*(t.split(_COMPONENTS) for t in (step, theta, total, mean)), strict=True)
        return torch.cat(
            [variances_along(s, t, features, its_total, m) for s, t, its_total, m in parts]
        )
    variance, middle = torch.zeros_like(total), (mean * step).sum(-1, keepdim=True).to(theta)
    for x, prob in _probabilities(theta, features, total, table):
        variance += torch.addmm(-middle, step.to(x), x.T).square_().mul_(prob).sum(1)
    return variance


class Curvature(NamedTuple):
    """Covariances of features, and the variances that rounding alone would give them; in float64."""

    covariance: Tensor  # (C, L, L)
    noise: Tensor  # (C, L)

    def inverse(self, ridge: float = 0.0) -> Tensor:
        """Of the covariances plus 2 ``ridge`` (C, L, L); zero in directions that cannot be told from constant ones."""
        known = self.covariance.diagonal(dim1=-1, dim2=-2) + 2 * ridge
        scale = torch.where(known > self.noise, known.clamp_min(0).rsqrt(), 0.0)
        outer = scale.unsqueeze(-1) * scale.unsqueeze(-2)
        # Of unit diagonal, also where a feature is left out.
        unit = (self.covariance * outer).diagonal_scatter(torch.ones_like(known), dim1=-1, dim2=-2)
        least = (self.noise * scale.square()).amax(-1)
        factor, failed = torch.linalg.cholesky_ex(unit)
        singular = (failed > 0) | (
            factor.diagonal(dim1=-1, dim2=-2).square().amin(-1) < unit.shape[-1] * least
        )
        inverse = torch.cholesky_inverse(
            torch.where(_of_matrix(singular), unit.diagonal(dim1=-1, dim2=-2).diag_embed(), factor)
        )
        if bool(singular.any()):
            value, vector = torch.linalg.eigh(unit[singular])
            value = torch.where(
                value > unit.shape[-1] * least[singular].unsqueeze(-1), value.reciprocal(), 0.0
            )
            inverse[singular] = (vector * value.unsqueeze(-2)) @ vector.mT
        return inverse * outer


def _of_matrix(each: Tensor) -> Tensor:
    return each.unsqueeze(-1).unsqueeze(-1)


def tilted_covariances(theta: Tensor, features: Tensor, total: Tensor, mean: Tensor) -> Curvature:
    """Covariances of the features under each component, given its log normaliser (C,) and ``mean`` (C, L)."""
    size = max(1, _COLUMNS // theta.shape[1])
    if len(theta) > size:
        parts = zip(*(t.split(size) for t in (theta, total, mean)), strict=True)
        found = [
            tilted_covariances(some, features, its_total, its_mean)
            for some, its_total, its_mean in parts
        ]
        return Curvature(*(torch.cat(part) for part in zip(*found, strict=True)))
    origin = mean.mean(0)
    second = mean.new_zeros(*mean.shape, mean.shape[1])
    for x, prob in _probabilities(theta, features, total, None, limit=_SCALED // theta.numel()):
        away = x - origin.to(x)
        scaled = away.unsqueeze(1) * prob.T.contiguous().unsqueeze(-1)
        second += (away.T @ scaled.flatten(1)).unflatten(1, mean.shape).movedim(1, 0)
    shift = mean - origin
    covariance = second - shift.unsqueeze(-1) * shift.unsqueeze(-2)
    rounding = _SINGULAR * torch.finfo(theta.dtype).eps
    noise = rounding * second.diagonal(dim1=-1, dim2=-2) + (rounding * origin).square()
    return Curvature(0.5 * (covariance + covariance.mT), noise)


def item_covariance(features: Tensor) -> Curvature:
    """Covariance (1, L, L) of the features over items that are all as likely."""
    theta = torch.zeros_like(features[:1])
    total = torch.full_like(theta[:, 0], len(features), dtype=torch.float64).log()
    return tilted_covariances(theta, features, total, tilted_means(theta, features, total))


def _chunks(
    theta: Tensor, features: Tensor, limit: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (n, L) and fresh logits (C, n) of some items at a time."""
    for some in _slices(len(features), len(theta), limit):
        yield features[some], theta @ features[some].T


def _slices(items: int, components: int, limit: int | None = None) -> list[slice]:
    size = max(64, _NUMBERS // components if limit is None else limit)
    return [slice(at, at + size) for at in range(0, items, size)]


def _probabilities(
    theta: Tensor, features: Tensor, total: Tensor, table: Tensor | None, limit: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (n, L) and probabilities (C, n) of some items at a time."""
    if table is not None:
        for some in _slices(len(features), len(theta), limit):
            yield features[some], table[:, some].exp()
        return
    shift = total.to(theta).unsqueeze(-1)
    for x, logits in _chunks(theta, features, limit):
        yield x, logits.sub_(shift).exp_()


class Fitting(NamedTuple):
    r"""Maximise :math:`\theta_c \cdot t_c - \log \sum_l \exp(x_l \cdot \theta_c) - \lambda |\theta_c|^2` for all c."""

    features: Tensor  # (p, L)
    target: Tensor  # (C, L) float64  mean features of the draws
    ridge: float  # lambda
    spread: Curvature  # of the features over all items
    newton: bool  # whether steps are Newton's; else the spread stands in for all Hessians

    def value(self, theta: Tensor, total: Tensor) -> Tensor:
        """Objectives (C,) in float64; concave."""
        theta = theta.double()
        return (theta * self.target).sum(-1) - total - self.ridge * theta.square().sum(-1)

    def cut(self, step: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The ``step`` (C, L), or as much of it as changes logits by ``_REACH``, and the slope (C,) along it."""
        reach = (
            ((step @ self.spread.covariance[0]) * step).sum(-1, keepdim=True).clamp_min(0).sqrt()
        )
        step = step * (_REACH / reach.clamp_min(_REACH))
        return step, (step * gradient).sum(-1)

    def of(self, some: Tensor) -> "Fitting":
        """The problems ``some`` alone."""
        return self._replace(target=self.target[some])


def fit_thetas(
    problem: Fitting, theta: Tensor, start: LogTable | Tensor, *, steps: int | None
) -> Tensor:
    """Better (C, L) than ``theta``: ``steps`` ascents, or as many as it takes; no objective ever falls.

    Steps are halved until they bring what Armijo's condition asks for, each component's on its own;
    components at their maximum are left alone. One without a maximum (all draws at the border of
    the items' convex hull, no ridge) is left where its objective has all but stopped growing.

    :param start: log normalisers (C,) at ``theta``, or all log probabilities.
    """
    table, total = start if isinstance(start, LogTable) else (None, start)
    theta, total = theta.clone(), total.clone()
    left = torch.arange(len(theta), device=theta.device)
    for turn in range(_STEPS if steps is None else steps):
        if not len(left):
            break
        own, at, known = problem.of(left), theta[left], table if turn == 0 else None
        mean = tilted_means(at, own.features, total[left], known)
        step, slope = _ascent(own, at, total[left], mean, known)
        rising = slope > _tolerance(at, total[left])
        left, at, step, slope = (t[rising] for t in (left, at, step, slope))
        if len(left):
            at, at_total, moved = _climb(own.of(rising), at, total[left], step, slope)
            left = left[moved]
            theta[left], total[left] = at[moved], at_total[moved]
    return theta


def _ascent(
    problem: Fitting, theta: Tensor, total: Tensor, mean: Tensor, table: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Steps (C, L) uphill and slopes (C,) along them: Newton's, or those of the spread.

    Far from the maximum a component may have all but one item's probability, and a curvature of
    nearly zero: there steps are cut to where they change logits by about ``_REACH``, and where
    Newton's lead nowhere the others stand in.
    """
    gradient = problem.target - mean - 2 * problem.ridge * theta
    if not problem.newton:
        return _along_spread(problem, theta, total, mean, gradient, table)
    inverse = tilted_covariances(theta, problem.features, total, mean).inverse(problem.ridge)
    step, slope = problem.cut((inverse @ gradient.unsqueeze(-1)).squeeze(-1), gradient)
    lost = slope <= _tolerance(theta, total)
    if not bool(lost.any()):
        return step, slope
    other, its_slope = _along_spread(problem, theta, total, mean, gradient, table)
    return torch.where(lost.unsqueeze(-1), other, step), torch.where(lost, its_slope, slope)


def _along_spread(
    problem: Fitting,
    theta: Tensor,
    total: Tensor,
    mean: Tensor,
    gradient: Tensor,
    table: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Steps (C, L) by the inverse of the spread, each as long as Newton's method in that direction has it; slopes."""
    step = gradient @ problem.spread.inverse(problem.ridge)[0]
    bend = variances_along(step, theta, problem.features, total, mean, table)
    bend += 2 * problem.ridge * step.square().sum(-1)
    # Without curvature any length is as good, until it is cut.
    length = ((step * gradient).sum(-1) / bend).nan_to_num(nan=1.0).clamp_max(_LONGEST)
    return problem.cut(length.unsqueeze(-1) * step, gradient)


def _tolerance(theta: Tensor, total: Tensor) -> Tensor:
    """Gains (C,) that are nothing, or cannot be told from rounding."""
    return (_ROUNDINGS * torch.finfo(theta.dtype).eps * total.abs()).clamp_min(_TOLERANCE)


def _climb(problem: Fitting, at: Tensor, total: Tensor, step: Tensor, slope: Tensor) -> Any:
    """Where steps that raise the objective enough lead: thetas (C, L), totals (C,), and which have moved at all."""
    value, length = problem.value(at, total), torch.ones_like(slope)
    theta, total, waiting = at.clone(), total.clone(), torch.ones_like(slope, dtype=torch.bool)
    for _ in range(_HALVINGS):
        some = waiting.nonzero()[:, 0]
        trial = (at[some] + length[some].unsqueeze(-1) * step[some]).to(at.dtype)
        trial_total = running_log_totals(trial, problem.features)
        # A comparison with NaN, of steps that overflow, is false.
        reached = problem.of(some).value(trial, trial_total)
        good = reached >= value[some] + _SUFFICIENT * length[some] * slope[some]
        theta[some[good]], total[some[good]] = trial[good], trial_total[good]
        waiting[some[good]] = False
        length = torch.where(waiting, 0.5 * length, length)
        if not bool(waiting.any()):
            break
    return theta, total, ~waiting
