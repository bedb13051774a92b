"""Latent-class multinomial logit: classes of choosers with different coefficients."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import pyro
import torch
from pyro.nn import PyroParam
from torch import Tensor

from pyro_mixtures.distributions import MixtureWeights
from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.distributions.logit.choices import ChoiceLogits
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.models.base import MixtureProgram
from pyro_mixtures.models.row_weights import check_row_weight, check_tensor
from pyro_mixtures.options import check_number, check_whole
from pyro_mixtures.poutine import data_plate


class LatentClassLogit(MixtureProgram):
    """Model choices as ``y ~ ChoiceLogits(design, available, theta)[z]``, one class per chooser.

    Params: ``theta`` (C, L), and ``weights`` (C,) or, with covariates, ``gate_weight`` (C - 1, Q)
    and ``gate_bias`` (C - 1,). With one component this is McFadden's conditional logit. With
    covariates u of the choosers, classes are ``z ~ GatedWeights(u, gate_weight, gate_bias)``, with
    the first class as the reference. Coefficients start as small random numbers. The likelihood
    has many local maxima: call :meth:`start` for each of several restarts.

    Kamakura & Russell, "A probabilistic choice model for market segmentation and elasticity
    structure" (1989); Gupta & Chintagunta, "On using demographic variables to determine segment
    membership in logit mixture models" (1994).

    :param components: C, the number of classes.
    :param coefficients: L, the number of attributes of an alternative, or their names.
    :param covariates: None, or Q, the number of covariates of a chooser, or their names.
    :param ridge: penalty on the coefficients of each class; see :class:`ChoiceLogits`.
    :param gate_ridge: penalty on the coefficients of the covariates; see :class:`GatedWeights`.
    :raises OptionError: when an option has an impossible value.

    >>> model = LatentClassLogit(components=2, coefficients=["time", "cost"])
    >>> model(torch.zeros(7, 1, 3, 2), torch.ones(7, 1, 3, dtype=torch.bool)).shape
    torch.Size([7, 1])
    """

    weights: Any
    theta: Any
    gate_weight: Any
    gate_bias: Any

    def __init__(
        self,
        *,
        components: int,
        coefficients: int | Sequence[str],
        covariates: int | Sequence[str] | None = None,
        ridge: float = 0.0,
        gate_ridge: float = 0.0,
    ):
        names = _names("coefficients", coefficients)
        super().__init__(
            components=components, features=len(names), equal_weights=covariates is not None
        )
        check_number(ridge=ridge, gate_ridge=gate_ridge)
        self.coefficients, self.ridge, self.gate_ridge = names, ridge, gate_ridge
        self.covariates = () if covariates is None else _names("covariates", covariates)
        self.theta = PyroParam(0.1 * torch.randn(components, len(names)))
        if self.covariates:
            check_whole(minimum=2, components=components)
            del self.weights  # the gate gives them
            self.gate_weight = PyroParam(torch.zeros(components - 1, len(self.covariates)))
            self.gate_bias = PyroParam(torch.zeros(components - 1))

    def component_distributions(self, design: Tensor, available: Tensor) -> ChoiceLogits:
        """Return the C conditional logits of B choosers.

        :param design: (B, T, J, L) attributes of J alternatives in T choice situations.
        :param available: (B, T, J), whether each alternative can be chosen.
        """
        return ChoiceLogits(design, available, self.theta, ridge=self.ridge)

    def class_distribution(self, covariates: Tensor | None = None) -> MixtureWeights | GatedWeights:
        """Return the distribution of the choosers' classes.

        :param covariates: (B, Q) of the choosers; None if the model has no covariates.
        :raises DataError: when their number is not that of the model.
        """
        count = 0 if covariates is None else covariates.shape[-1]
        if count != len(self.covariates):
            raise DataError(
                f"{count} covariates for a model with {len(self.covariates)}: "
                f"{list(self.covariates)}"
            )
        if covariates is None or not count:
            return MixtureWeights(self.weights)
        return GatedWeights(covariates, self.gate_weight, self.gate_bias, ridge=self.gate_ridge)

    def forward(
        self,
        design: Tensor,
        available: Tensor,
        chosen: Tensor | None = None,
        covariates: Tensor | None = None,
        row_weight: Tensor | None = None,
        *,
        index: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """Run the program: observe the choices of B choosers, or draw them.

        :param design: (B, T, J, L) attributes of J alternatives in T choice situations.
        :param available: (B, T, J), whether each alternative can be chosen.
        :param chosen: (B, T) numbers of the chosen alternatives, -1 for padding; None draws them.
        :param covariates: (B, Q) of the choosers; None if the model has no covariates.
        :param row_weight: (B,) weights of the choosers: a chooser of weight two counts as two, a
            chooser of weight zero as none.
        :param index: (B,) row numbers of a minibatch within a data set of ``size`` rows.
        :returns: the choices (B, T), observed or drawn.
        :raises DataError: when the arguments do not fit the model or each other.
        """
        check_tensor("design", design)
        row_weights = self._weighted_rows(row_weight, len(design), index)
        self._warn_if_shared()
        logits = self.component_distributions(design, available)
        classes = self.class_distribution(covariates)
        if chosen is None:
            _check_covariates(covariates)
        with data_plate(design, index, size), row_weights:
            z = pyro.sample("z", classes)
            return pyro.sample("y", logits[z], obs=chosen)

    def start(
        self,
        design: Tensor,
        available: Tensor,
        chosen: Tensor,
        covariates: Tensor | None = None,
        row_weight: Tensor | None = None,
        *,
        spread: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Start the classes at random around the coefficients of a one-class fit.

        The weights become equal. The first five arguments are those of the program.

        :param spread: size of the random differences: with one, each coefficient alone changes
            utilities by one standard deviation over equally likely alternatives.
        :param generator: source of randomness on the CPU; torch's own by default.
        :returns: None; the params are set in place.
        :raises DataError: for arguments that do not fit, for attributes that are not finite of
            choosers with positive weight, and for covariates that the model does not have.
        """
        check_number(spread=spread)
        _check_choices(design, available, chosen)
        if covariates is not None:
            self.class_distribution(covariates)
            _check_rows(design, covariates)
        weight = self.theta.new_ones(len(chosen)) if row_weight is None else row_weight
        check_row_weight(weight, len(chosen))
        if not bool((weight > 0).any()):
            raise DataError("row_weight is zero for all choosers: give some a positive weight")
        zero = torch.zeros_like(self.theta[:1].detach())
        common = ChoiceLogits(design, available, zero, ridge=self.ridge)
        invalid = (weight > 0) & ~common.finite().all(-1)
        if bool(invalid.any()):
            row = int(invalid.nonzero()[0])
            raise DataError(
                f"row {row} of the design contains NaN or infinity: set its weight to zero"
            )
        first_class = torch.zeros(1, len(chosen), dtype=torch.int64, device=chosen.device)
        statistics = common[first_class].statistics(chosen, weight.unsqueeze(0))
        best = common.maximize(statistics, frozenset({"theta"}), floor=None)["theta"]
        noise = torch.randn(
            self.theta.shape, generator=generator, dtype=zero.dtype, device="cpu"
        ).to(zero.device)
        with torch.no_grad():
            self.theta = best + spread * common.spread(statistics) * noise
            if self.covariates:
                self.gate_weight = torch.zeros_like(self.gate_weight)
                self.gate_bias = torch.zeros_like(self.gate_bias)
            else:
                self.weights = torch.full_like(self.weights, 1.0 / self.components)

    @torch.no_grad()
    def probabilities(
        self, design: Tensor, available: Tensor, covariates: Tensor | None = None
    ) -> Tensor:
        """Compute the choice probabilities of choosers whose class is unknown.

        :param design: (B, T, J, L) attributes of J alternatives in T choice situations.
        :param available: (B, T, J), whether each alternative can be chosen.
        :param covariates: (B, Q) of the choosers; None if the model has no covariates.
        :returns: (B, T, J) probabilities, averaged over the classes by their prior probabilities.
        :raises DataError: when the arguments do not fit the model or each other.
        """
        if covariates is not None:
            _check_rows(design, covariates)
        logits = self.component_distributions(design, available)
        class_probs = self.class_distribution(covariates).table().exp()
        total = torch.zeros(available.shape, dtype=self.theta.dtype, device=design.device)
        for component, prob in enumerate(class_probs.expand(len(design), -1).unbind(-1)):
            z = torch.full((len(design),), component, device=design.device)
            total += prob[:, None, None] * logits.probabilities_at(z)
        return total


