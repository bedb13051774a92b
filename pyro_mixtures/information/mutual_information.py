"""Mutual information of numbers, names and mixtures of both, from nearest neighbours."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import digamma, ndtri

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.information.neighbors import neighborhoods, rows_closer
from pyro_mixtures.information.permutation import Generator, p_value, permutations_of
from pyro_mixtures.information.variables import Array, Variable, as_variable
from pyro_mixtures.options import check_whole

FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "digamma": digamma,
    "log": lambda n: np.log(n + 1),
}
NOMINAL = ("", "x", "y", "xy")

Estimate = Callable[[Variable, Variable], float]


class MutualInformation(NamedTuple):
    """An estimate and, where they were asked for, its standard error and the p-value of independence."""

    nats: float
    standard_error: float | None = None
    p_value: float | None = None

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Normal interval for the estimator's mean, which its bias keeps apart from the truth.

        >>> low, high = MutualInformation(1.0, standard_error=0.1).interval()
        >>> round(low, 3), round(high, 3)
        (0.804, 1.196)
        """
        if self.standard_error is None:
            raise OptionError(
                "no standard error was estimated: pass subsamples=50, say, to mutual_information"
            )
        if not 0 < level < 1:
            raise OptionError(f"level={level} must lie between 0 and 1")
        width = float(ndtri((1 + level) / 2)) * self.standard_error
        return self.nats - width, self.nats + width


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
    """Estimate I(x; y) in nats from n rows of numbers, names, or mixtures of atoms and densities.

    With rho_i the distance of row i to its k-th neighbour in (x, y), maximum norm, and rows counted
    that lie strictly closer than rho_i in x or y alone (at distance 0 where rho_i = 0), itself
    included, ::

        I = mean_i [ psi(k_i) + log n - psi(n_x,i) - psi(n_y,i) ]

    where k_i = k, or the number of rows at the same point where rho_i = 0. It is not clipped: under
    independence it spreads about 0. Distances in x and y are compared, so rescaling one variable
    changes the estimate: give variables of similar spread. Names (labels of a partition, say) must
    be given in ``discrete``: two of them lie at distance 0 or infinity. A row's neighbours then
    share its label; where fewer than k others do, k_i is their number; a row that is alone with its
    label adds 0. Two nominal variables need no neighbours: every k_i counts ties, and single ones
    count too.

    :param x, y: (n,) or (n, d); tensors, arrays or lists.
    :param form: ``"digamma"``; ``"log"``, the paper's, has log(n + 1) for psi(n) in the last two
        terms: more biased in small samples.
    :param discrete: ``"x"``, ``"y"`` or ``"xy"``: which of them are nominal.
    :param subsamples: this many random halves of the rows (50, say) give a standard error. A
        bootstrap would not: the rows it repeats are ties, which the estimator takes for atoms. With
        s the standard deviation over subsamples of m of n rows, without replacement, the standard
        error is s sqrt(m / (n - m)), as of the delete-d jackknife.
    :param permutations: at most this many orders of y's rows (199, say) give a p-value of
        independence.
    :param generator: source of randomness, on the CPU; torch's global one by default.
    :param workers: threads of the searches; -1 is one a core. Results do not depend on it.
    :raises DataError: for NaN, infinity, missing names, a constant variable, shapes that do not
        fit, or at most k rows.
    :raises OptionError: for an unknown form or ``discrete``, or numbers out of range or not whole.

    Gao, Kannan, Oh & Viswanath, "Estimating mutual information for discrete-continuous mixtures",
    NeurIPS 2017, algorithm 1 (https://arxiv.org/abs/1709.06212). Nominal x and a density of y:
    Ross, "Mutual information between discrete and continuous data sets", PLoS ONE 9 (2014).
    Jackknife: Shao & Wu, Ann. Statist. 17 (1989).

    >>> coin = np.arange(1000) % 2
    >>> round(mutual_information(coin, 1 - coin, discrete="xy").nats, 3)  # log 2
    0.694
    """
    _check(neighbors, form, discrete, subsamples, permutations, workers)
    a = as_variable(x, "x", nominal="x" in discrete)
    b = as_variable(y, "y", nominal="y" in discrete)
    n = len(a.points)
    if len(b.points) != n:
        raise DataError(f"x has {n} rows and y {len(b.points)}: give the same rows of both")
    if (n // 2 if subsamples else n) <= neighbors:
        raise DataError(
            f"{n} rows are too few for neighbors={neighbors} (and half of them for subsamples): give more"
        )

    def estimate(one: Variable, other: Variable) -> float:
        return _estimate(one, other, neighbors, FORMS[form], workers)

    nats = estimate(a, b)
    error = _standard_error(estimate, a, b, subsamples, generator)
    permuted = (estimate(a, b.take(order)) for order in permutations_of(n, permutations, generator))
    return MutualInformation(nats, error, p_value(nats, permuted) if permutations else None)


def _check(
    neighbors: int, form: str, discrete: str, subsamples: int, permutations: int, workers: int
) -> None:
    check_whole(neighbors=neighbors)
    check_whole(minimum=0, subsamples=subsamples, permutations=permutations)
    check_whole(minimum=-1, workers=workers)
    if form not in FORMS:
        raise OptionError(f"unknown form={form!r}; choose one of {tuple(FORMS)}")
    if discrete not in NOMINAL:
        raise OptionError(f"unknown discrete={discrete!r}; choose one of {NOMINAL}")
    if subsamples == 1:
        raise OptionError("subsamples=1: a standard error needs 2 at least, 0 asks for none")
    if workers == 0:
        raise OptionError("workers=0: give a number of threads, or -1 for one a core")


def _estimate(x: Variable, y: Variable, neighbors: int, form: Callable, workers: int) -> float:
    """Mean over rows, taken over distinct points and their ties."""
    near = neighborhoods(x, y, neighbors, workers=workers)
    n_x, n_y = (rows_closer(v, near.first, near.radius, workers=workers) for v in (x, y))
    k = np.where(near.radius > 0, near.reached, near.ties)
    terms = digamma(k) + np.log(len(x.points)) - form(n_x) - form(n_y)
    if x.nominal != y.nominal:
        terms[near.reached == 0] = 0.0
    return float(near.ties @ terms) / len(x.points)


def _standard_error(
    estimate: Estimate, x: Variable, y: Variable, subsamples: int, generator: Generator
) -> float | None:
    if not subsamples:
        return None
    n = len(x.points)
    m = n // 2
    halves = (order[:m] for order in permutations_of(n, subsamples, generator))
    found = [estimate(x.take(half), y.take(half)) for half in halves]
    return float(np.std(found, ddof=1)) * float(np.sqrt(m / (n - m)))
