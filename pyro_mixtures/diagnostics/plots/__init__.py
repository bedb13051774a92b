"""All plots of a fit in one place: each draws in the axes that it is given, or in a figure unknown to pyplot."""

from pyro_mixtures.diagnostics.plots.history import plot_history
from pyro_mixtures.diagnostics.plots.images import plot_denoised, plot_image_sheet
from pyro_mixtures.diagnostics.plots.neighbors import plot_neighbors
from pyro_mixtures.diagnostics.plots.pictures import plot_responsibilities, plot_sizes
from pyro_mixtures.diagnostics.plots.places import plot_ellipses
from pyro_mixtures.diagnostics.plots.regions import plot_gate

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
