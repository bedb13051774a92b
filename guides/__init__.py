"""Strategies for q(z): exact, truncated to a few candidates per row, or a hard partition."""

from pyro_mixtures.guides.full import FullPartition
from pyro_mixtures.guides.hard import HardPartition
from pyro_mixtures.guides.parallel_hard import ParallelHardPartition, hard_partition
from pyro_mixtures.guides.truncated import TruncatedPartition
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.labeled_guide import LabeledGuide
from pyro_mixtures.infer.parallel_guide import ParallelGuide, RestartCounts
from pyro_mixtures.infer.searching_guide import SearchingGuide

__all__ = [
    "FullPartition",
    "HardPartition",
    "LabeledGuide",
    "ParallelGuide",
    "ParallelHardPartition",
    "PartitionGuide",
    "RestartCounts",
    "SearchingGuide",
    "TruncatedPartition",
    "hard_partition",
]
