"""Scores of fits that compete, and which of them is best."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyro_mixtures.diagnostics.model_choice.loo import LeaveOneOut
from pyro_mixtures.diagnostics.model_choice.predictive import Predictive
from pyro_mixtures.diagnostics.model_choice.table import columns, table
from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer.em.fit import Fit
from pyro_mixtures.infer.restarts.path import Member
from pyro_mixtures.infer.restarts.placed import Placed
from pyro_mixtures.infer.restarts.trials import put_in_place
from pyro_mixtures.infer.uncertainty.criteria import Criteria
from pyro_mixtures.options import check_number

INFORMATION = ("bic", "aic", "icl")
PREDICTIVE = ("heldout", "loo")


@dataclass(frozen=True)
class Score:
    """One family with one number of components."""

    family: str
    components: int
    criteria: Criteria  # of the rows that it was fitted to
    heldout: Predictive | None  # of the rows that were held out, or of all rows by folds
    loo: LeaveOneOut | None
    member: Member

    @property
    def fit(self) -> Fit:
        """How the fit went. Its model reads Pyro's store: :attr:`model`, and :meth:`use`, are safe."""
        return self.member.fit

    @property
    def model(self) -> Placed:
        """The fitted program with its own params, whatever Pyro's store holds."""
        return self.member.model

    def use(self) -> Fit:
        """Put the params of this fit in place in Pyro's store."""
        put_in_place(self.member.store)
        return self.fit

    def value(self, criterion: str) -> float:
        """What ``criterion`` says, in its own sign."""
        if criterion in INFORMATION:
            return float(getattr(self.criteria, criterion))
        return self.predictive(criterion).total

    def predictive(self, criterion: str) -> Predictive:
        """Row by row, of ``"heldout"`` or ``"loo"``.

        :raises OptionError: when it was not asked for.
        """
        if criterion == "heldout" and self.heldout is not None:
            return self.heldout
        if criterion == "loo" and self.loo is not None:
            return self.loo.predictive
        options = {"heldout": "heldout=rows or folds=5", "loo": "draws=100"}
        if criterion in options:
            raise OptionError(
                f"criterion {criterion!r} was not computed: give compare_fits {options[criterion]}"
            )
        raise OptionError(
            f"unknown criterion {criterion!r}; choose one of {(*INFORMATION, *PREDICTIVE)}"
        )


@dataclass(frozen=True)
class Comparison:
    """The outcome of :func:`~pyro_mixtures.diagnostics.model_choice.compare.compare_fits`."""

    scores: Sequence[Score]  # by family, then by number of components
    criterion: str
    interrupted: bool = False

    @property
    def best(self) -> Score:
        """The choice by :attr:`criterion`: see :meth:`best_by`."""
        return self.best_by(self.criterion)

    def best_by(self, criterion: str, *, errors: float = 1.0) -> Score:
        """The smallest AIC, BIC or ICL; by ``"heldout"`` or ``"loo"`` the simplest fit that is as good as the best.

        Predictive estimates of a mixture with a component too many differ from those of the right
        one by less than their noise. So of all fits whose sum lies within ``errors`` standard
        errors *of the difference* below the largest sum the one with the fewest free parameters is
        taken (the one-standard-error rule of Breiman, Friedman, Olshen & Stone, "Classification and
        Regression Trees", 1984, with paired rows); ``errors=0`` takes the largest.

        :raises OptionError: for a criterion that is unknown or was not computed, or negative
            ``errors``.
        """
        check_number(errors=errors)
        if criterion in INFORMATION:
            return min(self.scores, key=lambda score: score.value(criterion))
        leader = max(self.scores, key=lambda score: score.value(criterion))
        top = leader.predictive(criterion)
        as_good = [
            score
            for score in self.scores
            if top.total - score.value(criterion)
            <= errors * top.error_against(score.predictive(criterion))
        ]
        return min(
            as_good or [leader],
            key=lambda score: (score.criteria.parameters, -score.value(criterion)),
        )

    def families(self) -> dict[str, list[Score]]:
        """Scores by family."""
        names = dict.fromkeys(score.family for score in self.scores)
        return {name: [score for score in self.scores if score.family == name] for name in names}

    def criteria(self) -> list[str]:
        """Names of the criteria that were computed."""
        first = self.scores[0]
        return [
            *INFORMATION,
            *["heldout"] * (first.heldout is not None),
            *["loo"] * (first.loo is not None),
        ]

    def to_frame(self) -> Any:
        """A ``pandas.DataFrame``, one line a fit."""
        pandas: Any = importlib.import_module("pandas")  # slow to import, and needed here only
        return pandas.DataFrame([columns(score) for score in self.scores])

    def __str__(self) -> str:
        winners = {criterion: self.best_by(criterion) for criterion in self.criteria()}
        chosen = self.best
        return (
            f"{table(self.scores, winners)}\n"
            f"* chosen by that column; by {self.criterion}: {chosen.family} with {chosen.components} components"
            + (" (interrupted: some fits are missing)" if self.interrupted else "")
        )
