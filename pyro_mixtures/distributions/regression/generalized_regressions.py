r"""Logistic and Poisson regressions as components, ridge penalty included."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyro_mixtures.distributions.components import match_dtype
from pyro_mixtures.distributions.regression.row_statistics import (
    RowFittedComponents,
    check_outcomes,
)
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.ops.optimize.newton import PairedRows, RowLoss, minimize


def _logistic_value(eta: Tensor, y: Tensor) -> Tensor:
    return softplus(eta) - y * eta


def _logistic_derivatives(eta: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    p = eta.sigmoid()
    return p - y, p * (-eta).sigmoid()


def _poisson_value(eta: Tensor, y: Tensor) -> Tensor:
    return eta.exp() - y * eta + (y + 1).lgamma()


def _poisson_derivatives(eta: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    rate = eta.exp()
    return rate - y, rate


class _GeneralizedRegressions(RowFittedComponents):
    """One linear predictor a component; the bias is not penalised."""

    leaves_one_out = True
    support: Any

    def __init__(
        self,
        covariates: Tensor,
        weight: Tensor,
        bias: Tensor,
        *,
        ridge: float = 0.0,
        validate_args: bool | None = None,
    ):
        if weight.dim() != 2:
            raise OptionError(
                f"weight {tuple(weight.shape)}: {type(self).__name__} has one outcome, give (C, P)"
            )
        super().__init__(covariates, weight, bias, ridge=ridge, validate_args=validate_args)

    def targets(self, value: Tensor) -> Tensor:
        check_outcomes(value, self.covariates)
        with torch.no_grad():
            # Rows that a mask hides may hold NaN.
            wrong = ~(self.support.check(value) | value.isnan())
            if bool(wrong.any()):
                raise DataError(
                    f"{type(self).__name__} cannot have the outcome {value[wrong][0].item()}"
                )
        return match_dtype(value, self.weight).unsqueeze(-1)

    def _solve(self, rows: PairedRows, start: Tensor) -> Tensor:
        return minimize(self.row_loss, rows, start, self.penalty)

    def _predictor_at(self, index: Tensor) -> Tensor:
        return self.predictor(self.coefficients, index).squeeze(-1)


class LogisticRegressions(_GeneralizedRegressions):
    r"""C logistic regressions of y (B,) in {0, 1} on ``covariates`` (B, P): :math:`p = \sigma(w_c^T x + b_c)`.

    The log density of a row is that of Bernoulli(p) less its share of the ridge penalty,
    :math:`\lambda |w_c|^2`. For n rows that is scikit-learn's ``LogisticRegression(C=1 / (2 n
    lambda))``. The M-step is Newton's method (iteratively re-weighted least squares) to
    convergence, weighted by q, so that soft EM is monotone, too.

    :param weight: (C, P).
    :param bias: (C,), not penalised.
    :param ridge: lambda, not negative. Classes that a hyperplane separates have no minimum without
        it.
    :raises DataError: for outcomes other than 0 and 1.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> curves = LogisticRegressions(x, torch.tensor([[2.0], [0.0]]), torch.tensor([-2.0, 0.0]))
    >>> curves[torch.tensor([1, 0])].mean
    tensor([0.5000, 0.5000])
    """

    support = constraints.boolean
    row_loss = RowLoss(_logistic_value, _logistic_derivatives)

    def mean_at(self, index: Tensor) -> Tensor:
        """Probabilities of y = 1."""
        return self._predictor_at(index).sigmoid()

    def sample_at(self, index: Tensor) -> Tensor:
        return self.mean_at(index).bernoulli()

    def alone_at(self, index: Tensor, value: Tensor) -> Tensor:
        """Zero: its bias alone fits one row as well as one likes."""
        self.targets(value)
        return torch.zeros(index.shape, dtype=self.weight.dtype, device=self.weight.device)


class PoissonRegressions(_GeneralizedRegressions):
    r"""C Poisson regressions of counts y (B,) on ``covariates`` (B, P): :math:`\log \mu = w_c^T x + b_c`.

    The log density of a row is that of Poisson(mu) less its share of the ridge penalty,
    :math:`\lambda |w_c|^2`; scikit-learn's ``PoissonRegressor(alpha=2 lambda)``. Otherwise as
    :class:`LogisticRegressions`.

    :param weight: (C, P).
    :param bias: (C,), not penalised.
    :param ridge: lambda, not negative.
    :raises DataError: for outcomes that are not counts.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> curves = PoissonRegressions(x, torch.zeros(2, 1), torch.tensor([0.0, 1.0]))
    >>> curves[torch.tensor([0, 1])].mean
    tensor([1.0000, 2.7183])
    """

    support = constraints.nonnegative_integer
    row_loss = RowLoss(_poisson_value, _poisson_derivatives)

    def mean_at(self, index: Tensor) -> Tensor:
        """Rates."""
        return self._predictor_at(index).exp()

    def sample_at(self, index: Tensor) -> Tensor:
        return torch.poisson(self.mean_at(index))

    def alone_at(self, index: Tensor, value: Tensor) -> Tensor:
        """Its bias alone gives one row the rate y."""
        y = self.targets(value)[:, 0]
        return (y - torch.xlogy(y, y) + (y + 1).lgamma()).expand(index.shape)
