r"""The line search of all optimizers of this package: backtracking with Armijo's condition.

A step is halved until the loss falls by at least a small fraction of what its slope promises
(Nocedal & Wright, "Numerical Optimization", 2006, algorithm 3.1).
"""

from collections.abc import Callable

import torch
from torch import Tensor

# The fraction of the decrease promised by the slope that a step must bring.
_SUFFICIENT = 1e-4
# Shortest step to be tried, in units of the full step: what shorter ones bring is rounding.
SHORTEST = 1e-10


def sufficient_decrease(loss: Tensor, trial_loss: Tensor, predicted: Tensor) -> Tensor:
    """Check Armijo's condition for each problem.

    :param loss: (...) losses before the step.
    :param trial_loss: (...) losses after it; NaN and infinity never fulfill the condition.
    :param predicted: (...) change of the losses by a linear model, the slope along the step times
        its length; negative for a descent direction.
    :returns: (...) bool.
    """
    return trial_loss <= loss + _SUFFICIENT * predicted


def backtrack(
    losses: Callable[[Tensor, Tensor], Tensor],
    point: Tensor,
    step: Tensor,
    slope: Tensor,
    loss: Tensor,
    *,
    shortest: float = SHORTEST,
) -> tuple[Tensor, Tensor]:
    """Move each of K problems by the longest of its halved steps that fulfills Armijo's condition.

    Only the problems whose steps were all refused so far are evaluated again.

    :param losses: called with trial points (k, ...) and the numbers (k,) of their problems, returns
        the losses (k,). The last call for a problem is the one whose point was accepted, if any.
    :param point: (K, ...) where the problems stand.
    :param step: (K, ...) full steps.
    :param slope: (K,) derivatives of the losses along the steps.
    :param loss: (K,) losses at ``point``.
    :param shortest: only steps longer than this, in units of the full step, are tried.
    :returns: the new points (K, ...), and (K,) whether each problem has moved.

    >>> square = lambda trial, problems: trial.square().sum(-1)
    >>> point, step = torch.tensor([[1.0]]), torch.tensor([[-4.0]])
    >>> backtrack(square, point, step, slope=torch.tensor([-8.0]), loss=torch.tensor([1.0]))
    (tensor([[0.]]), tensor([True]))
    """
    new_point, moved = point.clone(), torch.zeros_like(slope, dtype=torch.bool)
    remaining = torch.arange(len(point), device=point.device)
    length = 1.0
    while length > shortest and len(remaining):
        trial = (point[remaining] + length * step[remaining]).to(point.dtype)
        trial_loss = losses(trial, remaining)
        accepted = sufficient_decrease(loss[remaining], trial_loss, length * slope[remaining])
        new_point[remaining[accepted]] = trial[accepted]
        moved[remaining[accepted]] = True
        remaining = remaining[~accepted]
        length /= 2
    return new_point, moved
