"""Log predictive densities of rows by a fit: their sum, its error, and that of the difference of two sums."""

from typing import NamedTuple

import numpy as np
import torch

from pyro_mixtures.infer.restarts.path import Member, Rows
from pyro_mixtures.infer.scoring.posteriors import posteriors


class Predictive(NamedTuple):
    """Log predictive densities of N rows, in nats; large is good.

    >>> found = Predictive(np.array([-1.0, -4.0]), np.array([2.0, 1.0]))
    >>> found.total, round(found.standard_error, 6)
    (-6.0, 3.0)
    """

    values: np.ndarray  # (N,) float64; 0 of rows that count as none
    weight: np.ndarray | float = 1.0  # (N,) how many rows each row counts as

    @property
    def total(self) -> float:
        """Their sum, by the rows' weights."""
        return float((self.weight * self.values).sum())

    @property
    def standard_error(self) -> float:
        """Of the sum, over data sets of as many rows."""
        return _error_of_sum(self.values, self.weight)

    def error_against(self, other: "Predictive") -> float:
        """Standard error of the difference of two sums over the same rows."""
        return _error_of_sum(self.values - other.values, self.weight)


def predictive(member: Member, rows: Rows, *, truncated: bool, chunk: int | None) -> Predictive:
    """Log evidence of any ``rows`` by the fit ``member``; by its guide where ``truncated``, else exactly."""
    guide = member.fit.guide
    with member.model.store():
        found = [
            (posterior.log_evidence.double(), posterior.row_weight.double())
            for posterior, _ in posteriors(
                member.fit.model, rows, guide if truncated else None, guide.site, None, chunk
            )
        ]
    log_evidence, weight = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    return Predictive(torch.where(weight > 0, log_evidence, 0.0).numpy(), weight.numpy())


def _error_of_sum(values: np.ndarray, weight: np.ndarray | float) -> float:
    """Where a row of weight w is w rows; NaN of a single one."""
    weight = np.broadcast_to(weight, values.shape)
    rows = weight.sum()
    if rows <= 1:
        return float("nan")
    mean = np.average(values, weights=weight)
    return float(np.sqrt(rows / (rows - 1) * (weight * (values - mean) ** 2).sum()))
