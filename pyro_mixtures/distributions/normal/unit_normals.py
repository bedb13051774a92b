"""Normal components whose means alone are estimated, and their analog on the unit sphere."""

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
    """Base class of families with the argument ``mean`` (..., C, D).

    The loss (minus the log density) is half a squared distance plus a constant. Distances are
    computed from differences, so rows far from zero keep their precision. A family defines its
    ``constant``, the ``best`` mean of a cluster, the ``gain`` of its rows, and where to ``start``.
    """

    argument_names: tuple[str, ...] = ("mean",)
    location = "mean"
    leaves_one_out = True

    def __init__(self, mean: Tensor, *, validate_args: bool | None = None):
        check_floating(type(self).__name__, mean)
        if mean.dim() < 2:
            raise OptionError(f"mean {tuple(mean.shape)}: pass (C, D), a row for each component")
        self.loc = mean
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The means (..., C, D), as given."""
        return self.loc

    @property
    def min_rows(self) -> int:
        return 1

    @abstractmethod
    def constant(self) -> Tensor:
        """Return the loss () of a row at its mean."""

    @abstractmethod
    def best(self, statistics: NormalStatistics) -> Tensor:
        """Return the means (C, D) of least loss; the present ones of empty components."""

    @abstractmethod
    def gain(self, statistics: NormalStatistics, index: Tensor, x: Tensor, row: Leaving) -> Tensor:
        """Return what each row adds to the minimal loss of its cluster, without constants.

        :param index: (B,) cluster of each row.
        :param x: (B, D) rows in float64.
        :param row: weights of the rows and of the others in their clusters.
        """

    @staticmethod
    @abstractmethod
    def start(rows: Tensor) -> Tensor:
        """Return means (C, D) at the seeds ``rows`` (C, D)."""

    def floor(self, sums: NormalStatistics, fraction: float) -> Tensor:
        """Return zero: the variances are constant."""
        return torch.zeros_like(sums.center[0])

    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> NormalStatistics:
        """Return moments about a copy of the means.

        Leave-one-out gains use it after the M-step has changed the means in place.
        """
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
            others = ", ".join(sorted(free - {"mean"}))
            raise ClosedFormError(
                f"{others} of {type(self).__name__} has no closed form: "
                "make it a buffer, or freeze= it"
            )
        return {"mean": self.best(statistics).reshape(self.loc.shape)}

    def alone_at(self, index: Tensor, value: Tensor) -> Tensor:
        """Return the loss of a row at its mean."""
        return self.constant().expand(index.shape)

    def leave_one_out_at(
        self,
        statistics: NormalStatistics,
        index: Tensor,
        value: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        x = match_dtype(value, self.loc).double()
        row = leaving(statistics.count, index, weight)
        gain = self.gain(statistics, index, x, row) + row.weight * self.constant().double()
        return gain.to(self.loc.dtype)


class UnitNormals(UnitVarianceNormals):
    r"""Normal components with the identity as covariance matrix.

    .. math:: -\log p(x) = \tfrac12 |x - m|^2 + \tfrac D2 \log 2 \pi

    Hard clustering with these components is k-means. A row of weight w adds
    :math:`\tfrac{w n}{n - w} |x - m|^2 / 2` to the minimal loss of its cluster of weight n, plus w
    times the constant.

    :param mean: (C, D).

    >>> normals = UnitNormals(torch.zeros(3, 2))
    >>> normals[torch.tensor([0, 2])].log_prob(torch.zeros(2, 2)).exp()
    tensor([0.1592, 0.1592])
    """

    arg_constraints = {"mean": constraints.real_vector}
    support = constraints.real_vector

    def constant(self) -> Tensor:
        return _normal_constant(self.loc)

    def make_kernel(self) -> Quadratic:
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
        """Return the ``rows`` themselves."""
        return rows


class KnownPrecisionNormals(UnitVarianceNormals):
    r"""Normal components that share one known precision matrix, the inverse of their covariance.

    Distances are Mahalanobis distances. With P = L L^T they are Euclidean distances of rows times
    L, so rows are whitened once instead of once per component.

    :param mean: (C, D).
    :param precision: (D, D) positive definite; it is not estimated.
    :raises OptionError: when the shapes do not agree.

    >>> normals = KnownPrecisionNormals(torch.zeros(3, 2), torch.eye(2))
    >>> normals[torch.tensor([0, 2])].log_prob(torch.zeros(2, 2)).exp()
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
        """Lower Cholesky factor (D, D) of the precision, computed once if nothing is recorded."""
        if torch.is_grad_enabled() and self.precision.requires_grad:
            return torch.linalg.cholesky(self.precision)
        if self._factor is None:
            self._factor = torch.linalg.cholesky(self.precision.detach())
        return self._factor

    def constant(self) -> Tensor:
        return _normal_constant(self.loc) - self.factor.diagonal().log().sum()

    def _origin(self) -> Tensor:
        """The average mean (D,): differences are taken from it so that they stay small."""
        return self.flat(self.loc, 1).detach().mean(0)

    def make_kernel(self) -> Quadratic:
        return _kernel((self.flat(self.loc, 1) - self._origin()) @ self.factor, self.constant())

    def subset(self, block: slice) -> "KnownPrecisionNormals":
        # The kernel's origin depends on all components, so the kernel is not sliced.
        return cast(KnownPrecisionNormals, Components.subset(self, block))

    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        difference = match_dtype(value, self.loc) - self._origin()
        return super().log_prob_at(index, difference @ self.factor)

    def sample_at(self, index: Tensor) -> Tensor:
        mean = self.mean_at(index)
        noise = torch.randn_like(mean.reshape(-1, mean.shape[-1]))
        colored = torch.linalg.solve_triangular(self.factor, noise, upper=False, left=False)
        return mean + colored.reshape(mean.shape)

    def best(self, statistics: NormalStatistics) -> Tensor:
        return _means(statistics)

    def gain(self, statistics: NormalStatistics, index: Tensor, x: Tensor, row: Leaving) -> Tensor:
        difference = x - _means(statistics, torch.float64)[index]
        return _gain(difference @ self.factor.double(), row)

    @staticmethod
    def start(rows: Tensor) -> Tensor:
        """Return the ``rows`` themselves."""
        return rows


