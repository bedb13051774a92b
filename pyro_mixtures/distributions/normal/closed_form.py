"""Pieces of the Gaussian families' closed-form M-steps: pooling over tied dimensions, means that move."""

import torch
from torch import Tensor

from pyro_mixtures.distributions.normal.quadratic_components import QuadraticComponents
from pyro_mixtures.errors import ClosedFormError


def pool(total: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """Weighted mean ``total / weight`` in the broadcastable, smaller ``shape`` of a tied argument.

    ``total`` is (C, ...), ``weight`` broadcasts to it; dimensions that ``shape`` lacks (or has as
    1) are summed. Where no weight is left the total is zero too, and so is the mean.
    """
    return sum_to(total, shape) / empty_to_one(sum_to(weight.expand(total.shape), shape))


def sum_to(value: Tensor, shape: torch.Size) -> Tensor:
    """Sum ``value`` down to ``shape``, the reverse of broadcasting."""
    return value.sum_to_size(shape) if value.shape != shape else value


def empty_to_one(count: Tensor) -> Tensor:
    """Counts with 1 for components without rows, whose sums are zero: they divide without NaN."""
    return torch.where(count > 0, count, torch.ones_like(count))


def update_loc(
    family: QuadraticComponents, shift: Tensor, center: Tensor, free: frozenset[str]
) -> Tensor:
    """How far the means move from ``center`` (C, D): by ``shift`` if they are free, to where they are held if not.

    :raises ClosedFormError: for a mean that components share, which has no closed form under
        unequal variances.
    """
    if "loc" not in free:
        return family.flat(family.loc, 1) - center
    if family.loc.shape != center.shape:
        raise ClosedFormError(
            f"loc of shape {tuple(family.loc.shape)} is shared by {len(center)} components: give each its own, or "
            "use SVI"
        )
    return shift
