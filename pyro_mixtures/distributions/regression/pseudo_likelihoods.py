"""Pseudo-likelihoods as components: the log density of an outcome is minus the loss of a module."""

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

# Maps outputs (B, ...) and outcomes (B, ...) of B rows to their losses (B,).
Loss = Callable[[Tensor, Tensor], Tensor]


class PartitionRows(NamedTuple):
    """All rows of a partition, since modules have no sufficient statistics."""

    # (B,) clusters, -1 for rows outside; shadows tuple.index
    index: Tensor  # type: ignore[assignment]
    value: Tensor  # (B, ...)
    weight: Tensor  # (B,)


class PseudoLikelihoods(ConditionalComponents):
    r"""C modules as components of y (B, ...): the log density is minus a loss.

    .. math:: \log p(y \mid x, c) = -\ell(f_c(x), y)

    A hard partition over them has the objective :math:`\sum_c \min_\theta \sum_{i \in S_c}
    \ell(f_c(x_i), y_i)`: Sangani et al., "Expert Training in Mixture Models", ICML 2023. Since
    ``exp(-loss)`` need not integrate to one over y, outcomes cannot be drawn. When all components
    are evaluated, every expert sees all rows once; otherwise it sees only the rows that select it.

    :param covariates: (B, P).
    :param experts: C modules from rows (n, P) to outputs (n, ...), each row independently.
    :param loss: ``loss(output, y)`` that returns one number per row (n,), or a name of
        :data:`LOSSES`.
    :param event_shape: shape of one row's outcome.
    :param leave_one_out_steps: number of gradient steps by which leave-one-out gains are estimated,
        for every cluster without each of its rows; see :func:`gains_by_steps`. The cost is
        quadratic in the sizes of the clusters.
    :param leave_one_out_rate: step size on the mean loss of a cluster; None takes one over its
        largest curvature.
    :raises OptionError: when the loss has an unknown name, or an option an impossible value.

    >>> double = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(double.weight, 2.0)
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> family = PseudoLikelihoods(x, [torch.nn.Identity(), double], loss="squared")
    >>> family[torch.tensor([1, 0])].log_prob(torch.tensor([0.0, 2.0])).tolist()
    [-4.0, -1.0]
    """

    argument_names = ()  # see the property arguments
    arg_constraints = {}
    pads = True  # the log density of padding is filled in
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
        self._parameters: dict[str, Tensor] = {
            f"{component}.{name}": parameter
            for component, expert in enumerate(self.experts)
            for name, parameter in expert.named_parameters()
        }
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
        """Raise an error: parameters cannot be replaced in modules.

        :raises ClosedFormError: always.
        """
        raise ClosedFormError(
            "the experts' parameters belong to their modules: train them by gradients"
        )

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def min_rows(self) -> int:
        return 1

    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        shape = (len(self.covariates), *self.event_shape)
        if value.shape != shape:
            raise DataError(
                f"outcomes are {tuple(value.shape)}, but these components have outcomes {shape}: "
                "pass that shape, or another event_shape="
            )

        def log_density(output: Tensor, rows: Any) -> Tensor:
            return -self._losses(output, value[rows])

        return self._evaluate(index, log_density, -torch.inf)

    def mean_at(self, index: Tensor) -> Tensor:
        """Return the experts' outputs (*index.shape, ...), such as logits for the cross-entropy.

        A last dimension of one number is left out if the outcomes do not have it.
        """
        outputs = self._evaluate(index, lambda output, rows: output, 0.0)
        has_extra_dim = outputs.shape == (*index.shape, *self.event_shape, 1)
        return outputs.squeeze(-1) if has_extra_dim else outputs

    def outputs(self) -> Tensor:
        """Return the outputs (C, B, ...) of all experts for all rows."""
        return torch.stack([expert(self._inputs()) for expert in self.experts])

    def _evaluate(
        self, index: Tensor, finish: Callable[[Tensor, Any], Tensor], fill: float
    ) -> Tensor:
        """Evaluate every row with its expert, and apply ``finish(output, rows)``.

        :returns: (*index.shape, ...), with ``fill`` at padding.
        """
        pairs, x = self.pairs(index), self._inputs()
        if pairs.all_pairs:
            values = torch.stack([finish(expert(x), slice(None)) for expert in self.experts])
            return values.reshape(*index.shape, *values.shape[2:])
        rows, order, starts = pairs.sorted
        blocks = []
        for expert, (begin, end) in zip(self.experts, pairwise(starts.tolist()), strict=True):
            if begin < end:  # modules need not support zero rows
                expert_rows = rows[begin:end]
                blocks.append(finish(expert(x[expert_rows]), expert_rows))
        if not blocks:
            return torch.full(index.shape, fill, dtype=self._dtype(), device=index.device)
        values = torch.cat(blocks)
        result = values.new_full((index.numel(), *values.shape[1:]), fill)
        return result.index_put((order,), values).reshape(*index.shape, *values.shape[1:])

    def _losses(self, output: Tensor, y: Tensor) -> Tensor:
        loss = self.loss(output, y)
        if loss.shape != y.shape[:1]:
            raise DataError(
                f"the loss of {len(y)} rows has shape {tuple(loss.shape)}: return one number per "
                f"row, ({len(y)},), for example by reduction='none'"
            )
        return loss

    def _inputs(self) -> Tensor:
        """Return the covariates in the experts' dtype; integers, for embeddings, are unchanged."""
        x = self.covariates
        return match_dtype(x, x.new_empty(0, dtype=self._dtype())) if x.is_floating_point() else x

    def _dtype(self) -> torch.dtype:
        """Return the dtype of the experts' first floating-point parameter, or of the covariates."""
        for tensor in (*self._parameters.values(), self.covariates):
            if tensor.is_floating_point():
                return tensor.dtype
        return torch.get_default_dtype()

    def sample_at(self, index: Tensor) -> NoReturn:
        """Raise an error: a pseudo-likelihood is not a distribution.

        :raises ModelError: always.
        """
        raise ModelError(
            "exp(-loss) is not a distribution, so outcomes cannot be drawn: pass y=, or use the "
            "experts' outputs"
        )

    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> NoReturn:
        raise _no_closed_form()

    def maximizers(self, statistics: Any, free: frozenset[str], floor: Tensor | None) -> NoReturn:
        raise _no_closed_form()

    def partition_statistics_at(
        self, index: Tensor, value: Tensor, weight: Tensor
    ) -> PartitionRows:
        """Return the rows themselves."""
        return PartitionRows(index, value, weight)

    def leave_one_out_at(
        self, statistics: PartitionRows, index: Tensor, value: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Estimate what each row (B,) adds to the minimal loss of its cluster, zero outside.

        :param statistics: of these rows themselves.
        """
        labels = statistics.index
        gains = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
        rows, _, starts = self.pairs(labels).sorted
        for expert, (begin, end) in zip(self.experts, pairwise(starts.tolist()), strict=True):
            if begin < end:
                expert_rows = rows[begin:end]
                gains[expert_rows] = self._gains(expert, expert_rows, statistics)
        return gains.to(self._dtype())

    def _gains(self, expert: Module, rows: Tensor, partition: PartitionRows) -> Tensor:
        x, y = self._inputs()[rows], partition.value[rows]
        params: dict[str, Tensor] = {
            name: p for name, p in expert.named_parameters() if p.requires_grad
        }

        def losses(params: dict[str, Tensor]) -> Tensor:
            return self._losses(functional_call(expert, params, (x,)), y)

        return gains_by_steps(losses, params, partition.weight[rows], self.descent)


def _no_closed_form() -> ClosedFormError:
    return ClosedFormError(
        "modules have no closed form: pass gradient= (and gradient_steps=) to EM, or use SVI"
    )


def descent_of(steps: int, rate: float | None) -> Descent:
    """Return the descent with these options.

    :raises OptionError: when one of them has an impossible value.
    """
    check_whole(minimum=0, leave_one_out_steps=steps)
    if rate is not None:
        check_number(positive=True, leave_one_out_rate=rate)
    return Descent(steps, rate)


def squared(output: Tensor, y: Tensor) -> Tensor:
    """Compute the squared errors (n,), summed over the dimensions of an outcome.

    :param output: of the shape of ``y``, or (n, 1) for y (n,).
    :raises DataError: when outputs and outcomes have other shapes, which broadcasting would compare
        wrongly.
    """
    if output.shape not in (y.shape, (*y.shape, 1)):
        raise DataError(
            f"outputs are {tuple(output.shape)}, but outcomes {tuple(y.shape)}: "
            "their shapes must agree"
        )
    return (output.reshape(y.shape) - match_dtype(y, output)).square().reshape(len(y), -1).sum(-1)


def cross_entropy_loss(output: Tensor, y: Tensor) -> Tensor:
    """Compute the cross-entropies (n,) of classes y (n,), integers in [0, L), under logits (n, L).

    :raises DataError: when shapes, dtype or range are different.
    """
    if output.dim() != 2 or y.shape != output.shape[:1] or y.is_floating_point():
        raise DataError(
            f"cross-entropy of outputs {tuple(output.shape)} and outcomes {tuple(y.shape)} of "
            f"{y.dtype}: pass logits (N, L) and integer classes (N,)"
        )
    # torch ignores rows of class -100.
    if int(y.min()) < 0 or int(y.max()) >= output.shape[-1]:
        raise DataError(
            f"classes lie in [{int(y.min())}, {int(y.max())}], not in [0, {output.shape[-1]})"
        )
    return cross_entropy(output, y.long(), reduction="none")


LOSSES: dict[str, Loss] = {"squared": squared, "cross_entropy": cross_entropy_loss}


def loss_named(loss: str | Loss) -> Loss:
    """Return the loss of that name, or the callable itself.

    >>> loss_named("squared")(torch.tensor([1.0]), torch.tensor([3.0]))
    tensor([4.])

    :raises OptionError: when the name is unknown.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise OptionError(
            f"unknown loss {loss!r}; choose one of {sorted(LOSSES)}, "
            "or pass a function of output and y"
        )
    return LOSSES[loss]
