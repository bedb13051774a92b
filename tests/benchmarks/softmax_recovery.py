"""Softmax mixtures: do warm-started EM fits recover the true parameters, and at what rate?

p items with features from N(0, I) in R^L, K components with equal weights and atoms theta_k of norm
1.5 in random directions, N draws. ``error`` is the largest distance of an atom from the true atom
(matched by permutation), ``shares`` the sum of the absolute errors of the weights; medians over
``--repeats`` problems. The starts:

moments        the method of moments itself, without EM; ``flagged`` counts its warnings
EM moments     EM from there
EM subspace    short EM runs from five random points of the K-dimensional subspace of the second
               moment; the best one continues
EM random      the same from random points of R^L
EM truth       EM from the true parameters: the best that the likelihood can give

table   the four settings of L, K, p, N; ``ratio`` is the median error of "EM subspace" relative to
        that of "EM truth" (needed: at most 1.1)
rates   the error of "EM subspace" against N = 5,000 ... 500,000, with the slope of log error over
        log N (needed: -0.5 +- 0.1), and against p, K and L, one at a time; drawn to ``--plot``
growth  errors, and seconds of all fits together, of mixtures grown in stages (1, 2, ... K
        components, splitting the largest each time), compared with "EM subspace" and "EM truth"
"""

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from pyro_mixtures.errors import MomentWarning
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.infer.restarts.best_of import best_of
from pyro_mixtures.infer.restarts.growth import grow
from pyro_mixtures.init.softmax_starts import SoftmaxStart, start_softmax
from pyro_mixtures.models.softmax import SoftmaxMixture
from pyro_mixtures.partition.matching import matched_errors
from tests.benchmarks import harness

NORM = 1.5
STARTS = 5
NEEDED = 1.1  # of the ratio, at most
SLOPE, TOLERANCE = -0.5, 0.1
POINTS = "#0072B2"


class Setting(NamedTuple):
    """Sizes of one problem."""

    features: int  # L
    components: int  # K
    items: int  # p
    draws: int  # N

    @property
    def label(self) -> dict[str, int]:
        """The sizes by the letters of the tables."""
        return {"L": self.features, "K": self.components, "p": self.items, "N": self.draws}


TABLE = (
    Setting(5, 3, 2000, 20_000),
    Setting(10, 3, 5000, 50_000),
    Setting(10, 5, 5000, 50_000),
    Setting(10, 3, 500, 50_000),
)
GROWN = (TABLE[0], TABLE[2])
BASE = Setting(5, 3, 2000, 50_000)
SERIES = {
    "N": [BASE._replace(draws=n) for n in (5_000, 15_000, 50_000, 150_000, 500_000)],
    "p": [BASE._replace(items=p) for p in (200, 500, 2000, 5000, 20_000)],
    "K": [BASE._replace(components=k) for k in (2, 3, 4, 5)],
    "L": [BASE._replace(features=features) for features in (3, 5, 10, 20)],
}


class Problem(NamedTuple):
    """Draws as counts of items, and the true parameters."""

    features: Tensor  # (p, L)
    counts: Tensor  # (p,)
    theta: Tensor  # (K, L)
    weights: Tensor  # (K,)


class Errors(NamedTuple):
    """The errors of one fit."""

    worst: float
    shares: float


def main() -> None:
    """Run the chosen tables and report."""
    options = parse()
    pyro.enable_validation(False)
    report = harness.Report(__doc__)
    if "table" in options.parts:
        for setting in TABLE:
            compare_starts(report, setting, options.repeats)
    if "growth" in options.parts:
        for setting in GROWN:
            measure_growth(report, setting, options.repeats)
    if "rates" in options.parts:
        errors = {
            name: measure_series(report, name, series, options.repeats)
            for name, series in SERIES.items()
        }
        draw(errors, report.facts["slope over N"], options.plot)
    report.finish(options.json)


def parse() -> Any:
    """Read the command line."""
    parser = harness.parser(__doc__)
    parts = ["table", "growth", "rates"]
    parser.add_argument(
        "--parts", nargs="+", choices=parts, default=parts, help="the tables to run (all)"
    )
    parser.add_argument(
        "--repeats", type=int, default=20, help="number of problems per setting (20)"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        default=Path("runs/softmax_recovery.png"),
        help="path of the picture of the rates",
    )
    return parser.parse_args()


