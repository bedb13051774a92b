"""Information measures estimated from samples: mutual information, hypercontractivity, permutation tests."""

from pyro_mixtures.information.hypercontractivity import Hypercontractivity, hypercontractivity
from pyro_mixtures.information.mutual_information import MutualInformation, mutual_information
from pyro_mixtures.information.permutation import benjamini_hochberg
from pyro_mixtures.information.tables import hypercontractivity_of_table

__all__ = [
    "Hypercontractivity",
    "MutualInformation",
    "benjamini_hochberg",
    "hypercontractivity",
    "hypercontractivity_of_table",
    "mutual_information",
]
