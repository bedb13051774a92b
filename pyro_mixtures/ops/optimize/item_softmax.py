r"""Maximum likelihood of softmax distributions over items with shared features.

For each component c, maximize :math:`\theta_c \cdot t_c - \log \sum_l \exp(x_l \cdot \theta_c) -
\lambda |\theta_c|^2`, where t are the mean features of its draws. The problems are concave and are
solved together, since reading the features is the expensive part.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.ops.logits import (
    Curvature,
    LogTable,
    running_log_totals,
    tilted_covariances,
    tilted_means,
    variances_along,
)
from pyro_mixtures.ops.optimize.line_search import backtrack

SOLVERS = ("newton", "gradient")
_STEPS = 100
# A component is at its maximum where a step promises less than this per draw: in nats, and in
# roundings of the dtype.
_TOLERANCE, _ROUNDINGS = 1e-11, 2
# Standard deviation over items by which a step may change the logits.
_MAX_LOGIT_CHANGE = 10.0
# Longest step, for curvatures that may be zero.
_LONGEST = 1e9
# Shortest step to be tried, in units of the full step.
_SHORTEST = 1e-9


class ItemSoftmaxProblem(NamedTuple):
    """The problems of C components."""

    features: Tensor  # (p, L)
    target: Tensor  # (C, L) float64  t, the mean features of the draws
    ridge: float  # lambda
    spread: Curvature  # of the features over all items
    newton: bool  # whether to use the Hessians; otherwise the spread replaces all of them

    def value(self, theta: Tensor, total: Tensor) -> Tensor:
        """Compute the objectives (C,) in float64, given the log normalizers (C,)."""
        theta = theta.double()
        return (theta * self.target).sum(-1) - total - self.ridge * theta.square().sum(-1)

    def limit_step(self, step: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Shorten steps that change the logits by too much.

        :returns: the steps (C, L), and the slopes (C,) along them.
        """
        variance = ((step @ self.spread.covariance[0]) * step).sum(-1, keepdim=True)
        logit_change = variance.clamp_min(0).sqrt()
        step = step * (_MAX_LOGIT_CHANGE / logit_change.clamp_min(_MAX_LOGIT_CHANGE))
        return step, (step * gradient).sum(-1)

    def select(self, components: Tensor) -> "ItemSoftmaxProblem":
        """Select the problems of some components."""
        return self._replace(target=self.target[components])


def fit_thetas(
    problem: ItemSoftmaxProblem, theta: Tensor, start: LogTable | Tensor, *, steps: int | None
) -> Tensor:
    """Improve ``theta`` (C, L); no objective ever falls.

    Components at their maximum are left alone. A component without a maximum (all draws on the
    boundary of the items' convex hull, and no ridge) ends where its objective has all but stopped
    growing.

    :param start: log normalizers (C,) at ``theta``, or all log probabilities.
    :param steps: number of steps; None to continue until convergence.
    :returns: (C, L).
    """
    table, total = start if isinstance(start, LogTable) else (None, start)
    theta, total = theta.clone(), total.clone()
    unfinished = torch.arange(len(theta), device=theta.device)
    for iteration in range(_STEPS if steps is None else steps):
        if not len(unfinished):
            break
        subproblem = problem.select(unfinished)
        point, point_total = theta[unfinished], total[unfinished]
        # The table is that of the first point, where no component is finished.
        point_table = table if iteration == 0 else None
        mean = tilted_means(point, problem.features, point_total, point_table)
        step, slope = _ascent_step(subproblem, point, point_total, mean, point_table)
        rising = slope > _tolerance(point, point_total)
        if not bool(rising.all()):
            unfinished, subproblem = unfinished[rising], subproblem.select(rising)
            point, point_total = point[rising], point_total[rising]
            step, slope = step[rising], slope[rising]
        if len(unfinished):
            point, point_total, moved = _climb(subproblem, point, point_total, step, slope)
            unfinished = unfinished[moved]
            theta[unfinished], total[unfinished] = point[moved], point_total[moved]
    return theta


def _ascent_step(
    problem: ItemSoftmaxProblem, theta: Tensor, total: Tensor, mean: Tensor, table: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute ascent steps (C, L), and the slopes (C,) along them.

    Far from the maximum a component may put nearly all probability on one item, so that its
    curvature is nearly zero. Steps are shortened there, and steps by the spread replace those of
    Newton's method that bring nothing.
    """
    gradient = problem.target - mean - 2 * problem.ridge * theta
    if not problem.newton:
        return _spread_step(problem, theta, total, mean, gradient, table)
    inverse = tilted_covariances(theta, problem.features, total, mean).inverse(problem.ridge)
    step, slope = problem.limit_step((inverse @ gradient.unsqueeze(-1)).squeeze(-1), gradient)
    flat = slope <= _tolerance(theta, total)
    if not bool(flat.any()):
        return step, slope
    spread_step, spread_slope = _spread_step(problem, theta, total, mean, gradient, table)
    step = torch.where(flat.unsqueeze(-1), spread_step, step)
    return step, torch.where(flat, spread_slope, slope)


def _spread_step(
    problem: ItemSoftmaxProblem,
    theta: Tensor,
    total: Tensor,
    mean: Tensor,
    gradient: Tensor,
    table: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute steps (C, L) along the inverse of the spread times the gradient, and their slopes.

    Each step has the length of Newton's method in its direction.
    """
    step = gradient @ problem.spread.inverse(problem.ridge)[0]
    curvature = variances_along(step, theta, problem.features, total, mean, table)
    curvature += 2 * problem.ridge * step.square().sum(-1)
    # Without curvature any length will do, until the step is limited.
    length = ((step * gradient).sum(-1) / curvature).nan_to_num(nan=1.0).clamp_max(_LONGEST)
    return problem.limit_step(length.unsqueeze(-1) * step, gradient)


def _tolerance(theta: Tensor, total: Tensor) -> Tensor:
    """Return gains (C,) that are negligible or may be rounding errors."""
    return (_ROUNDINGS * torch.finfo(theta.dtype).eps * total.abs()).clamp_min(_TOLERANCE)


def _climb(
    problem: ItemSoftmaxProblem, theta: Tensor, total: Tensor, step: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Search along the steps.

    :returns: thetas (C, L), their log normalizers (C,), and (C,) whether each has moved. The log
        normalizers of components that have not moved are invalid.
    """
    new_total = total.clone()

    def losses(trial: Tensor, components: Tensor) -> Tensor:
        trial_total = running_log_totals(trial, problem.features)
        new_total[components] = trial_total
        return -problem.select(components).value(trial, trial_total)

    loss = -problem.value(theta, total)
    new_theta, moved = backtrack(losses, theta, step, -slope, loss, shortest=_SHORTEST)
    return new_theta, new_total, moved