def planted(setting: Setting, seed: int) -> Problem:
    """Draw one problem of these sizes."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(
        setting.items, setting.features, generator=generator, dtype=torch.float64
    )
    theta = torch.randn(
        setting.components, setting.features, generator=generator, dtype=torch.float64
    )
    theta = NORM * theta / theta.norm(dim=-1, keepdim=True)
    weights = torch.full((setting.components,), 1 / setting.components, dtype=torch.float64)
    item = (features @ theta.mT).softmax(0) @ weights
    draws = item.multinomial(setting.draws, replacement=True, generator=generator)
    return Problem(features, torch.bincount(draws, minlength=setting.items), theta, weights)


# Five estimates of one problem.


def compare_starts(report: harness.Report, setting: Setting, repeats: int) -> None:
    """Report the median errors of all starts, over the same problems."""
    errors_by_start: dict[str, list[Errors]] = {}
    flagged = 0
    for seed in tqdm(range(repeats), desc=str(setting.label)):
        problem = planted(setting, seed)
        start, warned = moments(problem)
        flagged += warned
        truth = SoftmaxStart(problem.theta, problem.weights, "truth")
        fits = {
            "moments": start,
            "EM moments": from_start(problem, start),
            "EM subspace": from_best(problem, "subspace", seed),
            "EM random": from_best(problem, "random", seed),
            "EM truth": from_start(problem, truth),
        }
        for name, fitted in fits.items():
            errors_by_start.setdefault(name, []).append(errors_of(problem, fitted))
    for name, errors in errors_by_start.items():
        figures: dict[str, Any] = {
            "error": median(e.worst for e in errors),
            "shares": median(e.shares for e in errors),
        }
        if name == "moments":
            figures["flagged"] = f"{flagged}/{repeats}"
        if name != "moments":
            figures["ratio"] = figures["error"] / median(
                e.worst for e in errors_by_start["EM truth"]
            )
        if name == "EM subspace":
            figures["needed_met"] = figures["ratio"] <= NEEDED
        report.row("table", **setting.label, start=name, **figures)


def measure_growth(report: harness.Report, setting: Setting, repeats: int) -> None:
    """Report the median errors of grown mixtures, and their time."""
    ways: dict[str, Callable[[Problem, int], SoftmaxStart]] = {
        "EM grown": from_growth,
        "EM subspace": lambda problem, seed: from_best(problem, "subspace", seed),
        "EM truth": lambda problem, seed: from_start(
            problem, SoftmaxStart(problem.theta, problem.weights, "truth")
        ),
    }
    errors: dict[str, list[Errors]] = {name: [] for name in ways}
    seconds = dict.fromkeys(ways, 0.0)
    for seed in tqdm(range(repeats), desc=str(setting.label)):
        problem = planted(setting, seed)
        for name, way in ways.items():
            started = time.perf_counter()
            errors[name].append(errors_of(problem, way(problem, seed)))
            seconds[name] += time.perf_counter() - started
    truth = median(e.worst for e in errors["EM truth"])
    for name, fits in errors.items():
        figures: dict[str, Any] = {
            "error": median(e.worst for e in fits),
            "shares": median(e.shares for e in fits),
        }
        report.row(
            "growth",
            **setting.label,
            start=name,
            **figures,
            ratio=figures["error"] / truth,
            s=seconds[name],
        )


def from_growth(problem: Problem, seed: int) -> SoftmaxStart:
    """Run EM in stages, adding one component per stage."""
    pyro.clear_param_store()
    stages = range(1, len(problem.theta) + 1)
    make = lambda components: build(problem, components, empty="reseed")  # noqa: E731
    fits = grow(
        make,
        *observed(problem),
        components=list(stages),
        generator=torch.Generator().manual_seed(seed),
        **FIT,
    )
    return parameters(fits[-1].inference)


def moments(problem: Problem) -> tuple[SoftmaxStart, bool]:
    """Return the start by moments, and whether it warned."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", category=MomentWarning)
        start = start_softmax(
            problem.features, problem.counts, len(problem.theta), method="moments"
        )
    return start, any(issubclass(warning.category, MomentWarning) for warning in caught)


