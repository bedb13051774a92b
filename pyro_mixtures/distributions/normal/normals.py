"""Normal components with independent features: one scale per component, or one per feature."""

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.components import batch_shape_of, check_floating
from pyro_mixtures.distributions.normal.closed_form import empty_to_one, pool, update_loc
from pyro_mixtures.distributions.normal.floors import given_floor
from pyro_mixtures.distributions.normal.quadratic_components import QuadraticComponents
from pyro_mixtures.distributions.statistics import NormalStatistics
from pyro_mixtures.errors import OptionError
from pyro_mixtures.ops import Quadratic


class _AxisAlignedNormals(QuadraticComponents):
    """Base class of both families, which differ in the shape of ``scale``."""

    argument_names = ("loc", "scale")
    support = constraints.real_vector
    scale: Tensor

    @abstractmethod
    def spread(self) -> Tensor:
        """Return ``scale`` in a shape that broadcasts to (..., C, D)."""

    @abstractmethod
    def argument_shape(self, spread: Tensor) -> Tensor:
        """Return ``spread`` in the shape of ``scale``: the reverse of :meth:`spread`."""

    @property
    def min_rows(self) -> int:
        return 2

    def make_kernel(self) -> Quadratic:
        loc = self.flat(self.loc, 1)
        scale = self._flat_spread()
        offset = 2 * scale.log().sum(-1) + loc.shape[-1] * math.log(2 * math.pi)
        return Quadratic(
            loc, scale.square().reciprocal(), loc.new_zeros(len(loc), 0, loc.shape[-1]), offset, 1.0
        )

    def _flat_spread(self) -> Tensor:
        """Scales (C, D), batch dimensions flattened."""
        full = self.spread().expand(self.batch_shape + self.event_shape)
        return full.reshape(self.batch_shape.numel(), self.event_shape[0])

    def sample_at(self, index: Tensor) -> Tensor:
        loc = self.flat(self.loc, 1)[index]
        scale = self._flat_spread()[index]
        return loc + scale * torch.randn_like(loc)

    def maximizers(
        self, statistics: NormalStatistics, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        loc = statistics.center
        count = empty_to_one(statistics.count).unsqueeze(-1)
        shift = update_loc(self, statistics.first / count, loc, free)
        out = {"loc": loc + shift} if "loc" in free else {}
        if "scale" in free:
            residual = (
                statistics.second
                - 2 * shift * statistics.first
                + statistics.count.unsqueeze(-1) * shift.square()
            )
            shape = self.spread().shape
            variance = pool(residual, statistics.count.unsqueeze(-1), shape)
            floor = given_floor(floor, loc)
            smallest = floor.mean(-1, keepdim=True) if shape[-1:] == (1,) else floor
            out["scale"] = self.argument_shape(
                torch.maximum(variance, smallest.expand_as(variance)).sqrt()
            )
        return out

    def signal_at(self, index: Tensor, value: Tensor, noise: Tensor | None) -> Tensor:
        """Return the posterior mean of the noise-free row; ``noise`` has to be given."""
        if noise is None:
            raise OptionError(
                f"{type(self).__name__} has no parameter for noise: pass noise=, "
                "its standard deviation"
            )
        loc = self.flat(self.loc, 1)[index]
        variance = self._flat_spread()[index].square()
        return loc + (variance - noise).clamp_min(0) / variance * (value - loc)

    def conditional_mean_at(self, index: Tensor, seen: Tensor, features: Tensor) -> Tensor:
        """Return the components' means: unseen features do not depend on the others."""
        return self.mean_at(index)


class DiagonalNormals(_AxisAlignedNormals):
    """Normal components with a diagonal covariance matrix.

    :param loc: means (C, D).
    :param scale: standard deviations (C, D), or (D,) if components share them.
    :raises OptionError: when the shapes do not agree.

    >>> normals = DiagonalNormals(torch.zeros(3, 2), torch.ones(3, 2))
    >>> normals[torch.tensor([0, 2])].log_prob(torch.zeros(2, 2)).exp()
    tensor([0.1592, 0.1592])
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }

    def __init__(self, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None):
        check_floating("DiagonalNormals", loc, scale)
        if loc.dim() == 0 or scale.dim() == 0 or scale.shape[-1] not in (1, loc.shape[-1]):
            raise OptionError(
                f"loc {tuple(loc.shape)} and scale {tuple(scale.shape)} must end in "
                "the same number of features: pass (C, D), and (C, D) or (D,)"
            )
        self.loc, self.scale = loc, scale
        batch = batch_shape_of(loc.shape[:-1], scale.shape[:-1])
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def spread(self) -> Tensor:
        return self.scale

    def argument_shape(self, spread: Tensor) -> Tensor:
        return spread

    def marginal(self, features: Tensor) -> "DiagonalNormals":
        """Return the same components for some of the ``features`` only."""
        scale = self.scale.expand(self.scale.shape[:-1] + self.event_shape)
        return DiagonalNormals(self.loc[..., features], scale[..., features], validate_args=False)


class IsotropicNormals(_AxisAlignedNormals):
    """Normal components with the same variance in all directions.

    :param loc: means (C, D).
    :param scale: standard deviations (C,), or () if components share one.

    >>> normals = IsotropicNormals(torch.zeros(3, 2), torch.ones(3))
    >>> normals[torch.tensor([1])].log_prob(torch.zeros(1, 2)).exp()
    tensor([0.1592])
    """

    arg_constraints = {"loc": constraints.real_vector, "scale": constraints.positive}

    def __init__(self, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None):
        check_floating("IsotropicNormals", loc, scale)
        self.loc, self.scale = loc, scale
        batch = batch_shape_of(loc.shape[:-1], scale.shape)
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def spread(self) -> Tensor:
        return self.scale.unsqueeze(-1)

    def argument_shape(self, spread: Tensor) -> Tensor:
        return spread.squeeze(-1)

    def marginal(self, features: Tensor) -> "IsotropicNormals":
        """Return the same components for some of the ``features`` only."""
        return IsotropicNormals(self.loc[..., features], self.scale, validate_args=False)
