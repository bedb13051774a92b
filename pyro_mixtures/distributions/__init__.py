"""Pyro distributions of mixtures: weights, component families ``components[z]``, candidate sets."""

from pyro_mixtures.distributions.candidate import CandidateCategorical, RestrictedSupport
from pyro_mixtures.distributions.components import Components, Selected
from pyro_mixtures.distributions.exponential.bregman import BregmanComponents
from pyro_mixtures.distributions.exponential.categoricals import Categoricals
from pyro_mixtures.distributions.exponential.exponential_families import (
    Bernoullis,
    Exponentials,
    Multinomials,
    Poissons,
)
from pyro_mixtures.distributions.exponential.gammas import Gammas
from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.distributions.gathered_components import GatheredComponents
from pyro_mixtures.distributions.logit.choices import ChoiceLogits
from pyro_mixtures.distributions.logit.softmax_components import SoftmaxComponents
from pyro_mixtures.distributions.normal.factor_analyzers import FactorAnalyzers
from pyro_mixtures.distributions.normal.full_normals import FullNormals
from pyro_mixtures.distributions.normal.normals import DiagonalNormals, IsotropicNormals
from pyro_mixtures.distributions.normal.unit_normals import (
    DirectionalNormals,
    KnownPrecisionNormals,
    UnitNormals,
)
from pyro_mixtures.distributions.regression.conditional import ConditionalComponents
from pyro_mixtures.distributions.regression.generalized_regressions import (
    LogisticRegressions,
    PoissonRegressions,
)
from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
from pyro_mixtures.distributions.regression.pseudo_likelihoods import PseudoLikelihoods
from pyro_mixtures.distributions.regression.support_vectors import SupportVectorMachines
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
    "DiagonalNormals",
    "DirectionalNormals",
    "Exponentials",
    "FactorAnalyzers",
    "FullNormals",
    "Gammas",
    "GatedWeights",
    "GatheredComponents",
    "IsotropicNormals",
    "KnownPrecisionNormals",
    "LinearRegressions",
    "LogisticRegressions",
    "MixtureWeights",
    "Multinomials",
    "PoissonRegressions",
    "Poissons",
    "PseudoLikelihoods",
    "RestrictedSupport",
    "Selected",
    "SoftmaxComponents",
    "SupportVectorMachines",
    "UnitNormals",
]
