"""Mixture families as Pyro programs, one a file."""

from pyro_mixtures.models.base import ConditionalMixture, Mixture, MixtureProgram
from pyro_mixtures.models.bregman import BregmanMixture
from pyro_mixtures.models.choices import LatentClassLogit
from pyro_mixtures.models.classifiers import (
    MixtureOfLogisticRegressions,
    MixtureOfPoissonRegressions,
    MixtureOfSVMs,
)
from pyro_mixtures.models.experts import MixtureOfExperts
from pyro_mixtures.models.factor import MixtureOfFactorAnalyzers
from pyro_mixtures.models.gaussian import GaussianMixture
from pyro_mixtures.models.kmeans import KMeans
from pyro_mixtures.models.regressions import MixtureOfRegressions
from pyro_mixtures.models.softmax import SoftmaxMixture

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
