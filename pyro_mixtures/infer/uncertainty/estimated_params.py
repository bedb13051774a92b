"""Estimated params as a vector of unconstrained numbers, and its directions of movement."""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import transform_to

from pyro_mixtures.poutine.params import ParamHandle

# Directions whose effect on the constrained values is smaller than this are rounding errors.
_SINGULAR = 1e-7


class Tangent(NamedTuple):
    """R orthonormal directions of the unconstrained numbers u that move constrained values."""

    directions: Tensor  # (U, R)
    jacobian: Tensor  # (K, R): derivative of the K constrained numbers along the directions
    owners: list[str]  # the param that each direction moves


class EstimatedParams:
    """Estimated params as one vector of their unconstrained numbers u (U,) in float64."""

    def __init__(self, handles: list[ParamHandle]):
        self.handles = handles
        self.start = torch.cat([handle.leaf.detach().double().reshape(-1) for handle in handles])
        self.sizes = [handle.leaf.numel() for handle in handles]

    def values(self, u: Tensor) -> dict[str, Tensor]:
        """Return the constrained values by name."""
        return {
            handle.name: _constrain(handle)(numbers)
            for handle, numbers in zip(self.handles, u.split(self.sizes), strict=True)
        }

    def tangent(self) -> Tangent:
        """Return the directions in which the constrained values can move."""
        directions, jacobians, owners = [], [], []
        for handle, numbers in zip(self.handles, self.start.split(self.sizes), strict=True):
            derivative = torch.autograd.functional.jacobian(_constrain(handle), numbers)
            jacobian = derivative.reshape(-1, len(numbers))
            free = _free_directions(jacobian)
            directions.append(free)
            jacobians.append(jacobian @ free)
            owners += [handle.name] * free.shape[1]
        return Tangent(torch.block_diag(*directions), torch.block_diag(*jacobians), owners)

    def labels(self) -> tuple[str, ...]:
        """Return the names of all constrained numbers, such as ``"loc[0, 1]"``."""
        labels = []
        for name, value in self.values(self.start).items():
            for index in product(*map(range, value.shape)):
                labels.append(f"{name}[{', '.join(map(str, index))}]" if index else name)
        return tuple(labels)


def _constrain(handle: ParamHandle) -> Callable[[Tensor], Tensor]:
    """Return the map from a param's unconstrained numbers (U,) to its constrained value."""
    transform = transform_to(handle.constraint)
    return lambda numbers: transform(numbers.reshape(handle.leaf.shape))


def _free_directions(jacobian: Tensor) -> Tensor:
    """Return orthonormal directions (U, R) of u that move constrained values of any scale."""
    length = jacobian.norm(dim=-1, keepdim=True)
    scaled = jacobian / torch.where(length > 0, length, 1.0)
    _, singular_values, directions = torch.linalg.svd(scaled, full_matrices=False)
    return directions[singular_values > _SINGULAR * singular_values.max()].T
