"""Mixture weights given covariates: a softmax gate as the distribution of the discrete site."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import constraints

from pyro_mixtures.distributions.components import check_floating, match_dtype
from pyro_mixtures.distributions.indexing import once
from pyro_mixtures.distributions.shapes import broadcast
from pyro_mixtures.distributions.statistics import KeptRows
from pyro_mixtures.distributions.weights import ComponentWeights
from pyro_mixtures.errors import ClosedFormError, DataError, OptionError
from pyro_mixtures.ops import Pairs
from pyro_mixtures.ops.bilinear import pair_outer
from pyro_mixtures.ops.optimize.softmax_regression import SoftmaxRows, minimize
from pyro_mixtures.options import check_flag, check_number

# Largest number of probabilities of rows under all components in memory at once.
_NUMBERS = 1 << 22


class GateStatistics(KeptRows):
    """The rows of all batches, and sums of their covariates weighted by responsibilities.

    :param sums: (C, Q + 1) in float64.
    :param batches: designs (B, Q + 1) and row weights (B,).
    """

    fitted = "a gate is"

    def __init__(self, sums: Tensor, *batches: tuple[Tensor, Tensor]):
        self.sums, self.batches = sums, batches

    def __add__(self, other: "GateStatistics") -> "GateStatistics":
        return GateStatistics(self.sums + other.sums, *self.batches, *other.batches)

    @property
    def counts(self) -> Tensor:
        """Expected numbers of rows of the components (C,), in float64."""
        return self.sums[:, -1]

    def rows(self, components: Tensor) -> SoftmaxRows:
        """Return all rows, for some of the ``components``."""
        designs, weights = zip(*self.batches, strict=True)
        return SoftmaxRows(torch.cat(designs), torch.cat(weights), self.sums[components])


class GatedWeights(ComponentWeights):
    r"""Categorical over C components given covariates u: :math:`\mathrm{softmax}(W u + b)`.

    The log probability of a row includes its share of the ridge penalty, :math:`-\lambda |W|^2`.
    So n rows share the penalty n lambda, and the E-step, the log evidence and the M-step agree on
    the objective. (Under a penalty, the probabilities of ``log_prob`` do not sum to one; draws
    follow the softmax.) The M-step is multinomial logistic regression with soft labels, by Newton's
    method. It needs the rows themselves, so stepwise (online) EM is refused.

    The softmax does not change when all components' coefficients are shifted by the same amounts.
    With ``reference=True``, the first component has coefficients of zero, and the params are those
    of the other C - 1 components: standard errors and numbers of parameters then have the usual
    meaning of a multinomial logit. With ``reference=False``, all components and their penalties are
    treated alike, as in scikit-learn's ``LogisticRegression(C=1 / (2 n lambda))`` for n rows; this
    suits regularized gates whose coefficients are not interpreted.

    A row whose covariates are not finite has log probability NaN and does not enter gradients, so
    a mask can hide it; draws replace its covariates by zeros. The normalizers need (B, C) numbers,
    which are computed in blocks of rows, and recomputed in backward if there are many.

    :param covariates: (B, Q), of the rows in the data plate, which must be the last dimension.
    :param weight: (C - 1, Q), or (C, Q) without a reference.
    :param bias: (C - 1,), or (C,). A component of bias -inf has probability zero.
    :param ridge: lambda, not negative, of the weights only. Without it, components that a
        hyperplane separates have no finite maximum.
    :param reference: whether the first component has coefficients of zero.
    :raises OptionError: when shapes of coefficients or options do not fit.
    :raises DataError: when the covariates are not a matrix.

    >>> u = torch.tensor([[0.0], [1.0]])
    >>> gate = GatedWeights(u, torch.tensor([[2.0]]), torch.tensor([-2.0]))
    >>> gate.log_prob(torch.tensor([[0], [1]])).exp()
    tensor([[0.8808, 0.5000],
            [0.1192, 0.5000]])
    """

    arg_constraints = {"weight": constraints.real_vector, "bias": constraints.real}

    def __init__(
        self,
        covariates: Tensor,
        weight: Tensor,
        bias: Tensor,
        *,
        ridge: float = 0.0,
        reference: bool = True,
        validate_args: bool | None = None,
    ):
        check_flag(reference=reference)
        check_floating(type(self).__name__, weight, bias)
        if covariates.dim() != 2:
            raise DataError(f"covariates must be (B, Q), not {tuple(covariates.shape)}")
        if (
            weight.dim() != 2
            or bias.shape != weight.shape[:1]
            or weight.shape[1] != covariates.shape[1]
        ):
            raise OptionError(
                f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)} for "
                f"{covariates.shape[1]} covariates: pass "
                f"({'C - 1' if reference else 'C'}, {covariates.shape[1]}) and "
                f"({'C - 1' if reference else 'C'},)"
            )
        check_number(ridge=ridge)
        self.covariates, self.weight, self.bias = covariates, weight, bias
        self.ridge, self.reference = ridge, reference
        super().__init__(covariates.shape[:1], torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "GatedWeights":
        shape, rows = torch.Size(batch_shape), len(self.covariates)
        if shape.numel() != rows or shape[-1:] != (rows,):
            raise DataError(
                f"covariates of {rows} rows in plates of shape {tuple(shape)}: the data plate must "
                "have as many rows, in the last dimension (dim=-1)"
            )
        new: GatedWeights = self._get_checked_instance(GatedWeights, _instance)
        new.__dict__.update(
            self.arguments, covariates=self.covariates, ridge=self.ridge, reference=self.reference
        )
        super(GatedWeights, new).__init__(shape, torch.Size(), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def arguments(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "bias": self.bias}

    @property
    def components(self) -> int:
        return len(self.weight) + self.reference

    def redundant(self, free: frozenset[str]) -> int:
        # Without a reference, coefficients that all components share cancel.
        if self.reference or free != self.arguments.keys():
            return 0
        return self.weight.shape[1] + 1

    @property
    def coefficients(self) -> Tensor:
        """Coefficients (C, Q + 1) of all components, the bias last."""
        free = torch.cat([self.weight, self.bias.unsqueeze(-1)], -1)
        return torch.cat([torch.zeros_like(free[:1]), free]) if self.reference else free

    def design(self) -> Tensor:
        """Return the covariates and a column of ones, (B, Q + 1), in the dtype of the weights."""
        u = match_dtype(self.covariates, self.weight)
        return torch.cat([u, u.new_ones(len(u), 1)], -1)

    def _finite_design(self) -> tuple[Tensor, Tensor]:
        """Return the design, with zeros in rows that are not finite, and which rows (B,) are."""
        design = self.design()
        finite = design.isfinite().all(-1)
        # NaN would reach the gradients of the coefficients.
        return torch.where(finite.unsqueeze(-1), design, 0.0), finite

    def table(self) -> Tensor:
        """Return the log softmax (B, C) of all rows, without the penalty."""
        return (self.design() @ self.coefficients.T).log_softmax(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = broadcast(value.shape, self.batch_shape)
        z = once(value.long().expand(shape))
        z = z.reshape(-1, z.shape[-1])
        design, finite = self._finite_design()
        coefficients = self.coefficients
        size = max(1, _NUMBERS // self.components)
        if len(design) <= size:
            log_prob = _log_softmax_at(design, coefficients, z)
        else:
            blocks = zip(design.split(size), z.expand(-1, len(design)).split(size, 1), strict=True)
            log_prob = torch.cat(
                [_RecomputedLogSoftmax.apply(x, coefficients, c) for x, c in blocks], -1
            )
        log_prob = torch.where(finite | (z < 0), log_prob, torch.nan).reshape(shape)
        return log_prob - self.ridge * self.weight.square().sum() if self.ridge else log_prob

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        draws = torch.Size(sample_shape).numel()
        if not shape.numel():
            return torch.zeros(shape, dtype=torch.int64, device=self.weight.device)
        with torch.no_grad():
            blocks = self._finite_design()[0].split(max(1, _NUMBERS // self.components))
            probs = ((x @ self.coefficients.T).softmax(-1) for x in blocks)
            z = torch.cat([p.multinomial(draws, replacement=True) for p in probs])
            return z.T.reshape(shape)

    def statistics_of(self, value: Tensor, weight: Tensor) -> GateStatistics:
        """Return the rows, and sums of their covariates weighted by ``weight`` (..., B)."""
        design = self.design()
        if weight.shape[-1] != len(design):
            raise DataError(
                f"{weight.shape[-1]} rows in the last dimension for {len(design)} rows of "
                "covariates: open the data plate with dim=-1"
            )
        q, z = weight.reshape(-1, len(design)), once(value.expand(weight.shape))
        z = z.reshape(-1, z.shape[-1])
        total = torch.where(z >= 0, q, 0.0).sum(0)
        counted = total > 0  # other rows may hold NaN
        design, q = design[counted], q[:, counted]
        z = z.expand(-1, len(design)) if z.shape[1] == 1 else z[:, counted]
        sums = _weighted_sums(q, design, Pairs(z, self.components))
        return GateStatistics(sums, (design, total[counted]))

    def maximizers(
        self, statistics: GateStatistics, free: frozenset[str], dropped: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the gate's maximum, starting at its current coefficients; it never gets worse.

        A component without rows gets bias -inf, its supremum (the reference cannot). The other
        components share the probability of dropped ones in proportion to their own.
        """
        if free != {"weight", "bias"}:
            raise ClosedFormError(
                "weight and bias of a gate are fitted together only: free or freeze both, "
                "or use SVI"
            )
        start = self.coefficients.detach().double()
        live = statistics.counts > 0
        live[: int(self.reference)] = True
        best = torch.zeros_like(start)
        best[:, -1] = -torch.inf
        penalty = torch.full_like(start[0], self.ridge)
        penalty[-1] = 0.0
        # By rounding, a dropped component may have positive responsibilities.
        live_start = torch.where(start[live].isfinite().all(-1, keepdim=True), start[live], 0.0)
        fixed = int(self.reference)
        best[live] = minimize(statistics.rows(live), live_start, penalty, fixed=fixed)
        return self._as_arguments(best if dropped is None else self._without(best, dropped))

    def _without(self, coefficients: Tensor, dropped: Tensor) -> Tensor:
        """Set the probability of ``dropped`` components to zero, in place."""
        if self.reference and bool(dropped[0]):
            raise ClosedFormError(
                "component 0 has too few rows, but it is the gate's reference and cannot be "
                "dropped: use empty='reseed' or 'keep', or GatedWeights(reference=False)"
            )
        coefficients[dropped, :-1], coefficients[dropped, -1] = 0.0, -torch.inf
        return coefficients

    def halve(self, values: dict[str, Tensor], component: int, like: int) -> None:
        if not values:
            return
        gate = GatedWeights(
            self.covariates,
            values["weight"],
            values["bias"],
            reference=self.reference,
            validate_args=False,
        )
        coefficients = gate.coefficients.double()
        coefficients[like, -1] -= math.log(2)
        coefficients[component] = coefficients[like]
        if self.reference:
            coefficients = coefficients - coefficients[:1]
        values.update(self._as_arguments(coefficients))

    def _as_arguments(self, coefficients: Tensor) -> dict[str, Tensor]:
        free = coefficients[int(self.reference) :].to(self.weight)
        return {"weight": free[:, :-1].contiguous(), "bias": free[:, -1].contiguous()}


