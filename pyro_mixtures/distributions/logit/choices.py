r"""Multinomial logits as components: choices among alternatives that differ from chooser to chooser."""

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
    """The choosers of all batches under their responsibilities."""

    fitted = "logits are"

    def __init__(self, *batches: WeightedChoices):
        self.batches = batches

    def __add__(self, other: "ChoiceStatistics") -> "ChoiceStatistics":
        return ChoiceStatistics(*self.batches, *other.batches)


class ChoiceLogits(ConditionalComponents):
    r"""C multinomial logits of a chooser's choices y (B, T), one class a chooser over all its T situations.

    .. math:: \log p(y \mid c) = \sum_t \Big[x_{t y_t}^T \theta_c - \log \sum_{j\
        \mathrm{available}} e^{x_{tj}^T \theta_c}\Big] - \lambda |\theta_c|^2

    McFadden, "Conditional logit analysis of qualitative choice behavior" (1974); with z a latent
    class: Kamakura & Russell, "A probabilistic choice model for market segmentation" (1989).
    Constants and alternative-specific coefficients are columns of the design. A situation with y -1
    is one that the chooser does not have. The M-step is Newton's method to convergence, weighted by
    q. As in the regressions, n choosers bear the penalty
    :math:`n \lambda |\theta|^2` between them.

    :param design: (B, T, J, L) attributes of the alternatives; whatever, NaN included, where not
        available.
    :param available: (B, T, J), bool.
    :param theta: (C, L) coefficients.
    :param ridge: lambda, not negative. Choices that a utility tells apart for certain have no
        maximum without it.
    :raises DataError: for choices that are no alternatives' numbers, or of alternatives that are
        not available.

    >>> design = torch.tensor([[[[0.0], [1.0]], [[1.0], [0.0]]]])  # one chooser, two situations, two alternatives
    >>> logits = ChoiceLogits(design, torch.ones(1, 2, 2, dtype=torch.bool), torch.tensor([[0.0], [1.0]]))
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
        validate_args=None,
    ):
        check_floating("ChoiceLogits", theta)
        _check_situations(design, available)
        if theta.dim() != 2 or theta.shape[-1] != design.shape[-1]:
            raise OptionError(
                f"theta {tuple(theta.shape)} for {design.shape[-1]} attributes: give (C, L)"
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
    def support(self):
        return constraints.independent(constraints.integer_interval(-1, self.alternatives - 1), 1)

    @property
    def alternatives(self) -> int:
        """J."""
        return self.available.shape[-1]

    @property
    def min_rows(self) -> int:
        """Choosers enough for L coefficients, each choice telling J - 1 numbers; one where a penalty holds them."""
        told = self.available.shape[1] * (self.alternatives - 1)
        return 1 if self.ridge else max(1, -(-self.theta.shape[-1] // max(1, told)))

    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        finite = self.finite()
        found = choice_log_prob(
            self._choices(value, finite), self.theta, self.pairs(index)
        ).reshape(index.shape)
        penalty = self.ridge * self.theta.square().sum(-1)
        # Rows that a mask hides may hold NaN, which must not reach the others' gradients.
        return torch.where(finite.all(-1), found - penalty[once(index)], torch.nan)

    def probabilities_at(self, index: Tensor) -> Tensor:
        """Choice probabilities (*index.shape, T, J) of the rows under the components ``index`` (..., B).

        Zero where not available, and for all alternatives of a situation that has none.
        """
        return self._shares(index) * self.available

    def sample_at(self, index: Tensor) -> Tensor:
        """Choices (*index.shape, T); -1 in situations without an available alternative.

        :raises DataError: for a row with attributes that are not finite, of an alternative that is
            available.
        """
        wrong = ~self.finite().all(-1)
        if bool(wrong.any()):
            raise DataError(
                f"row {int(wrong.nonzero()[0])} of the design holds NaN or infinity where alternatives are available: "
                "no choice can be drawn from it"
            )
        shares = self._shares(index)
        drawn = shares.flatten(0, -2).multinomial(1).reshape(shares.shape[:-1])
        return torch.where(self.available.any(-1), drawn, -1)

    def mean_at(self, index: Tensor) -> Tensor:
        raise ModelError(
            "a mean of alternatives' numbers says nothing: use probabilities_at(index)"
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
        """Each component's maximum over its choosers, from its present coefficients; no component gets worse."""
        found = minimize(list(statistics.batches), self.theta.detach().double(), self.ridge)
        return {"theta": found.to(self.theta)}

    def split(self, component: int, row: Any, statistics: ChoiceStatistics) -> dict[str, Tensor]:
        """Coefficients changed at random, the utilities that a chooser compares by about one deviation.

        In the curvature at zero: where choices are all but certain there is none to go by.
        """
        zero = torch.zeros_like(self.theta, dtype=torch.float64)
        here = expand(list(statistics.batches), zero, self.ridge)
        change = nudge(here.hessian[component] / here.count[component], zero.new_ones(1))
        return {"theta": self.theta[component].detach() + change[0].to(self.theta)}

    def spread(self, statistics: ChoiceStatistics) -> Tensor:
        """What changes of each coefficient (L,) change a utility by one deviation, over all choosers and situations.

        Deviations are those among alternatives that are all as likely; zero where an attribute has
        none.
        """
        zero = torch.zeros_like(self.theta, dtype=torch.float64)
        curvature = (
            expand(list(statistics.batches), zero, 0.0).hessian.diagonal(dim1=-2, dim2=-1).sum(0)
        )
        situations = sum(batch.situations for batch in statistics.batches)
        return torch.where(curvature > 0, (situations / curvature).sqrt(), 0.0).to(self.theta)

    def _shares(self, index: Tensor) -> Tensor:
        """Choice probabilities (*index.shape, T, J); a situation without alternatives has the first one."""
        first = torch.where(self.available.any(-1), self.available.byte().argmax(-1), -1)
        choices = relative(self._design(), self.available, first)
        each = self.theta[index.clamp_min(0)].reshape(-1, *index.shape[-1:], self.theta.shape[-1])
        utility = torch.einsum("btjl,sbl->sbtj", choices.design, each)
        shares = utility.masked_fill(~choices.available, -torch.inf).softmax(-1)
        return shares.reshape(*index.shape, *shares.shape[-2:])

    def finite(self) -> Tensor:
        """Whether all attributes that count are finite, (B, T)."""
        return (self.attributes.isfinite().all(-1) | ~self.available).all(-1)

    def _design(self) -> Tensor:
        return match_dtype(self.attributes, self.theta)

    def _choices(self, value: Tensor, finite: Tensor) -> Choices:
        """The choices ``value`` (B, T), checked; situations that are not ``finite`` are left out."""
        _check_chosen(value, self.available)
        return relative(self._design(), self.available, torch.where(finite, value.long(), -1))


