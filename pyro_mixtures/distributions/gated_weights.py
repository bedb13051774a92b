r"""The mixture's weights given covariates: a softmax gate as the distribution of the discrete site."""

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
from pyro_mixtures.options import check_number

# Probabilities of rows under all components alive at once.
_NUMBERS = 1 << 22


class GateStatistics(KeptRows):
    """The rows of all batches, and sums of their covariates under their responsibilities."""

    fitted = "a gate is"

    def __init__(self, sums: Tensor, *batches: tuple[Tensor, Tensor]):
        self.sums, self.batches = (
            sums,
            batches,
        )  # (C, Q + 1) float64; designs (B, Q + 1) and row weights (B,)

    def __add__(self, other: "GateStatistics") -> "GateStatistics":
        return GateStatistics(self.sums + other.sums, *self.batches, *other.batches)

    @property
    def counts(self) -> Tensor:
        """Expected numbers of rows of the components (C,), in float64."""
        return self.sums[:, -1]

    def rows(self, some: Tensor) -> SoftmaxRows:
        """All rows, for the components ``some`` (C,)."""
        designs, weights = zip(*self.batches, strict=True)
        return SoftmaxRows(torch.cat(designs), torch.cat(weights), self.sums[some])


class GatedWeights(ComponentWeights):
    r"""Categorical over C components given ``covariates`` u (B, Q): :math:`\mathrm{softmax}(W u + b)`, batch (B,).

    The log probability of a row is less its share of the ridge penalty, :math:`\lambda |W|^2`: n
    rows bear n lambda between them, so that E-steps, evidence and M-step speak of the same
    objective. (So probabilities as ``log_prob`` has them do not sum to one under a penalty; draws
    follow the softmax.) The M-step is multinomial logistic regression with soft labels, by Newton's
    method; it keeps the rows, so stepwise (online) EM is refused.

    Softmax is the same for coefficients that all components shift by the same amounts.
    ``reference=True`` lets the first component have coefficients of zero, and the params are those
    of the other C - 1: standard errors and numbers of parameters then mean what they mean in a
    multinomial logit, and this is the field's habit. ``reference=False`` treats all components
    alike, and the penalty with them, as scikit-learn's ``LogisticRegression(C=1 / (2 n lambda))``
    does for n rows: for regularised gates whose coefficients nobody reads.

    A row whose covariates are not finite has log probability NaN, and no part in gradients, so that
    a mask may hide it; draws take its covariates for zeros.

    A row's normaliser needs all C components, (B, C) numbers: some rows at a time, and made again
    in backward where they are many.

    :param covariates: (B, Q), of the rows in the data plate, which has to be the last dimension.
    :param weight: (C - 1, Q), or (C, Q) without a reference. A component of bias -inf has
        probability zero.
    :param bias: (C - 1,), or (C,).
    :param ridge: lambda, not negative, of the weights alone. Components that a hyperplane separates have no finite
        maximum without it.
    :raises OptionError, DataError: when shapes or options do not fit.

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
        check_floating(type(self).__name__, weight, bias)
        if covariates.dim() != 2:
            raise DataError(f"covariates must be (B, Q), not {tuple(covariates.shape)}")
        if (
            weight.dim() != 2
            or bias.shape != weight.shape[:1]
            or weight.shape[1] != covariates.shape[1]
        ):
            raise OptionError(
                f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)} for {covariates.shape[1]} covariates: give "
                f"({'C - 1' if reference else 'C'}, {covariates.shape[1]}) and ({'C - 1' if reference else 'C'},)"
            )
        check_number(ridge=ridge)
        self.covariates, self.weight, self.bias = covariates, weight, bias
        self.ridge, self.reference = ridge, reference
        super().__init__(covariates.shape[:1], torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        shape, rows = torch.Size(batch_shape), len(self.covariates)
        if shape.numel() != rows or shape[-1:] != (rows,):
            raise DataError(
                f"covariates of {rows} rows in plates of shape {tuple(shape)}: the data plate must have as many rows, "
                "in the last dimension (dim=-1)"
            )
        new = self._get_checked_instance(GatedWeights, _instance)
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
        """Of all components (C, Q + 1), the bias last."""
        own = torch.cat([self.weight, self.bias.unsqueeze(-1)], -1)
        return torch.cat([torch.zeros_like(own[:1]), own]) if self.reference else own

    def design(self) -> Tensor:
        """The covariates and a column of ones, (B, Q + 1), in the dtype of the parameters."""
        u = match_dtype(self.covariates, self.weight)
        return torch.cat([u, u.new_ones(len(u), 1)], -1)

    def _finite_design(self) -> tuple[Tensor, Tensor]:
        """The design, zero in rows that are not finite, and which rows (B,) are."""
        design = self.design()
        finite = design.isfinite().all(-1)
        # NaN would reach the gradients of the other rows through those of the coefficients.
        return torch.where(finite.unsqueeze(-1), design, 0.0), finite

    def table(self) -> Tensor:
        """Log softmax (B, C) of all rows, without the penalty."""
        return (self.design() @ self.coefficients.T).log_softmax(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = broadcast(value.shape, self.batch_shape)
        z = once(value.long().expand(shape))
        z = z.reshape(-1, z.shape[-1])
        design, finite = self._finite_design()
        coefficients = self.coefficients
        size = max(1, _NUMBERS // self.components)
        if len(design) <= size:
            found = _log_softmax_at(design, coefficients, z)
        else:
            parts = zip(design.split(size), z.expand(-1, len(design)).split(size, 1), strict=True)
            found = torch.cat([_Remade.apply(x, coefficients, c) for x, c in parts], -1)
        found = torch.where(finite | (z < 0), found, torch.nan)
        return (
            found.reshape(shape) - self.ridge * self.weight.square().sum()
            if self.ridge
            else found.reshape(shape)
        )

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        draws = torch.Size(sample_shape).numel()
        if not shape.numel():
            return torch.zeros(shape, dtype=torch.int64, device=self.weight.device)
        with torch.no_grad():
            parts = self._finite_design()[0].split(max(1, _NUMBERS // self.components))
            probs = ((x @ self.coefficients.T).softmax(-1) for x in parts)
            return torch.cat([p.multinomial(draws, replacement=True) for p in probs]).T.reshape(
                shape
            )

    def statistics_of(self, value: Tensor, weight: Tensor) -> GateStatistics:
        """The rows, and sums of their covariates under responsibilities ``weight`` (..., B)."""
        design = self.design()
        if weight.shape[-1] != len(design):
            raise DataError(
                f"{weight.shape[-1]} rows in the last dimension for {len(design)} rows of covariates: open the data "
                "plate with dim=-1"
            )
        q, z = weight.reshape(-1, len(design)), once(value.expand(weight.shape))
        z = z.reshape(-1, z.shape[-1])
        total = torch.where(z >= 0, q, 0.0).sum(0)
        seen = total > 0  # other rows may hold anything, NaN included
        design, q = design[seen], q[:, seen]
        z = z.expand(-1, len(design)) if z.shape[1] == 1 else z[:, seen]
        return GateStatistics(
            _weighted_sums(q, design, Pairs(z, self.components)), (design, total[seen])
        )

    def maximizers(
        self, statistics: GateStatistics, free: frozenset[str], dropped: Tensor | None
    ) -> dict[str, Tensor]:
        """The gate's maximum, from its present coefficients; never worse.

        A component without rows gets its supremum, bias -inf (the reference cannot). Dropped
        components leave their probability to the others, in proportion.
        """
        if free != {"weight", "bias"}:
            raise ClosedFormError(
                "weight and bias of a gate are fitted together only: free or freeze both, or use SVI"
            )
        start = self.coefficients.detach().double()
        some = statistics.counts > 0
        some[: int(self.reference)] = True
        found = torch.zeros_like(start)
        found[:, -1] = -torch.inf
        penalty = torch.full_like(start[0], self.ridge)
        penalty[-1] = 0.0
        # Responsibilities that are not zero by rounding alone may belong to a component that has
        # been dropped.
        begin = torch.where(start[some].isfinite().all(-1, keepdim=True), start[some], 0.0)
        found[some] = minimize(statistics.rows(some), begin, penalty, fixed=int(self.reference))
        return self._as_arguments(found if dropped is None else self._without(found, dropped))

    def _without(self, found: Tensor, dropped: Tensor) -> Tensor:
        if self.reference and bool(dropped[0]):
            raise ClosedFormError(
                "component 0 has too few rows, but is the gate's reference and cannot be dropped: use empty='reseed' or "
                "'keep', or GatedWeights(reference=False)"
            )
        found[dropped, :-1], found[dropped, -1] = 0.0, -torch.inf
        return found

    def halve(self, values: dict[str, Tensor], component: int, like: int) -> None:
        if not values:
            return
        found = GatedWeights(
            self.covariates, **self._only(values), reference=self.reference
        ).coefficients.double()
        found[like, -1] -= math.log(2)
        found[component] = found[like]
        values.update(self._as_arguments(found - found[:1] if self.reference else found))

    def _only(self, values: dict[str, Tensor]) -> dict[str, Any]:
        return {"weight": values["weight"], "bias": values["bias"], "validate_args": False}

    def _as_arguments(self, coefficients: Tensor) -> dict[str, Tensor]:
        own = coefficients[int(self.reference) :].to(self.weight)
        return {"weight": own[:, :-1].contiguous(), "bias": own[:, -1].contiguous()}


def _weighted_sums(q: Tensor, design: Tensor, pairs: Pairs) -> Tensor:
    """Sums (C, Q + 1) in float64 of ``q x`` over each component's pairs, ``q`` (S, B)."""
    if not pairs.all_pairs:
        return pair_outer(q.reshape(-1, 1), design, pairs).squeeze(1)
    size = max(1, _NUMBERS // pairs.components)
    parts = [
        a.double() @ x.double() for a, x in zip(q.split(size, 1), design.split(size), strict=True)
    ]
    return torch.stack(parts).sum(0)


def _log_softmax_at(design: Tensor, coefficients: Tensor, z: Tensor) -> Tensor:
    """Log softmax (S, B) of the components ``z`` (S, B), or (S, 1) where all rows share them; -inf at -1."""
    table, known = (design @ coefficients.T).log_softmax(-1), z.clamp_min(0)
    found = table[:, known[:, 0]].T if z.shape[1] == 1 else table.gather(1, known.T).T
    return torch.where(z < 0, -torch.inf, found)


class _Remade(torch.autograd.Function):
    """The same, with the table made again in backward rather than kept."""

    @staticmethod
    def forward(ctx, design, coefficients, z):
        ctx.save_for_backward(design, coefficients, z)
        return _log_softmax_at(design, coefficients, z)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        design, coefficients, z = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        with torch.enable_grad():
            x, theta = (
                design.detach().requires_grad_(needs[0]),
                coefficients.detach().requires_grad_(needs[1]),
            )
            out = _log_softmax_at(x, theta, z)
        found = iter(
            torch.autograd.grad(out, [leaf for leaf in (x, theta) if leaf.requires_grad], grad)
        )
        return *(next(found) if needed else None for needed in needs), None
