"""Log predictive densities of rows, their sum, and standard errors of sums and differences."""

from typing import NamedTuple

import numpy as np
import torch

from pyro_mixtures.infer.restarts.component_path import Rows
from pyro_mixtures.infer.restarts.stored_fits import StoredFit
from pyro_mixtures.infer.scoring.posteriors import posteriors


class Predictive(NamedTuple):
    """Log predictive densities of N rows, in nats; large is good.

    >>> scores = Predictive(np.array([-1.0, -4.0]), np.array([2.0, 1.0]))
    >>> scores.total, round(scores.standard_error, 6)
    (-6.0, 3.0)
    """

    values: np.ndarray  # (N,) float64; 0 for rows of weight zero
    weight: np.ndarray | float = 1.0  # (N,) row weights

    @property
    def total(self) -> float:
        """The weighted sum over the rows."""
        return float((self.weight * self.values).sum())

    @property
    def standard_error(self) -> float:
        """Standard error of :attr:`total` over data sets of this size."""
        return _error_of_sum(self.values, self.weight)

    def error_against(self, other: "Predictive") -> float:
        """Return the standard error of the difference of two totals over the same rows."""
        return _error_of_sum(self.values - other.values, self.weight)


def predictive(stored: StoredFit, rows: Rows, *, truncated: bool, chunk: int | None) -> Predictive:
    """Return the log evidence of ``rows`` under a fit: exact, or by its guide if ``truncated``."""
    guide = stored.fit.guide
    scoring_guide = guide if truncated else None
    log_evidence, weight = [], []
    with stored.model.store():
        for posterior, _ in posteriors(
            stored.fit.model, rows, scoring_guide, guide.site, None, chunk
        ):
            log_evidence.append(posterior.log_evidence.double())
            weight.append(posterior.row_weight.double())
    all_evidence, all_weight = torch.cat(log_evidence).cpu(), torch.cat(weight).cpu()
    values = torch.where(all_weight > 0, all_evidence, 0.0)
    return Predictive(values.numpy(), all_weight.numpy())


def _error_of_sum(values: np.ndarray, weight: np.ndarray | float) -> float:
    """A row of weight w counts as w rows; NaN for a single row."""
    weight = np.broadcast_to(weight, values.shape)
    rows = weight.sum()
    if rows <= 1:
        return float("nan")
    mean = np.average(values, weights=weight)
    sum_of_squares = (weight * (values - mean) ** 2).sum()
    return float(np.sqrt(rows / (rows - 1) * sum_of_squares))
