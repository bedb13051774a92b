"""Formulas that the M-steps of normal families share: pooling over tied dimensions, moved means."""

import torch
from torch import Tensor

from pyro_mixtures.distributions.normal.quadratic_components import QuadraticComponents
from pyro_mixtures.errors import ClosedFormError


def pool(total: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """Return the weighted mean ``total / weight`` in the smaller shape of a tied argument.

    Dimensions that ``shape`` lacks, or has as 1, are summed. Where the weight is zero, so are the
    total and the mean.

    :param total: (C, ...).
    :param weight: broadcasts to ``total``.
    """
    return sum_to(total, shape) / empty_to_one(sum_to(weight.expand(total.shape), shape))


def sum_to(value: Tensor, shape: torch.Size) -> Tensor:
    """Sum ``value`` down to ``shape``: the reverse of broadcasting."""
    return value.sum_to_size(shape) if value.shape != shape else value


def empty_to_one(count: Tensor) -> Tensor:
    """Replace counts of zero by one, so that sums of zero can be divided by them."""
    return torch.where(count > 0, count, torch.ones_like(count))


def update_loc(
    family: QuadraticComponents, shift: Tensor, center: Tensor, free: frozenset[str]
) -> Tensor:
    """Return how far the means are to move from ``center`` (C, D).

    :param shift: (C, D) the movement of free means. Frozen means move from the center to their
        present values.
    :raises ClosedFormError: for a mean that components share, which has no closed form under
        unequal variances.
    """
    if "loc" not in free:
        return family.flat(family.loc, 1) - center
    if family.loc.shape != center.shape:
        raise ClosedFormError(
            f"loc of shape {tuple(family.loc.shape)} is shared by {len(center)} components: give "
            "each its own, or use SVI"
        )
    return shift
