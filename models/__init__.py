"""Mixture families as Pyro programs, one a file."""

from pyro_mixtures.models.base import Mixture
from pyro_mixtures.models.factor import MixtureOfFactorAnalyzers
from pyro_mixtures.models.gaussian import GaussianMixture
from pyro_mixtures.models.regressions import MixtureOfRegressions

__all__ = ["GaussianMixture", "Mixture", "MixtureOfFactorAnalyzers", "MixtureOfRegressions"]