def _check_choices(design: Tensor, available: Tensor, chosen: Tensor) -> None:
    """Check that there is one choice (B, T) per situation of the design, and at least one."""
    check_tensor("design", design)
    check_tensor("chosen", chosen)
    if (
        chosen.shape != design.shape[:2]
        or chosen.shape != available.shape[:2]
        or not chosen.numel()
    ):
        raise DataError(
            f"choices are {tuple(chosen.shape)}, the design {tuple(design.shape)}: "
            "pass (B, T) and (B, T, J, L), with at least one situation"
        )


def _check_rows(design: Tensor, covariates: Tensor) -> None:
    if len(covariates) != len(design):
        raise DataError(
            f"{len(covariates)} rows of covariates for {len(design)} choosers: pass one per chooser"
        )


def _check_covariates(covariates: Tensor | None) -> None:
    """Check that covariates are finite, so that classes can be drawn from them."""
    if covariates is not None and not bool(covariates.isfinite().all()):
        row = int((~covariates.isfinite()).any(-1).nonzero()[0])
        raise DataError(
            f"row {row} of the covariates contains NaN or infinity: its class cannot be drawn"
        )


def _names(option: str, number_or_names: Any) -> tuple[str, ...]:
    """Return distinct names; those of a number n are "0", ..., "n - 1"."""
    if isinstance(number_or_names, Real):  # numbers of numpy included
        count: Any = number_or_names
        check_whole(**{option: count})
        return tuple(map(str, range(count)))
    names = tuple(number_or_names)
    if isinstance(number_or_names, str) or not names or len(set(names)) < len(names):
        raise OptionError(f"{option}={number_or_names!r}: pass a number, or distinct names")
    return names
