"""Diagnostics of fits: ArviZ data, comparison, reports, plots, and information of partitions."""

from pyro_mixtures.diagnostics.alignment import align, relabel
from pyro_mixtures.diagnostics.arviz_io.to_arviz import to_arviz
from pyro_mixtures.diagnostics.model_choice.compare import compare_fits
from pyro_mixtures.diagnostics.model_choice.plots import plot_comparison
from pyro_mixtures.diagnostics.model_choice.score import Comparison, Score
from pyro_mixtures.diagnostics.partition_information import partition_information, plot_information
from pyro_mixtures.diagnostics.plots import (
    plot_denoised,
    plot_ellipses,
    plot_gate,
    plot_history,
    plot_image_sheet,
    plot_neighbors,
    plot_responsibilities,
    plot_sizes,
)
from pyro_mixtures.diagnostics.reports.agreement import Agreement, agreement
from pyro_mixtures.diagnostics.reports.html import report
from pyro_mixtures.diagnostics.reports.partition_report import PartitionReport, partition_report

__all__ = [
    "Agreement",
    "Comparison",
    "PartitionReport",
    "Score",
    "agreement",
    "align",
    "compare_fits",
    "partition_information",
    "partition_report",
    "plot_comparison",
    "plot_denoised",
    "plot_ellipses",
    "plot_gate",
    "plot_history",
    "plot_image_sheet",
    "plot_information",
    "plot_neighbors",
    "plot_responsibilities",
    "plot_sizes",
    "relabel",
    "report",
    "to_arviz",
]
