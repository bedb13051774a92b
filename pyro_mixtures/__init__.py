"""Very large mixture models in Pyro: declare the mixture once, choose the inference strategy."""

from pyro_mixtures.distributions import (
    CandidateCategorical,
    Categoricals,
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    GatedWeights,
    IsotropicNormals,
    MixtureWeights,
    SoftmaxComponents,
)
from pyro_mixtures.infer import (
    EM,
    assign,
    best_of,
    bootstrap,
    conditional,
    criteria,
    fit,
    fit_gate,
    fit_restarts,
    grow,
    log_evidence,
    reconstruct,
    responsibilities,
    route,
    sample,
    standard_errors,
)
from pyro_mixtures.init import seed_rows, start_labels
from pyro_mixtures.poutine import data_plate, truncate

__version__ = "0.2.0"

__all__ = [
    "EM",
    "CandidateCategorical",
    "Categoricals",
    "DiagonalNormals",
    "FactorAnalyzers",
    "FullNormals",
    "GatedWeights",
    "IsotropicNormals",
    "MixtureWeights",
    "SoftmaxComponents",
    "assign",
    "best_of",
    "bootstrap",
    "conditional",
    "criteria",
    "data_plate",
    "fit",
    "fit_gate",
    "fit_restarts",
    "grow",
    "log_evidence",
    "reconstruct",
    "responsibilities",
    "route",
    "sample",
    "seed_rows",
    "standard_errors",
    "start_labels",
    "truncate",
]
