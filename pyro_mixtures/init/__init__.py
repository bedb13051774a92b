"""Warm starts: seeding of the means, start labels of the rows."""

from pyro_mixtures.init.labels import start_labels
from pyro_mixtures.init.seeding import Seeds, seed_rows

__all__ = [
    "Seeds",
    "seed_rows",
    "start_labels",
]
