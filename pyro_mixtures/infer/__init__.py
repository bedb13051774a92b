"""Strategies over a declared mixture: EM, the fit loop and restarts, scoring, prediction, routing to experts."""

from pyro_mixtures.infer.approximation import ApproximationReport, approximation_report
from pyro_mixtures.infer.best_of import BestOf, best_of
from pyro_mixtures.infer.bootstrap import Bootstrap, bootstrap
from pyro_mixtures.infer.criteria import Criteria, criteria
from pyro_mixtures.infer.em import EM
from pyro_mixtures.infer.fit import Fit, fit
from pyro_mixtures.infer.gates import Gate, fit_gate
from pyro_mixtures.infer.growth import grow
from pyro_mixtures.infer.history import Epoch, History
from pyro_mixtures.infer.observed_information import ObservedInformation, observed_information, standard_errors
from pyro_mixtures.infer.predict import conditional, reconstruct, sample
from pyro_mixtures.infer.restarts import RestartsResult, fit_restarts
from pyro_mixtures.infer.routing import compare_routing, expert_predictions, fit_combiner, route
from pyro_mixtures.infer.scoring import Responsibilities, assign, evidence, responsibilities

__all__ = [
    "EM",
    "ApproximationReport",
    "BestOf",
    "Bootstrap",
    "Criteria",
    "Epoch",
    "Fit",
    "Gate",
    "History",
    "ObservedInformation",
    "Responsibilities",
    "RestartsResult",
    "approximation_report",
    "assign",
    "best_of",
    "bootstrap",
    "compare_routing",
    "conditional",
    "criteria",
    "evidence",
    "expert_predictions",
    "fit",
    "fit_combiner",
    "fit_gate",
    "fit_restarts",
    "grow",
    "observed_information",
    "reconstruct",
    "responsibilities",
    "route",
    "sample",
    "standard_errors",
]
