"""Logistic and Poisson regressions as components, with a ridge penalty."""

import math
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
    probs = eta.sigmoid()
    return probs - y, probs * (-eta).sigmoid()


def _rate(eta: Tensor) -> Tensor:
    """Return exp(eta), continued linearly where its square would overflow.

    Random coefficients of covariates in large units give such rates before the first M-step. Rows
    then still compare components, where infinite losses would not.
    """
    largest = 0.5 * math.log(torch.finfo(eta.dtype).max)
    return eta.clamp_max(largest).exp() * (1 + (eta - largest).clamp_min(0))


def _poisson_value(eta: Tensor, y: Tensor) -> Tensor:
    return _rate(eta) - y * eta + (y + 1).lgamma()


def _poisson_derivatives(eta: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    # Where the rate is continued linearly, this is its slope, and a bound of its curvature.
    slope = eta.clamp_max(0.5 * math.log(torch.finfo(eta.dtype).max)).exp()
    return slope - y, slope


class _GeneralizedRegressions(RowFittedComponents):
    """Regressions with one linear predictor per component, whose bias is not penalized."""

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
                f"weight is {tuple(weight.shape)}, but {type(self).__name__} has one outcome: "
                "pass (C, P)"
            )
        super().__init__(covariates, weight, bias, ridge=ridge, validate_args=validate_args)

    def targets(self, value: Tensor) -> Tensor:
        check_outcomes(value, self.covariates)
        with torch.no_grad():
            # Rows that a mask hides may hold NaN.
            invalid = ~(self.support.check(value) | value.isnan())
            if bool(invalid.any()):
                raise DataError(
                    f"{type(self).__name__} cannot have the outcome {value[invalid][0].item()}"
                )
        return match_dtype(value, self.weight).unsqueeze(-1)

    def _solve(self, rows: PairedRows, start: Tensor) -> Tensor:
        return minimize(self.row_loss, rows, start, self.penalty)

    def _predictor_at(self, index: Tensor) -> Tensor:
        return self.predictor(self.coefficients, index).squeeze(-1)


class LogisticRegressions(_GeneralizedRegressions):
    r"""C logistic regressions of y (B,) in {0, 1}: :math:`p = \sigma(w_c^T x + b_c)`.

    The log density of a row is that of Bernoulli(p) minus the row's share of the ridge penalty,
    :math:`\lambda |w_c|^2`. For n rows this is the objective of scikit-learn's
    ``LogisticRegression(C=1 / (2 n lambda))``. The M-step is Newton's method (iteratively
    reweighted least squares) to convergence, weighted by the responsibilities, so soft EM is
    monotone as well.

    :param covariates: (B, P).
    :param weight: (C, P).
    :param bias: (C,), not penalized.
    :param ridge: lambda, not negative. Without it, classes that a hyperplane separates have no
        finite maximum.
    :raises OptionError: when shapes do not fit.
    :raises DataError: for outcomes other than 0 and 1.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> curves = LogisticRegressions(x, torch.tensor([[2.0], [0.0]]), torch.tensor([-2.0, 0.0]))
    >>> curves[torch.tensor([1, 0])].mean
    tensor([0.5000, 0.5000])
    """

    support = constraints.boolean
    row_loss = RowLoss(_logistic_value, _logistic_derivatives)

    def mean_at(self, index: Tensor) -> Tensor:
        """Return the probabilities of y = 1."""
        return self._predictor_at(index).sigmoid()

    def sample_at(self, index: Tensor) -> Tensor:
        return self.mean_at(index).bernoulli()

    def alone_at(self, index: Tensor, value: Tensor) -> Tensor:
        """Return zero, since the bias alone fits one row arbitrarily well."""
        self.targets(value)
        return torch.zeros(index.shape, dtype=self.weight.dtype, device=self.weight.device)


class PoissonRegressions(_GeneralizedRegressions):
    r"""C Poisson regressions of counts y (B,): :math:`\log \mu = w_c^T x + b_c`.

    The log density of a row is that of Poisson(mu) minus the row's share of the ridge penalty,
    :math:`\lambda |w_c|^2`. This is the objective of scikit-learn's
    ``PoissonRegressor(alpha=2 lambda)``. The M-step is that of :class:`LogisticRegressions`. In
    densities, rates above the square root of the dtype's largest number (1e19 in float32, 1e154 in
    float64) grow linearly with the predictor, so that no log density is infinite.

    :param covariates: (B, P).
    :param weight: (C, P).
    :param bias: (C,), not penalized.
    :param ridge: lambda, not negative.
    :raises OptionError: when shapes do not fit.
    :raises DataError: for outcomes that are not counts.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> curves = PoissonRegressions(x, torch.zeros(2, 1), torch.tensor([0.0, 1.0]))
    >>> curves[torch.tensor([0, 1])].mean
    tensor([1.0000, 2.7183])
    """

    support = constraints.nonnegative_integer
    row_loss = RowLoss(_poisson_value, _poisson_derivatives)

    def mean_at(self, index: Tensor) -> Tensor:
        """Return the rates."""
        return self._predictor_at(index).exp()

    def sample_at(self, index: Tensor) -> Tensor:
        return torch.poisson(self.mean_at(index))

    def alone_at(self, index: Tensor, value: Tensor) -> Tensor:
        """Return the loss at the rate y, which the bias alone gives to one row."""
        y = self.targets(value)[:, 0]
        return (y - torch.xlogy(y, y) + (y + 1).lgamma()).expand(index.shape)
