"""Pyro distributions of mixtures: weights, component families selected lazily by ``[z]``, candidate categoricals."""

from pyro_mixtures.distributions.bregman import BregmanComponents
from pyro_mixtures.distributions.candidate import CandidateCategorical, RestrictedSupport
from pyro_mixtures.distributions.categoricals import Categoricals
from pyro_mixtures.distributions.choices import ChoiceLogits
from pyro_mixtures.distributions.components import Components, Selected
from pyro_mixtures.distributions.conditional import ConditionalComponents
from pyro_mixtures.distributions.exponential_families import Bernoullis, Exponentials, Multinomials, Poissons
from pyro_mixtures.distributions.factor_analyzers import FactorAnalyzers
from pyro_mixtures.distributions.full_normals import FullNormals
from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.distributions.generalized_regressions import LogisticRegressions, PoissonRegressions
from pyro_mixtures.distributions.linear_regressions import LinearRegressions
from pyro_mixtures.distributions.normals import DiagonalNormals, IsotropicNormals
from pyro_mixtures.distributions.pseudo_likelihoods import PseudoLikelihoods
from pyro_mixtures.distributions.softmax_components import SoftmaxComponents
from pyro_mixtures.distributions.squared_distances import Cosines, Mahalanobis, SquaredEuclidean
from pyro_mixtures.distributions.support_vectors import SupportVectorMachines
from pyro_mixtures.distributions.weights import ComponentWeights, MixtureWeights

__all__ = [
    "Bernoullis",
    "BregmanComponents",
    "CandidateCategorical",
    "Categoricals",
    "ChoiceLogits",
    "ComponentWeights",
    "Components",
    "ConditionalComponents",
    "Cosines",
    "DiagonalNormals",
    "Exponentials",
    "FactorAnalyzers",
    "FullNormals",
    "GatedWeights",
    "IsotropicNormals",
    "LinearRegressions",
    "LogisticRegressions",
    "Mahalanobis",
    "MixtureWeights",
    "Multinomials",
    "PoissonRegressions",
    "Poissons",
    "PseudoLikelihoods",
    "RestrictedSupport",
    "Selected",
    "SoftmaxComponents",
    "SquaredEuclidean",
    "SupportVectorMachines",
]