class DirectionalNormals(UnitVarianceNormals):
    r"""Components on the unit sphere, by the cosine of the angle between row and mean.

    .. math:: \log p(x) = \cos(x, m) - 1 = -\tfrac12 |x - m|^2

    This is a pseudo-likelihood: a von Mises-Fisher density of concentration one without its
    normalizer. Draws are those of that distribution. The best mean of a cluster of n rows is the
    direction of their sum R, at the loss :math:`n - |R|`. Hard clustering with these components is
    spherical k-means.

    :param mean: (C, D), unit vectors.

    >>> components = DirectionalNormals(torch.eye(2))
    >>> components[torch.tensor([0, 1])].log_prob(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    tensor([-2., -1.])
    """

    arg_constraints: Any = {"mean": constraints.sphere}
    support: Any = constraints.sphere
    has_rsample = False

    def constant(self) -> Tensor:
        return torch.zeros_like(self.loc.flatten()[0])

    def make_kernel(self) -> Quadratic:
        return _kernel(self.flat(self.loc, 1), self.constant())

    def sample_at(self, index: Tensor) -> Tensor:
        """Draw by rejection from the uniform distribution: over 1 in 8 proposals are accepted."""
        mean = self.mean_at(index.reshape(-1))
        draws, pending = torch.empty_like(mean), torch.arange(len(mean), device=mean.device)
        while len(pending):
            draws[pending] = normalize(torch.randn_like(mean[pending]), dim=-1)
            cosine = (draws[pending] * mean[pending]).sum(-1)
            pending = pending[torch.rand_like(cosine).log() >= cosine - 1]
        return draws.reshape(*index.shape, -1)

    def best(self, statistics: NormalStatistics) -> Tensor:
        total = statistics.center * statistics.count.unsqueeze(-1) + statistics.first
        length = torch.linalg.vector_norm(total, dim=-1, keepdim=True)
        # Rows whose sum is zero have no common direction: all means are equally good.
        return torch.where(length > 0, total / empty_to_one(length), statistics.center)

    def gain(self, statistics: NormalStatistics, index: Tensor, x: Tensor, row: Leaving) -> Tensor:
        r"""Return :math:`w - |R| + |R - w x|`, as a ratio in which no large lengths cancel."""
        center, count = statistics.center.double(), statistics.count.double()
        total = (center * count.unsqueeze(-1) + statistics.first.double())[index]
        leaver = row.weight.unsqueeze(-1) * x
        length = torch.linalg.vector_norm(total, dim=-1)
        length_without = torch.linalg.vector_norm(total - leaver, dim=-1)
        change = (leaver * (leaver - 2 * total)).sum(-1) / empty_to_one(length + length_without)
        return 0.5 * row.weight * (1 + x.square().sum(-1)) + change

    @staticmethod
    def start(rows: Tensor) -> Tensor:
        """Return the directions of ``rows``."""
        return normalize(rows, dim=-1)


def _kernel(loc: Tensor, constant: Tensor) -> Quadratic:
    """Half the squared distance from ``loc`` (C, D), plus a constant."""
    no_projection = loc.new_zeros(len(loc), 0, loc.shape[-1])
    return Quadratic(loc, torch.ones_like(loc), no_projection, (2 * constant).expand(len(loc)), 1.0)


def _normal_constant(loc: Tensor) -> Tensor:
    """Loss () of a standard normal at its mean."""
    # A sum: in a trace the product of a size and a number is rounded to torch's default dtype.
    return torch.full_like(
        loc.flatten(0, -2)[0], 0.5 * math.log(2 * math.pi), requires_grad=False
    ).sum()


def _means(statistics: NormalStatistics, dtype: torch.dtype | None = None) -> Tensor:
    """Mean rows (C, D) of the components; the centers of empty components."""
    center, count, first = (t.to(dtype or t.dtype) for t in statistics[:3])
    return center + first / empty_to_one(count).unsqueeze(-1)


def _gain(difference: Tensor, row: Leaving) -> Tensor:
    """What rows ``difference`` (B, D) away from their cluster's mean add to half the scatter."""
    # The only row of a cluster is its mean. Otherwise n / (n - w) = 1 + w / (n - w).
    factor = torch.where(row.others, row.weight * (1 + row.ratio), 0.0)
    return 0.5 * factor * difference.square().sum(-1)
