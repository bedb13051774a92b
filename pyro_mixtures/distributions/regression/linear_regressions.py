"""Linear regressions as components, with a ridge penalty."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.components import check_floating, match_dtype
from pyro_mixtures.distributions.indexing import once
from pyro_mixtures.distributions.leave_one_out.leaving_out import leaving
from pyro_mixtures.distributions.regression.conditional import (
    ConditionalComponents,
    augmented,
    nudge_centered,
)
from pyro_mixtures.errors import ClosedFormError, OptionError
from pyro_mixtures.ops.bilinear import centered_moments_of
from pyro_mixtures.ops.tiles import component_tiles
from pyro_mixtures.options import check_number

# A covariate that deviates from its mean by fewer roundings than this is constant.
_CONSTANT = 2
# One minus a leverage of one may be as large as this by rounding.
_LEVERAGE_ONE = 1e-9


class RegressionStatistics(NamedTuple):
    """Weighted moments of each component's rows d = [x, y] - ``center``, in float64.

    The center is the components' mean, except after blending in stepwise EM.
    """

    center: Tensor  # (C, P + M)
    count: Tensor  # type: ignore[assignment]  # (C,)  sum q; shadows tuple.count
    first: Tensor  # (C, P + M)         sum q d
    outer: Tensor  # (C, P + M, P + M)  sum q d d^T

    @property
    def mean(self) -> Tensor:
        """Means (C, P + M) of covariates and outcomes."""
        return self.center + self.first / _positive(self.count).unsqueeze(-1)

    def recentered(self, center: Tensor) -> "RegressionStatistics":
        """Return the same statistics about another center."""
        shift = self.center - center
        count = self.count.unsqueeze(-1)
        cross = shift.unsqueeze(-1) * self.first.unsqueeze(-2)
        square = shift.unsqueeze(-1) * shift.unsqueeze(-2)
        outer = self.outer + cross + cross.mT + count.unsqueeze(-1) * square
        return RegressionStatistics(center, self.count, self.first + count * shift, outer)

    def merged(self, other: "RegressionStatistics") -> "RegressionStatistics":
        """Return the statistics of the rows of both, about the mean of both.

        No large numbers cancel, wherever the means lie: Chan, Golub and LeVeque, "Algorithms for
        computing the sample variance", The American Statistician 37 (1983).
        """
        count = self.count + other.count
        share = (other.count / _positive(count)).unsqueeze(-1)
        mine, theirs = self.recentered(self.mean), other.recentered(other.mean)
        difference = theirs.center - mine.center
        square = difference.unsqueeze(-1) * difference.unsqueeze(-2)
        between = (self.count.unsqueeze(-1) * share).unsqueeze(-1) * square
        return RegressionStatistics(
            mine.center + share * difference,
            count,
            torch.zeros_like(self.first),
            mine.outer + theirs.outer + between,
        )


class LinearRegressions(ConditionalComponents):
    r"""C linear regressions of y (B,) or (B, M) on ``covariates`` (B, P).

    The log density of a row is that of :math:`N(y; W x + b, \sigma^2)` minus the row's share of
    the ridge penalty, :math:`\lambda |W|^2 / 2 \sigma^2`. So the summed log density of a
    component is maximal at its ridge regression, whose penalty is n lambda for n rows.

    :param covariates: (B, P).
    :param weight: (C, P), or (C, M, P) for M outputs.
    :param bias: (C,) or (C, M).
    :param scale: (C,) or (C, M), standard deviations.
    :param ridge: lambda, not negative.
    :raises OptionError: when shapes do not fit.

    >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([1.0, 3.0])
    >>> weight, bias = torch.tensor([[2.0], [0.0]]), torch.tensor([1.0, 0.0])
    >>> lines = LinearRegressions(x, weight, bias, torch.ones(2))
    >>> lines[torch.tensor([0, 0])].mean
    tensor([1., 3.])
    """

    argument_names = ("weight", "bias", "scale")
    option_names = ("covariates", "ridge")
    has_rsample = True
    leaves_one_out = True

    def __init__(
        self,
        covariates: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor,
        *,
        ridge: float = 0.0,
        validate_args: bool | None = None,
    ):
        check_floating(type(self).__name__, weight, bias, scale)
        event = weight.shape[1:-1]
        shape = (len(weight), *event)
        if weight.dim() not in (2, 3) or bias.shape != shape or scale.shape != shape:
            raise OptionError(
                f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)}, scale "
                f"{tuple(scale.shape)}: pass (C, P), (C,), (C,), or (C, M, P), (C, M), (C, M) for "
                "M outputs"
            )
        if weight.shape[-1] != covariates.shape[-1]:
            raise OptionError(f"weight {tuple(weight.shape)} for {covariates.shape[-1]} covariates")
        check_number(ridge=ridge)
        self.weight, self.bias, self.scale, self.ridge = weight, bias, scale, ridge
        super().__init__(covariates, torch.Size([len(weight)]), event, validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        """Constraints of the arguments, with one more dimension for several outputs."""
        output_dims = len(self.event_shape)
        return {
            "weight": constraints.independent(constraints.real, 1 + output_dims),
            "bias": constraints.independent(constraints.real, output_dims),
            "scale": constraints.independent(constraints.positive, output_dims),
        }

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def outputs(self) -> int:
        """M, the number of outputs."""
        return self.event_shape.numel()

    @property
    def min_rows(self) -> int:
        return 1 if self.ridge else self.weight.shape[-1] + 2

    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        coefficients = augmented(self.weight, self.bias, self.outputs)
        scale = self.scale.reshape(len(self.scale), self.outputs)
        component = once(index)
        residual = self._outcomes(value) - self.predictor(coefficients, index)
        squares = (residual / scale[component]).square()
        # A sum over one number would be as slow as over many.
        total = squares.sum(-1) if self.outputs > 1 else squares.squeeze(-1)
        weight_squares = self.weight.reshape(*scale.shape, -1).square().sum(-1)
        penalty = self.ridge * (weight_squares / scale.square()).sum(-1)
        offset = 2 * scale.log().sum(-1) + self.outputs * math.log(2 * math.pi) + penalty
        return -0.5 * (total + offset[component])

    def _outcomes(self, value: Tensor) -> Tensor:
        """Return outcomes (B, M) in the dtype of the parameters."""
        y = match_dtype(value, self.weight)
        return y if self.event_shape else y.unsqueeze(-1)

    def mean_at(self, index: Tensor) -> Tensor:
        eta = self.predictor(augmented(self.weight, self.bias, self.outputs), index)
        return eta if self.event_shape else eta.squeeze(-1)

    def sample_at(self, index: Tensor) -> Tensor:
        mean = self.mean_at(index)
        return mean + self.scale[index] * torch.randn_like(mean)

    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> RegressionStatistics:
        rows = torch.cat([match_dtype(self.covariates, self.weight), self._outcomes(value)], -1)
        moments = centered_moments_of(rows, weight.reshape(-1), self.pairs(index))
        first = torch.zeros_like(moments.mean)
        return RegressionStatistics(moments.mean, moments.count, first, moments.outer)

    def add_statistics_at(
        self, sums: RegressionStatistics, index: Tensor, value: Tensor, weight: Tensor
    ) -> RegressionStatistics:
        return sums.merged(self.statistics_at(index, value, weight))

    def maximizers(
        self, statistics: RegressionStatistics, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        """Return each component's ridge regression, and the scale of its penalized residuals."""
        if ("weight" in free) != ("bias" in free):
            raise ClosedFormError(
                "weight and bias have a closed form together only: free or freeze both, or use SVI"
            )
        moments = self._centered(statistics)
        penalty = self.ridge * statistics.count
        weight = self.weight.double().reshape(len(self.weight), self.outputs, -1)
        bias = self.bias.double().reshape(len(self.bias), -1)
        maximizers = {}
        if "weight" in free:
            root = moments.inverse_root(penalty)
            weight = moments.cross @ root.mT @ root
            maximizers["weight"] = weight.reshape(self.weight.shape).to(self.weight)
            # The bias makes up for the rounding of the weights, which covariates far from zero
            # multiply.
            rounded = maximizers["weight"].double().reshape(weight.shape)
            bias = moments.y - (rounded @ moments.x.unsqueeze(-1)).squeeze(-1)
            maximizers["bias"] = bias.reshape(self.bias.shape).to(self.bias)
        if "scale" in free:
            count = _positive(statistics.count).unsqueeze(-1)
            variance = moments.loss(weight, penalty).clamp_min(0) / count
            if "weight" not in free:
                # The mean residual is zero at the best bias only.
                residual = moments.y - bias - (weight @ moments.x.unsqueeze(-1)).squeeze(-1)
                variance = variance + residual.square()
            if floor is not None:
                variance = torch.maximum(variance, floor)
            maximizers["scale"] = variance.sqrt().reshape(self.scale.shape).to(self.scale)
        return maximizers

    def split(
        self, component: int, row: Any, statistics: RegressionStatistics
    ) -> dict[str, Tensor]:
        """Return randomly changed coefficients, whose means differ by one standard deviation."""
        moments = self._centered(statistics)
        gram = moments.gram[component] / _positive(statistics.count[component])
        penalty = torch.full_like(gram[0], self.ridge).diag()
        with_bias = torch.block_diag(gram + penalty, gram.new_ones(1, 1))
        scale = self.scale[component].detach().double().reshape(-1)
        change = nudge_centered(with_bias, moments.x[component], scale).to(self.weight)
        weight, bias = self.weight[component].detach(), self.bias[component].detach()
        return {
            "weight": weight + change[:, :-1].reshape(weight.shape),
            "bias": bias + change[:, -1].reshape(bias.shape),
        }

    def floor(self, sums: RegressionStatistics, fraction: float) -> Tensor:
        """Return ``fraction`` of the variance (M,) of the outcomes over all rows."""
        moments, count = self._centered(sums), sums.count.unsqueeze(-1)
        total = count.sum().clamp_min(1e-300)
        mean = (count * moments.y).sum(0) / total
        squares = moments.square + count * (moments.y - mean).square()
        variance = squares.sum(0) / total
        return fraction * torch.where(variance > 0, variance, torch.ones_like(variance))

    def _centered(self, statistics: RegressionStatistics) -> "Centered":
        """Compute sums about the means of each component's rows.

        Covariates that are constant up to rounding are left out: the bias absorbs their effect.
        """
        features = self.weight.shape[-1]
        mean, count = statistics.mean, statistics.count.unsqueeze(-1)
        outer = statistics.recentered(mean).outer
        gram, cross = outer[:, :features, :features], outer[:, features:, :features]
        squares = outer.diagonal(dim1=-2, dim2=-1).clamp_min(0)
        rounding = _CONSTANT * torch.finfo(self.weight.dtype).eps * mean
        varies = (squares > count * rounding.square())[:, :features]
        gram = gram * (varies.unsqueeze(-1) & varies.unsqueeze(-2))
        cross = cross * varies.unsqueeze(-2)
        return Centered(mean[:, :features], mean[:, features:], gram, cross, squares[:, features:])

    def alone_at(self, index: Tensor, value: Tensor) -> Tensor:
        """Return the minimal loss (*index.shape) of a cluster of one row, which the bias fits."""
        scale = self.scale.reshape(len(self.scale), -1)
        return (scale.log().sum(-1) + 0.5 * self.outputs * math.log(2 * math.pi))[index]

    def leave_one_out_at(
        self,
        statistics: RegressionStatistics,
        index: Tensor,
        value: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        r"""Return what each row (B,) adds to the minimal loss of its cluster, for fixed scales.

        Let d and e be the covariates and the outcome of a row of weight w, minus the means of its
        cluster of weight n. With :math:`B = X^T X + (n - w) \lambda` and
        :math:`v = B^{-1} X^T y` of the cluster, the cluster without the row has the loss
        :math:`\mathrm{least}_B - a (e - v d)^2 / (1 - a\, d^T B^{-1} d)` with a = w n / (n - w)
        (derived here by completing the square). This takes one product per row, and no difference
        of large numbers. In the basis Q in which :math:`Q (B + w \lambda) Q^T = 1` and
        :math:`Q Q^T = \mu` is diagonal, B is :math:`1 - w \lambda \mu`, so rows of different
        weights share the basis.
        """
        moments, row = self._centered(statistics), leaving(statistics.count, index, weight)
        basis = _shared_basis(moments.inverse_root(self.ridge * statistics.count))
        y, share = self._outcomes(value).double(), self.ridge * row.weight
        squares = torch.zeros(len(y), self.outputs, dtype=torch.float64, device=y.device)
        columns = self.weight.shape[-1] + self.outputs
        numbers_per_row = 2 * columns + columns * columns // 16
        for tile in component_tiles(self.pairs(index).sorted, numbers_per_row):
            c, rows, valid = tile.components, tile.rows, tile.valid
            held_out = _HeldOutRows(
                x=self.covariates[rows].double() - moments.x[c].unsqueeze(1),
                y=y[rows] - moments.y[c].unsqueeze(1),
                share=share[rows],
                ratio=row.ratio[rows],
                others=row.others[rows],
            )
            half = moments.cross[c] @ basis[c].mT
            added = held_out.added_squares(basis[c], half, statistics.count[c])
            squares.index_add_(0, tile.slots[valid], added[valid])
        scale = self.scale.reshape(len(self.scale), -1).double()
        constant = scale.log().sum(-1) + 0.5 * self.outputs * math.log(2 * math.pi)
        loss = 0.5 * (squares / scale[index].square()).sum(-1) + row.weight * constant[index]
        return loss.to(self.weight)


class _HeldOutRows(NamedTuple):
    """Rows (T, R), minus the means of their T clusters, and the penalty that leaves with them."""

    x: Tensor  # (T, R, P)
    y: Tensor  # (T, R, M)
    share: Tensor  # (T, R)  w lambda
    ratio: Tensor  # (T, R)  w / (n - w)
    others: Tensor  # (T, R)

    def added_squares(self, basis: Tensor, half: Tensor, count: Tensor) -> Tensor:
        """Return what the rows (T, R, M) add to the penalized squares of their clusters.

        :param basis: (T, P, P), Q.
        :param half: (T, M, P), cross Q^T.
        :param count: (T,) weights of the clusters.
        """
        along = self.x @ basis.mT
        penalty = self.share.unsqueeze(-1) * basis.square().sum(-1).unsqueeze(1)  # w lambda mu
        metric = 1 / torch.where(self.others.unsqueeze(-1), 1 - penalty, 1.0)
        residual = self.y - (along * metric) @ half.mT
        rate = self.ratio * count.unsqueeze(-1)
        remaining = 1 - rate * (along.square() * metric).sum(-1)
        # A cluster fits a row of leverage one exactly, at no cost to the other rows.
        factor = torch.where(remaining > _LEVERAGE_ONE, rate / remaining, 0.0)
        return factor.unsqueeze(-1) * residual.square() + (penalty * metric) @ half.square().mT


def _shared_basis(root: Tensor) -> Tensor:
    """Return Q (C, P, P) with the same Q^T Q as ``root``, and with Q Q^T diagonal."""
    _, vectors = torch.linalg.eigh(root @ root.mT)
    return vectors.mT @ root


class Centered(NamedTuple):
    """Sums of each component's rows about their means, on which a regression with bias depends."""

    x: Tensor  # (C, P) means
    y: Tensor  # (C, M)
    gram: Tensor  # (C, P, P)
    cross: Tensor  # (C, M, P)
    square: Tensor  # (C, M)

    def inverse_root(self, penalty: Tensor) -> Tensor:
        """Return R (C, P, P) with R^T R the pseudo-inverse of gram + penalty.

        Covariates are scaled to one first, so that their units do not decide which eigenvalues are
        taken for rounding.
        """
        gram = self.gram + penalty.unsqueeze(-1).expand(self.x.shape).diag_embed()
        size = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        unit = torch.where(size > 0, 1 / size, 0.0)
        values, vectors = torch.linalg.eigh(unit.unsqueeze(-1) * gram * unit.unsqueeze(-2))
        rounding = 8 * gram.shape[-1] * torch.finfo(gram.dtype).eps
        nonzero = values > rounding * values[:, -1:]
        root = torch.where(nonzero, values.clamp_min(0).rsqrt(), 0.0)
        return root.unsqueeze(-1) * vectors.mT * unit.unsqueeze(-2)

    def least(self, root: Tensor) -> Tensor:
        """Return minimal (penalized) sums of squares (C, M); see :meth:`inverse_root`."""
        return (self.square - (self.cross @ root.mT).square().sum(-1)).clamp_min(0)

    def loss(self, weight: Tensor, penalty: Tensor) -> Tensor:
        """Return penalized sums of squares (C, M) at ``weight`` (C, M, P) and the best bias."""
        explained = ((2 * self.cross - weight @ self.gram) * weight).sum(-1)
        return self.square - explained + penalty.unsqueeze(-1) * weight.square().sum(-1)


def _positive(count: Tensor) -> Tensor:
    """Replace zero sums by the smallest positive number, to divide by them."""
    return count.clamp_min(torch.finfo(count.dtype).tiny)
