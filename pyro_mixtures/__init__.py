"""Very large and very varied mixture models in Pyro: declare the mixture once, choose the inference strategy."""

from pyro_mixtures.distributions import (
    CandidateCategorical,
    Categoricals,
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    IsotropicNormals,
    MixtureWeights,
)
from pyro_mixtures.infer import EM, assign, conditional, evidence, fit, reconstruct, responsibilities, sample
from pyro_mixtures.init import seed_rows
from pyro_mixtures.poutine import data_plate, truncate

__version__ = "0.1.0"

__all__ = [
    "EM",
    "CandidateCategorical",
    "Categoricals",
    "DiagonalNormals",
    "FactorAnalyzers",
    "FullNormals",
    "IsotropicNormals",
    "MixtureWeights",
    "assign",
    "conditional",
    "data_plate",
    "evidence",
    "fit",
    "reconstruct",
    "responsibilities",
    "sample",
    "seed_rows",
    "truncate",
]
