"""Latent-class multinomial logit: classes of choosers who weigh the attributes of alternatives differently."""

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
from pyro_mixtures.models.base import MixtureProgram, check_row_weight, check_tensor, weighted
from pyro_mixtures.options import check_number, check_whole
from pyro_mixtures.poutine import data_plate


class LatentClassLogit(MixtureProgram):
    """``z ~ MixtureWeights(weights)``, ``y ~ ChoiceLogits(design, available, theta)[z]``, one class a chooser.

    With one component it is McFadden's conditional logit. With covariates u of the choosers,
    classes are ``z ~ GatedWeights(u, gate_weight, gate_bias)``, the first class being the
    reference: Kamakura & Russell (1989); Gupta & Chintagunta, "On using demographic variables to
    determine segment membership" (1994).

    :param components: C, the classes.
    :param coefficients: L, attributes of an alternative; or their names.
    :param covariates: None, or Q, or their names.
    :param ridge: penalty of every class' coefficients; see :class:`ChoiceLogits`.
    :param gate_ridge: penalty of the covariates' coefficients; see :class:`GatedWeights`.

    Coefficients start as small random numbers. The likelihood has many local maxima: use
    :meth:`start`, several times.

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
            del self.weights  # the gate's are in their place
            self.gate_weight = PyroParam(torch.zeros(components - 1, len(self.covariates)))
            self.gate_bias = PyroParam(torch.zeros(components - 1))

    def component_distributions(self, design: Tensor, available: Tensor) -> ChoiceLogits:
        """The C logits of choosers with attributes ``design`` (B, T, J, L) where ``available`` (B, T, J)."""
        return ChoiceLogits(design, available, self.theta, ridge=self.ridge)

    def class_distribution(self, covariates: Tensor | None = None) -> MixtureWeights | GatedWeights:
        """The distribution of the choosers' classes, given ``covariates`` (B, Q) if the model has any."""
        given = 0 if covariates is None else covariates.shape[-1]
        if given != len(self.covariates):
            raise DataError(
                f"{given} covariates for a model with {len(self.covariates)}: {list(self.covariates)}"
            )
        if covariates is None or not given:
            return MixtureWeights(self.weights)
        return GatedWeights(covariates, self.gate_weight, self.gate_bias, ridge=self.gate_ridge)

    def forward(
        self,
        design: Tensor,
        available: Tensor,
        chosen: Tensor | None = None,
        covariates: Tensor | None = None,
        row_weight: Tensor | None = None,
        index: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """The program: choices ``chosen`` (B, T) of B choosers observed, -1 padding; or drawn when None.

        :param row_weight: (B,) how many choosers each stands for; none stands for itself, zero for
            nobody.
        :param index: (B,) row numbers of a minibatch within a data set of ``size`` rows.
        """
        check_tensor("design", design)
        counted = weighted(row_weight, len(design))
        self._warn_if_shared()
        logits, classes = (
            self.component_distributions(design, available),
            self.class_distribution(covariates),
        )
        if chosen is None:
            _check_covariates(covariates)
        with data_plate(design, index, size), counted:
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
        """Put the classes around the coefficients of one class for all, at random; equal weights.

        Takes the program's arguments. A class' coefficients differ from the common ones by
        ``spread`` times as much as changes utilities by one deviation, each: among alternatives
        that are all as likely.

        :raises DataError: for arguments that do not fit, attributes of choosers with weight that
            are not finite, and covariates that the model does not have.
        """
        check_number(spread=spread)
        _check_choices(design, available, chosen)
        if covariates is not None:
            self.class_distribution(covariates)
            _check_rows(design, covariates)
        weight = self.theta.new_ones(len(chosen)) if row_weight is None else row_weight
        check_row_weight(weight, len(chosen))
        if not bool((weight > 0).any()):
            raise DataError("row_weight is zero for all choosers: there is nobody to start from")
        zero = torch.zeros_like(self.theta[:1].detach())
        common = ChoiceLogits(design, available, zero, ridge=self.ridge)
        wrong = (weight > 0) & ~common.finite().all(-1)
        if bool(wrong.any()):
            raise DataError(
                f"row {int(wrong.nonzero()[0])} of the design holds NaN or infinity: give it no weight"
            )
        everyone = torch.zeros(1, len(chosen), dtype=torch.int64, device=chosen.device)
        choosers = common.statistics_at(everyone, chosen, weight.unsqueeze(0))
        best = common.maximize(choosers, frozenset({"theta"}), floor=None)["theta"]
        noise = torch.randn(
            self.theta.shape, generator=generator, dtype=zero.dtype, device="cpu"
        ).to(zero.device)
        with torch.no_grad():
            self.theta = best + spread * common.spread(choosers) * noise
            if self.covariates:
                self.gate_weight, self.gate_bias = (
                    torch.zeros_like(self.gate_weight),
                    torch.zeros_like(self.gate_bias),
                )
            else:
                self.weights = torch.full_like(self.weights, 1.0 / self.components)

    @torch.no_grad()
    def probabilities(
        self, design: Tensor, available: Tensor, covariates: Tensor | None = None
    ) -> Tensor:
        """Probabilities (B, T, J) that choosers of unknown class choose the alternatives: the classes' average."""
        if covariates is not None:
            _check_rows(design, covariates)
        logits, shares = (
            self.component_distributions(design, available),
            self.class_distribution(covariates).table().exp(),
        )
        total = torch.zeros(available.shape, dtype=self.theta.dtype, device=design.device)
        for c, share in enumerate(shares.expand(len(design), -1).unbind(-1)):
            z = torch.full((len(design),), c, device=design.device)
            total += share[:, None, None] * logits.probabilities_at(z)
        return total


def _check_choices(design: Tensor, available: Tensor, chosen: Tensor) -> None:
    """Refuse choices that are not (B, T), one for each situation, and of at least one."""
    check_tensor("design", design)
    check_tensor("chosen", chosen)
    if (
        chosen.shape != design.shape[:2]
        or chosen.shape != available.shape[:2]
        or not chosen.numel()
    ):
        raise DataError(
            f"choices are {tuple(chosen.shape)}, the design {tuple(design.shape)}: give (B, T) and (B, T, J, L), "
            "of one situation or more"
        )


def _check_rows(design: Tensor, covariates: Tensor) -> None:
    if len(covariates) != len(design):
        raise DataError(
            f"{len(covariates)} rows of covariates for {len(design)} choosers: give each chooser one"
        )


def _check_covariates(covariates: Tensor | None) -> None:
    """Refuse covariates that no class can be drawn from."""
    if covariates is not None and not bool(covariates.isfinite().all()):
        row = int((~covariates.isfinite()).any(-1).nonzero()[0])
        raise DataError(
            f"row {row} of the covariates holds NaN or infinity: no class can be drawn from it"
        )


def _names(option: str, given: Any) -> tuple[str, ...]:
    if isinstance(given, Real):  # numpy's numbers too
        count: Any = given
        check_whole(**{option: count})
        return tuple(map(str, range(count)))
    names = tuple(given)
    if isinstance(given, str) or not names or len(set(names)) < len(names):
        raise OptionError(f"{option}={given!r}: give a number, or names that differ")
    return names
