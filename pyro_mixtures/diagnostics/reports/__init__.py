"""What there is to say of one fitted partition, and the page that says it."""

from pyro_mixtures.diagnostics.reports.agreement import Agreement, agreement
from pyro_mixtures.diagnostics.reports.html import report
from pyro_mixtures.diagnostics.reports.partition_report import PartitionReport, partition_report

__all__ = ["Agreement", "PartitionReport", "agreement", "partition_report", "report"]
