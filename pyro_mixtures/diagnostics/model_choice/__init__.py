"""Model choice: information criteria, held-out log evidence and PSIS-LOO over a grid of fits."""

from pyro_mixtures.diagnostics.model_choice.compare import compare_fits
from pyro_mixtures.diagnostics.model_choice.plots import plot_comparison
from pyro_mixtures.diagnostics.model_choice.score import Comparison, Score

__all__ = ["Comparison", "Score", "compare_fits", "plot_comparison"]
