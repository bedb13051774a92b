"""Variance floors of normal families, relative to the variances of the data."""

import torch
from torch import Tensor

from pyro_mixtures.distributions.statistics import FactorStatistics, NormalStatistics, subset

# Components per block: bounds the temporaries of very large models.
_COMPONENTS = 4096


def data_moments(s: NormalStatistics | FactorStatistics) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and the variance (D,) of the whole data set, from all components."""
    total = s.count.sum().clamp_min(torch.finfo(s.center.dtype).tiny)
    starts = range(0, len(s.count), _COMPONENTS)
    blocks = [subset(s, slice(start, start + _COMPONENTS)) for start in starts]
    zero = torch.zeros_like(total)
    sums = ((block.count.unsqueeze(-1) * block.center + block.first).sum(0) for block in blocks)
    mean = sum(sums, zero) / total
    scatter = sum((_scatter(block, mean) for block in blocks), zero)
    return mean, (scatter / total).clamp_min(0)


def _scatter(s: NormalStatistics | FactorStatistics, mean: Tensor) -> Tensor:
    """Sum of squares (D,) about ``mean``."""
    away = s.center - mean
    return (s.count.unsqueeze(-1) * away.square() + 2 * away * s.first + s.second).sum(0)


def floors(statistics: NormalStatistics | FactorStatistics, fraction: float) -> Tensor:
    """Return the smallest variances (D,) to allow.

    They are ``fraction`` times the variance of each feature. A constant feature gets ``fraction``
    times the mean variance; a feature is constant if it varies by no more than the rounding of its
    values.
    """
    mean, variance = data_moments(statistics)
    typical = variance.mean()
    typical = torch.where(typical > 0, typical, torch.ones_like(typical))
    rounding = (torch.finfo(mean.dtype).eps * mean).square()
    return fraction * torch.where(variance > rounding, variance, typical)


def given_floor(floor: Tensor | None, like: Tensor) -> Tensor:
    """Return ``floor`` (D,), zero if None."""
    return torch.zeros_like(like[0]) if floor is None else floor
