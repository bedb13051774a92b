"""Which features and which outcome a partition informs about, as tables and as a picture."""

from pyro_mixtures.diagnostics.partition_information.partition_information import (
    Dependence,
    Knowledge,
    PartitionInformation,
    partition_information,
)
from pyro_mixtures.diagnostics.partition_information.plots import plot_information

__all__ = [
    "Dependence",
    "Knowledge",
    "PartitionInformation",
    "partition_information",
    "plot_information",
]
