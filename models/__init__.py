"""Mixture families as Pyro programs, one family per file."""

from pyro_mixtures.models.base import ConditionalMixture, Mixture, MixtureProgram
from pyro_mixtures.models.bregman import BregmanMixture
from pyro_mixtures.models.experts import MixtureOfExperts
from pyro_mixtures.models.factor_analyzers import MixtureOfFactorAnalyzers
from pyro_mixtures.models.gaussian import GaussianMixture
from pyro_mixtures.models.generalized_regressions import (
    MixtureOfLogisticRegressions,
    MixtureOfPoissonRegressions,
)
from pyro_mixtures.models.kmeans import KMeans
from pyro_mixtures.models.latent_class_logit import LatentClassLogit
from pyro_mixtures.models.linear_regressions import MixtureOfRegressions
from pyro_mixtures.models.softmax import SoftmaxMixture
from pyro_mixtures.models.support_vector_machines import MixtureOfSVMs

__all__ = [
    "BregmanMixture",
    "ConditionalMixture",
    "GaussianMixture",
    "KMeans",
    "LatentClassLogit",
    "Mixture",
    "MixtureOfExperts",
    "MixtureOfFactorAnalyzers",
    "MixtureOfLogisticRegressions",
    "MixtureOfPoissonRegressions",
    "MixtureOfRegressions",
    "MixtureOfSVMs",
    "MixtureProgram",
    "SoftmaxMixture",
]
