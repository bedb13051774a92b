"""Permutation tests of independence, and p-values adjusted for their number."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from pyro_mixtures.errors import DataError

Generator = torch.Generator | None

_ENOUGH = 10  # statistics at least as large as the observed one


def permutations_of(rows: int, count: int, generator: Generator) -> Iterator[np.ndarray]:
    """``count`` random orders of ``rows`` row numbers."""
    yield from (
        torch.randperm(rows, generator=generator, device="cpu").numpy() for _ in range(count)
    )


def p_value(observed: float, permuted: Iterable[float]) -> float:
    """Of a statistic against those of permuted rows, which are drawn until 10 of them are at least as large.

    With l statistics drawn, (1 + number at least as large) / (1 + l), or 10 / l where it stopped.
    Both are valid at every number of permutations (under independence at most a with a probability
    of at most a) and neither is zero. Independent variables need few permutations, which leaves
    more for the others. Besag & Clifford, "Sequential Monte Carlo p-values", Biometrika 78 (1991).

    >>> p_value(0.5, [0.1, 0.2, 0.6])
    0.5
    """
    drawn = larger = 0
    for drawn, statistic in enumerate(permuted, start=1):
        larger += statistic >= observed
        if larger == _ENOUGH:
            return larger / drawn
    return (1 + larger) / (1 + drawn)


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """Adjusted p-values (m,): rejecting those of at most q keeps the false discovery rate at q at most.

    NaN stands for a test that was not made, and stays NaN.

    :raises DataError: for numbers outside [0, 1], or another shape.

    p_(i) becomes min_{j>=i} m p_(j) / j. Benjamini & Hochberg, "Controlling the false discovery
    rate: a practical and powerful approach to multiple testing", JRSS B 57 (1995).

    >>> benjamini_hochberg(np.array([0.01, 0.5, 0.02])).tolist()
    [0.03, 0.5, 0.03]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or ((p < 0) | (p > 1)).any():
        raise DataError(f"p-values are numbers from 0 to 1, of shape (m,): not {p}")
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made])[::-1]]
    adjusted = np.full_like(p, np.nan)
    adjusted[order] = np.minimum.accumulate(p[order] * len(made) / np.arange(len(made), 0, -1))
    return adjusted
