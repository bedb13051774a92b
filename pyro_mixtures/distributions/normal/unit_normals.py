"""Components of unit variance: squared Euclidean and KnownPrecisionNormals distances, and cosines on the unit sphere."""

import math
from abc import abstractmethod
from typing import Any, cast

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import normalize

from pyro_mixtures.distributions.components import Components, check_floating, match_dtype
from pyro_mixtures.distributions.leave_one_out.leaving_out import Leaving, leaving
from pyro_mixtures.distributions.normal.closed_form import empty_to_one
from pyro_mixtures.distributions.normal.quadratic_components import QuadraticComponents
from pyro_mixtures.distributions.statistics import NormalStatistics
from pyro_mixtures.errors import ClosedFormError, OptionError
from pyro_mixtures.ops import Quadratic


class UnitVarianceNormals(QuadraticComponents):
    """C components of ``mean`` (..., C, D) alone, whose loss is half a squared distance and a constant.

    Distances are those of differences, so rows far from zero keep their precision. A family states
    its ``constant``, the ``best`` mean of a part, what rows ``gain`` there, and where to ``start``.
    """

    argument_names: tuple[str, ...] = ("mean",)
    location = "mean"
    leaves_one_out = True

    def __init__(self, mean: Tensor, *, validate_args: bool | None = None):
        check_floating(type(self).__name__, mean)
        if mean.dim() < 2:
            raise OptionError(f"mean {tuple(mean.shape)}: give (C, D), a row for each component")
        self.loc = mean
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The argument itself."""
        return self.loc

    @property
    def min_rows(self) -> int:
        return 1

    @abstractmethod
    def constant(self) -> Tensor:
        """Loss () of a row at its mean."""

    @abstractmethod
    def best(self, statistics: NormalStatistics) -> Tensor:
        """Means (C, D) of least loss; the present ones of empty parts."""

    @abstractmethod
    def gain(self, statistics: NormalStatistics, index: Tensor, x: Tensor, row: Leaving) -> Tensor:
        """What each row ``x`` (B, D), in float64, adds to the minimal loss of its part, less the constants."""

    @staticmethod
    @abstractmethod
    def start(rows: Tensor) -> Tensor:
        """Means (C, D) to start from at ``rows``."""

    def floor(self, sums: NormalStatistics, fraction: float) -> Tensor:
        """Zero: the variances are constant."""
        return torch.zeros_like(sums.center[0])

    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> NormalStatistics:
        """Return moments about a copy of the means: leave-one-out gains need it after the means have moved, in place."""
        sums = super().statistics_at(index, value, weight)
        return sums._replace(center=sums.center.detach().clone())

    def add_statistics_at(
        self, sums: NormalStatistics, index: Tensor, value: Tensor, weight: Tensor
    ) -> NormalStatistics:
        total = super().add_statistics_at(sums, index, value, weight)
        return total._replace(center=sums.center)

    def maximizers(
        self, statistics: NormalStatistics, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        if free - {"mean"}:
            raise ClosedFormError(
                f"{sorted(free - {'mean'})} of {type(self).__name__} stay constant in EM: pass buffers, or freeze= them"
            )
        return {"mean": self.best(statistics).reshape(self.loc.shape)}

    def alone_at(self, index: Tensor, value: Tensor) -> Tensor:
        """Minimal loss of a part of one row (*index.shape): that of a row at its mean."""
        return self.constant().expand(index.shape)

    def leave_one_out_at(
        self,
        statistics: NormalStatistics,
        index: Tensor,
        value: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        x, row = match_dtype(value, self.loc).double(), leaving(statistics.count, index, weight)
        return (self.gain(statistics, index, x, row) + row.weight * self.constant().double()).to(
            self.loc.dtype
        )


class UnitNormals(UnitVarianceNormals):
    r"""Normals of unit variance around ``mean`` (C, D): :math:`-\log p = |x - m|^2 / 2 + (D / 2) \log 2 \pi`.

    What a row of weight w adds to its part of weight n is :math:`\tfrac{w n}{n - w} |x - m|^2 / 2`,
    and w constants.

    >>> UnitNormals(torch.zeros(3, 2))[torch.tensor([0, 2])].log_prob(torch.zeros(2, 2)).exp()
    tensor([0.1592, 0.1592])
    """

    arg_constraints = {"mean": constraints.real_vector}
    support = constraints.real_vector

    def constant(self) -> Tensor:
        return _normal_constant(self.loc)

    def _make_kernel(self) -> Quadratic:
        return _kernel(self.flat(self.loc, 1), self.constant())

    def sample_at(self, index: Tensor) -> Tensor:
        mean = self.mean_at(index)
        return mean + torch.randn_like(mean)

    def best(self, statistics: NormalStatistics) -> Tensor:
        return _means(statistics)

    def gain(self, statistics: NormalStatistics, index: Tensor, x: Tensor, row: Leaving) -> Tensor:
        return _gain(x - _means(statistics, torch.float64)[index], row)

    @staticmethod
    def start(rows: Tensor) -> Tensor:
        """The ``rows`` themselves."""
        return rows


class KnownPrecisionNormals(UnitVarianceNormals):
    r"""Normals around ``mean`` (C, D) of one constant ``precision`` (D, D), the inverse of their covariance.

    With P = L L^T the distance is that of rows times L: they are whitened once, rather than once
    for each component.

    >>> KnownPrecisionNormals(torch.zeros(3, 2), torch.eye(2))[torch.tensor([0, 2])].log_prob(torch.zeros(2, 2)).exp()
    tensor([0.1592, 0.1592])
    """

    arg_constraints = {"mean": constraints.real_vector, "precision": constraints.positive_definite}
    argument_names = ("mean", "precision")
    support = constraints.real_vector

    def __init__(self, mean: Tensor, precision: Tensor, *, validate_args: bool | None = None):
        check_floating("KnownPrecisionNormals", precision)
        if precision.shape != mean.shape[-1:] * 2:
            raise OptionError(
                f"precision {tuple(precision.shape)} must be (D, D) with D = {mean.shape[-1]}"
            )
        self.precision = precision
        self._factor: Tensor | None = None
        super().__init__(mean, validate_args=validate_args)

    @property
    def factor(self) -> Tensor:
        """Lower Cholesky factor (D, D) of the precision; made once where no gradients are recorded."""
        if torch.is_grad_enabled() and self.precision.requires_grad:
            return torch.linalg.cholesky(self.precision)
        if self._factor is None:
            self._factor = torch.linalg.cholesky(self.precision.detach())
        return self._factor

    def constant(self) -> Tensor:
        return _normal_constant(self.loc) - self.factor.diagonal().log().sum()

    def _origin(self) -> Tensor:
        """A point (D,) among the means: whitened differences from it are no larger than they need to be."""
        return self.flat(self.loc, 1).detach().mean(0)

    def _make_kernel(self) -> Quadratic:
        return _kernel((self.flat(self.loc, 1) - self._origin()) @ self.factor, self.constant())

    def subset(self, block: slice) -> "KnownPrecisionNormals":
        # The kernel's origin depends on all components, so the kernel is not sliced.
        return cast(KnownPrecisionNormals, Components.subset(self, block))

    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        away = match_dtype(value, self.loc) - self._origin()
        return super().log_prob_at(index, away @ self.factor)

    def sample_at(self, index: Tensor) -> Tensor:
        mean = self.mean_at(index)
        noise = torch.randn_like(mean.reshape(-1, mean.shape[-1]))
        return mean + torch.linalg.solve_triangular(
            self.factor, noise, upper=False, left=False
        ).reshape(mean.shape)

    def best(self, statistics: NormalStatistics) -> Tensor:
        return _means(statistics)

    def gain(self, statistics: NormalStatistics, index: Tensor, x: Tensor, row: Leaving) -> Tensor:
        away = (x - _means(statistics, torch.float64)[index]) @ self.factor.double()
        return _gain(away, row)

    @staticmethod
    def start(rows: Tensor) -> Tensor:
        """The ``rows`` themselves."""
        return rows


class DirectionalNormals(UnitVarianceNormals):
    r"""Pseudo-likelihoods exp(cos(x, m) - 1) of unit vectors x around unit vectors ``mean`` (C, D).

    On the sphere :math:`|x - m|^2 / 2 = 1 - \cos(x, m)`. The best mean of a part is the direction
    of the sum R of its rows, at the loss :math:`n - |R|`. Draws are those of von Mises-Fisher
    distributions of concentration one.

    >>> DirectionalNormals(torch.eye(2))[torch.tensor([0, 1])].log_prob(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    tensor([-2., -1.])
    """

    arg_constraints: Any = {"mean": constraints.sphere}
    support: Any = constraints.sphere
    has_rsample = False

    def constant(self) -> Tensor:
        return torch.zeros_like(self.loc.flatten()[0])

    def _make_kernel(self) -> Quadratic:
        return _kernel(self.flat(self.loc, 1), self.constant())

    def sample_at(self, index: Tensor) -> Tensor:
        """By rejection from the uniform distribution on the sphere, which keeps more than one proposal in eight."""
        mean = self.mean_at(index.reshape(-1))
        draws, left = torch.empty_like(mean), torch.arange(len(mean), device=mean.device)
        while len(left):
            draws[left] = normalize(torch.randn_like(mean[left]), dim=-1)
            cosine = (draws[left] * mean[left]).sum(-1)
            left = left[torch.rand_like(cosine).log() >= cosine - 1]
        return draws.reshape(*index.shape, -1)

    def best(self, statistics: NormalStatistics) -> Tensor:
        total = statistics.center * statistics.count.unsqueeze(-1) + statistics.first
        length = torch.linalg.vector_norm(total, dim=-1, keepdim=True)
        # Rows that cancel have no direction in common: any mean is as good.
        return torch.where(length > 0, total / empty_to_one(length), statistics.center)

    def gain(self, statistics: NormalStatistics, index: Tensor, x: Tensor, row: Leaving) -> Tensor:
        r""":math:`w - |R| + |R - w x|`, as a ratio in which no large lengths cancel."""
        total = (
            statistics.center.double() * statistics.count.double().unsqueeze(-1)
            + statistics.first.double()
        )
        whole, part = total[index], row.weight.unsqueeze(-1) * x
        length, without = (torch.linalg.vector_norm(r, dim=-1) for r in (whole, whole - part))
        turned = (part * (part - 2 * whole)).sum(-1) / empty_to_one(length + without)
        return 0.5 * row.weight * (1 + x.square().sum(-1)) + turned

    @staticmethod
    def start(rows: Tensor) -> Tensor:
        """The directions of ``rows``."""
        return normalize(rows, dim=-1)


def _kernel(loc: Tensor, constant: Tensor) -> Quadratic:
    """Half the squared distance, and a constant."""
    no_projection = loc.new_zeros(len(loc), 0, loc.shape[-1])
    return Quadratic(loc, torch.ones_like(loc), no_projection, (2 * constant).expand(len(loc)), 1.0)


def _normal_constant(loc: Tensor) -> Tensor:
    """Loss () of a standard normal at its mean."""
    # A sum, for the product of a size and a number is rounded to torch's default dtype in a trace.
    return torch.full_like(
        loc.flatten(0, -2)[0], 0.5 * math.log(2 * math.pi), requires_grad=False
    ).sum()


def _means(statistics: NormalStatistics, dtype: torch.dtype | None = None) -> Tensor:
    """Means (C, D) of the parts, their centers where they are empty."""
    center, count, first = (t.to(dtype or t.dtype) for t in statistics[:3])
    return center + first / empty_to_one(count).unsqueeze(-1)


def _gain(away: Tensor, row: Leaving) -> Tensor:
    """What rows at distances ``away`` (B, D) from the means of their parts add to half the scatter there."""
    # The last row of a part is its mean. Of the others n / (n - w) is one plus the ratio w / (n -
    # w).
    factor = torch.where(row.others, row.weight * (1 + row.ratio), 0.0)
    return 0.5 * factor * away.square().sum(-1)
