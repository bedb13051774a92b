"""Strategies over a declared mixture: EM, restarts, scoring, prediction, experts, uncertainty."""

from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.em.fit import Fit, fit
from pyro_mixtures.infer.em.history import Epoch, History
from pyro_mixtures.infer.experts.combiners import fit_combiner
from pyro_mixtures.infer.experts.comparison import compare_routing
from pyro_mixtures.infer.experts.gates import Gate, fit_gate
from pyro_mixtures.infer.experts.predictions import expert_predictions
from pyro_mixtures.infer.experts.routing import route
from pyro_mixtures.infer.restarts.best_of import BestOf, best_of
from pyro_mixtures.infer.restarts.growth import grow
from pyro_mixtures.infer.restarts.hard import RestartsResult, fit_restarts
from pyro_mixtures.infer.restarts.stored_fits import StoredFit
from pyro_mixtures.infer.scoring.posteriors import (
    Responsibilities,
    assign,
    log_evidence,
    responsibilities,
)
from pyro_mixtures.infer.scoring.predict import conditional, reconstruct, sample
from pyro_mixtures.infer.uncertainty.bootstrap import Bootstrap, bootstrap
from pyro_mixtures.infer.uncertainty.criteria import Criteria, criteria
from pyro_mixtures.infer.uncertainty.observed_information import (
    ObservedInformation,
    observed_information,
    standard_errors,
)

__all__ = [
    "EM",
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
    "StoredFit",
    "assign",
    "best_of",
    "bootstrap",
    "compare_routing",
    "conditional",
    "criteria",
    "expert_predictions",
    "fit",
    "fit_combiner",
    "fit_gate",
    "fit_restarts",
    "grow",
    "log_evidence",
    "observed_information",
    "reconstruct",
    "responsibilities",
    "route",
    "sample",
    "standard_errors",
]