def _weighted_sums(q: Tensor, design: Tensor, pairs: Pairs) -> Tensor:
    """Return sums (C, Q + 1) in float64 of ``q x`` over each component's pairs, ``q`` (S, B)."""
    if not pairs.all_pairs:
        return pair_outer(q.reshape(-1, 1), design, pairs).squeeze(1)
    size = max(1, _NUMBERS // pairs.components)
    blocks = zip(q.split(size, 1), design.split(size), strict=True)
    return torch.stack([weight.double() @ x.double() for weight, x in blocks]).sum(0)


def _log_softmax_at(design: Tensor, coefficients: Tensor, z: Tensor) -> Tensor:
    """Return the log softmax (S, B) of the components ``z`` (S, B) or (S, 1), -inf at padding."""
    table, valid = (design @ coefficients.T).log_softmax(-1), z.clamp_min(0)
    log_prob = table[:, valid[:, 0]].T if z.shape[1] == 1 else table.gather(1, valid.T).T
    return torch.where(z < 0, -torch.inf, log_prob)


class _RecomputedLogSoftmax(torch.autograd.Function):
    """The same as :func:`_log_softmax_at`; backward recomputes the table instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, design: Tensor, coefficients: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(design, coefficients, z)
        return _log_softmax_at(design, coefficients, z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        design, coefficients, z = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        with torch.enable_grad():
            x = design.detach().requires_grad_(needs[0])
            theta = coefficients.detach().requires_grad_(needs[1])
            log_prob = _log_softmax_at(x, theta, z)
        leaves = [leaf for leaf in (x, theta) if leaf.requires_grad]
        slopes = iter(torch.autograd.grad(log_prob, leaves, grad))
        return *(next(slopes) if needed else None for needed in needs), None
