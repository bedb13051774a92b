"""Components without sufficient statistics: they keep the rows themselves, and each is fitted to its own."""

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
    nudge,
)
from pyro_mixtures.distributions.statistics import KeptRows
from pyro_mixtures.errors import ClosedFormError, DataError, OptionError
from pyro_mixtures.ops import Pairs
from pyro_mixtures.ops.optimize.newton import PairedRows, RowLoss, expand
from pyro_mixtures.ops.tiles import component_tiles
from pyro_mixtures.options import check_number

# A row that its part could not do without: 1 - leverage below this.
_HELD = 1e-9


class RowBatch(NamedTuple):
    """Rows of one call, and the pairs of them with components that have positive weight."""

    design: Tensor  # (N, Q)
    targets: Tensor  # (N, M)
    rows: Tensor  # (L,)  of each pair
    components: Tensor  # (L,)
    weight: Tensor  # (L,)


class RowStatistics(KeptRows):
    """The rows of all batches under their responsibilities; batches are joined once, where they are needed."""

    fitted = "these components are"

    def __init__(self, components: int, *batches: RowBatch):
        self.components, self.batches = components, batches

    def __add__(self, other: "RowStatistics") -> "RowStatistics":
        return RowStatistics(self.components, *self.batches, *other.batches)

    @cached_property
    def whole(self) -> PairedRows:
        """All rows and all pairs."""
        design, targets, rows, components, weight = (
            list(parts) for parts in zip(*self.batches, strict=True)
        )
        before = 0
        for i, batch in enumerate(self.batches):
            rows[i] = rows[i] + before
            before += len(batch.design)
        pairs = Pairs(torch.cat(components).unsqueeze(0), self.components, torch.cat(rows))
        return PairedRows(torch.cat(design), torch.cat(targets), pairs, torch.cat(weight))

    def of(self, component: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (n, Q) of one component, their targets (n, M) and weights (n,), in float64."""
        whole = self.whole
        order = whole.pairs.sorted
        some = slice(*order.starts[component : component + 2].tolist())
        rows = order.rows[some]
        return (
            whole.design[rows].double(),
            whole.targets[rows].double(),
            whole.weight[order.order[some]].double(),
        )


class RowFittedComponents(ConditionalComponents):
    r"""C linear predictors of an outcome (B,), each fitted to its own rows by minimising a convex loss.

    The log density of a row is :math:`-\sum_m \ell(w_m^T x + b_m, t_m) - \lambda |w|^2`: n rows of
    a component bear the penalty :math:`n \lambda |w|^2` between them, so that what E-steps compare,
    the objective, and what the M-step minimises are the same numbers. A family states its
    ``row_loss``, its ``targets``, which coefficients are penalised, and how it solves.

    Leave-one-out gains are one Newton step from the part's own minimum. With g, h slope and
    curvature of row i, of weight w, and A the part's Hessian H less the row's share of the penalty,
    the part without it has at the minimum the gradient :math:`-w u, u = g x + 2 d \beta`, and the
    Hessian :math:`A - w h x x^T`, so that by Sherman-Morrison

    .. math:: f(S) - f(S \setminus i) \approx w (\ell_i + d^T \beta^2)
        + \tfrac12 w^2 [u^T A^{-1} u + w h (x^T A^{-1} u)^2 / (1 - w h x^T A^{-1} x)].

    In the basis Q in which :math:`Q H Q^T = 1` and :math:`2 Q \mathrm{diag}(d) Q^T = \mu` is
    diagonal, A is
    :math:`1 - w \mu`: rows of all weights share it. The gain lies between the row's own loss and
    f(S), as the exact one does where losses are not negative.
    """

    argument_names = ("weight", "bias")
    option_names: tuple[str, ...] = ("covariates", "ridge")
    maximizes_in_blocks = False
    has_rsample = False
    row_loss: RowLoss
    penalises_bias = False

    def __init__(
        self, covariates: Tensor, weight: Tensor, bias: Tensor, *, ridge: float, validate_args=None
    ):
        check_floating(type(self).__name__, weight, bias)
        if weight.dim() not in (2, 3) or bias.shape != weight.shape[:-1]:
            raise OptionError(
                f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)}: give (C, P) and (C,), or (C, M, P) and (C, M)"
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
        """What the loss compares predictors with, (B, M), of outcomes (B,)."""

    @abstractmethod
    def _solve(self, rows: PairedRows, start: Tensor) -> Tensor:
        """Coefficients (C, M, Q) of the minima in float64; nowhere worse than ``start``."""

    @property
    def arg_constraints(self) -> dict[str, Any]:
        """One dimension more for several outputs."""
        own = self.weight.dim() - 2
        return {
            "weight": constraints.independent(constraints.real, 1 + own),
            "bias": constraints.independent(constraints.real, own),
        }

    @property
    def outputs(self) -> int:
        """M."""
        return self.weight.shape[1:-1].numel()

    @property
    def coefficients(self) -> Tensor:
        """(C, M, P + 1), the bias last."""
        return augmented(self.weight, self.bias, self.outputs)

    @property
    def penalty(self) -> Tensor:
        """Of each coefficient (P + 1,), in float64."""
        out = torch.full(
            (self.weight.shape[-1] + 1,), self.ridge, dtype=torch.float64, device=self.weight.device
        )
        out[-1] = self.ridge if self.penalises_bias else 0.0
        return out

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
        """A hinge is satisfied by an infinite margin: E-steps see nothing wrong with covariates that have no M-step."""
        wrong = ~self.covariates.isfinite().all(-1)
        if bool(wrong[rows].any()):
            row = int(rows[wrong[rows]].min())
            raise DataError(
                f"row {row} of the covariates holds NaN or infinity: remove such rows first"
            )

    def maximizers(
        self, statistics: RowStatistics, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        """Each component's minimum over its rows, from its present coefficients; no component gets worse."""
        if free != {"weight", "bias"}:
            raise ClosedFormError(
                "weight and bias are fitted together only: free or freeze both, or use SVI"
            )
        found = self._solve(statistics.whole, self.coefficients.detach().double())
        weight, bias = (
            found[..., :-1].reshape(self.weight.shape),
            found[..., -1].reshape(self.bias.shape),
        )
        return {"weight": weight.to(self.weight), "bias": bias.to(self.bias)}

    def split(self, component: int, row: Any, statistics: RowStatistics) -> dict[str, Tensor]:
        """Coefficients changed at random, the predictors of the component's rows by about one deviation.

        That is one over the root of the loss' curvature in the predictor, but at most one, where
        losses bend no more.
        """
        design, targets, weight = statistics.of(component)
        share = (weight / weight.sum()).unsqueeze(-1)
        coefficients = self.coefficients[component].detach().double()
        curvature = self.row_loss.derivatives(design @ coefficients.mT, targets)[1]
        deviation = (1 + (share * curvature).sum(0)).rsqrt()
        found = coefficients + nudge((share * design).mT @ design + self.penalty.diag(), deviation)
        own, bias = self.weight[component], self.bias[component]
        return {
            "weight": found[:, :-1].reshape(own.shape).to(own),
            "bias": found[:, -1].reshape(bias.shape).to(bias),
        }

    def leave_one_out_at(
        self, statistics: RowStatistics, index: Tensor, value: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """What each row adds to the minimal loss of its part ``index`` (B,), by one Newton step; see the class."""
        with torch.no_grad():
            coefficients = self.coefficients.double()
            part = expand(self.row_loss, statistics.whole, coefficients, self.penalty)
            basis, shared = _shared_basis(part.hessian, 2 * self.penalty)
            row = leaving(part.count.squeeze(-1), index, weight)
            x, targets = self.design(self.weight), self.targets(value)
            out = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            wide = x.shape[1] * (1 + 3 * self.outputs)
            for tile in component_tiles(self.pairs(index).sorted, wide):
                c, rows, some = tile.components, tile.rows, tile.valid
                leaver = _Leaver(
                    x[rows].double(), targets[rows], row.weight[rows], row.others[rows]
                )
                gains = self._gains(leaver, coefficients[c], basis[c], shared[c], part.value[c])
                out.index_add_(0, tile.slots[some], gains[some])
        return out.to(self.weight)

    def _gains(
        self, row: "_Leaver", beta: Tensor, basis: Tensor, shared: Tensor, whole: Tensor
    ) -> Tensor:
        """Gains (T, R) of rows of components with ``beta`` (T, M, Q), ``basis`` (T, M, Q, Q), minimum (T, M)."""
        eta = row.x @ beta.mT
        slope, curvature = (d.mT for d in self.row_loss.derivatives(eta, row.target))  # (T, M, R)
        x, pull = (
            row.x.unsqueeze(1),
            2 * self.penalty * beta.unsqueeze(2),
        )  # (T, 1, R, Q), (T, M, 1, Q)
        weight, others = row.weight.unsqueeze(1), row.others.unsqueeze(1)  # (T, 1, R)
        # 1 - w mu, in the basis that the parts' rows share; nothing of it is left where nothing is.
        left = 1 - weight.unsqueeze(-1) * shared.unsqueeze(2)
        metric = 1 / torch.where(others.unsqueeze(-1), left, 1.0)
        gradient, along = (slope.unsqueeze(-1) * x + pull) @ basis.mT, x @ basis.mT
        leverage = weight * curvature * (along.square() * metric).sum(-1)
        cross = (along * metric * gradient).sum(-1).square() * weight * curvature / (1 - leverage)
        quadratic = weight.square() * ((gradient.square() * metric).sum(-1) + cross)
        own = self.row_loss.value(eta, row.target).mT + (self.penalty * beta.square()).sum(
            -1
        ).unsqueeze(-1)
        gain = weight * own + 0.5 * quadratic
        whole = whole.unsqueeze(-1).expand_as(gain)
        return torch.where(others & (1 - leverage > _HELD), torch.minimum(gain, whole), whole).sum(
            1
        )


class _Leaver(NamedTuple):
    """Rows (T, R) that leave their parts, T parts at a time."""

    x: Tensor  # (T, R, Q)
    target: Tensor  # (T, R, M)
    weight: Tensor  # (T, R)
    others: Tensor  # (T, R)


def _shared_basis(hessian: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """Q (C, M, Q, Q) in which the ``hessian`` is one, its null space left out, and ``penalty`` (Q,) is diagonal."""
    values, vectors = torch.linalg.eigh(hessian)
    kept = values > torch.finfo(values.dtype).eps * values.shape[-1] * values[..., -1:]
    root = torch.where(kept, values, 1.0).rsqrt().mul(kept).unsqueeze(-1) * vectors.mT
    shared, turn = torch.linalg.eigh((root * penalty) @ root.mT)
    return turn.mT @ root, shared.clamp(min=0)


def check_outcomes(value: Tensor, covariates: Tensor) -> None:
    """Refuse outcomes that are not one number a row."""
    if value.shape != covariates.shape[:1]:
        raise DataError(
            f"outcomes must be ({len(covariates)},), one a row of covariates, not {tuple(value.shape)}"
        )
