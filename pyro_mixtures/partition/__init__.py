"""State of q(z): candidate sets of the rows, and the neighbour graph of the components. Knows nothing of Pyro."""

from pyro_mixtures.partition.candidates import CandidateSets
from pyro_mixtures.partition.graph import NeighborGraph

__all__ = ["CandidateSets", "NeighborGraph"]
