"""Linear support vector machines as components, by pseudo-likelihoods exp(-loss) with a penalty."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.leave_one_out.leaving_out import leaving
from pyro_mixtures.distributions.leave_one_out.refits import HeldOutRows, hinge_losses_without
from pyro_mixtures.distributions.regression.row_statistics import (
    RowFittedComponents,
    RowStatistics,
    check_outcomes,
)
from pyro_mixtures.errors import DataError, ModelError, OptionError
from pyro_mixtures.ops.optimize.newton import PairedRows, RowLoss, expand, minimize
from pyro_mixtures.options import check_number

SOLVERS = ("newton", "liblinear")
# Widths over which the kink of the hinge is rounded; each Newton solution starts the next one. The
# last loss is off by at most a quarter of the last width per row.
_WIDTHS = (1.0, 0.1, 1e-2, 1e-3, 1e-4)
# For clusters that differ by one row, which start close to their solution.
_NEAR_WIDTHS = (1e-2, 1e-3, 1e-4)


def _hinge(eta: Tensor, sign: Tensor) -> Tensor:
    return (1 - sign * eta).clamp_min(0)


def _hinge_derivatives(eta: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    violated = (sign * eta < 1).to(eta)
    return -sign * violated, torch.zeros_like(eta)


def _squared_hinge(eta: Tensor, sign: Tensor) -> Tensor:
    return _hinge(eta, sign).square()


def _squared_hinge_derivatives(eta: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    margin = _hinge(eta, sign)
    return -2 * sign * margin, 2 * (margin > 0).to(eta)


def _rounded_hinge(eta: Tensor, sign: Tensor, *, width: float) -> Tensor:
    margin = 1 - sign * eta
    return torch.where(margin > width, margin, (margin + width).clamp_min(0).square() / (4 * width))


def _rounded_hinge_derivatives(eta: Tensor, sign: Tensor, *, width: float) -> tuple[Tensor, Tensor]:
    margin = 1 - sign * eta
    slope = ((margin + width) / (2 * width)).clamp(0, 1)
    return -sign * slope, (margin.abs() <= width).to(eta) / (2 * width)


LOSSES = {
    "hinge": RowLoss(_hinge, _hinge_derivatives),
    "squared_hinge": RowLoss(_squared_hinge, _squared_hinge_derivatives),
}


class SupportVectorMachines(RowFittedComponents):
    r"""C linear support vector machines of labels y (B,).

    The log density of a row is the log pseudo-likelihood :math:`-\ell - \lambda (|w|^2 + b^2)`,
    with :math:`\ell` the hinge loss :math:`\max(0, 1 - s (w^T x + b))` or its square, and s = +1
    for y = 1, -1 for y = 0. With K outputs, labels are 0, ..., K - 1, and the loss is the sum of
    the K one-against-the-rest losses. A component of n rows has the objective of scikit-learn's
    ``LinearSVC(C=1 / (2 n lambda))``, which penalizes the bias as well (``intercept_scaling=1``).

    :param covariates: (B, P).
    :param weight: (C, P) for two classes, (C, K, P) for K.
    :param bias: (C,) or (C, K). It is penalized like a weight, so the objective is strongly convex,
        and clusters of one class are no special case.
    :param ridge: lambda, positive.
    :param loss: ``"squared_hinge"`` or ``"hinge"``.
    :param solver: of the M-step. ``"newton"`` solves all components together on their device; the
        kink of the hinge is rounded, at an error of at most 2.5e-5 per row. ``"liblinear"`` calls
        scikit-learn's ``LinearSVC`` for one component and output at a time on the CPU; it is better
        with many covariates, since it builds no P x P matrix.
    :raises OptionError: when an option has an impossible value, or scikit-learn is not installed
        but needed.
    :raises DataError: for labels out of range.

    Fan et al., "LIBLINEAR", JMLR 9 (2008); Chapelle, "Training a support vector machine in the
    primal", Neural Computation 19 (2007).

    >>> x = torch.tensor([[0.5], [-2.0]])
    >>> weight, bias = torch.ones(1, 1), torch.zeros(1)
    >>> machines = SupportVectorMachines(x, weight, bias, ridge=0.125, loss="hinge")
    >>> machines[torch.tensor([0, 0])].log_prob(torch.tensor([1, 0]))
    tensor([-0.6250, -0.1250])
    """

    option_names = ("covariates", "ridge", "loss", "solver")
    penalizes_bias = True
    leaves_one_out = True

    def __init__(
        self,
        covariates: Tensor,
        weight: Tensor,
        bias: Tensor,
        *,
        ridge: float,
        loss: str = "squared_hinge",
        solver: str = "newton",
        validate_args: bool | None = None,
    ):
        check_options(ridge=ridge, loss=loss, solver=solver)
        self.loss, self.solver, self.row_loss = loss, solver, LOSSES[loss]
        super().__init__(covariates, weight, bias, ridge=ridge, validate_args=validate_args)

    @property
    def classes(self) -> int:
        """K, the number of classes."""
        return max(2, self.outputs)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return constraints.integer_interval(0, self.classes - 1)

    def targets(self, value: Tensor) -> Tensor:
        """Return signs (B, M)."""
        check_outcomes(value, self.covariates)
        missing = value.isnan()  # allowed in rows that a mask hides
        label = torch.where(missing, 0, value).long()
        if bool(((label != value) & ~missing).any()) or bool(
            ((label < 0) | (label >= self.classes)).any()
        ):
            raise DataError(f"labels must be integers in [0, {self.classes})")
        positive_class = torch.ones_like(label[:1])
        if self.outputs > 1:
            positive_class = torch.arange(self.outputs, device=value.device)
        sign = torch.where(label.unsqueeze(-1) == positive_class, 1.0, -1.0).to(self.weight)
        return torch.where(missing.unsqueeze(-1), torch.nan, sign)

    def mean_at(self, index: Tensor) -> Tensor:
        """Return decision values (*index.shape) of class 1, or (*index.shape, K)."""
        eta = self.predictor(self.coefficients, index)
        return eta if self.weight.dim() == 3 else eta.squeeze(-1)

    def sample_at(self, index: Tensor) -> Tensor:
        """Raise an error: a pseudo-likelihood is not a distribution.

        :raises ModelError: always.
        """
        raise ModelError(
            "a support vector machine is a pseudo-likelihood, which cannot be sampled: "
            "pass the labels y"
        )

    def alone_at(self, index: Tensor, value: Tensor) -> Tensor:
        r"""Return the minimal loss of a cluster of one row, attained at a multiple of s [x, 1]."""
        self.targets(value)
        squares = self.design(self.weight).square().sum(-1)
        if self.loss == "squared_hinge":
            loss = self.ridge / (squares + self.ridge)
        else:
            interior = squares > 2 * self.ridge
            loss = torch.where(interior, self.ridge / squares, 1 - squares / (4 * self.ridge))
        return (self.outputs * loss).expand(index.shape)

    def leave_one_out_at(
        self, statistics: RowStatistics, index: Tensor, value: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Return what each row adds to the minimal loss of its cluster ``index`` (B,).

        For the squared hinge, by one Newton step. The hinge has no curvature for such a step, so
        clusters are refitted without the row; one refit serves all rows of a cluster that are not
        support vectors. The result is exact up to the rounding of the kink, and never exceeds the
        exact gain from the cluster's current loss.
        """
        if self.loss == "squared_hinge":
            return super().leave_one_out_at(statistics, index, value, weight)
        with torch.no_grad():
            cluster_rows, start = statistics.whole, self.coefficients.double()
            clusters = expand(self.row_loss, cluster_rows, start, self.penalty)
            row = leaving(clusters.count.squeeze(-1), index, weight)
            cluster_loss = clusters.value.sum(-1)[index]
            gains = torch.where(row.others | (row.weight == 0), 0.0, cluster_loss)
            refitted = (row.others & (row.weight > 0)).nonzero()[:, 0]
            if len(refitted):
                rows = HeldOutRows(
                    self.design(self.weight), self.targets(value), index.long(), row.weight
                ).select(refitted)
                losses = hinge_losses_without(
                    cluster_rows, rows, start, self._refit, width=_NEAR_WIDTHS[-1]
                )
                row_loss = -rows.weight * self.log_prob_at(index, value)[refitted]
                gain = (clusters.value[rows.cluster] - losses).sum(-1)
                gains[refitted] = torch.maximum(gain, row_loss)
        return gains.to(self.weight)

    def _solve(self, rows: PairedRows, start: Tensor) -> Tensor:
        if self.loss == "squared_hinge" and self.solver == "newton":
            return minimize(self.row_loss, rows, start, self.penalty)
        if self.solver == "liblinear":
            return self._better(rows, start, _by_liblinear(rows, start, self.ridge, self.loss))[0]
        return self._better(rows, start, self._by_rounding(rows, start, _WIDTHS))[0]

    def _refit(self, rows: PairedRows, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return coefficients and losses of clusters that differ by one row from the start's."""
        return self._better(rows, start, self._by_rounding(rows, start, _NEAR_WIDTHS))

    def _by_rounding(self, rows: PairedRows, start: Tensor, widths: Sequence[float]) -> Tensor:
        for width in widths:
            rounded = RowLoss(
                partial(_rounded_hinge, width=width),
                partial(_rounded_hinge_derivatives, width=width),
            )
            start = minimize(rounded, rows, start, self.penalty)
        return start

    def _better(self, rows: PairedRows, start: Tensor, solution: Tensor) -> tuple[Tensor, Tensor]:
        """Return the better of two coefficients, and their losses (C, M).

        The start may be better, since no solver is exact to the last digit.
        """
        before = expand(self.row_loss, rows, start, self.penalty).value
        after = expand(self.row_loss, rows, solution, self.penalty).value
        improved = after <= before
        coefficients = torch.where(improved.unsqueeze(-1), solution, start)
        return coefficients, torch.where(improved, after, before)


def check_options(*, ridge: float, loss: str, solver: str) -> None:
    """Check the options of support vector machines.

    :raises OptionError: when one has an impossible value.
    """
    check_number(positive=True, ridge=ridge)
    # A tuple, because values without a hash cannot be looked up in a dictionary.
    if loss not in tuple(LOSSES):
        raise OptionError(f"unknown loss={loss!r}; choose one of {tuple(LOSSES)}")
    if solver not in SOLVERS:
        raise OptionError(f"unknown solver={solver!r}; choose one of {SOLVERS}")


def _by_liblinear(rows: PairedRows, start: Tensor, ridge: float, loss: str) -> Tensor:
    """Return coefficients (C, M, Q) by LinearSVC; components without rows stay at ``start``."""
    machine, coefficients = _linear_svc(), start.clone()
    order = rows.pairs.sorted
    for c, (low, high) in enumerate(
        zip(order.starts[:-1].tolist(), order.starts[1:].tolist(), strict=True)
    ):
        if low == high:
            continue
        x = rows.design[order.rows[low:high]].cpu().double()
        signs = rows.targets[order.rows[low:high]].cpu().double()
        weight = rows.weight[order.order[low:high]].cpu().double()
        fit = machine(
            C=1 / (2 * ridge * float(weight.sum())),
            loss=loss,
            dual=True,
            fit_intercept=False,
            max_iter=100_000,
            tol=1e-6,
        )
        for m, sign in enumerate(signs.T):
            flipped, label, shares = _two_classes(x, sign, weight)
            fit.fit(flipped.numpy(), label.numpy(), sample_weight=shares.numpy())
            coefficients[c, m] = torch.from_numpy(fit.coef_[0]).to(coefficients)
    return coefficients


def _two_classes(x: Tensor, sign: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same problem with rows of both classes, which liblinear requires.

    The loss depends on ``sign * x`` only, so the sign of a row can be flipped together with x.
    """
    if len(sign) == 1:
        x, sign, weight = x.repeat(2, 1), sign.repeat(2), weight.repeat(2) / 2
    if bool((sign == sign[0]).all()):
        flip = torch.ones_like(sign)
        flip[0] = -1
        x, sign = x * flip.unsqueeze(-1), sign * flip
    return x, sign, weight


def _linear_svc() -> Any:
    try:
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise OptionError(
            "solver='liblinear' needs scikit-learn, which is not installed: "
            "pip install scikit-learn, or use solver='newton'"
        ) from error
    return LinearSVC