def build(problem: Problem, components: int | None = None, *, empty: str = "keep") -> EM:
    """Return EM over the mixture, with all components for all items."""
    components = components or len(problem.theta)
    model = SoftmaxMixture(components=components, features=problem.features).double()
    return EM(model, FullPartition(model, components=components), empty=empty)


def observed(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the distinct items and their counts."""
    items = problem.counts.nonzero()[:, 0]
    return items, problem.counts[items].double()


FIT: dict[str, Any] = {"epochs": 500, "tolerance": 1e-8, "progress": False}


def from_start(problem: Problem, start: SoftmaxStart) -> SoftmaxStart:
    """Run EM from one start."""
    pyro.clear_param_store()
    em = build(problem)
    start(em.model)
    fit(em, *observed(problem), **FIT)
    return parameters(em)


def from_best(problem: Problem, method: str, seed: int) -> SoftmaxStart:
    """Run EM from the most likely of several starts."""
    pyro.clear_param_store()
    generator = torch.Generator().manual_seed(seed)
    arguments = (problem.features, problem.counts, len(problem.theta))
    starts = [start_softmax(*arguments, method=method, generator=generator) for _ in range(STARTS)]
    result = best_of(
        lambda: build(problem), *observed(problem), starts=starts, generator=generator, **FIT
    )
    return parameters(result.best.inference)


def parameters(em: Any) -> SoftmaxStart:
    """Return the fitted parameters."""
    return SoftmaxStart(
        em.model.theta.detach().clone(), em.model.weights.detach().clone(), "fitted"
    )


def errors_of(problem: Problem, fitted: SoftmaxStart) -> Errors:
    """Return the errors after matching the components."""
    matched = matched_errors(fitted.theta, problem.theta, fitted.weights, problem.weights)
    return Errors(float(matched.worst), float(matched.weights))


# Rates.


def measure_series(
    report: harness.Report, name: str, series: Sequence[Setting], repeats: int
) -> list[tuple[int, list[float]]]:
    """Report the errors along a series, and for N the slope."""
    errors = []
    for setting in tqdm(series, desc=f"series {name}"):
        fits = [
            errors_of(p, from_best(p, "subspace", s))
            for s, p in ((s, planted(setting, s)) for s in range(repeats))
        ]
        errors.append((setting.label[name], [error.worst for error in fits]))
        figures = {
            "error": median(e.worst for e in fits),
            "shares": median(e.shares for e in fits),
        }
        report.row(f"rates over {name}", **setting.label, **figures)
    if name == "N":
        slope = slope_of(errors)
        report.fact("slope over N", slope)
        report.fact("slope needed_met", abs(slope - SLOPE) <= TOLERANCE)
    return errors


def slope_of(errors: Sequence[tuple[int, list[float]]]) -> float:
    """Return the slope of log median error over log size."""
    sizes = [size for size, _ in errors]
    medians = [median(worst) for _, worst in errors]
    return float(np.polyfit(np.log(sizes), np.log(medians), 1)[0])


def draw(errors: dict[str, list[tuple[int, list[float]]]], slope: float, path: Path) -> None:
    """Draw one panel per series: medians and quartiles."""
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for ax, (name, series) in zip(
        figure.subplots(1, len(errors), sharey=True), errors.items(), strict=True
    ):
        sizes = [size for size, _ in series]
        errors_by_size = [np.array(worst) for _, worst in series]
        low, middle, high = (
            np.array([np.quantile(worst, q) for worst in errors_by_size]) for q in (0.25, 0.5, 0.75)
        )
        ax.errorbar(sizes, middle, [middle - low, high - middle], fmt="o-", color=POINTS, capsize=3)
        ax.set(xscale="log" if name in "Np" else "linear", yscale="log", xlabel=NAMES[name])
        ax.grid(alpha=0.3)
        if name == "N":
            ax.set(ylabel="largest error of an atom", title=f"slope {slope:.2f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


NAMES = {"N": "draws N", "p": "items p", "K": "components K", "L": "features L"}


if __name__ == "__main__":
    main()
