"""Warm starts: seeding of the means."""

from pyro_mixtures.init.seeding import Seeds, seed_rows

__all__ = ["Seeds", "seed_rows"]
