"""Hypercontractivity of samples: Gaussian pairs, rare dependences, error rates, bad input."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import binom

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.information import hypercontractivity


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(n, squared_correlation, seed, dtype=torch.float32):
    noise = torch.randn(2, n, generator=generator(seed), dtype=dtype, device="cpu")
    return noise[0], math.sqrt(squared_correlation) * noise[0] + math.sqrt(
        1 - squared_correlation
    ) * noise[1]


def rare_dependence(n=1000, share=0.03, seed=0):
    """Independent normal x and y, except for a few rows with large x, where y = +-x."""
    g = generator(seed)
    x, y = torch.randn(2, n, generator=g).double()
    far = 3 + torch.rand(n, generator=g).double()
    sign = torch.where(torch.rand(n, generator=g) < 0.5, 1.0, -1.0)
    rare = torch.arange(n) < share * n
    return torch.where(rare, far, x), torch.where(rare, sign * far, y)


def distance_correlation(x, y):
    """Székely, Rizzo & Bakirov, Ann. Statist. 35 (2007)."""

    def centered(z):
        d = (z[:, None] - z).abs()
        return d - d.mean(0) - d.mean(1, keepdim=True) + d.mean()

    a, b = centered(x), centered(y)
    return float(((a * b).mean() / ((a * a).mean() * (b * b).mean()).sqrt()).sqrt())


@pytest.mark.parametrize(
    ("truth", "expected"), [(0.0, 0.05), (0.09, 0.12), (0.25, 0.22), (0.49, 0.37), (0.81, 0.59)]
)
def test_gaussian_pairs_lie_in_known_bands(truth, expected):
    pairs = [gaussian(300, truth, seed) for seed in range(6)]
    coefficients = [hypercontractivity(x, y, generator=generator()).coefficient for x, y in pairs]
    assert np.mean(coefficients) == pytest.approx(expected, abs=0.06)


def test_finds_a_rare_dependence_that_correlations_miss():
    x, y = rare_dependence()
    assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 0.2
    assert distance_correlation(x, y) < 0.2
    assert hypercontractivity(x, y, starts=5, generator=generator()).coefficient > 0.6


def test_permutation_test_finds_the_rare_dependence():
    x, y = rare_dependence(300, 0.05)
    estimate = hypercontractivity(x, y, permutations=19, steps=30, starts=3, generator=generator())
    assert estimate.p_value == 1 / 20


def rejections(replications, rows, permutations):
    """Number of rejections of independence at the 5 % level, for independent data."""
    rejected = 0
    for seed in range(replications):
        g = generator(seed)
        x, y = torch.rand(rows, generator=g), torch.randn(rows, generator=g).exp()
        p = hypercontractivity(
            x, y, permutations=permutations, steps=30, starts=4, generator=g
        ).p_value
        rejected += p <= 0.05
    return rejected


def test_few_false_positives():
    """The rate is 5 %: more than 7 rejections in 40 replications have a probability below 1e-3."""
    assert rejections(40, 30, 19) <= binom.isf(1e-3, 40, 0.05)


@pytest.mark.slow
def test_false_positives_are_five_percent():
    assert rejections(600, 60, 39) / 600 == pytest.approx(0.05, abs=0.02)


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_and_seeds(dtype):
    x, y = (v.to(dtype) for v in gaussian(120, 0.5, 0, torch.float64))
    first = hypercontractivity(x, y, permutations=12, generator=generator(3))
    assert first == hypercontractivity(x, y, permutations=12, generator=generator(3))
    exact = hypercontractivity(x.double(), y.double(), generator=generator(3)).coefficient
    # Steps of a fixed length circle around the maximum.
    assert first.coefficient == pytest.approx(exact, abs=0.01)
    assert (
        first.coefficient != hypercontractivity(x, y, starts=1, generator=generator(4)).coefficient
    )


@pytest.mark.cuda
def test_same_on_the_device():
    x, y = gaussian(200, 0.5, 0)
    estimate = hypercontractivity(x.cuda(), y.cuda(), permutations=19, generator=generator())
    expected = hypercontractivity(x, y, permutations=19, generator=generator())
    assert estimate.coefficient == pytest.approx(expected.coefficient, abs=1e-2)
    assert estimate.p_value == expected.p_value


def test_does_not_depend_on_units():
    x, y = gaussian(150, 0.5, 0, torch.float64)
    first = hypercontractivity(x, y, generator=generator()).coefficient
    assert hypercontractivity(
        1e6 * x + 5, -1e-6 * y, generator=generator()
    ).coefficient == pytest.approx(first, abs=1e-5)


@pytest.mark.parametrize("scale", [1e300, 1e160, 1e-170, 1e-300, 1e-320])
def test_numbers_whose_squares_overflow_or_underflow(scale):
    x, y = gaussian(150, 0.5, 0, torch.float64)
    first = hypercontractivity(x, y, generator=generator()).coefficient
    estimate = hypercontractivity(x / x.abs().max() * scale, y, generator=generator()).coefficient
    assert estimate == pytest.approx(first, abs=1e-3)  # 1e-320 has four significant digits


def test_numbers_whose_sums_overflow():
    x, y = gaussian(150, 0.5, 0, torch.float64)
    first = hypercontractivity(x + 9, y, generator=generator()).coefficient
    assert hypercontractivity(
        (x + 9) * 1e307, y, generator=generator()
    ).coefficient == pytest.approx(first, abs=1e-6)


@pytest.mark.meta
def test_integers_are_exact():
    t, y = 1_700_000_000 + torch.arange(100, device="cpu"), torch.arange(100.0, device="cpu") ** 2
    exact = hypercontractivity(t.double(), y, generator=generator())
    assert hypercontractivity(t, y, generator=generator()) == exact
    assert hypercontractivity(t.tolist(), y, generator=generator()) == exact


PEAK = """
import torch
from pyro_mixtures.information import hypercontractivity
from tests.benchmarks.harness import peak_memory
x, y = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0))
options = dict(steps=3, starts=3, permutations={permutations})
hypercontractivity(x, y, rows=100, **options)  # exclude what the first call loads
with peak_memory() as memory:
    hypercontractivity(x, y, rows=1000, batches={batches}, **options)
