"""Row state of q(z): candidates, the neighbor graph, assignments and matchings.

This package does not depend on Pyro.
"""

from pyro_mixtures.partition.candidates import CandidateSets
from pyro_mixtures.partition.graph import NeighborGraph

__all__ = ["CandidateSets", "NeighborGraph"]
