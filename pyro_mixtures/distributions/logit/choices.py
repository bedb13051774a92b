"""Multinomial logits as components: choices among alternatives that differ between choosers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.distributions.components import check_floating, match_dtype
from pyro_mixtures.distributions.indexing import once
from pyro_mixtures.distributions.regression.conditional import ConditionalComponents, nudge
from pyro_mixtures.distributions.statistics import KeptRows
from pyro_mixtures.errors import DataError, ModelError, OptionError
from pyro_mixtures.ops.choices import Choices, choice_log_prob, relative
from pyro_mixtures.ops.optimize.choice_newton import WeightedChoices, expand, minimize
from pyro_mixtures.options import check_number


class ChoiceStatistics(KeptRows):
    """The choosers of all batches with their responsibilities."""

    fitted = "logits are"

    def __init__(self, *batches: WeightedChoices):
        self.batches = batches

    def __add__(self, other: "ChoiceStatistics") -> "ChoiceStatistics":
        return ChoiceStatistics(*self.batches, *other.batches)


class ChoiceLogits(ConditionalComponents):
    r"""C multinomial logits of choices y (B, T) of B choosers in T situations.

    Each chooser has one class for all situations.

    .. math:: \log p(y \mid c) = \sum_t \Big[x_{t y_t}^T \theta_c - \log \sum_{j\
        \mathrm{available}} e^{x_{tj}^T \theta_c}\Big] - \lambda |\theta_c|^2

    Constants and alternative-specific coefficients are columns of the design. A choice of -1 marks
    a situation that the chooser does not have. The M-step is Newton's method to convergence,
    weighted by the responsibilities. As in the regressions, n choosers share the penalty
    :math:`n \lambda |\theta|^2`.

    McFadden, "Conditional logit analysis of qualitative choice behavior" (1974); with z a latent
    class: Kamakura & Russell, "A probabilistic choice model for market segmentation and elasticity
    structure" (1989).

    :param design: (B, T, J, L) attributes of the alternatives; those that are not available may
        have any attributes, NaN included.
    :param available: (B, T, J), bool.
    :param theta: (C, L) coefficients.
    :param ridge: lambda, not negative. Without it, choices that some utility predicts with
        certainty have no finite maximum.
    :raises OptionError: when shapes of coefficients do not fit.
    :raises DataError: for choices that are not numbers of available alternatives.

    >>> # One chooser, two situations, two alternatives.
    >>> design = torch.tensor([[[[0.0], [1.0]], [[1.0], [0.0]]]])
    >>> available = torch.ones(1, 2, 2, dtype=torch.bool)
    >>> logits = ChoiceLogits(design, available, torch.tensor([[0.0], [1.0]]))
    >>> logits[torch.tensor([1])].log_prob(torch.tensor([[1, -1]])).exp()
    tensor([0.7311])
    """

    arg_constraints = {"theta": constraints.independent(constraints.real, 1)}
    argument_names = ("theta",)
    option_names = ("ridge",)
    maximizes_in_blocks = False
    has_rsample = False

    def __init__(
        self,
        design: Tensor,
        available: Tensor,
        theta: Tensor,
        *,
        ridge: float = 0.0,
        validate_args: bool | None = None,
    ):
        check_floating("ChoiceLogits", theta)
        _check_situations(design, available)
        if theta.dim() != 2 or theta.shape[-1] != design.shape[-1]:
            raise OptionError(
                f"theta {tuple(theta.shape)} for {design.shape[-1]} attributes: pass (C, L)"
            )
        check_number(ridge=ridge)
        self.attributes, self.available, self.theta, self.ridge = design, available, theta, ridge
        batch_shape, event_shape = torch.Size([len(theta)]), torch.Size([design.shape[1]])
        super().__init__(design.flatten(1), batch_shape, event_shape, validate_args=validate_args)

    def with_arguments(self, arguments: Mapping[str, Tensor]) -> "ChoiceLogits":
        return ChoiceLogits(
            self.attributes, self.available, **arguments, ridge=self.ridge, validate_args=False
        )

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        return constraints.independent(constraints.integer_interval(-1, self.alternatives - 1), 1)

    @property
    def alternatives(self) -> int:
        """J, the number of alternatives."""
        return self.available.shape[-1]

    @property
    def min_rows(self) -> int:
        """Choosers that L coefficients need, as each choice gives J - 1 numbers; 1 with a ridge."""
        numbers = self.available.shape[1] * (self.alternatives - 1)
        return 1 if self.ridge else max(1, -(-self.theta.shape[-1] // max(1, numbers)))

    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        finite = self.finite()
        choices = self._choices(value, finite)
        log_prob = choice_log_prob(choices, self.theta, self.pairs(index)).reshape(index.shape)
        penalty = self.ridge * self.theta.square().sum(-1)
        # Rows that a mask hides may hold NaN, which must not reach the gradients of other rows.
        return torch.where(finite.all(-1), log_prob - penalty[once(index)], torch.nan)

    def probabilities_at(self, index: Tensor) -> Tensor:
        """Return choice probabilities (*index.shape, T, J) under the components ``index`` (..., B).

        They are zero where an alternative is not available.
        """
        return self._probs(index) * self.available

    def sample_at(self, index: Tensor) -> Tensor:
        """Draw choices (*index.shape, T), -1 in situations without an available alternative.

        :raises DataError: when attributes of an available alternative are not finite.
        """
        invalid = ~self.finite().all(-1)
        if bool(invalid.any()):
            raise DataError.at_row(
                int(invalid.nonzero()[0]),
                "row {row} of the design contains NaN or infinity where "
                "alternatives are available: its choices cannot be drawn",
            )
        probs = self._probs(index)
        draws = probs.flatten(0, -2).multinomial(1).reshape(probs.shape[:-1])
        return torch.where(self.available.any(-1), draws, -1)

    def mean_at(self, index: Tensor) -> Tensor:
        raise ModelError(
            "numbers of alternatives have no meaningful mean: use probabilities_at(index)"
        )

    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> ChoiceStatistics:
        """Return the choosers themselves."""
        pairs = self.pairs(index)
        if not pairs.all_pairs:
            pairs = self.pairs(torch.where(weight > 0, index, -1))
        return ChoiceStatistics(
            WeightedChoices(self._choices(value, self.finite()), pairs, weight.reshape(-1))
        )

    def maximizers(
        self, statistics: ChoiceStatistics, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        """Return each component's maximum over its choosers, starting at its current coefficients.

        No component gets worse.
        """
        theta = minimize(list(statistics.batches), self.theta.detach().double(), self.ridge)
        return {"theta": theta.to(self.theta)}

    def split(self, component: int, row: Any, statistics: ChoiceStatistics) -> dict[str, Tensor]:
        """Return coefficients changed at random, which change utilities by about one deviation.

        The deviation is that at coefficients of zero, since nearly certain choices have almost no
        curvature.
        """
        zero = torch.zeros_like(self.theta, dtype=torch.float64)
        at_zero = expand(list(statistics.batches), zero, self.ridge)
        change = nudge(at_zero.hessian[component] / at_zero.count[component], zero.new_ones(1))
        return {"theta": self.theta[component].detach() + change[0].to(self.theta)}

    def spread(self, statistics: ChoiceStatistics) -> Tensor:
        """Return the changes of each coefficient (L,) that change utilities by one deviation.

        The deviation is that over equally likely alternatives, averaged over choosers and
        situations. The change is zero for attributes that do not vary.
        """
        zero = torch.zeros_like(self.theta, dtype=torch.float64)
        hessian = expand(list(statistics.batches), zero, 0.0).hessian
        curvature = hessian.diagonal(dim1=-2, dim2=-1).sum(0)
        situations = sum(batch.situations for batch in statistics.batches)
        return torch.where(curvature > 0, (situations / curvature).sqrt(), 0.0).to(self.theta)

    def _probs(self, index: Tensor) -> Tensor:
        """Return choice probabilities, giving situations without alternatives the first one."""
        first = torch.where(self.available.any(-1), self.available.byte().argmax(-1), -1)
        choices = relative(self._design(), self.available, first)
        theta = self.theta[index.clamp_min(0)].reshape(-1, *index.shape[-1:], self.theta.shape[-1])
        utility = torch.einsum("btjl,sbl->sbtj", choices.design, theta)
        probs = utility.masked_fill(~choices.available, -torch.inf).softmax(-1)
        return probs.reshape(*index.shape, *probs.shape[-2:])

    def finite(self) -> Tensor:
        """Return whether all attributes of available alternatives are finite, (B, T)."""
        return (self.attributes.isfinite().all(-1) | ~self.available).all(-1)

    def _design(self) -> Tensor:
        return match_dtype(self.attributes, self.theta)

    def _choices(self, value: Tensor, finite: Tensor) -> Choices:
        """Check the choices ``value`` (B, T), and leave out situations that are not ``finite``."""
        _check_chosen(value, self.available)
        return relative(self._design(), self.available, torch.where(finite, value.long(), -1))


def _check_situations(design: Tensor, available: Tensor) -> None:
    if design.dim() != 4:
        raise DataError(f"the design must be (B, T, J, L), not {tuple(design.shape)}")
    if available.dtype != torch.bool or available.shape != design.shape[:-1]:
        raise DataError(
            f"available is {available.dtype} {tuple(available.shape)}: "
            f"pass a bool per alternative, {tuple(design.shape[:-1])}"
        )


def _check_chosen(value: Tensor, available: Tensor) -> None:
    """Check that choices (B, T) are numbers of available alternatives, or -1."""
    if value.shape != available.shape[:-1]:
        raise DataError(
            f"choices are {tuple(value.shape)}, but the situations {tuple(available.shape[:-1])}"
        )
    if value.is_floating_point() or value.dtype == torch.bool:
        raise DataError(f"choices must be numbers of alternatives, integers, not {value.dtype}")
    with torch.no_grad():
        in_range = (value >= -1) & (value < available.shape[-1])
        number = torch.where(in_range, value, -1).long()
        is_available = available.gather(-1, number.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        invalid = ~in_range | ((number >= 0) & ~is_available)
        if bool(invalid.any()):
            row, situation = invalid.nonzero()[0].tolist()
            numbers = available[row, situation].nonzero()[:, 0].tolist()
            raise DataError.at_row(
                row,
                f"row {{row}} chose alternative {int(value[row, situation])} in situation "
                f"{situation}, where {numbers} are available; use -1 for a situation that the row "
                "does not have",
            )
