"""Information measures: estimates at known values, time against scikit-learn, permutation tests.

truth        mutual information (k=5, n=1,600, means over --seeds seeds) of three processes of known
             information, in both forms; hypercontractivity (n=300) of Gaussian pairs, whose true
             value is the squared correlation
speed        mutual information of n=100,000 rows; ``ratio`` is the time of scikit-learn's
             mutual_info_regression or mutual_info_classif divided by ours, both run alternately
             ("-": no peer handles mixtures of atoms and densities)
batches      seconds of one hypercontractivity coefficient against its rows
rejections   share of independent pairs (n=60) for which the permutation test rejects at 5 %
"""

import math
import time
from typing import Any

import numpy as np
import torch
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from pyro_mixtures.information import hypercontractivity, mutual_information
from tests.benchmarks import harness

N = 100_000


def main() -> None:
    """Run all tables and report."""
    parser = harness.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="number of seeds (20)")
    parser.add_argument(
        "--replications",
        type=int,
        default=1000,
        metavar="N",
        help="number of independent pairs (1000)",
    )
    options = parser.parse_args()
    report = harness.Report(__doc__)
    truth(report, options.seeds)
    speed(report)
    batches(report)
    rejections(report, options.replications)
    report.finish(options.json)


def half_gaussian(rng: np.random.Generator, n: int) -> Any:
    gauss = rng.multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], n)
    sign = rng.choice([-1.0, 1.0], n)
    atoms = np.stack([sign, np.where(rng.random(n) < 0.9, sign, -sign)], 1)
    return np.where(rng.random((n, 1)) < 0.5, gauss, atoms).T


def discrete_uniform(rng: np.random.Generator, n: int) -> Any:
    x = rng.integers(0, 5, n)
    return x, x + 2 * rng.random(n)


def zero_inflated(rng: np.random.Generator, n: int) -> Any:
    x = rng.exponential(size=n)
    return x, (rng.random(n) < 0.85) * rng.poisson(x)


def gaussian(rng: np.random.Generator, n: int, squared: float = 0.5) -> Any:
    x, noise = rng.normal(size=(2, n))
    return x, math.sqrt(squared) * x + math.sqrt(1 - squared) * noise


def labels(rng: np.random.Generator, n: int) -> Any:
    z = rng.integers(0, 50, n)
    return z, z % 5 + rng.normal(size=n)


TRUTHS = {half_gaussian: 1.2924, discrete_uniform: 1.0549, zero_inflated: 0.2298}


def truth(report: harness.Report, seeds: int) -> None:
    for process, exact in TRUTHS.items():
        pairs = [process(np.random.default_rng(seed), 1600) for seed in range(seeds)]
        means = {
            f: float(np.mean([mutual_information(x, y, form=f).nats for x, y in pairs]))
            for f in ("digamma", "log")
        }
        report.row("mutual information", process=process.__name__, truth=exact, **means)
    for squared in (0.0, 0.09, 0.25, 0.49, 0.81):
        coefficients = []
        for seed in range(seeds):
            x, y = gaussian(np.random.default_rng(seed), 300, squared)
            coefficients.append(
                hypercontractivity(x, y, generator=torch.Generator().manual_seed(seed)).coefficient
            )
        report.row(
            "hypercontractivity",
            truth=squared,
            mean=float(np.mean(coefficients)),
            deviation=float(np.std(coefficients)),
        )


def speed(report: harness.Report) -> None:
    rng = np.random.default_rng(0)
    for process in (gaussian, labels, half_gaussian, zero_inflated):
        x, y = process(rng, N)
        runs: dict[str, Any] = {
            "ours": lambda x=x, y=y, p=process: mutual_information(x, y, discrete=_nominal(p))
        }
        if process is gaussian:
            runs["peer"] = lambda x=x, y=y: mutual_info_regression(x[:, None], y, n_neighbors=5)
        if process is labels:
            runs["peer"] = lambda x=x, y=y: mutual_info_classif(y[:, None], x, n_neighbors=5)
        timing = harness.paired(runs, 3)
        ratio = timing["peer"].median / timing["ours"].median if "peer" in timing else "-"
        report.row(
            "speed", process=process.__name__, rows=N, seconds=timing["ours"].median, ratio=ratio
        )


def _nominal(process: Any) -> str:
    return "x" if process is labels else ""


def batches(report: harness.Report) -> None:
    for rows in (250, 500, 1000, 2000):
        x, y = map(torch.as_tensor, gaussian(np.random.default_rng(0), rows))
        started = time.perf_counter()
        hypercontractivity(x.float(), y.float())
        report.row("batches", rows=rows, seconds=time.perf_counter() - started)


def rejections(report: harness.Report, replications: int) -> None:
    rejected = 0
    for seed in range(replications):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.rand(60, generator=generator), torch.randn(60, generator=generator).exp()
        p = hypercontractivity(
            x, y, permutations=39, steps=30, starts=4, generator=generator
        ).p_value
        rejected += p is not None and p <= 0.05
    report.row(
        "rejections",
        replications=replications,
        share=rejected / replications,
        needed="0.03 ... 0.07",
    )


if __name__ == "__main__":
    main()
