r"""Linear regressions as components: :math:`y \sim N(W_c x + b_c, \sigma_c^2)`, ridge penalty included."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.components import check_floating, match_dtype
from pyro_mixtures.distributions.conditional import ConditionalComponents, augmented
from pyro_mixtures.distributions.statistics import add
from pyro_mixtures.errors import ClosedFormError, OptionError
from pyro_mixtures.ops.bilinear import pair_outer


class RegressionStatistics(NamedTuple):
    """Weighted sums over each component's rows, with [x, 1] the rows' covariates; in float64."""

    count: Tensor  # type: ignore[assignment]  # (C,)  sum q; shadows tuple.count
    gram: Tensor  # (C, P + 1, P + 1)  sum q [x, 1] [x, 1]^T
    cross: Tensor  # (C, M, P + 1)     sum q y [x, 1]^T
    square: Tensor  # (C, M)           sum q y^2


class LinearRegressions(ConditionalComponents):
    r"""C linear regressions of y (B,) or (B, M) on ``covariates`` (B, P).

    The log density of a row is that of :math:`N(y; W x + b, \sigma^2)` less the row's share of the ridge penalty,
    :math:`\lambda |W|^2 / 2 \sigma^2`: a component's summed log density is maximal at its ridge regression, with
    penalty n lambda for n rows.

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
    option_names = ("ridge",)
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
        if ridge < 0:
            raise OptionError(f"ridge={ridge} must not be negative")
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
        known = index.clamp_min(0)
        residual = self._outcomes(value) - self.predictor(coefficients, index)
        total = (residual / scale[known]).square().sum(-1)
        penalty = self.ridge * (self.weight.reshape(*scale.shape, -1).square().sum(-1) / scale.square()).sum(-1)
        offset = 2 * scale.log().sum(-1) + self.outputs * math.log(2 * math.pi) + penalty
        return torch.where(index < 0, -torch.inf, -0.5 * (total + offset[known]))

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

    def statistics_at(
        self, index: Tensor, value: Tensor, weight: Tensor, into: RegressionStatistics | None = None
    ) -> RegressionStatistics:
        x, y, pairs = self.design(self.weight), self._outcomes(value), self.pairs(index)
        both = torch.cat([x, y], -1)
        rows = both.expand(*pairs.z.shape, -1).reshape(-1, both.shape[1])
        outer = pair_outer(rows * weight.reshape(-1, 1), both, pairs)
        wide = x.shape[1]
        count, square = outer[:, wide - 1, wide - 1], outer[:, wide:, wide:].diagonal(dim1=-2, dim2=-1)
        sums = RegressionStatistics(count, outer[:, :wide, :wide], outer[:, wide:, :wide], square)
        return sums if into is None else add(into, sums)

    def maximize(
        self, statistics: RegressionStatistics, free: frozenset[str], *, floor: Tensor | None
    ) -> dict[str, Tensor]:
        """Ridge regression of each component; scale from its penalised residuals."""
        if ("weight" in free) != ("bias" in free):
            raise ClosedFormError("weight and bias have a closed form together only: free or freeze both, or use SVI")
        coefficients = augmented(self.weight, self.bias, self.outputs).double()
        gram = statistics.gram + self._penalty(statistics.count)
        if "weight" in free:
            coefficients = solve_ridge(gram, statistics.cross)
        out = {}
        if "weight" in free:
            out["weight"] = coefficients[..., :-1].reshape(self.weight.shape).to(self.weight)
            out["bias"] = coefficients[..., -1].reshape(self.bias.shape).to(self.bias)
        if "scale" in free:
            explained = ((2 * statistics.cross - coefficients @ gram) * coefficients).sum(-1)
            left = (statistics.square - explained).clamp_min(0)
            variance = left / statistics.count.clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(-1)
            variance = variance if floor is None else torch.maximum(variance, floor)
            out["scale"] = variance.sqrt().reshape(self.scale.shape).to(self.scale)
        return out

    def _penalty(self, count: Tensor) -> Tensor:
        """n lambda on the diagonal (C, P + 1, P + 1), the bias left free."""
        diagonal = torch.full((self.weight.shape[-1] + 1,), self.ridge, dtype=torch.float64, device=count.device)
        diagonal[-1] = 0.0
        return count.view(-1, 1, 1) * diagonal.diag()

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

    def leave_one_out_at(self, statistics: RegressionStatistics, index: Tensor, value: Tensor) -> Tensor:
        r"""What each row adds to the minimal loss of its part, f(S) - f(S \ i), (B,); scales are held where they are.

        With :math:`B = X^T X + (n - 1) \lambda` the part without row i has the normal matrix :math:`B - x_i x_i^T`, by
        Sherman-Morrison at the price of one product a row.

        :param statistics: of the partition that ``index`` (B,) belongs to, all rows included.
        """
        s, x, y = statistics, self.design(self.weight).double(), self._outcomes(value).double()
        with_part = self._least(s.gram + self._penalty(s.count), s.cross, s.square)
        inverse = torch.linalg.pinv(s.gram + self._penalty(s.count - 1), hermitian=True)
        base, cross = inverse[index], s.cross[index] - y.unsqueeze(-1) * x.unsqueeze(-2)  # (B, M, P + 1)
        along = (base @ x.unsqueeze(-1)).squeeze(-1)
        leverage = (x * along).sum(-1)
        explained = (cross @ base * cross).sum(-1)
        explained = explained + (cross @ along.unsqueeze(-1)).squeeze(-1).square() / (1 - leverage).unsqueeze(-1)
        without = s.square[index] - y.square() - explained
        scale = self.scale.reshape(len(self.scale), -1).double()
        gain = 0.5 * ((with_part[index] - without) / scale[index].square()).sum(-1)
        own = scale.log().sum(-1) + 0.5 * self.outputs * math.log(2 * math.pi)
        # A part that the row holds together (leverage one) fits the others without loss.
        gain = torch.where((1 - leverage) > 1e-9, gain, 0.5 * (with_part[index] / scale[index].square()).sum(-1))
        return (gain + own[index]).to(self.weight)

    @staticmethod
    def _least(gram: Tensor, cross: Tensor, square: Tensor) -> Tensor:
        """Minimal penalised sums of squares (C, M)."""
        return (square - (solve_ridge(gram, cross) * cross).sum(-1)).clamp_min(0)


def solve_ridge(gram: Tensor, cross: Tensor) -> Tensor:
    """Coefficients (C, M, P) of ``coefficients @ gram = cross``, the shortest where there are several."""
    return cross @ torch.linalg.pinv(gram, hermitian=True)
