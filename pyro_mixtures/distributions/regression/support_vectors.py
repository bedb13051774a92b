r"""Linear support vector machines as components: pseudo-likelihoods exp(-loss), penalty included."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.leave_one_out.leaving_out import leaving
from pyro_mixtures.distributions.leave_one_out.refits import Leavers, hinge_losses_without
from pyro_mixtures.distributions.regression.row_statistics import (
    RowFittedComponents,
    RowStatistics,
    check_outcomes,
)
from pyro_mixtures.errors import DataError, ModelError, OptionError
from pyro_mixtures.ops.optimize.newton import PairedRows, RowLoss, expand, minimize
from pyro_mixtures.options import check_number

SOLVERS = ("newton", "liblinear")
# Widths over which the hinge's kink is rounded, one Newton solution the start of the next: the last
# one's loss is off by at most a quarter of its width a row.
_WIDTHS = (1.0, 0.1, 1e-2, 1e-3, 1e-4)
# Parts that differ by one row begin near their solution.
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
    r"""C linear SVMs of labels y (B,) on ``covariates`` (B, P).

    The log density of a row is the pseudo-likelihood :math:`-\ell - \lambda (|w|^2 + b^2)`, with
    :math:`\ell` the hinge loss :math:`\max(0, 1 - s (w^T x + b))` or its square, and s = +1 for y =
    1, -1 for y = 0. With K outputs labels are 0, ..., K - 1 and the loss is the sum of the K losses
    one against the rest. A component of n rows is scikit-learn's ``LinearSVC(C=1 / (2 n lambda))``,
    which penalises the bias, too (``intercept_scaling=1``).

    :param weight: (C, P) for two classes, (C, K, P) for K.
    :param bias: (C,) or (C, K); penalised like a weight: so the objective is strongly convex, and a
        part with one class alone needs no special care.
    :param ridge: lambda, positive.
    :param loss: ``"squared_hinge"`` or ``"hinge"``.
    :param solver: of the M-step. ``"newton"`` solves all components together on their device; the
        hinge's kink is rounded off in steps, down to a width that costs at most 2.5e-5 a row.
        ``"liblinear"`` is scikit-learn's ``LinearSVC``, one component and output at a time on the
        CPU: better with many covariates, since nothing of size P x P is made.
    :raises OptionError: when an option has an impossible value, or scikit-learn is asked for and
        not installed.
    :raises DataError: for labels out of range.

    Fan et al., "LIBLINEAR", JMLR 9 (2008); Chapelle, "Training a support vector machine in the
    primal", Neural Computation 19 (2007).

    >>> x = torch.tensor([[0.5], [-2.0]])
    >>> machines = SupportVectorMachines(x, torch.ones(1, 1), torch.zeros(1), ridge=0.125, loss="hinge")
    >>> machines[torch.tensor([0, 0])].log_prob(torch.tensor([1, 0]))
    tensor([-0.6250, -0.1250])
    """

    option_names = ("covariates", "ridge", "loss", "solver")
    penalises_bias = True
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
        """K."""
        return max(2, self.outputs)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self):
        return constraints.integer_interval(0, self.classes - 1)

    def targets(self, value: Tensor) -> Tensor:
        """Signs (B, M)."""
        check_outcomes(value, self.covariates)
        missing = value.isnan()  # as rows that a mask hides may be
        label = torch.where(missing, 0, value).long()
        if bool(((label != value) & ~missing).any()) or bool(
            ((label < 0) | (label >= self.classes)).any()
        ):
            raise DataError(f"labels must be integers in [0, {self.classes})")
        ours = (
            torch.arange(self.outputs, device=value.device)
            if self.outputs > 1
            else torch.ones_like(label[:1])
        )
        sign = torch.where(label.unsqueeze(-1) == ours, 1.0, -1.0).to(self.weight)
        return torch.where(missing.unsqueeze(-1), torch.nan, sign)

    def mean_at(self, index: Tensor) -> Tensor:
        """Decision values (*index.shape) of class 1, or (*index.shape, K)."""
        eta = self.predictor(self.coefficients, index)
        return eta if self.weight.dim() == 3 else eta.squeeze(-1)

    def sample_at(self, index: Tensor) -> Tensor:
        """:raises ModelError: always."""
        raise ModelError(
            "a support vector machine is a pseudo-likelihood, which has no samples: pass the labels y"
        )

    def alone_at(self, index: Tensor, value: Tensor) -> Tensor:
        r"""Minimal loss of a part of one row, at :math:`a s [x, 1]` for the best number a; r is :math:`|x|^2 + 1`."""
        self.targets(value)
        r = self.design(self.weight).square().sum(-1)
        if self.loss == "squared_hinge":
            least = self.ridge / (r + self.ridge)
        else:
            least = torch.where(r > 2 * self.ridge, self.ridge / r, 1 - r / (4 * self.ridge))
        return (self.outputs * least).expand(index.shape)

    def leave_one_out_at(
        self, statistics: RowStatistics, index: Tensor, value: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """What each row adds to the minimal loss of its part ``index`` (B,).

        Of the squared hinge by one Newton step. The hinge has no curvature to take one by: there
        parts are refitted without the row, one refit for all rows of a part that are no support
        vectors. It is exact to the width that the kink is rounded to, and never more than the exact
        gain from the part's present loss.
        """
        if self.loss == "squared_hinge":
            return super().leave_one_out_at(statistics, index, value, weight)
        with torch.no_grad():
            parts, start = statistics.whole, self.coefficients.double()
            part = expand(self.row_loss, parts, start, self.penalty)
            row = leaving(part.count.squeeze(-1), index, weight)
            gains = torch.where(row.others | (row.weight == 0), 0.0, part.value.sum(-1)[index])
            some = (row.others & (row.weight > 0)).nonzero()[:, 0]
            if len(some):
                rows = Leavers(
                    self.design(self.weight), self.targets(value), index.long(), row.weight
                ).some(some)
                least = hinge_losses_without(
                    parts, rows, start, self._refit, width=_NEAR_WIDTHS[-1]
                )
                own = -rows.weight * self.log_prob_at(index, value)[some]
                gains[some] = torch.maximum((part.value[rows.part] - least).sum(-1), own)
        return gains.to(self.weight)

    def _solve(self, rows: PairedRows, start: Tensor) -> Tensor:
        if self.loss == "squared_hinge" and self.solver == "newton":
            return minimize(self.row_loss, rows, start, self.penalty)
        if self.solver == "liblinear":
            return self._better(rows, start, _by_liblinear(rows, start, self.ridge, self.loss))[0]
        return self._better(rows, start, self._by_rounding(rows, start, _WIDTHS))[0]

    def _refit(self, rows: PairedRows, start: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients and losses of parts that are nearly those of ``start``."""
        return self._better(rows, start, self._by_rounding(rows, start, _NEAR_WIDTHS))

    def _by_rounding(self, rows: PairedRows, start: Tensor, widths: Sequence[float]) -> Tensor:
        for width in widths:
            rounded = RowLoss(
                partial(_rounded_hinge, width=width),
                partial(_rounded_hinge_derivatives, width=width),
            )
            start = minimize(rounded, rows, start, self.penalty)
        return start

    def _better(self, rows: PairedRows, start: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """Neither solver is exact to the last digit: what was there before may be better. With the losses (C, M)."""
        before, after = (
            expand(self.row_loss, rows, at, self.penalty).value for at in (start, found)
        )
        good = after <= before
        return torch.where(good.unsqueeze(-1), found, start), torch.where(good, after, before)


def check_options(*, ridge: float, loss: str, solver: str) -> None:
    """Refuse options that no support vector machine has."""
    check_number(positive=True, ridge=ridge)
    # Lists have no hash, which names of a dictionary need.
    if loss not in tuple(LOSSES):
        raise OptionError(f"unknown loss={loss!r}; choose one of {tuple(LOSSES)}")
    if solver not in SOLVERS:
        raise OptionError(f"unknown solver={solver!r}; choose one of {SOLVERS}")


def _by_liblinear(rows: PairedRows, start: Tensor, ridge: float, loss: str) -> Tensor:
    """Coefficients (C, M, Q) by LinearSVC; components without rows stay at ``start``."""
    machine, out = _linear_svc(), start.clone()
    order = rows.pairs.sorted
    for c, (low, high) in enumerate(
        zip(order.starts[:-1].tolist(), order.starts[1:].tolist(), strict=True)
    ):
        if low == high:
            continue
        x, signs = (
            rows.design[order.rows[low:high]].cpu().double(),
            rows.targets[order.rows[low:high]].cpu().double(),
        )
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
            out[c, m] = torch.from_numpy(fit.coef_[0]).to(out)
    return out


def _two_classes(x: Tensor, sign: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same problem with both classes in it: the loss depends on ``sign * x`` alone, and liblinear refuses one."""
    if len(sign) == 1:
        x, sign, weight = x.repeat(2, 1), sign.repeat(2), weight.repeat(2) / 2
    if bool((sign == sign[0]).all()):
        turn = torch.ones_like(sign)
        turn[0] = -1
        x, sign = x * turn.unsqueeze(-1), sign * turn
    return x, sign, weight


def _linear_svc() -> Any:
    try:
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise OptionError(
            "solver='liblinear' needs scikit-learn, which is not installed: pip install scikit-learn, or use "
            "solver='newton'"
        ) from error
    return LinearSVC
