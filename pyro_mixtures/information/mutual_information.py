"""Mutual information of numbers, labels and mixtures of both, from nearest neighbors."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import digamma, ndtri

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.information.neighbors import neighborhoods, rows_closer, sample_entropy
from pyro_mixtures.information.permutation import Generator, p_value, permutations_of
from pyro_mixtures.information.variables import Array, Variable, as_variable
from pyro_mixtures.options import check_whole

CountFunction = Callable[[np.ndarray], np.ndarray]

FORMS: dict[str, CountFunction] = {
    "digamma": digamma,
    "log": lambda n: np.log(n + 1),
}
DISCRETE = ("", "x", "y", "xy")

Estimator = Callable[[Variable, Variable], float]


class MutualInformation(NamedTuple):
    """An estimate and, if requested, its standard error and the p-value of independence."""

    nats: float
    standard_error: float | None = None
    p_value: float | None = None

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return a normal confidence interval for the mean of the estimator.

        The interval does not account for the bias of the estimator.

        :param level: confidence level, between 0 and 1.
        :returns: lower and upper end, in nats.
        :raises OptionError: without a standard error, or for a level outside (0, 1).

        >>> low, high = MutualInformation(1.0, standard_error=0.1).interval()
        >>> round(low, 3), round(high, 3)
        (0.804, 1.196)
        """
        if self.standard_error is None:
            raise OptionError(
                "no standard error was estimated: pass subsamples=50, for example, to "
                "mutual_information"
            )
        if not 0 < level < 1:
            raise OptionError(f"level={level} must lie between 0 and 1")
        half_width = float(ndtri((1 + level) / 2)) * self.standard_error
        return self.nats - half_width, self.nats + half_width


def mutual_information(
    x: Array,
    y: Array,
    *,
    neighbors: int = 5,
    form: str = "digamma",
    discrete: str = "",
    subsamples: int = 0,
    permutations: int = 0,
    generator: Generator = None,
    workers: int = -1,
) -> MutualInformation:
    """Estimate I(x; y) in nats from n rows of numbers, labels, or mixtures of atoms and densities.

    Let rho_i be the distance from row i to its k-th neighbor in (x, y), in the maximum norm. Let
    k_i, n_x,i and n_y,i be the numbers of rows, including i, that are strictly closer than rho_i
    in (x, y), in x, and in y (at distance 0 if rho_i = 0). Then ::

        I = mean_i [ psi(k_i) + log n - psi(n_x,i) - psi(n_y,i) ]

    Without ties k_i = k. The paper also sets k_i = k where several rows are tied at rho_i > 0, but
    n_x,i and n_y,i do not count those rows; for rounded variables the paper's estimate is much too
    large. The estimate is at most the entropy of the values of x or y, where some values are equal
    (a variable without equal values counts as continuous). It is not clipped at 0: under
    independence it scatters around 0. Distances in x and y are compared with each other, so
    rescaling one variable changes the estimate: pass variables of similar spread.

    Nominal variables (labels of a partition, for example) must be named in ``discrete``: two labels
    are at distance 0 or infinity. The neighbors of a row then share its label. If fewer than k
    other rows share it, rho_i is the distance to the farthest of them, and a row that is alone with
    its label contributes 0. For two nominal variables no neighbors are needed: every k_i is the
    number of equal rows, including single ones.

    :param x, y: (n,) or (n, d): tensors, arrays or lists.
    :param neighbors: k.
    :param form: ``"digamma"``, or ``"log"`` for the paper's form, which has log(n + 1) in place of
        psi(n) in the last two terms and is more biased in small samples.
    :param discrete: ``"x"``, ``"y"`` or ``"xy"``: the variables that are nominal.
    :param subsamples: number of random halves of the rows (50, for example) for a standard error;
        0 for none. A bootstrap would not work: the rows it repeats are ties, which the estimator
        treats as atoms. With s the standard deviation over subsamples of m of n rows, drawn without
        replacement, the standard error is s sqrt(m / (n - m)), as for the delete-d jackknife.
    :param permutations: maximum number of permutations of the rows of y (199, for example) for a
        p-value of independence; 0 for no test.
    :param generator: source of randomness, on the CPU; torch's global one by default.
    :param workers: number of threads of the neighbor searches; -1 for one per core. The results do
        not depend on it.
    :returns: the estimate, with its standard error and p-value or None.
    :raises DataError: for NaN, infinity, missing labels, a constant variable, mismatched shapes, or
        at most k rows.
    :raises OptionError: for an unknown ``form`` or ``discrete``, or numbers that are out of range
        or not whole.

    Gao, Kannan, Oh & Viswanath, "Estimating mutual information for discrete-continuous mixtures",
    NeurIPS 2017, algorithm 1 (https://arxiv.org/abs/1709.06212). For nominal x and a density of y:
    Ross, "Mutual information between discrete and continuous data sets", PLoS ONE 9 (2014).
    Jackknife: Shao & Wu, Ann. Statist. 17 (1989).

    >>> coin = np.arange(1000) % 2
    >>> round(mutual_information(coin, 1 - coin, discrete="xy").nats, 3)  # log 2
    0.693
    """
    _check_options(neighbors, form, discrete, subsamples, permutations, workers)
    x_variable = as_variable(x, "x", nominal="x" in discrete)
    y_variable = as_variable(y, "y", nominal="y" in discrete)
    n = len(x_variable.points)
    _check_rows(n, len(y_variable.points), neighbors, subsamples)

    def estimate(x_sample: Variable, y_sample: Variable) -> float:
        return _estimate(x_sample, y_sample, neighbors, FORMS[form], workers)

    nats = estimate(x_variable, y_variable)
    error = _standard_error(estimate, x_variable, y_variable, subsamples, generator)
    permuted = (
        estimate(x_variable, y_variable.take(order))
        for order in permutations_of(n, permutations, generator)
    )
    return MutualInformation(nats, error, p_value(nats, permuted) if permutations else None)


