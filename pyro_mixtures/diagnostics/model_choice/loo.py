"""What a fit would say of rows that it has not seen: PSIS-LOO by refits to resampled rows."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch

from pyro_mixtures.diagnostics.arviz_io.datasets import SAMPLE_DIMS, Variable, to_container
from pyro_mixtures.diagnostics.model_choice.predictive import Predictive, predictive
from pyro_mixtures.infer.restarts.path import Member, Path


class LeaveOneOut(NamedTuple):
    """Leave-one-out evidence of one fit."""

    predictive: Predictive  # PSIS where it is to be trusted, else the draws without the row
    pareto_k: (
        np.ndarray
    )  # (N,) of the importance weights; -inf where none are needed, inf where none can be trusted
    good_k: float  # up to which they are to be trusted
    elpd: Any  # arviz.ELPDData of PSIS alone, for az.compare and az.plot_khat

    @property
    def unreliable(self) -> float:
        """Share of rows whose importance weights are not used."""
        return float((self.pareto_k > self.good_k).mean())


def leave_one_out(
    path: Path, member: Member, *, draws: int, seed: int, truncated: bool, chunk: int | None
) -> LeaveOneOut:
    """PSIS-LOO of a point fit; refits to resampled rows stand in for draws from a posterior.

    The bootstrap distribution of an estimate is to first order the posterior under a prior without
    information (Newton & Raftery, "Approximate Bayesian inference with the weighted likelihood
    bootstrap", JRSS B 56, 1994), and, as refits begin at the fit, that of its own mode. Importance
    weights 1 / p(x_n | draw), smoothed by ArviZ, leave row n out (Vehtari, Gelman & Gabry,
    "Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC", Statistics
    and Computing 27, 2017). They fail where a row moves the fit much; but about draws / e resamples
    do not hold the row at all, and their mean density takes the place (the leave-one-out bootstrap
    of Efron, "Estimating the error rate of a prediction rule: improvement on cross-validation",
    JASA 78, 1983).

    The same ``seed`` resamples the same rows for every fit, so that differences between fits keep
    little of the draws' noise. Takes draws x N numbers.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    count = len(path.rows[0])
    terms, without = np.empty((draws, count)), np.ones((draws, count), dtype=bool)
    for draw in range(draws):
        index = torch.randint(count, (count,), generator=generator, device="cpu")
        resampled = tuple(tensor[index.to(tensor.device)] for tensor in path.rows)
        refit = path.refit(member, resampled, seed + draw)
        terms[draw], weight = predictive(refit, path.rows, truncated=truncated, chunk=chunk)
        without[draw, index.numpy()] = False
        path.tick()
    return psis(terms, without, weight)


def psis(
    log_likelihood: np.ndarray, without: np.ndarray | None = None, weight: np.ndarray | float = 1.0
) -> LeaveOneOut:
    """Leave-one-out evidence from independent draws (S, N): PSIS by ArviZ.

    :param without: (S, N) which draws have not seen which rows. Their mean density replaces PSIS
        for rows whose Pareto k is too large.
    :param weight: (N,) how many rows each counts as, one or (where masked) none.

    >>> rng = np.random.default_rng(0)
    >>> found = psis(-0.5 * (rng.normal(size=30) - 0.2 * rng.normal(size=(100, 1))) ** 2)
    >>> found.predictive.values.shape, found.unreliable
    ((30,), 0.0)
    """
    import arviz  # here, since it takes seconds

    tied = _tied(log_likelihood)
    terms = Variable(
        np.where(tied, _parted(log_likelihood), log_likelihood)[None], (*SAMPLE_DIMS, "row")
    )
    data = to_container({"log_likelihood": {"evidence": terms}})
    options: Any = {"pointwise": True, "reff": 1.0}
    with warnings.catch_warnings():
        # LeaveOneOut.unreliable says so, for every fit.
        warnings.filterwarnings(
            "ignore", message="Estimated shape parameter of Pareto", category=UserWarning
        )
        if int(arviz.__version__.partition(".")[0]) >= 1:
            found = arviz.loo(data, **options)
            given, k, good = found.elpd_i, found.pareto_k, found.good_k
        else:
            found = arviz.loo(data, scale="log", **options)
            given, k, good = found["loo_i"], found["pareto_k"], found["good_k"]
    # Draws that all agree are right. Of tails without a shape ArviZ 0.x says inf, 1.x NaN.
    same = (log_likelihood == log_likelihood[0]).all(0)
    values, k, good = np.where(same, log_likelihood[0], given), np.asarray(k), float(good)
    k = np.where(same, -np.inf, np.where(tied | np.isnan(k), np.inf, k))
    if without is not None:
        replaced = (k > good) & without.any(0)
        values[replaced] = _out_of_bag(log_likelihood[:, replaced], without[:, replaced])
    return LeaveOneOut(Predictive(values, weight), k, good, found)


def _tied(log_likelihood: np.ndarray) -> np.ndarray:
    """Rows (N,) of which all draws of the tail that ArviZ looks at, those of the largest weights, are the same."""
    draws = len(log_likelihood)
    tail = int(min(draws / 5, 3 * draws**0.5))
    return (log_likelihood == log_likelihood.min(0)).sum(0) >= tail


def _parted(log_likelihood: np.ndarray) -> np.ndarray:
    """The same but for a slope along the draws (S, N), too small to matter: ArviZ 1.x refuses tails that are tied."""
    slope = np.linspace(-1e-10, 1e-10, len(log_likelihood))[:, None]
    return log_likelihood + slope * np.abs(log_likelihood).clip(1.0, np.finfo(float).max)


def _out_of_bag(log_likelihood: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Log mean density (N,) over the draws (S, N) that have not seen the row."""
    seen = np.where(without, log_likelihood, -np.inf)
    return np.logaddexp.reduce(seen, axis=0) - np.log(without.sum(0))
