"""Plots of fits. Each draws into the axes it is given, or into a new figure outside pyplot."""

from pyro_mixtures.diagnostics.plots.ellipses import plot_ellipses
from pyro_mixtures.diagnostics.plots.gate import plot_gate
from pyro_mixtures.diagnostics.plots.history import plot_history
from pyro_mixtures.diagnostics.plots.images import plot_denoised, plot_image_sheet
from pyro_mixtures.diagnostics.plots.neighbors import plot_neighbors
from pyro_mixtures.diagnostics.plots.responsibilities import plot_responsibilities
from pyro_mixtures.diagnostics.plots.sizes import plot_sizes

__all__ = [
    "plot_denoised",
    "plot_ellipses",
    "plot_gate",
    "plot_history",
    "plot_image_sheet",
    "plot_neighbors",
    "plot_responsibilities",
    "plot_sizes",
]
