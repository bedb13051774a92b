r"""Pseudo-likelihoods as components: :math:`\log p(y \mid x, c) = -\ell(f_c(x), y)`, any modules and per-row loss."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.func import functional_call
from torch.nn import Module
from torch.nn.functional import cross_entropy

from pyro_mixtures.distributions.components import match_dtype
from pyro_mixtures.distributions.leave_one_out.warm_starts import Descent, gains_by_steps
from pyro_mixtures.distributions.regression.conditional import ConditionalComponents
from pyro_mixtures.errors import ClosedFormError, DataError, ModelError, OptionError
from pyro_mixtures.options import check_number, check_whole

Loss = Callable[
    [Tensor, Tensor], Tensor
]  # outputs (B, ...) and outcomes (B, ...) of B rows -> their losses (B,)


class PartRows(NamedTuple):
    """All rows of a partition: parts of modules have no sufficient statistics."""

    index: Tensor  # type: ignore[assignment]  # (B,) parts, -1 for rows outside; shadows tuple.index
    value: Tensor  # (B, ...)
    weight: Tensor  # (B,)


class PseudoLikelihoods(ConditionalComponents):
    r"""C modules as components of y (B, ...) given ``covariates`` (B, P), with log density minus a loss.

    A hard partition over them has the objective :math:`\sum_c \min_\theta \sum_{i \in S_c}
    \ell(f_c(x_i), y_i)`: Sangani et al., ICML 2023. ``exp(-loss)`` need not integrate to one over
    y, so outcomes cannot be drawn. Asked for all components, every expert sees all rows once;
    otherwise it sees only the rows that select it.

    :param experts: C modules from rows (n, P) to outputs (n, ...), each row by itself.
    :param loss: ``loss(output, y)`` with one number a row (n,), or a name of :data:`LOSSES`.
    :param event_shape: shape of one row's outcome.
    :param leave_one_out_steps: steps of gradient descent of every part without each of its rows, by
        which leave-one-out gains are estimated; see :func:`gains_by_steps`, also for their cost,
        which is quadratic in the parts' sizes.
    :param leave_one_out_rate: length of those steps down the mean loss of a part, or None: one over
        its largest curvature.
    :raises OptionError: when the loss has an unknown name, or an option an impossible value.

    >>> double = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(double.weight, 2.0)
    >>> family = PseudoLikelihoods(torch.tensor([[1.0], [3.0]]), [torch.nn.Identity(), double], loss="squared")
    >>> family[torch.tensor([1, 0])].log_prob(torch.tensor([0.0, 2.0])).tolist()
    [-4.0, -1.0]
    """

    argument_names = ()  # they are the experts' own: see arguments
    arg_constraints = {}
    pads = True  # rows without an expert are filled in
    leaves_one_out = True

    def __init__(
        self,
        covariates: Tensor,
        experts: Sequence[Module],
        *,
        loss: str | Loss,
        event_shape: Sequence[int] = (),
        leave_one_out_steps: int = 5,
        leave_one_out_rate: float | None = None,
        validate_args: bool | None = None,
    ):
        self.experts, self.loss = list(experts), loss_named(loss)
        self.descent = descent_of(leave_one_out_steps, leave_one_out_rate)
        named = (
            (f"{c}.{name}", p)
            for c, expert in enumerate(self.experts)
            for name, p in expert.named_parameters()
        )
        self._parameters: dict[str, Tensor] = dict(named)
        super().__init__(
            covariates,
            torch.Size([len(self.experts)]),
            torch.Size(event_shape),
            validate_args=validate_args,
        )

    @property
    def arguments(self) -> dict[str, Tensor]:
        """The experts' parameters, ``0.weight``, ..."""
        return self._parameters

    def with_arguments(self, arguments: Mapping[str, Tensor]) -> NoReturn:
        raise ClosedFormError(
            "the experts' parameters belong to their modules: train them by gradients"
        )

    @property
    def support(self):
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def min_rows(self) -> int:
        return 1

    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        shape = (len(self.covariates), *self.event_shape)
        if value.shape != shape:
            raise DataError(
                f"outcomes {tuple(value.shape)}: these components have outcomes {shape}; see event_shape"
            )
        return self._evaluate(
            index, lambda output, rows: -self._losses(output, value[rows]), -torch.inf
        )

    def mean_at(self, index: Tensor) -> Tensor:
        """The experts' outputs (*index.shape, ...), those of one number like the outcomes, without its dimension.

        Logits, say, where the loss is cross-entropy.
        """
        found = self._evaluate(index, lambda output, rows: output, 0.0)
        return found.squeeze(-1) if found.shape == (*index.shape, *self.event_shape, 1) else found

    def outputs(self) -> Tensor:
        """Outputs (C, B, ...) of all experts for all rows."""
        return torch.stack([expert(self._inputs()) for expert in self.experts])

    def _evaluate(
        self, index: Tensor, finish: Callable[[Tensor, Any], Tensor], fill: float
    ) -> Tensor:
        """``finish(output, rows)`` of every row with its expert, (*index.shape, ...); ``fill`` at padding."""
        pairs, x = self.pairs(index), self._inputs()
        if pairs.all_pairs:
            found = torch.stack([finish(expert(x), slice(None)) for expert in self.experts])
            return found.reshape(*index.shape, *found.shape[2:])
        rows, order, starts = pairs.sorted
        parts = []
        for expert, (a, b) in zip(self.experts, pairwise(starts.tolist()), strict=True):
            if a < b:  # no module has to know what to do with no rows
                parts.append(finish(expert(x[rows[a:b]]), rows[a:b]))
        if not parts:
            return torch.full(index.shape, fill, dtype=self._dtype(), device=index.device)
        found = torch.cat(parts)
        out = found.new_full((index.numel(), *found.shape[1:]), fill).index_put((order,), found)
        return out.reshape(*index.shape, *found.shape[1:])

    def _losses(self, output: Tensor, y: Tensor) -> Tensor:
        loss = self.loss(output, y)
        if loss.shape != y.shape[:1]:
            raise DataError(
                f"the loss of {len(y)} rows has shape {tuple(loss.shape)}: give one number a row, ({len(y)},), for "
                "example by reduction='none'"
            )
        return loss

    def _inputs(self) -> Tensor:
        """Covariates as the experts take them; integers, for embeddings say, as they are."""
        x = self.covariates
        return match_dtype(x, x.new_empty(0, dtype=self._dtype())) if x.is_floating_point() else x

    def _dtype(self) -> torch.dtype:
        """That of the experts' first parameter; without any, of the covariates."""
        floating = [
            t.dtype for t in (*self._parameters.values(), self.covariates) if t.is_floating_point()
        ]
        return floating[0] if floating else torch.get_default_dtype()

    def sample_at(self, index: Tensor) -> Tensor:
        raise ModelError(
            "exp(-loss) is no distribution to draw outcomes from: pass y=, or take the experts' outputs"
        )

    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> NoReturn:
        raise _no_closed_form()

    def maximizers(self, statistics: Any, free: frozenset[str], floor: Tensor | None) -> NoReturn:
        raise _no_closed_form()

    def partition_statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> PartRows:
        """The rows themselves."""
        return PartRows(index, value, weight)

    def leave_one_out_at(
        self, statistics: PartRows, index: Tensor, value: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """An estimate of what each row (B,) adds to the minimal loss of its part, zero outside; see the class.

        :param statistics: of these rows themselves.
        """
        out = torch.zeros(
            len(statistics.index), dtype=torch.float64, device=statistics.index.device
        )
        rows, _, starts = self.pairs(statistics.index).sorted
        for expert, (a, b) in zip(self.experts, pairwise(starts.tolist()), strict=True):
            if a < b:
                out[rows[a:b]] = self._gains(expert, rows[a:b], statistics)
        return out.to(self._dtype())

    def _gains(self, expert: Module, rows: Tensor, part: PartRows) -> Tensor:
        x, y = self._inputs()[rows], part.value[rows]
        params: dict[str, Tensor] = {
            name: p for name, p in expert.named_parameters() if p.requires_grad
        }

        def losses(at: dict[str, Tensor]) -> Tensor:
            return self._losses(functional_call(expert, at, (x,)), y)

        return gains_by_steps(losses, params, part.weight[rows], self.descent)


def _no_closed_form() -> ClosedFormError:
    return ClosedFormError(
        "modules have no closed form: pass gradient= (and gradient_steps=) to EM, or use SVI"
    )


def descent_of(steps: int, rate: float | None) -> Descent:
    """The descent of these options.

    :raises OptionError: when one of them is impossible.
    """
    check_whole(minimum=0, leave_one_out_steps=steps)
    if rate is not None:
        check_number(positive=True, leave_one_out_rate=rate)
    return Descent(steps, rate)


def squared(output: Tensor, y: Tensor) -> Tensor:
    """Squared error (n,) of outputs (n, ...) or, for y (n,), (n, 1); summed over the outcome's dimensions.

    :raises DataError: when outputs and outcomes differ in shape, where broadcasting would compare
        wrong rows.
    """
    if output.shape not in (y.shape, (*y.shape, 1)):
        raise DataError(
            f"outputs {tuple(output.shape)} for outcomes {tuple(y.shape)}: their shapes must agree"
        )
    return (output.reshape(y.shape) - match_dtype(y, output)).square().reshape(len(y), -1).sum(-1)


def cross_entropy_loss(output: Tensor, y: Tensor) -> Tensor:
    """Minus the log probability (n,) of classes y (n,), integers in [0, L), under logits (n, L).

    :raises DataError: when shapes, dtype or range are others.
    """
    if output.dim() != 2 or y.shape != output.shape[:1] or y.is_floating_point():
        raise DataError(
            f"cross-entropy of outputs {tuple(output.shape)} and outcomes {tuple(y.shape)} of {y.dtype}: give logits "
            "(N, L) and integer classes (N,)"
        )
    # torch would give class -100 no loss at all.
    if int(y.min()) < 0 or int(y.max()) >= output.shape[-1]:
        raise DataError(
            f"classes lie in [{int(y.min())}, {int(y.max())}], not in [0, {output.shape[-1]})"
        )
    return cross_entropy(output, y.long(), reduction="none")


LOSSES: dict[str, Loss] = {"squared": squared, "cross_entropy": cross_entropy_loss}


def loss_named(loss: str | Loss) -> Loss:
    """The loss of that name, or the callable itself.

    >>> loss_named("squared")(torch.tensor([1.0]), torch.tensor([3.0]))
    tensor([4.])

    :raises OptionError: when there is none of that name.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise OptionError(
            f"unknown loss {loss!r}; choose one of {sorted(LOSSES)}, or give a function of output and y"
        )
    return LOSSES[loss]
