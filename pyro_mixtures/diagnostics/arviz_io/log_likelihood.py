"""The log likelihood of each row and the log joint of all rows, under every draw."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.diagnostics.arviz_io.chains import Chains, Draw, Model
from pyro_mixtures.diagnostics.arviz_io.handlers import IgnoreSitesMessenger
from pyro_mixtures.diagnostics.arviz_io.program import log_prior, to_numpy
from pyro_mixtures.infer.scoring.posteriors import posteriors


class LogLikelihood(NamedTuple):
    """Log likelihoods of the rows under each draw."""

    terms: dict[str, np.ndarray]  # (chain, draw, n) log evidence times row weight, in nats, by name
    lp: np.ndarray  # (chain, draw) sum of the terms over all rows, plus the log prior
    counted: np.ndarray  # (N,) whether a row is one of the n: its weight is positive in some draw

    def best(self, chains: Chains) -> Draw:
        """Return the draw of the largest log joint, the first in case of ties."""
        return chains.all[int(np.argmax(np.nan_to_num(self.lp, nan=-np.inf)))]


def compute_log_likelihood(
    chains: Chains,
    observed: Mapping[str, Tensor],
    *,
    by_site: bool,
    truncated: bool,
    chunk: int | None,
) -> LogLikelihood:
    """Evaluate every draw on all rows; with ``by_site`` also for each observed site separately."""
    counted = np.zeros(len(chains.rows[0]), dtype=bool)

    def terms(handler: Callable[[Model], Model]) -> np.ndarray:
        row_terms = np.stack(
            [
                _row_terms(chains, draw, handler(draw.model), truncated, chunk, counted)
                for draw in chains.all
            ]
        )
        counted_terms = row_terms if counted.all() else row_terms[:, counted]
        return counted_terms.reshape(*chains.shape, -1)

    joint = terms(lambda model: model)
    priors = [
        log_prior(draw.model, chains.structure, chains.rows, draw.latents) for draw in chains.all
    ]
    lp = joint.sum(-1, dtype=np.float64) + np.reshape(priors, chains.shape)
    if not by_site or len(observed) == 1:
        return LogLikelihood({"_".join(observed) or "log_evidence": joint}, lp, counted)
    sites = frozenset(chains.structure.observed)
    site_terms = {name: terms(IgnoreSitesMessenger(sites - {name})) for name in observed}
    return LogLikelihood(site_terms, lp, counted)


def _row_terms(
    chains: Chains,
    draw: Draw,
    model: Model,
    truncated: bool,
    chunk: int | None,
    counted: np.ndarray,
) -> np.ndarray:
    """Log evidence (N,) times row weight; marks rows of positive weight in ``counted``."""
    guide, site = draw.guide if truncated else None, chains.structure.site
    terms, start = [], 0
    for posterior, rows in posteriors(model, chains.rows, guide, site, draw.latents, chunk):
        weight, log_evidence = posterior.row_weight, posterior.log_evidence
        weighted = torch.where(weight > 0, weight * log_evidence, 0.0)
        terms.append(weighted.to(log_evidence.dtype))
        counted[start : start + len(rows[0])] |= (weight > 0).cpu().numpy()
        start += len(rows[0])
    return to_numpy(torch.cat(terms))
