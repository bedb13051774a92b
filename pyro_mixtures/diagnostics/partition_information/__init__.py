"""Which features and which outcome the labels of a partition carry information about."""

from pyro_mixtures.diagnostics.partition_information.partition_information import (
    partition_information,
)
from pyro_mixtures.diagnostics.partition_information.plots import plot_information
from pyro_mixtures.diagnostics.partition_information.report import (
    ClusterDependence,
    PartitionInformation,
    VariableInformation,
)

__all__ = [
    "ClusterDependence",
    "PartitionInformation",
    "VariableInformation",
    "partition_information",
    "plot_information",
]
