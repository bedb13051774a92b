"""Pyro distributions of mixtures: weights, component families selected lazily by ``[z]``, candidate categoricals."""

from pyro_mixtures.distributions.candidate import CandidateCategorical, RestrictedSupport
from pyro_mixtures.distributions.categoricals import Categoricals
from pyro_mixtures.distributions.components import Components, Selected
from pyro_mixtures.distributions.factor_analyzers import FactorAnalyzers
from pyro_mixtures.distributions.full_normals import FullNormals
from pyro_mixtures.distributions.normals import DiagonalNormals, IsotropicNormals
from pyro_mixtures.distributions.weights import MixtureWeights

__all__ = [
    "CandidateCategorical",
    "Categoricals",
    "Components",
    "DiagonalNormals",
    "FactorAnalyzers",
    "FullNormals",
    "IsotropicNormals",
    "MixtureWeights",
    "RestrictedSupport",
    "Selected",
]
