"""Leave-one-out log evidence of a point fit: PSIS-LOO over refits to resampled rows."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch

from pyro_mixtures.diagnostics.arviz_io.container import SAMPLE_DIMS, Variable, to_container
from pyro_mixtures.diagnostics.model_choice.predictive import Predictive, predictive
from pyro_mixtures.infer.restarts.component_path import ComponentPath
from pyro_mixtures.infer.restarts.stored_fits import StoredFit


class LeaveOneOut(NamedTuple):
    """Leave-one-out log evidence of one fit."""

    predictive: Predictive  # by PSIS where it is reliable, else by the draws without the row
    # (N,) shapes of the importance weights' tails; -inf where no weights are needed, inf where no
    # weight can be trusted.
    pareto_k: np.ndarray
    good_k: float  # largest reliable shape
    elpd: Any  # arviz.ELPDData of PSIS alone, for az.compare and az.plot_khat

    @property
    def unreliable(self) -> float:
        """Share of rows whose importance weights are unreliable."""
        return float((self.pareto_k > self.good_k).mean())


def leave_one_out(
    path: ComponentPath,
    stored: StoredFit,
    *,
    draws: int,
    seed: int,
    truncated: bool,
    chunk: int | None,
) -> LeaveOneOut:
    """Estimate the leave-one-out log evidence of a point fit; refits stand in for posterior draws.

    To first order, the bootstrap distribution of an estimate is the posterior under a flat prior
    (Newton & Raftery, "Approximate Bayesian inference with the weighted likelihood bootstrap",
    JRSS B 56, 1994). As refits start from the fit, it is the posterior near this mode. Importance
    weights 1 / p(x_n | draw), smoothed by ArviZ, leave row n out (Vehtari, Gelman & Gabry,
    "Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC", Statistics
    and Computing 27, 2017). They are unreliable for rows with a strong influence on the fit. About
    draws / e resamples do not contain such a row, and the mean of their densities replaces PSIS
    (the leave-one-out bootstrap of Efron, "Estimating the error rate of a prediction rule:
    improvement on cross-validation", JASA 78, 1983).

    The same ``seed`` draws the same resamples for every fit, which removes most of the resampling
    noise from differences between fits. Memory: draws x N numbers.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    size, values = stored.fit.guide.components, stored.values(path.rows)
    count = len(path.rows[0])
    log_likelihood = np.empty((draws, count))
    row_is_absent = np.ones((draws, count), dtype=bool)
    for draw in range(draws):
        index = torch.randint(count, (count,), generator=generator, device="cpu")
        resampled = tuple(tensor[index.to(tensor.device)] for tensor in path.rows)
        refit = path.fit_from(size, values, resampled, seed + draw)
        log_likelihood[draw], weight = predictive(
            refit, path.rows, truncated=truncated, chunk=chunk
        )
        row_is_absent[draw, index.numpy()] = False
        path.tick()
    return psis(log_likelihood, row_is_absent, weight)


def psis(
    log_likelihood: np.ndarray,
    row_is_absent: np.ndarray | None = None,
    weight: np.ndarray | float = 1.0,
) -> LeaveOneOut:
    """Estimate the leave-one-out log evidence from independent draws by ArviZ's PSIS.

    :param log_likelihood: (S, N) of all rows under all draws.
    :param row_is_absent: (S, N) which draws were fitted without which rows. The mean density of
        these draws replaces PSIS for rows with an unreliable Pareto k.
    :param weight: (N,) row weights.
    :returns: the estimates with their Pareto k.

    >>> rng = np.random.default_rng(0)
    >>> result = psis(-0.5 * (rng.normal(size=30) - 0.2 * rng.normal(size=(100, 1))) ** 2)
    >>> result.predictive.values.shape, result.unreliable
    ((30,), 0.0)
    """
    tied = _has_tied_tail(log_likelihood)
    smoothed = _arviz_loo(np.where(tied, _without_ties(log_likelihood), log_likelihood))
    # If all draws agree on a row's density, the density is exact.
    exact = (log_likelihood == log_likelihood[0]).all(0)
    values = np.where(exact, log_likelihood[0], smoothed.values)
    # ArviZ 0.x gives tails without a shape k = inf, ArviZ 1.x NaN.
    pareto_k = np.where(tied | np.isnan(smoothed.pareto_k), np.inf, smoothed.pareto_k)
    pareto_k = np.where(exact, -np.inf, pareto_k)
    if row_is_absent is not None:
        replaced = (pareto_k > smoothed.good_k) & row_is_absent.any(0)
        values[replaced] = _mean_of_absent(log_likelihood[:, replaced], row_is_absent[:, replaced])
    return LeaveOneOut(Predictive(values, weight), pareto_k, smoothed.good_k, smoothed.elpd)


class _Smoothed(NamedTuple):
    values: np.ndarray  # (N,)
    pareto_k: np.ndarray  # (N,)
    good_k: float
    elpd: Any  # arviz.ELPDData


def _arviz_loo(log_likelihood: np.ndarray) -> _Smoothed:
    """Call ``arviz.loo`` of either major version."""
    import arviz  # here, because importing it takes seconds

    terms = Variable(log_likelihood[None], (*SAMPLE_DIMS, "row"))
    data = to_container({"log_likelihood": {"log_evidence": terms}})
    options: Any = {"pointwise": True, "reff": 1.0}
    with warnings.catch_warnings():
        # LeaveOneOut.unreliable reports this for every fit.
        warnings.filterwarnings(
            "ignore", message="Estimated shape parameter of Pareto", category=UserWarning
        )
        if int(arviz.__version__.partition(".")[0]) >= 1:
            elpd = arviz.loo(data, **options)
            values, pareto_k, good_k = elpd.elpd_i, elpd.pareto_k, elpd.good_k
        else:
            elpd = arviz.loo(data, scale="log", **options)
            values, pareto_k, good_k = elpd["loo_i"], elpd["pareto_k"], elpd["good_k"]
    return _Smoothed(np.asarray(values), np.asarray(pareto_k), float(good_k), elpd)


def _has_tied_tail(log_likelihood: np.ndarray) -> np.ndarray:
    """Return for each row (N,) whether all draws in the tail that ArviZ fits have the same density.

    The tail consists of the draws with the largest importance weights, i.e. the smallest densities.
    """
    draws = len(log_likelihood)
    tail = int(min(draws / 5, 3 * draws**0.5))
    return (log_likelihood == log_likelihood.min(0)).sum(0) >= tail


def _without_ties(log_likelihood: np.ndarray) -> np.ndarray:
    """Add a negligible slope along the draws (S, N): ArviZ 1.x refuses tied tails."""
    slope = np.linspace(-1e-10, 1e-10, len(log_likelihood))[:, None]
    return log_likelihood + slope * np.abs(log_likelihood).clip(1.0, np.finfo(float).max)


def _mean_of_absent(log_likelihood: np.ndarray, row_is_absent: np.ndarray) -> np.ndarray:
    """Return the log mean density (N,) over the draws (S, N) that were fitted without the row."""
    terms = np.where(row_is_absent, log_likelihood, -np.inf)
    return np.logaddexp.reduce(terms, axis=0) - np.log(row_is_absent.sum(0))