def _check_options(
    neighbors: int, form: str, discrete: str, subsamples: int, permutations: int, workers: int
) -> None:
    check_whole(neighbors=neighbors)
    check_whole(minimum=0, subsamples=subsamples, permutations=permutations)
    check_whole(minimum=-1, workers=workers)
    if form not in FORMS:
        raise OptionError(f"unknown form={form!r}: choose one of {tuple(FORMS)}")
    if discrete not in DISCRETE:
        raise OptionError(f"unknown discrete={discrete!r}: choose one of {DISCRETE}")
    if subsamples == 1:
        raise OptionError("subsamples=1: pass at least 2 for a standard error, or 0 for none")
    if workers == 0:
        raise OptionError("workers=0: pass a number of threads, or -1 for one per core")


def _check_rows(x_rows: int, y_rows: int, neighbors: int, subsamples: int) -> None:
    if x_rows != y_rows:
        raise DataError(f"x has {x_rows} rows and y {y_rows}: pass the same rows of both")
    if (x_rows // 2 if subsamples else x_rows) <= neighbors:
        halves = " (a subsample has half of them)" if subsamples else ""
        raise DataError(
            f"{x_rows} rows are too few for neighbors={neighbors}{halves}: "
            "pass more rows or fewer neighbors"
        )


def _estimate(x: Variable, y: Variable, neighbors: int, form: CountFunction, workers: int) -> float:
    """Mean over rows, computed from the distinct points and their multiplicities."""
    near = neighborhoods(x, y, neighbors, workers=workers)
    n_x, n_y = (rows_closer(v, near.first, near.radius, workers=workers) for v in (x, y))
    n = len(x.points)
    terms = digamma(near.closer) + np.log(n) - form(n_x) - form(n_y)
    if x.nominal != y.nominal:
        terms[near.reached == 0] = 0.0
    nats = float(near.ties @ terms) / n
    for variable, closer in ((x, n_x), (y, n_y)):
        # At most the entropy, because ``closer`` counts equal values and others. It is cheaper.
        lower_bound = np.log(n) - float(near.ties @ np.log(closer)) / n
        if nats > lower_bound:
            nats = min(nats, sample_entropy(variable))
    return nats


def _standard_error(
    estimate: Estimator, x: Variable, y: Variable, subsamples: int, generator: Generator
) -> float | None:
    if not subsamples:
        return None
    n = len(x.points)
    m = n // 2
    halves = (order[:m] for order in permutations_of(n, subsamples, generator))
    estimates = [estimate(x.take(half), y.take(half)) for half in halves]
    return float(np.std(estimates, ddof=1)) * float(np.sqrt(m / (n - m)))
