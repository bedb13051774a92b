"""Scores of competing fits, and the choice among them."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_mixtures.diagnostics.model_choice.loo import LeaveOneOut
from pyro_mixtures.diagnostics.model_choice.predictive import Predictive
from pyro_mixtures.diagnostics.text_tables import align_columns
from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer.em.fit import Fit
from pyro_mixtures.infer.restarts.stored_fits import StoredFit, StoredModel
from pyro_mixtures.infer.uncertainty.criteria import Criteria
from pyro_mixtures.options import check_number

INFORMATION = ("bic", "aic", "icl")
PREDICTIVE = ("heldout", "loo")


@dataclass(frozen=True)
class Score:
    """The fit of one family with one number of components, and its scores."""

    family: str
    components: int
    criteria: Criteria  # on the rows of the fit
    heldout: Predictive | None  # on the held-out rows, or on all rows by cross-validation
    loo: LeaveOneOut | None
    stored: StoredFit

    @property
    def fit(self) -> Fit:
        """How the fit went.

        ``fit.model`` reads Pyro's param store, which may hold the params of another fit. Use
        :attr:`model`, or call :meth:`use` first.
        """
        return self.stored.fit

    @property
    def model(self) -> StoredModel:
        """The fitted program with its own params, regardless of what Pyro's store holds."""
        return self.stored.model

    def use(self) -> Fit:
        """Copy the params of this fit into Pyro's store and return the fit."""
        return self.stored.use()

    def value(self, criterion: str) -> float:
        """Return the value of ``criterion``.

        Small values of AIC, BIC and ICL are good, and large values of the others.

        :raises OptionError: if the criterion is unknown or was not computed.
        """
        if criterion in INFORMATION:
            return float(getattr(self.criteria, criterion))
        return self.predictive(criterion).total

    def predictive(self, criterion: str) -> Predictive:
        """Return the log predictive densities of all rows, for ``"heldout"`` or ``"loo"``.

        :raises OptionError: if the criterion is unknown or was not computed.
        """
        if criterion == "heldout" and self.heldout is not None:
            return self.heldout
        if criterion == "loo" and self.loo is not None:
            return self.loo.predictive
        options = {"heldout": "heldout=rows or folds=5", "loo": "draws=100"}
        if criterion in options:
            raise OptionError(
                f"criterion {criterion!r} was not computed: pass {options[criterion]} to "
                "compare_fits"
            )
        raise OptionError(
            f"unknown criterion {criterion!r}; choose one of {(*INFORMATION, *PREDICTIVE)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all scores by name, as :meth:`Comparison.to_frame` lists them."""
        criteria = self.criteria
        columns: dict[str, Any] = {
            "family": self.family,
            "components": self.components,
            "log_likelihood": criteria.log_likelihood,
            "parameters": criteria.parameters,
            "aic": criteria.aic,
            "bic": criteria.bic,
            "icl": criteria.icl,
        }
        if self.heldout is not None:
            columns["heldout"] = self.heldout.total
            columns["heldout_se"] = self.heldout.standard_error
        if self.loo is not None:
            columns["loo"] = self.loo.predictive.total
            columns["loo_se"] = self.loo.predictive.standard_error
            columns["unreliable"] = self.loo.unreliable
        columns["converged"] = self.fit.converged
        return columns


@dataclass(frozen=True)
class Comparison:
    """The outcome of :func:`~pyro_mixtures.diagnostics.model_choice.compare.compare_fits`.

    Printing it shows a table of all scores, with a star at the best value of each criterion.
    """

    scores: Sequence[Score]  # by family, then by number of components
    criterion: str
    interrupted: bool = False

    @property
    def best(self) -> Score:
        """The best fit by :attr:`criterion`; see :meth:`best_by`."""
        return self.best_by(self.criterion)

    def best_by(self, criterion: str, *, errors: float = 1.0) -> Score:
        """Return the best fit by ``criterion``.

        By AIC, BIC or ICL this is the fit with the smallest value. By ``"heldout"`` or ``"loo"`` it
        is the simplest fit that is as good as the best: predictive estimates of a mixture with one
        component too many differ from those of the right one by less than their noise. Of all fits
        whose sum lies within ``errors`` standard errors *of the difference* below the largest sum,
        the one with the fewest free parameters is taken. This is the one-standard-error rule of
        Breiman, Friedman, Olshen & Stone, "Classification and Regression Trees", 1984, with paired
        rows.

        :param errors: number of standard errors; 0 takes the largest sum.
        :returns: the score of the best fit.
        :raises OptionError: if the criterion is unknown or was not computed, or ``errors`` is
            negative.
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
        # The error of a difference is NaN for a single row: then no fit is in the list.
        return min(
            as_good or [leader],
            key=lambda score: (score.criteria.parameters, -score.value(criterion)),
        )

    def families(self) -> dict[str, list[Score]]:
        """Return the scores of each family."""
        families: dict[str, list[Score]] = {}
        for score in self.scores:
            families.setdefault(score.family, []).append(score)
        return families

    def criteria(self) -> list[str]:
        """Return the names of the criteria that were computed."""
        first = self.scores[0]
        names = list(INFORMATION)
        if first.heldout is not None:
            names.append("heldout")
        if first.loo is not None:
            names.append("loo")
        return names

    def to_frame(self) -> Any:
        """Return a ``pandas.DataFrame`` with one line per fit. Needs pandas."""
        pandas: Any = importlib.import_module("pandas")  # slow to import, and needed here only
        return pandas.DataFrame([score.to_dict() for score in self.scores])

    def __str__(self) -> str:
        best = {criterion: self.best_by(criterion) for criterion in self.criteria()}
        chosen = self.best
        legend = (
            f"* best by that column; by {self.criterion}: {chosen.family} with "
            f"{chosen.components} components"
        )
        if self.interrupted:
            legend += " (interrupted: some fits are missing)"
        return f"{_table(self.scores, best)}\n{legend}"


def _table(scores: Sequence[Score], best: Mapping[str, Score]) -> str:
    """Return aligned columns with a star at each column's best score."""
    cells = [
        {
            name: _text(value) + ("*" if best.get(name) is score else " ")
            for name, value in score.to_dict().items()
        }
        for score in scores
    ]
    header = [name + " " for name in cells[0]]
    return align_columns([header, *(list(line.values()) for line in cells)], separator=" ")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}"
    return str(value)
