"""Base class of components without sufficient statistics, which are fitted to all their rows."""

from abc import abstractmethod
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.components import check_floating
from pyro_mixtures.distributions.indexing import once
from pyro_mixtures.distributions.leave_one_out.leaving_out import leaving
from pyro_mixtures.distributions.regression.conditional import (
    ConditionalComponents,
    augmented,
    nudge_centered,
)
from pyro_mixtures.distributions.statistics import KeptRows
from pyro_mixtures.errors import ClosedFormError, DataError, OptionError
from pyro_mixtures.ops import Pairs
from pyro_mixtures.ops.optimize.newton import PairedRows, RowLoss, Standard, expand, standardize
from pyro_mixtures.ops.tiles import component_tiles
from pyro_mixtures.options import check_number

# Rows with 1 - leverage below this determine a coefficient of their cluster alone.
_LEVERAGE_ONE = 1e-9


class RowBatch(NamedTuple):
    """Rows of one batch, and their pairs with components that have positive weight."""

    design: Tensor  # (N, Q)
    targets: Tensor  # (N, M)
    rows: Tensor  # (L,)  of each pair
    components: Tensor  # (L,)
    weight: Tensor  # (L,)


class RowStatistics(KeptRows):
    """The rows of all batches with their responsibilities; batches are joined when needed."""

    fitted = "these components are"

    def __init__(self, components: int, *batches: RowBatch):
        self.components, self.batches = components, batches

    def __add__(self, other: "RowStatistics") -> "RowStatistics":
        return RowStatistics(self.components, *self.batches, *other.batches)

    @cached_property
    def whole(self) -> PairedRows:
        """The rows and pairs of all batches."""
        design, targets, rows, components, weight = (
            list(tensors) for tensors in zip(*self.batches, strict=True)
        )
        first_row = 0
        for i, batch in enumerate(self.batches):
            rows[i] = rows[i] + first_row
            first_row += len(batch.design)
        pairs = Pairs(torch.cat(components).unsqueeze(0), self.components, torch.cat(rows))
        return PairedRows(torch.cat(design), torch.cat(targets), pairs, torch.cat(weight))

    @cached_property
    def standard(self) -> Standard:
        """The standardized covariates of the components."""
        return standardize(self.whole)

    def of(self, component: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return one component's rows (n, Q), targets (n, M) and weights (n,), in float64."""
        whole = self.whole
        order = whole.pairs.sorted
        pairs = slice(*order.starts[component : component + 2].tolist())
        rows = order.rows[pairs]
        weight = whole.weight[order.order[pairs]]
        return whole.design[rows].double(), whole.targets[rows].double(), weight.double()


class RowFittedComponents(ConditionalComponents):
    r"""C linear predictors of an outcome (B,), each fitted to its rows by a convex loss.

    The log density of a row is :math:`-\sum_m \ell(w_m^T x + b_m, t_m) - \lambda |w|^2`. The n
    rows of a component share the penalty :math:`n \lambda |w|^2`, so the E-step, the objective and
    the M-step agree. A family defines its ``row_loss``, its ``targets``, whether the bias is
    penalized, and how it solves.

    Leave-one-out gains are one Newton step from the minimum of the cluster. Let g and h be the
    slope and the curvature of row i of weight w, and A the Hessian H of the cluster minus the row's
    share of the penalty. At this minimum, the cluster without the row has the gradient
    :math:`-w u, u = g x + 2 d \beta`, and the Hessian :math:`A - w h x x^T`, so by
    Sherman-Morrison

    .. math:: f(S) - f(S \setminus i) \approx w (\ell_i + d^T \beta^2)
        + \tfrac12 w^2 [u^T A^{-1} u + w h (x^T A^{-1} u)^2 / (1 - w h x^T A^{-1} x)].

    In the basis Q in which :math:`Q H Q^T = 1` and :math:`2 Q \mathrm{diag}(d) Q^T = \mu` is
    diagonal, A is :math:`1 - w \mu`, so rows of all weights share the basis. The gain is limited to
    the interval from the row's own loss to f(S), where the exact gain lies if losses are not
    negative.

    :param covariates: (B, P).
    :param weight: (C, P), or (C, M, P) for M predictors.
    :param bias: (C,) or (C, M).
    :param ridge: lambda, not negative.
    :raises OptionError: when shapes do not fit.
    """

    argument_names = ("weight", "bias")
    option_names: tuple[str, ...] = ("covariates", "ridge")
    maximizes_in_blocks = False
    has_rsample = False
    row_loss: RowLoss
    penalizes_bias = False

    def __init__(
        self,
        covariates: Tensor,
        weight: Tensor,
        bias: Tensor,
        *,
        ridge: float,
        validate_args: bool | None = None,
    ):
        check_floating(type(self).__name__, weight, bias)
        if weight.dim() not in (2, 3) or bias.shape != weight.shape[:-1]:
            raise OptionError(
                f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)}: "
                "pass (C, P) and (C,), or (C, M, P) and (C, M)"
            )
        if weight.shape[-1] != covariates.shape[-1]:
            raise OptionError(f"weight {tuple(weight.shape)} for {covariates.shape[-1]} covariates")
        check_number(ridge=ridge)
        self.weight, self.bias, self.ridge = weight, bias, ridge
        super().__init__(
            covariates, torch.Size([len(weight)]), torch.Size(), validate_args=validate_args
        )

    @abstractmethod
    def targets(self, value: Tensor) -> Tensor:
        """Return what the loss compares predictors with, (B, M), for outcomes (B,)."""

    @abstractmethod
    def _solve(self, rows: PairedRows, start: Tensor) -> Tensor:
        """Return coefficients (C, M, Q) of the minima in float64, none worse than ``start``."""

    @property
    def arg_constraints(self) -> dict[str, Any]:
        """Constraints of the arguments, with one more dimension for several outputs."""
        output_dims = self.weight.dim() - 2
        return {
            "weight": constraints.independent(constraints.real, 1 + output_dims),
            "bias": constraints.independent(constraints.real, output_dims),
        }

    @property
    def outputs(self) -> int:
        """M, the number of predictors."""
        return self.weight.shape[1:-1].numel()

    @property
    def coefficients(self) -> Tensor:
        """Coefficients (C, M, P + 1), the bias last."""
        return augmented(self.weight, self.bias, self.outputs)

    @property
    def penalty(self) -> Tensor:
        """Penalty of each coefficient (P + 1,), in float64."""
        penalty = torch.full(
            (self.weight.shape[-1] + 1,), self.ridge, dtype=torch.float64, device=self.weight.device
        )
        penalty[-1] = self.ridge if self.penalizes_bias else 0.0
        return penalty

    @property
    def min_rows(self) -> int:
        return 1 if self.ridge else self.weight.shape[-1] + 1

    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        coefficients = self.coefficients
        loss = self.row_loss.value(self.predictor(coefficients, index), self.targets(value)).sum(-1)
        penalty = (coefficients.square() * self.penalty.to(coefficients)).sum((-1, -2))
        return -loss - penalty[once(index)]

    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> RowStatistics:
        """Return the rows themselves."""
        flat, weight = index.reshape(-1), weight.reshape(-1)
        slots = ((flat >= 0) & (weight > 0)).nonzero()[:, 0]
        design = self.design(self.weight)
        rows = slots % max(1, len(design))
        self._check_finite(rows)
        return RowStatistics(
            self.components,
            RowBatch(design, self.targets(value), rows, flat[slots].long(), weight[slots]),
        )

    def _check_finite(self, rows: Tensor) -> None:
        """Check that covariates are finite.

        The E-step need not notice: an infinite margin has no hinge loss.
        """
        invalid = ~self.covariates.isfinite().all(-1)
        if bool(invalid[rows].any()):
            row = int(rows[invalid[rows]].min())
            raise DataError.at_row(
                row, "row {row} of the covariates contains NaN or infinity: remove such rows first"
            )

    def maximizers(
        self, statistics: RowStatistics, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        """Return each component's minimum over its rows, starting at its current coefficients.

        No component gets worse.
        """
        if free != {"weight", "bias"}:
            raise ClosedFormError(
                "weight and bias are fitted together only: free or freeze both, or use SVI"
            )
        coefficients = self._solve(statistics.whole, self.coefficients.detach().double())
        weight, bias = coefficients[..., :-1], coefficients[..., -1]
        rounded = weight.to(self.weight)
        if self.weight.dtype != weight.dtype:
            # The bias makes up for the rounding of the weights, which covariates far from zero
            # multiply.
            center = statistics.standard.center[:, :-1].unsqueeze(-1)
            bias = bias + ((weight - rounded.double()) @ center).squeeze(-1)
        return {
            "weight": rounded.reshape(self.weight.shape),
            "bias": bias.reshape(self.bias.shape).to(self.bias),
        }

    def split(self, component: int, row: Any, statistics: RowStatistics) -> dict[str, Tensor]:
        """Return coefficients changed at random, by about one deviation of the predictors.

        The deviation is one over the square root of the loss's curvature in the predictor, and at
        most one where the curvature vanishes.
        """
        design, targets, weight = statistics.of(component)
        share = (weight / weight.sum()).unsqueeze(-1)
        coefficients = self.coefficients[component].detach().double()
        curvature = self.row_loss.derivatives(design @ coefficients.mT, targets)[1]
        deviation = (1 + (share * curvature).sum(0)).rsqrt()
        center = statistics.standard.center[component]
        centered = design - center
        to_given = torch.eye(len(center), dtype=center.dtype, device=center.device)
        to_given[-1, :-1] = -center[:-1]
        penalty = (to_given.mT * self.penalty) @ to_given
        gram = (share * centered).mT @ centered + penalty
        coefficients = coefficients + nudge_centered(gram, center[:-1], deviation)
        weight, bias = self.weight[component], self.bias[component]
        return {
            "weight": coefficients[:, :-1].reshape(weight.shape).to(weight),
            "bias": coefficients[:, -1].reshape(bias.shape).to(bias),
        }

    def leave_one_out_at(
        self, statistics: RowStatistics, index: Tensor, value: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Return what each row adds to the minimal loss of its cluster, by one Newton step."""
        with torch.no_grad():
            standard = statistics.standard
            coefficients = standard.coefficients(self.coefficients.double())
            penalty = standard.penalty(self.penalty)
            clusters = expand(self.row_loss, statistics.whole, coefficients, penalty, standard)
            basis, mu = _shared_basis(clusters.hessian, 2 * penalty)
            penalty_slope = 2 * coefficients @ penalty
            problems = _Clusters(coefficients, basis, mu, penalty_slope, clusters.value)
            row = leaving(clusters.count.squeeze(-1), index, weight)
            x, targets = self.design(self.weight), self.targets(value)
            result = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            numbers_per_row = x.shape[1] * (1 + 3 * self.outputs)
            for tile in component_tiles(self.pairs(index).sorted, numbers_per_row):
                c, rows, valid = tile.components, tile.rows, tile.valid
                held_out = _HeldOutRows(
                    standard.rows(x[rows].double(), c),
                    targets[rows],
                    row.weight[rows],
                    row.others[rows],
                )
                gains = self._gains(held_out, problems.select(c))
                result.index_add_(0, tile.slots[valid], gains[valid])
        return result.to(self.weight)

    def _gains(self, row: "_HeldOutRows", clusters: "_Clusters") -> Tensor:
        """Return the gains (T, R) of rows of T clusters."""
        beta, basis, mu, penalty_slope, whole = clusters
        eta = row.x @ beta.mT
        slope, curvature = (d.mT for d in self.row_loss.derivatives(eta, row.target))  # (T, M, R)
        x = row.x.unsqueeze(1)  # (T, 1, R, Q)
        weight, others = row.weight.unsqueeze(1), row.others.unsqueeze(1)  # (T, 1, R)
        # A = 1 - w mu in the shared basis; it may vanish for the last row of a cluster.
        hessian = 1 - weight.unsqueeze(-1) * mu.unsqueeze(2)
        metric = 1 / torch.where(others.unsqueeze(-1), hessian, 1.0)
        gradient, along = (
            (slope.unsqueeze(-1) * x + penalty_slope.unsqueeze(2)) @ basis.mT,
            x @ basis.mT,
        )
        leverage = weight * curvature * (along.square() * metric).sum(-1)
        cross = (along * metric * gradient).sum(-1).square() * weight * curvature / (1 - leverage)
        quadratic = weight.square() * ((gradient.square() * metric).sum(-1) + cross)
        penalty = 0.5 * (penalty_slope * beta).sum(-1).unsqueeze(-1)
        gain = weight * (self.row_loss.value(eta, row.target).mT + penalty) + 0.5 * quadratic
        whole = whole.unsqueeze(-1).expand_as(gain)
        can_refit = others & (1 - leverage > _LEVERAGE_ONE)
        return torch.where(can_refit, torch.minimum(gain, whole), whole).sum(1)


class _Clusters(NamedTuple):
    """Clusters (T,) at their minima, in the coordinates of standardized covariates."""

    beta: Tensor  # (T, M, Q) coefficients
    basis: Tensor  # (T, M, Q, Q)  Q
    mu: Tensor  # (T, M, Q)
    penalty_slope: Tensor  # (T, M, Q) gradient of the penalty of one row
    whole: Tensor  # (T, M) minimal losses

    def select(self, components: Tensor) -> "_Clusters":
        """Return some of the clusters."""
        return _Clusters(*(tensor[components] for tensor in self))


class _HeldOutRows(NamedTuple):
    """Rows (T, R) that are left out of T clusters, one at a time."""

    x: Tensor  # (T, R, Q)
    target: Tensor  # (T, R, M)
    weight: Tensor  # (T, R)
    others: Tensor  # (T, R)


def _shared_basis(hessian: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """Return the basis in which the Hessian is one and the penalty (C, Q, Q) is diagonal.

    :returns: the basis (C, M, Q, Q), without the null space of the Hessian, and the diagonal
        (C, M, Q).
    """
    curvature = hessian.diagonal(dim1=-2, dim2=-1)
    unit = torch.where(curvature > 0, curvature, 1.0).rsqrt()
    values, vectors = torch.linalg.eigh(unit.unsqueeze(-1) * hessian * unit.unsqueeze(-2))
    nonzero = values > torch.finfo(values.dtype).eps * values.shape[-1] * values[..., -1:]
    root = torch.where(nonzero, values, 1.0).rsqrt().mul(nonzero).unsqueeze(-1) * vectors.mT
    root = root * unit.unsqueeze(-2)
    diagonal, rotation = torch.linalg.eigh(root @ penalty.unsqueeze(1) @ root.mT)
    return rotation.mT @ root, diagonal.clamp(min=0)


def check_outcomes(value: Tensor, covariates: Tensor) -> None:
    """Check that there is one number per row."""
    if value.shape != covariates.shape[:1]:
        raise DataError(
            f"outcomes must be ({len(covariates)},), one per row of covariates, "
            f"not {tuple(value.shape)}"
        )
