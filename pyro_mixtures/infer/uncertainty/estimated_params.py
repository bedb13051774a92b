"""Params that are estimated, as one vector of unconstrained numbers, and the directions that they can go."""

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import transform_to

from pyro_mixtures.poutine.params import ParamHandle

# Directions of which constrained values follow less than this are rounding.
_SINGULAR = 1e-7


class Tangent(NamedTuple):
    """R directions of the unconstrained numbers u (U,) that move the K constrained ones."""

    free: Tensor  # (U, R), orthonormal
    out: Tensor  # (K, R), how they move these
    owners: list[str]  # the param of each


class EstimatedParams:
    """The params that are estimated, as one vector of their unconstrained numbers u (U,) in float64."""

    def __init__(self, handles: list[ParamHandle]):
        self.handles = handles
        self.start = torch.cat([h.leaf.detach().double().reshape(-1) for h in handles])
        self.sizes = [h.leaf.numel() for h in handles]

    def values(self, u: Tensor) -> dict[str, Tensor]:
        """Constrained values by name."""
        parts = zip(self.handles, u.split(self.sizes), strict=True)
        return {h.name: transform_to(h.constraint)(part.reshape(h.leaf.shape)) for h, part in parts}

    def tangent(self) -> Tangent:
        """Where the constrained values can go."""
        free, out, owners = [], [], []
        for handle, part in zip(self.handles, self.start.split(self.sizes), strict=True):
            constrain = transform_to(handle.constraint)

            def flat(u: Tensor, constrain=constrain, shape=handle.leaf.shape) -> Tensor:
                return constrain(u.reshape(shape)).reshape(-1)

            jacobian = torch.autograd.functional.jacobian(flat, part)
            free.append(_free_directions(jacobian))
            out.append(jacobian @ free[-1])
            owners += [handle.name] * free[-1].shape[1]
        return Tangent(torch.block_diag(*free), torch.block_diag(*out), owners)

    def labels(self) -> tuple[str, ...]:
        """Names of all constrained numbers."""
        shapes = {name: value.shape for name, value in self.values(self.start).items()}
        return tuple(
            f"{name}[{', '.join(map(str, at))}]" if at else name
            for name, shape in shapes.items()
            for at in product(*map(range, shape))
        )


def _free_directions(jacobian: Tensor) -> Tensor:
    """Orthonormal directions (U, R) of u that constrained values follow, whatever the units of these."""
    length = jacobian.norm(dim=-1, keepdim=True)
    unit = jacobian / torch.where(length > 0, length, 1.0)
    _, size, directions = torch.linalg.svd(unit, full_matrices=False)
    return directions[size > _SINGULAR * size.max()].T
