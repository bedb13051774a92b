r"""Linear regressions as components: :math:`y \sim N(W_c x + b_c, \sigma_c^2)`, ridge penalty included."""

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
    nudge,
)
from pyro_mixtures.errors import ClosedFormError, OptionError
from pyro_mixtures.ops.bilinear import pair_moments_of
from pyro_mixtures.ops.tiles import component_tiles
from pyro_mixtures.options import check_number

# A covariate whose variance is less than this part of its mean square is constant, but for
# rounding.
_CONSTANT = 1e-12
# One minus a leverage of one, as rounding leaves it.
_LEVERAGE_ONE = 1e-9


class RegressionStatistics(NamedTuple):
    """Weighted sums over each component's rows, with [x, 1] the rows' covariates; in float64."""

    count: Tensor  # type: ignore[assignment]  # (C,)  sum q; shadows tuple.count
    gram: Tensor  # (C, P + 1, P + 1)  sum q [x, 1] [x, 1]^T
    cross: Tensor  # (C, M, P + 1)     sum q y [x, 1]^T
    square: Tensor  # (C, M)           sum q y^2


class LinearRegressions(ConditionalComponents):
    r"""C linear regressions of y (B,) or (B, M) on ``covariates`` (B, P).

    The log density of a row is that of :math:`N(y; W x + b, \sigma^2)` less the row's share of the
    ridge penalty,
    :math:`\lambda |W|^2 / 2 \sigma^2`: a component's summed log density is maximal at its ridge
    regression, with penalty n lambda for n rows.

    :param weight: (C, P), or (C, M, P) for M outputs.
    :param bias: (C,) or (C, M).
    :param scale: (C,) or (C, M), standard deviations.
    :param ridge: lambda, not negative.

    >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([1.0, 3.0])
    >>> lines = LinearRegressions(x, torch.tensor([[2.0], [0.0]]), torch.tensor([1.0, 0.0]), torch.ones(2))
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
                f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)}, scale {tuple(scale.shape)}: give (C, P), "
                "(C,), (C,), or (C, M, P), (C, M), (C, M) for M outputs"
            )
        if weight.shape[-1] != covariates.shape[-1]:
            raise OptionError(f"weight {tuple(weight.shape)} for {covariates.shape[-1]} covariates")
        check_number(ridge=ridge)
        self.weight, self.bias, self.scale, self.ridge = weight, bias, scale, ridge
        super().__init__(covariates, torch.Size([len(weight)]), event, validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        """One dimension more for several outputs."""
        own = len(self.event_shape)
        return {
            "weight": constraints.independent(constraints.real, 1 + own),
            "bias": constraints.independent(constraints.real, own),
            "scale": constraints.independent(constraints.positive, own),
        }

    @property
    def support(self):
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def outputs(self) -> int:
        """M."""
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
        total = (
            squares.sum(-1) if self.outputs > 1 else squares.squeeze(-1)
        )  # a sum of one is as slow as of many
        penalty = self.ridge * (
            self.weight.reshape(*scale.shape, -1).square().sum(-1) / scale.square()
        ).sum(-1)
        offset = 2 * scale.log().sum(-1) + self.outputs * math.log(2 * math.pi) + penalty
        return -0.5 * (total + offset[component])

    def _outcomes(self, value: Tensor) -> Tensor:
        """Outcomes (B, M)."""
        y = match_dtype(value, self.weight)
        return y if self.event_shape else y.unsqueeze(-1)

    def mean_at(self, index: Tensor) -> Tensor:
        eta = self.predictor(augmented(self.weight, self.bias, self.outputs), index)
        return eta if self.event_shape else eta.squeeze(-1)

    def sample_at(self, index: Tensor) -> Tensor:
        mean = self.mean_at(index)
        return mean + self.scale[index] * torch.randn_like(mean)

    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> RegressionStatistics:
        x = self.design(self.weight)
        wide, rows = x.shape[1], torch.cat([x, self._outcomes(value)], -1)
        sums = pair_moments_of(rows, weight.reshape(-1), self.pairs(index))
        square = sums[:, wide:, wide:].diagonal(dim1=-2, dim2=-1)
        gram, cross = sums[:, :wide, :wide], sums[:, wide:, :wide]
        return RegressionStatistics(gram[:, -1, -1].clone(), gram, cross, square.clone())

    def maximizers(
        self, statistics: RegressionStatistics, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        """Ridge regression of each component; scale from its penalised residuals."""
        if ("weight" in free) != ("bias" in free):
            raise ClosedFormError(
                "weight and bias have a closed form together only: free or freeze both, or use SVI"
            )
        s = center(statistics)
        penalty = self.ridge * statistics.count
        weight = self.weight.double().reshape(len(self.weight), self.outputs, -1)
        shift = (
            s.y
            - self.bias.double().reshape(len(self.bias), -1)
            - (weight @ s.x.unsqueeze(-1)).squeeze(-1)
        )
        out = {}
        if "weight" in free:
            root = s.inverse_root(penalty)
            weight, shift = s.cross @ root.mT @ root, torch.zeros_like(s.y)
            out["weight"] = weight.reshape(self.weight.shape).to(self.weight)
            out["bias"] = (
                (s.y - (weight @ s.x.unsqueeze(-1)).squeeze(-1))
                .reshape(self.bias.shape)
                .to(self.bias)
            )
        if "scale" in free:
            left = (
                s.loss(weight, penalty).clamp_min(0) / _positive(statistics.count).unsqueeze(-1)
                + shift.square()
            )
            variance = left if floor is None else torch.maximum(left, floor)
            out["scale"] = variance.sqrt().reshape(self.scale.shape).to(self.scale)
        return out

    def split(
        self, component: int, row: Any, statistics: RegressionStatistics
    ) -> dict[str, Tensor]:
        """Coefficients changed at random, the means of the component's rows by one deviation."""
        gram = statistics.gram[component] / _positive(statistics.count[component])
        penalty = torch.full_like(gram[0], self.ridge)
        penalty[-1] = 0.0
        scale = self.scale[component].detach().double().reshape(-1)
        change = nudge(gram + penalty.diag(), scale).to(self.weight)
        weight, bias = self.weight[component].detach(), self.bias[component].detach()
        return {
            "weight": weight + change[:, :-1].reshape(weight.shape),
            "bias": bias + change[:, -1].reshape(bias.shape),
        }

    def floor(self, sums: RegressionStatistics, fraction: float) -> Tensor:
        """``fraction`` of the variance (M,) of the outcomes over all rows."""
        count = sums.count.sum().clamp_min(1e-300)
        mean = sums.cross[..., -1].sum(0) / count
        variance = (sums.square.sum(0) / count - mean.square()).clamp_min(0)
        return fraction * torch.where(variance > 0, variance, torch.ones_like(variance))

    def alone_at(self, index: Tensor, value: Tensor) -> Tensor:
        """Minimal loss of a part of one row, (*index.shape): its bias alone fits it."""
        scale = self.scale.reshape(len(self.scale), -1)
        return (scale.log().sum(-1) + 0.5 * self.outputs * math.log(2 * math.pi))[index]

    def leave_one_out_at(
        self,
        statistics: RegressionStatistics,
        index: Tensor,
        value: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        r"""What each row adds to the minimal loss of its part, f(S) - f(S \ i), (B,); scales are held where they are.

        With d and e the covariates and outcome of a row of weight w, less the means of its part of
        weight n, of which
        :math:`B = X^T X + (n - w) \lambda` and :math:`v = B^{-1} X^T y`, the part without the row
            has the loss
        :math:`\mathrm{least}_B - a (e - v d)^2 / (1 - a\, d^T B^{-1} d)`, a = w n / (n - w)
        (derived here by completing the square): one product a row, and no difference of large
        numbers. In the basis Q in which
        :math:`Q (B + w \lambda) Q^T = 1` and :math:`Q Q^T = \mu` is diagonal, B is :math:`1 - w
        \lambda \mu`: rows of different weights share it.

        :param statistics: of the partition that ``index`` (B,) belongs to, all rows included.
        """
        s, row = center(statistics), leaving(statistics.count, index, weight)
        basis = _shared_basis(s.inverse_root(self.ridge * statistics.count))
        y, share = self._outcomes(value).double(), self.ridge * row.weight
        out = torch.zeros(len(y), self.outputs, dtype=torch.float64, device=y.device)
        wide = self.weight.shape[-1] + self.outputs
        for tile in component_tiles(self.pairs(index).sorted, 2 * wide + wide * wide // 16):
            c, rows, some = tile.components, tile.rows, tile.valid
            x = self.covariates[rows].double() - s.x[c].unsqueeze(1)
            at = _Leaver(
                x, y[rows] - s.y[c].unsqueeze(1), share[rows], row.ratio[rows], row.others[rows]
            )
            half = s.cross[c] @ basis[c].mT
            out.index_add_(
                0, tile.slots[some], at.scatter(basis[c], half, statistics.count[c])[some]
            )
        scale = self.scale.reshape(len(self.scale), -1).double()
        own = scale.log().sum(-1) + 0.5 * self.outputs * math.log(2 * math.pi)
        return (0.5 * (out / scale[index].square()).sum(-1) + row.weight * own[index]).to(
            self.weight
        )


class _Leaver(NamedTuple):
    """Rows (T, R) that leave parts, T parts at a time: less the parts' means, with the penalty that goes with them."""

    x: Tensor  # (T, R, P)
    y: Tensor  # (T, R, M)
    share: Tensor  # (T, R)  w lambda
    ratio: Tensor  # (T, R)  w / (n - w)
    others: Tensor  # (T, R)

    def scatter(self, basis: Tensor, half: Tensor, count: Tensor) -> Tensor:
        """Twice what the rows add to the parts' penalised squares (T, R, M); ``half`` (T, M, P) is cross Q^T."""
        along = self.x @ basis.mT
        less = self.share.unsqueeze(-1) * basis.square().sum(-1).unsqueeze(1)  # w lambda mu
        grow = 1 / torch.where(self.others.unsqueeze(-1), 1 - less, 1.0)
        residual = self.y - (along * grow) @ half.mT
        rate = self.ratio * count.unsqueeze(-1)
        left = 1 - rate * (along.square() * grow).sum(-1)
        # A row that its part follows wherever it goes (leverage one) has no residual, and costs the
        # others nothing.
        held = torch.where(left > _LEVERAGE_ONE, rate / left, 0.0).unsqueeze(-1) * residual.square()
        return held + (less * grow) @ half.square().mT


def _shared_basis(root: Tensor) -> Tensor:
    """Q (C, P, P) with the same Q^T Q as ``root``, and Q Q^T diagonal."""
    _, vectors = torch.linalg.eigh(root @ root.mT)
    return vectors.mT @ root


class Centered(NamedTuple):
    """Sums of a component's rows about their own means: what a regression with a free bias depends on."""

    x: Tensor  # (C, P) means
    y: Tensor  # (C, M)
    gram: Tensor  # (C, P, P)
    cross: Tensor  # (C, M, P)
    square: Tensor  # (C, M)
    rounding: Tensor  # (C,)  what of the scaled gram is rounding

    def inverse_root(self, penalty: Tensor) -> Tensor:
        """R (C, P, P) with R^T R the inverse of gram + penalty, the shortest solution's where there are several.

        Of covariates scaled to one, so that their units do not decide what is taken for rounding.
        """
        gram = self.gram + penalty.unsqueeze(-1).expand(self.x.shape).diag_embed()
        size = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        unit = torch.where(size > 0, 1 / size, 0.0)
        values, vectors = torch.linalg.eigh(unit.unsqueeze(-1) * gram * unit.unsqueeze(-2))
        kept = values > self.rounding.unsqueeze(-1) * values[:, -1:]
        root = torch.where(kept, values.clamp_min(0).rsqrt(), 0.0)
        return root.unsqueeze(-1) * vectors.mT * unit.unsqueeze(-2)

    def least(self, root: Tensor) -> Tensor:
        """Minimal (penalised) sums of squares (C, M), ``root`` that of :meth:`inverse_root`."""
        return (self.square - (self.cross @ root.mT).square().sum(-1)).clamp_min(0)

    def loss(self, weight: Tensor, penalty: Tensor) -> Tensor:
        """Penalised sums of squares (C, M) under the coefficients ``weight`` (C, M, P) and the best bias."""
        explained = ((2 * self.cross - weight @ self.gram) * weight).sum(-1)
        return self.square - explained + penalty.unsqueeze(-1) * weight.square().sum(-1)


def center(s: RegressionStatistics) -> Centered:
    """Sums about the means. Covariates that do not vary, but for rounding, are taken out: the bias has their part."""
    count = _positive(s.count).unsqueeze(-1)
    x, y = s.gram[:, -1, :-1] / count, s.cross[..., -1] / count
    gram = s.gram[:, :-1, :-1] - count.unsqueeze(-1) * x.unsqueeze(-1) * x.unsqueeze(-2)
    cross = s.cross[..., :-1] - count.unsqueeze(-1) * y.unsqueeze(-1) * x.unsqueeze(-2)
    raw, own = (g.diagonal(dim1=-2, dim2=-1) for g in (s.gram[:, :-1, :-1], gram))
    vary = own > _CONSTANT * raw
    lost = torch.where(vary, raw / _positive(own), 1.0).amax(-1)
    gram = gram * (vary.unsqueeze(-1) & vary.unsqueeze(-2))
    square = (s.square - count * y.square()).clamp_min(0)
    rounding = 8 * gram.shape[-1] * torch.finfo(gram.dtype).eps * lost
    return Centered(x, y, gram, cross * vary.unsqueeze(-2), square, rounding)


def _positive(count: Tensor) -> Tensor:
    """Counts, or other sums of squares, to divide by: zero where nothing was summed."""
    return count.clamp_min(torch.finfo(count.dtype).tiny)