print(memory.growth / 4e6)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("permutations", "limit"), [(0, 12), (4, 24)])
def test_memory_does_not_grow_with_the_number_of_batches(permutations, limit):
    """Peak memory of separate processes, in float32 matrices of rows x rows numbers.

    The kernel matrices of 20 batches together would be 40 of them.
    """
    for batches in (1, 20):
        code = PEAK.format(batches=batches, permutations=permutations)
        assert float(subprocess.check_output([sys.executable, "-c", code])) < limit


def test_vectors_and_arrays():
    x, y = gaussian(150, 0.8, 0, torch.float64)
    wide = torch.stack([x, gaussian(150, 0, 1, torch.float64)[0]], 1)
    estimate = hypercontractivity(wide.numpy(), y.numpy(), generator=generator()).coefficient
    assert (
        0
        < hypercontractivity(wide, gaussian(150, 0, 2)[0], generator=generator()).coefficient
        < estimate
        < 1
    )


def test_batches_of_many_rows():
    x, y = gaussian(2000, 0.5, 0)
    one = [
        hypercontractivity(x, y, rows=60, steps=30, generator=generator(s)).coefficient
        for s in range(6)
    ]
    ten = [
        hypercontractivity(x, y, rows=60, steps=30, batches=8, generator=generator(s)).coefficient
        for s in range(3)
    ]
    assert np.std(ten) < np.std(one)
    assert np.mean(ten) == pytest.approx(np.mean(one), abs=0.1)
    tested = hypercontractivity(
        x, y, rows=60, batches=3, permutations=19, steps=20, starts=3, generator=generator()
    )
    assert tested.p_value == 0.05


A = torch.arange(50.0)


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"),
    [
        (torch.where(A == 3, math.nan, A), A, {}, DataError, "row 3 of x contains NaN"),
        (A, torch.where(A == 4, math.inf, A), {}, DataError, "row 4 of y contains NaN"),
        (torch.ones(50), A, {}, DataError, "x is constant"),
        (A, torch.stack([A, torch.ones(50)], 1), {}, DataError, "column 1 of y is constant"),
        (A, A[:49], {}, DataError, "50 rows .* y has 49"),
        (A[:3], A[:3], {}, DataError, "3 rows are too few"),
        (torch.tensor(1.0), A, {}, DataError, "single number"),
        (np.array(list("ab" * 25)), A, {}, DataError, "real numbers"),
        (torch.eye(50).to_sparse(), A, {}, DataError, "to_dense"),
        (A.to(torch.complex64), A, {}, DataError, "complex"),
        (A, A, {"bandwidth": 0.0}, OptionError, "bandwidth=0.0"),
        (A, A, {"bandwidth": "wide"}, OptionError, "bandwidth='wide'"),
        (A, A, {"steps": 2.5}, OptionError, "steps=2.5"),
        (A, A, {"starts": 2.5}, OptionError, "starts=2.5"),
        (A, A, {"rows": 20.5}, OptionError, "rows=20.5"),
        (A, A, {"batches": 1.5}, OptionError, "batches=1.5"),
        (A, A, {"permutations": 2.5}, OptionError, "permutations=2.5"),
        (A, A, {"steps": 0}, OptionError, "steps=0"),
        (A, A, {"starts": 0}, OptionError, "starts=0"),
        (A, A, {"rows": 2}, OptionError, "rows=2"),
        (A, A, {"batches": 20}, OptionError, "batches=20"),
        (A, A, {"permutations": -1}, OptionError, "permutations=-1"),
    ],
)
def test_bad_input(x, y, options, error, message):
    with pytest.raises(error, match=message):
        hypercontractivity(x, y, **options)
