"""Strategies for q(z): exact, or truncated to a few candidates a row."""

from pyro_mixtures.guides.base import PartitionGuide
from pyro_mixtures.guides.full import FullPartition
from pyro_mixtures.guides.truncated import TruncatedPartition

__all__ = ["FullPartition", "PartitionGuide", "TruncatedPartition"]
