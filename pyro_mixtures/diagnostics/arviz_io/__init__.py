"""Conversion of fits, restarts, bootstrap draws and MCMC to ArviZ data."""

from pyro_mixtures.diagnostics.arviz_io.to_arviz import to_arviz

__all__ = ["to_arviz"]