def _check_situations(design: Tensor, available: Tensor) -> None:
    if design.dim() != 4:
        raise DataError(f"the design must be (B, T, J, L), not {tuple(design.shape)}")
    if available.dtype != torch.bool or available.shape != design.shape[:-1]:
        raise DataError(
            f"available is {available.dtype} {tuple(available.shape)}: give a bool for each alternative, "
            f"{tuple(design.shape[:-1])}"
        )


def _check_chosen(value: Tensor, available: Tensor) -> None:
    """Refuse choices (B, T) that are not numbers of available alternatives, -1 apart."""
    if value.shape != available.shape[:-1]:
        raise DataError(
            f"choices are {tuple(value.shape)}, the situations {tuple(available.shape[:-1])}"
        )
    if value.is_floating_point() or value.dtype == torch.bool:
        raise DataError(f"choices are numbers of alternatives, integers, not {value.dtype}")
    with torch.no_grad():
        known = (value >= -1) & (value < available.shape[-1])
        number = torch.where(known, value, -1).long()
        wrong = ~known | (
            (number >= 0) & ~available.gather(-1, number.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        )
        if bool(wrong.any()):
            row, situation = wrong.nonzero()[0].tolist()
            numbers = available[row, situation].nonzero()[:, 0].tolist()
            raise DataError(
                f"row {row} chose alternative {int(value[row, situation])} in situation {situation}, where {numbers} "
                "are available; -1 stands for a situation that a row does not have"
            )
