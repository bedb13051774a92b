"""What a fit would say of rows that it has not seen: PSIS-LOO by refits to resampled rows."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch

from pyro_mixtures.diagnostics.datasets import SAMPLE_DIMS, Variable, to_container
from pyro_mixtures.diagnostics.model_choice.fits import Member, Path
from pyro_mixtures.infer.scoring import evidence


class Predictive(NamedTuple):
    """Log predictive densities of N rows, in nats; large is good."""

    values: np.ndarray  # (N,) float64

    @property
    def total(self) -> float:
        """Their sum."""
        return float(self.values.sum())

    @property
    def standard_error(self) -> float:
        """Of the sum, over data sets of N rows."""
        return _spread(self.values)

    def error_against(self, other: "Predictive") -> float:
        """Standard error of the difference of two sums over the same rows."""
        return _spread(self.values - other.values)


class LeaveOneOut(NamedTuple):
    """Leave-one-out evidence of one fit."""

    predictive: Predictive  # PSIS where it is to be trusted, else the draws without the row
    pareto_k: np.ndarray  # (N,) of the importance weights
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

    The bootstrap distribution of an estimate is to first order the posterior under a prior without information
    (Newton & Raftery, "Approximate Bayesian inference with the weighted likelihood bootstrap", JRSS B 56, 1994), and,
    as refits begin at the fit, that of its own mode. Importance weights 1 / p(x_n | draw), smoothed by ArviZ, leave
    row n out (Vehtari, Gelman & Gabry, "Practical Bayesian model evaluation using leave-one-out cross-validation and
    WAIC", Statistics and Computing 27, 2017). They fail where a row moves the fit much; but about draws / e resamples
    do not hold the row at all, and their mean density takes the place (the leave-one-out bootstrap of Efron,
    "Estimating the error rate of a prediction rule: improvement on cross-validation", JASA 78, 1983).

    The same ``seed`` resamples the same rows for every fit, so that differences between fits keep little of the draws'
    noise. Takes draws x N numbers.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    count = len(path.rows[0])
    terms, without = np.empty((draws, count)), np.ones((draws, count), dtype=bool)
    for draw in range(draws):
        index = torch.randint(count, (count,), generator=generator, device="cpu")
        resampled = tuple(tensor[index.to(tensor.device)] for tensor in path.rows)
        refit = path.refit(member, resampled, seed + draw)
        with refit.model.store():
            guide = refit.fit.guide
            options: dict[str, Any] = {"guide": guide if truncated else None, "site": guide.site, "chunk": chunk}
            terms[draw] = evidence(refit.fit.model, *path.rows, **options).double().cpu().numpy()
        without[draw, index.numpy()] = False
        path.tick()
    return psis(terms, without)


def psis(log_likelihood: np.ndarray, without: np.ndarray | None = None) -> LeaveOneOut:
    """Leave-one-out evidence from independent draws (S, N): PSIS by ArviZ.

    :param without: (S, N) which draws have not seen which rows. Their mean density replaces PSIS for rows whose Pareto
        k is too large.

    >>> rng = np.random.default_rng(0)
    >>> found = psis(-0.5 * (rng.normal(size=30) - 0.2 * rng.normal(size=(100, 1))) ** 2)
    >>> found.predictive.values.shape, found.unreliable
    ((30,), 0.0)
    """
    import arviz  # here, since it takes seconds

    terms = Variable(log_likelihood[None], (*SAMPLE_DIMS, "row"))
    data = to_container({"log_likelihood": {"evidence": terms}})
    options: Any = {"pointwise": True, "reff": 1.0}
    with warnings.catch_warnings():
        # LeaveOneOut.unreliable says so, for every fit.
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto", category=UserWarning)
        if int(arviz.__version__.partition(".")[0]) >= 1:
            found = arviz.loo(data, **options)
            given, k, good = found.elpd_i, found.pareto_k, found.good_k
        else:
            found = arviz.loo(data, scale="log", **options)
            given, k, good = found["loo_i"], found["pareto_k"], found["good_k"]
    values, k, good = np.asarray(given), np.asarray(k), float(good)
    if without is not None:
        replaced = (k > good) & without.any(0)
        values = values.copy()
        values[replaced] = _out_of_bag(log_likelihood[:, replaced], without[:, replaced])
    return LeaveOneOut(Predictive(values), k, good, found)


def _out_of_bag(log_likelihood: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Log mean density (N,) over the draws (S, N) that have not seen the row."""
    seen = np.where(without, log_likelihood, -np.inf)
    return np.logaddexp.reduce(seen, axis=0) - np.log(without.sum(0))


def _spread(values: np.ndarray) -> float:
    return float(np.sqrt(len(values)) * values.std(ddof=1)) if len(values) > 1 else float("nan")
