"""Permutation tests of independence, and p-values adjusted for multiple testing."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

Generator = torch.Generator | None

_MIN_EXCEEDANCES = 10  # statistics at least as large as the observed one, after which a test stops


def permutations_of(rows: int, count: int, generator: Generator) -> Iterator[np.ndarray]:
    """Yield ``count`` random permutations of ``rows`` row numbers."""
    for _ in range(count):
        yield torch.randperm(rows, generator=generator, device="cpu").numpy()


def p_value(observed: float, permuted: Iterable[float]) -> float:
    """Return the p-value of a statistic, given the same statistic of permuted rows.

    Permuted statistics are drawn until 10 of them are at least as large as the observed one. After
    l draws the p-value is (1 + number at least as large) / (1 + l), or 10 / l if the test stopped
    early. Both are valid for any number of permutations (under independence the probability of a
    p-value of at most a is at most a), and neither is zero. Early stopping saves time on
    independent variables. Besag & Clifford, "Sequential Monte Carlo p-values", Biometrika 78
    (1991).

    >>> p_value(0.5, [0.1, 0.2, 0.6])
    0.5
    """
    drawn = exceedances = 0
    for drawn, statistic in enumerate(permuted, start=1):
        exceedances += statistic >= observed
        if exceedances == _MIN_EXCEEDANCES:
            return exceedances / drawn
    return (1 + exceedances) / (1 + drawn)


def adjust_p_values(p_values: Iterable[float]) -> list[float]:
    """Return p-values adjusted to control the false discovery rate; NaN stands for no test.

    The adjustment is that of Benjamini & Hochberg (1995), by
    :func:`scipy.stats.false_discovery_control`, over the tests that were made. NaN stays NaN.

    >>> adjust_p_values([0.01, 0.5, float("nan"), 0.02])
    [0.03, 0.5, nan, 0.03]
    """
    from scipy.stats import false_discovery_control  # slow to import

    adjusted = np.array(list(p_values), dtype=np.float64)
    tested = ~np.isnan(adjusted)
    if tested.any():
        adjusted[tested] = false_discovery_control(adjusted[tested])
    return [float(p) for p in adjusted]
