"""Warm starts: initial means, start labels of the rows, and starts of softmax mixtures."""

from pyro_mixtures.init.identification import Identification, identification
from pyro_mixtures.init.labels import start_labels
from pyro_mixtures.init.latent_moments import LatentMoments, latent_moments
from pyro_mixtures.init.seeding import Seeds, seed_rows
from pyro_mixtures.init.softmax_starts import SoftmaxStart, start_softmax, starts_softmax
from pyro_mixtures.init.tensor_decomposition import simultaneous_diagonalization, tensor_power

__all__ = [
    "Identification",
    "LatentMoments",
    "Seeds",
    "SoftmaxStart",
    "identification",
    "latent_moments",
    "seed_rows",
    "simultaneous_diagonalization",
    "start_labels",
    "start_softmax",
    "starts_softmax",
    "tensor_power",
]
