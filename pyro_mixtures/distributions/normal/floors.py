"""Variance floors of the Gaussian families, relative to the spread of the data."""

import torch
from torch import Tensor

from pyro_mixtures.distributions.statistics import FactorStatistics, NormalStatistics, subset

# Components looked at together: bounds the temporaries of very large models.
_COMPONENTS = 4096


def data_moments(s: NormalStatistics | FactorStatistics) -> tuple[Tensor, Tensor]:
    """Mean (D,) and variance (D,) of the whole data set, from the components' statistics."""
    total = s.count.sum().clamp_min(torch.finfo(s.center.dtype).tiny)
    parts = [subset(s, slice(at, at + _COMPONENTS)) for at in range(0, len(s.count), _COMPONENTS)]
    mean = (
        sum(
            ((p.count.unsqueeze(-1) * p.center + p.first).sum(0) for p in parts),
            torch.zeros_like(total),
        )
        / total
    )
    spread = sum((_spread(p, mean) for p in parts), torch.zeros_like(total))
    return mean, (spread / total).clamp_min(0)


def _spread(s: NormalStatistics | FactorStatistics, mean: Tensor) -> Tensor:
    away = s.center - mean
    return (s.count.unsqueeze(-1) * away.square() + 2 * away * s.first + s.second).sum(0)


def floors(statistics: NormalStatistics | FactorStatistics, fraction: float) -> Tensor:
    """Smallest variance (D,) to allow: ``fraction`` of each feature's variance, of the mean one if it is constant.

    Constant is a feature that varies by no more than the rounding of its own values, however large
    others are.
    """
    mean, variance = data_moments(statistics)
    typical = variance.mean()
    typical = torch.where(typical > 0, typical, torch.ones_like(typical))
    rounding = (torch.finfo(mean.dtype).eps * mean).square()
    return fraction * torch.where(variance > rounding, variance, typical)
