"""What variables know of one another, and what a partition knows of them: information measures from samples."""

from pyro_mixtures.diagnostics.information.hypercontractivity import Hypercontractivity, hypercontractivity
from pyro_mixtures.diagnostics.information.mutual_information import MutualInformation, mutual_information
from pyro_mixtures.diagnostics.information.partition_information import (
    Dependence,
    Knowledge,
    PartitionInformation,
    partition_information,
)
from pyro_mixtures.diagnostics.information.permutation import benjamini_hochberg
from pyro_mixtures.diagnostics.information.plots import plot_information
from pyro_mixtures.diagnostics.information.tables import hypercontractivity_of_table

__all__ = [
    "Dependence",
    "Hypercontractivity",
    "Knowledge",
    "MutualInformation",
    "PartitionInformation",
    "benjamini_hochberg",
    "hypercontractivity",
    "hypercontractivity_of_table",
    "mutual_information",
    "partition_information",
    "plot_information",
]
