"""Numerical operations on tensors: pairs of rows and components, kernels, search spaces."""

from pyro_mixtures.ops.backend import use_backend
from pyro_mixtures.ops.pairs import Pairs
from pyro_mixtures.ops.quadratic import Moments, Quadratic, pair_log_density, pair_moments

__all__ = ["Moments", "Pairs", "Quadratic", "pair_log_density", "pair_moments", "use_backend"]
