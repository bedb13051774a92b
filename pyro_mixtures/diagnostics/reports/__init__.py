"""Reports on a fitted partition: numbers, agreement with other fits, and an HTML page."""

from pyro_mixtures.diagnostics.reports.agreement import Agreement, agreement
from pyro_mixtures.diagnostics.reports.html import report
from pyro_mixtures.diagnostics.reports.partition_report import PartitionReport, partition_report

__all__ = ["Agreement", "PartitionReport", "agreement", "partition_report", "report"]
