"""Dependence measures estimated from samples, with permutation tests of independence."""

from pyro_mixtures.information.hypercontractivity import Hypercontractivity, hypercontractivity
from pyro_mixtures.information.mutual_information import MutualInformation, mutual_information
from pyro_mixtures.information.tables import hypercontractivity_of_table

__all__ = [
    "Hypercontractivity",
    "MutualInformation",
    "hypercontractivity",
    "hypercontractivity_of_table",
    "mutual_information",
]
