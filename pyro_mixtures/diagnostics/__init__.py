"""Looking at fits: ArviZ data, and plots."""

from pyro_mixtures.diagnostics.io_arviz import to_arviz
from pyro_mixtures.diagnostics.plots import plot_denoised, plot_history, plot_image_sheet

__all__ = ["plot_denoised", "plot_history", "plot_image_sheet", "to_arviz"]
