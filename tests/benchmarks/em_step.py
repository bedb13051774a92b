"""EM steps and whole fits of factor analyzers on photographs, compared with vamm and scikit-learn.

Data: RGB patches of the two photographs in scikit-learn, values /255, noise of standard deviation
4/255, N=50,000 rows and 20,000 held-out rows. Ours is ``MixtureOfFactorAnalyzers`` with
``TruncatedPartition`` (C'=3, G=15, E=1) in float32. All sides of a table run alternately in one
process. A held-out NLL is exact (all C components, float64), in nats per row, and computed by the
same function for all sides.

EM step        one step (search and M-step) of ours and of vamm, the C++ program of the method's
               authors, after the same number of warm-up and EM steps. ours: the library schedules
               its searches; ours, full search: a search in every step. s: median seconds;
               evaluations: joint densities per step; nll: held-out, after the steps
whole fit      30 warm-up and 30 EM steps of vamm: seconds (seeding included) and evaluations until
               its held-out NLL first reaches its final value, compared with ours until the same
               held-out NLL; scoring is not timed. final: at the end of the fit, for ours when the
               library reports convergence or after 60 EM steps
scikit-learn   one step of ours, with full low-rank covariances, compared with
               GaussianMixture(covariance_type="diag") in float32. fit_s, nll: after equally many EM
               steps from the same means (ours after the library's warm-up); in addition a whole fit
               of MiniBatchKMeans, scored as normals with one variance, weighted by their rows
kernel         log densities of the pairs of a real search: GFLOP/s, counting D (2 H + 4) per pair
               (difference, square, scaling, sum; H products and sums), relative to sgemm of
               2048 x 2048; GB/s of rows read, relative to a large copy
memory         peak resident set of a fit in a fresh process beyond its imports, in MB, relative to
               data + 3 x parameters + 200 MB

``faster...`` is the seconds of the named peer divided by the row's own. Without vamm its rows are
left out, and a fact says so.
"""

import importlib
import math
import statistics
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_mixtures.guides import TruncatedPartition
from pyro_mixtures.infer import EM, Fit, fit, log_evidence
from pyro_mixtures.init import seed_rows
from pyro_mixtures.models import GaussianMixture, Mixture, MixtureOfFactorAnalyzers
from tests.benchmarks import harness
from tests.benchmarks.photographs import rgb_patches

STRATEGY = {"candidates": 3, "neighbors": 15, "explore": 1}
SMALLEST_VARIANCE = 1e-4
OURS, FULL_SEARCH, VAMM, DIAGONAL = "ours", "ours, full search", "vamm", "GaussianMixture diag"
TABLES = ("EM step", "whole fit", "scikit-learn", "kernel", "memory")


class Case(NamedTuple):
    """What is fitted, and for how long."""

    patch: int
    factors: int  # H
    components: int  # C
    train: int = 50_000
    test: int = 20_000
    warmup: int = 30  # of vamm's whole fit
    steps: int = 30
    most: int = 60  # maximum number of EM steps of our whole fit

    @property
    def label(self) -> dict[str, int]:
        """The columns that identify the case."""
        return {"D": 3 * self.patch**2, "C": self.components, "H": self.factors}


class Data(NamedTuple):
    """Rows to fit and rows to score."""

    x: Tensor  # (N, D)
    heldout: Tensor  # (N', D)

    @property
    def variance_floor(self) -> float:
        """``SMALLEST_VARIANCE`` as a fraction of the variance of a feature, as EM expects it."""
        return SMALLEST_VARIANCE / float(self.x.var(0).mean())


class Parameters(NamedTuple):
    """Parameters of a mixture of factor analyzers, fitted by either program."""

    weights: Tensor  # (C,)
    loc: Tensor  # (C, D)
    factor: Tensor  # (C, D, H)
    noise: Tensor  # (C, D)


class Snapshot(NamedTuple):
    """The state of a fit after a step."""

    parameters: Parameters
    seconds: float  # of training so far
    evaluations: int  # so far


class Clock:
    """Seconds since its creation, without pauses."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def read(self) -> float:
        """Return the seconds so far, without pauses."""
        return time.perf_counter() - self.started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time within the block."""
        before = time.perf_counter()
        yield
        self.started += time.perf_counter() - before


def main() -> None:
    """Run the chosen tables and report."""
    options = parse()
    # One process holds several models; each keeps its own params.
    pyro.settings.set(module_local_params=True)
    pyro.enable_validation(False)
    report = harness.Report(__doc__)
    size = (
        {"train": 5000, "test": 1000, "warmup": 4, "steps": 4, "most": 12} if options.quick else {}
    )
    cases = [Case(options.patch, options.factors, c, **size) for c in options.components]
    data = read_data(cases[0])
    precision = (
        f"in {vamm_rows(data).dtype}"
        if vamm_module()
        else "cannot be imported: its rows are left out"
    )
    report.fact("vamm", precision)
    run_tables(report, cases, data, options)
    report.finish(options.json)


def parse() -> Any:
    """Read the command line."""
    parser = harness.parser(__doc__)
    parser.add_argument(
        "--patch",
        type=int,
        default=8,
        choices=(8, 12),
        help="side of the patches, D = 3 side^2 (8)",
    )
    parser.add_argument("--factors", type=int, default=5, choices=(5, 10), help="H (5)")
    parser.add_argument(
        "--components",
        type=int,
        nargs="+",
        help="C; the scikit-learn table uses all of them, the others the first (500 5000)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=TABLES, default=TABLES, help="the tables to run (all)"
    )
    parser.add_argument(
        "--repeats", type=int, help="timings of each side; the median is reported (5)"
    )
    parser.add_argument("--seeds", type=int, help="number of whole fits of each side (3)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that it runs")
    options = parser.parse_args()
    options.components = options.components or ([50] if options.quick else [500, 5000])
    options.repeats = options.repeats or (2 if options.quick else 5)
    options.seeds = options.seeds or (1 if options.quick else 3)
    return options


def run_tables(report: harness.Report, cases: list[Case], data: Data, options: Any) -> None:
    """Run the tables from the command line."""
    first, repeats = cases[0], options.repeats
    if "EM step" in options.only:
        compare_steps(report, first, data, repeats)
    if "whole fit" in options.only:
        compare_fits(report, first, data, options.seeds)
    if "scikit-learn" in options.only:
        for case in cases:
            compare_sklearn(
                report, case, data, repeats if case.components < 2000 else min(repeats, 2)
            )
    if "kernel" in options.only:
        measure_kernel(report, first, data, repeats)
    if "memory" in options.only:
        measure_memory(report, first)


def read_data(case: Case) -> Data:
    """Return the patches of a case."""
    return Data(
        *map(
            torch.from_numpy, rgb_patches(case.patch, case.train, case.test, noise=4 / 255, seed=0)
        )
    )


# Ours


def our_em(case: Case, data: Data, seed: int) -> EM:
    """Return our EM before any pass, with means at rows that lie far apart."""
    pyro.set_rng_seed(seed)
    components = case.components
    model = MixtureOfFactorAnalyzers(
        components=components, features=data.x.shape[1], factors=case.factors
    )
    model.start_at(seed_rows(data.x, components))
    guide = TruncatedPartition(model, components=components, seed=seed, **STRATEGY)
    return EM(model, guide, variance_floor=data.variance_floor)


def our_fit(
    em: EM,
    x: Tensor,
    *,
    epochs: int,
    warmup: int | None = None,
    full_search: bool = False,
    callbacks: tuple[Callable[[Fit], Any], ...] = (),
) -> Fit:
    """Call ``fit`` as a user does.

    :param warmup: None leaves warm-up and convergence to the library; a number runs exactly that
        many warm-up passes and exactly ``epochs`` steps.
    :param full_search: search in every step, instead of by the library's schedule.
    """
    options: dict[str, Any] = (
        {} if warmup is None else {"warmup": warmup, "patience": warmup + epochs + 1}
    )
    every = 1 if full_search else None
    return fit(
        em, x, epochs=epochs, search_every=every, progress=False, callbacks=callbacks, **options
    )


def our_parameters(em: EM) -> Parameters:
    """Return a copy of the current parameters."""
    return Parameters(*(getattr(em.model, name).detach().clone() for name in Parameters._fields))


def fit_ours(case: Case, data: Data, seed: int) -> list[Snapshot]:
    """Run a whole fit, seeding included, and return its state after each EM step."""
    snapshots: list[Snapshot] = []
    clock = Clock()
    em = our_em(case, data, seed)

    def keep(fitted: Fit) -> None:
        seconds = clock.read()
        with clock.paused():
            if fitted.history.epochs[-1].phase == "EM":
                snapshots.append(Snapshot(our_parameters(em), seconds, em.guide.evaluations))

    our_fit(em, data.x, epochs=case.most, callbacks=(keep,))
    return snapshots


# vamm


@cache
def vamm_module() -> Any:
    """Return the package of the method's authors, or None."""
    try:
        return importlib.import_module("vamm")
    except ImportError:
        return None


def vamm_model(case: Case, data: Data) -> Any:
    """Return the model of vamm before any pass."""
    return vamm_module().Gaussian(
        C=case.components,
        D=data.x.shape[1],
        H=case.factors,
        covariance_type="mfa",
        reg_covar=SMALLEST_VARIANCE,
    )


def vamm_rows(data: Data) -> np.ndarray:
    """Return rows in the precision that vamm was compiled for, float64 by default."""
    return data.x.numpy().astype(vamm_module().Gaussian(C=1, D=1, covariance_type="diagonal").dtype)


def vamm_passes(model: Any, x: np.ndarray, warmup: int, steps: int, seed: int) -> Iterator[Any]:
    """Run vamm pass by pass: its documentation names ``_fit`` for access between iterations."""
    partition = {
        "C_prime": STRATEGY["candidates"],
        "G": STRATEGY["neighbors"],
        "E": STRATEGY["explore"],
    }
    return model._fit(X=x, limit=[warmup, steps], eps=[0.0, 0.0], rng=seed, **partition)


def vamm_parameters(model: Any) -> Parameters:
    """Return a copy of the current parameters, without discarded components."""
    arrays = (model.prior, model.means, model.A, model.variance)
    return Parameters(*(torch.from_numpy(np.array(array[model.mask])) for array in arrays))


def fit_vamm(case: Case, data: Data, seed: int) -> list[Snapshot]:
    """Run a whole fit, seeding included, and return its state after each EM step."""
    snapshots: list[Snapshot] = []
    x = vamm_rows(data)
    clock = Clock()
    model = vamm_model(case, data)
    for passes, _ in enumerate(vamm_passes(model, x, case.warmup, case.steps, seed), 1):
        seconds = clock.read()
        with clock.paused():
            if passes > case.warmup:
                evaluations = sum(entry["eval"] for entry in model._log)
                snapshots.append(Snapshot(vamm_parameters(model), seconds, evaluations))
    return snapshots


# Scores


def nll_of(parameters: Parameters, heldout: Tensor) -> float:
    """Return the held-out NLL of the parameters of either program."""
    components, features, factors = parameters.factor.shape
    model = MixtureOfFactorAnalyzers(
        components=components, features=features, factors=factors
    ).double()
    for name in Parameters._fields:
        setattr(model, name, getattr(parameters, name).double())
    return nll(model, heldout)


def nll_of_normals(weights: Any, loc: Any, variance: Any, heldout: Tensor) -> float:
    """Return the held-out NLL of a mixture of normals with variances (C, D), (D,) or ()."""
    loc, variance = torch.as_tensor(loc).double(), torch.as_tensor(variance).double()
    model = GaussianMixture(components=loc.shape[0], features=loc.shape[1]).double()
    model.weights, model.loc, model.scale = (
        torch.as_tensor(weights).double(),
        loc,
        variance.sqrt().expand_as(loc),
    )
    return nll(model, heldout)


def nll(model: Mixture, heldout: Tensor) -> float:
    """Return the exact NLL over all components, in nats per row."""
    with torch.no_grad():
        return -float(log_evidence(model, heldout.double()).mean())


# The tables


def compare_steps(report: harness.Report, case: Case, data: Data, repeats: int) -> None:
    """Measure the table "EM step"."""
    steps = 2 if len(data.x) < 10_000 else 10
    sides: dict[str, Steps] = {**warm_ours(case, data, steps)}
    if vamm_module():
        sides[VAMM] = warm_vamm(case, data, steps)
    timings = harness.paired({**sides}, repeats)
    seconds = {name: timing.median / steps for name, timing in timings.items()}
    faster = {
        name: seconds[VAMM] / s if VAMM in seconds else math.nan for name, s in seconds.items()
    }
    for name, side in sides.items():
        figures = {
            "s": seconds[name],
            "faster_than_vamm": faster[name],
            "evaluations": side.per_step(),
        }
        report.row(
            "EM step",
            **case.label,
            side=name,
            **figures,
            nll=nll_of(side.parameters(), data.heldout),
        )
        if name != VAMM and VAMM in sides:
            need(report, f"EM step, {name}: times faster than vamm", faster[name], 3.0)


class Steps(ABC):
    """Further EM steps of a fit in progress; a call runs them."""

    def __init__(self, steps: int):
        self.steps, self.evaluations, self.calls = steps, 0, 0

    def __call__(self) -> None:
        self.evaluations += self.run()
        self.calls += 1

    @abstractmethod
    def run(self) -> int:
        """Run the steps and return how many joint densities they evaluated."""

    @abstractmethod
    def parameters(self) -> Parameters:
        """Return the current parameters."""

    def per_step(self) -> int:
        """Return the joint densities per step, over all calls."""
        return round(self.evaluations / (self.calls * self.steps))


class OurSteps(Steps):
    """Steps of ours, in one call of ``fit``, with scheduled searches or one in every step."""

    def __init__(self, em: EM, x: Tensor, steps: int, *, full_search: bool):
        super().__init__(steps)
        self.em, self.x, self.full_search = em, x, full_search

    def run(self) -> int:
        before = self.em.guide.evaluations
        our_fit(self.em, self.x, epochs=self.steps, warmup=0, full_search=self.full_search)
        return self.em.guide.evaluations - before

    def parameters(self) -> Parameters:
        return our_parameters(self.em)


class VammSteps(Steps):
    """Steps of vamm: the two calls of its fit loop."""

    def __init__(self, model: Any, x: np.ndarray, steps: int):
        super().__init__(steps)
        self.model, self.x = model, x

    def run(self) -> int:
        evaluations = 0
        for _ in range(self.steps):
            self.model.em.E_step(X=self.x, model=self.model._cpp)
            self.model.em.M_step(X=self.x, model=self.model._cpp)
            evaluations += self.model.em.number_ljs
        return evaluations

    def parameters(self) -> Parameters:
        return vamm_parameters(self.model)


def warm_ours(case: Case, data: Data, steps: int) -> dict[str, Steps]:
    """Return ours after 10 warm-up and 5 EM steps, with scheduled searches and without."""
    em = our_em(case, data, seed=0)
    our_fit(em, data.x, epochs=5, warmup=10)
    return our_sides(em, data, steps)


def our_sides(em: EM, data: Data, steps: int) -> dict[str, Steps]:
    """Return both schedules, alternately on one fit."""
    return {
        name: OurSteps(em, data.x, steps, full_search=name == FULL_SEARCH)
        for name in (OURS, FULL_SEARCH)
    }


def warm_vamm(case: Case, data: Data, steps: int) -> Steps:
    """Return vamm after 10 warm-up and 5 EM steps."""
    model, x = vamm_model(case, data), vamm_rows(data)
    for _ in vamm_passes(model, x, 10, 5, seed=0):
        pass
    return VammSteps(model, x, steps)


def need(report: harness.Report, what: str, ratio: float, needed: float) -> None:
    """Report a ratio and the ratio that is needed."""
    report.fact(f"{what} (needed {needed:g})", ratio)


def compare_fits(report: harness.Report, case: Case, data: Data, seeds: int) -> None:
    """Measure the table "whole fit"."""
    fit_ours(case._replace(most=1), data, seed=seeds)  # loads the compiled kernels
    faster = []
    for seed in range(seeds):
        ours = fit_ours(case, data, seed)
        if not vamm_module():
            fit_row(report, case, OURS, seed, ours, math.nan, data)
            continue
        peer = fit_vamm(case, data, seed)
        target = nll_of(peer[-1].parameters, data.heldout)
        seconds = fit_row(report, case, OURS, seed, ours, target, data)
        faster.append(fit_row(report, case, VAMM, seed, peer, target, data) / seconds)
    if faster:
        need(
            report,
            "whole fit: times faster than vamm to its final held-out NLL",
            statistics.median(faster),
            4.0,
        )


def fit_row(
    report: harness.Report,
    case: Case,
    side: str,
    seed: int,
    snapshots: list[Snapshot],
    target: float,
    data: Data,
) -> float:
    """Report when a fit reached the target and how it ended; return the seconds to the target."""
    step = None if math.isnan(target) else first_reaching(snapshots, target, data.heldout)
    seconds = math.inf if step is None else snapshots[step].seconds
    reached: dict[str, Any] = {} if math.isnan(target) else {"target": target, "s": seconds}
    if step is not None:
        reached |= {"steps": step + 1, "evaluations": snapshots[step].evaluations}
    last = snapshots[-1]
    final = {
        "final_s": last.seconds,
        "final_steps": len(snapshots),
        "final_evaluations": last.evaluations,
    }
    score = nll_of(last.parameters, data.heldout)
    report.row("whole fit", **case.label, side=side, seed=seed, **reached, **final, final_nll=score)
    return seconds


def first_reaching(snapshots: list[Snapshot], target: float, heldout: Tensor) -> int | None:
    """Return the first step, by bisection, whose held-out NLL is at most ``target``."""

    @cache
    def reached(step: int) -> bool:
        return nll_of(snapshots[step].parameters, heldout) <= target

    last = len(snapshots) - 1
    if not reached(last):
        return next((step for step in range(last) if reached(step)), None)
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle + 1, high)
    return high


def compare_sklearn(report: harness.Report, case: Case, data: Data, repeats: int) -> None:
    """Measure the table "scikit-learn"."""
    steps = 10
    em = our_em(case, data, seed=0)
    seeds = our_parameters(em)
    figures = {
        OURS: whole_fit(em, data, case.steps),
        DIAGONAL: whole_fit_sklearn(data, seeds, case.steps),
    }
    runs = {"1": lambda: fit_sklearn(data, seeds, 1), "3": lambda: fit_sklearn(data, seeds, 3)}
    timings = harness.paired({**our_sides(em, data, steps), **runs}, repeats)
    seconds = {name: timing.median / steps for name, timing in timings.items() if name not in runs}
    # The difference of two runs leaves out validation, start and the E-step after the last M-step.
    pairs = zip(timings["1"].seconds, timings["3"].seconds, strict=True)
    seconds[DIAGONAL] = statistics.median((three - one) / 2 for one, three in pairs)
    for name, s in seconds.items():
        speed = {"s": s, "faster_than_diag": seconds[DIAGONAL] / s}
        report.row("scikit-learn", **case.label, side=name, **speed, **figures.get(name, {}))
    report.row("scikit-learn", **case.label, side="MiniBatchKMeans", **whole_fit_kmeans(case, data))
    faster = seconds[DIAGONAL] / seconds[OURS]
    need(
        report,
        f"EM step: times faster than {DIAGONAL}, C={case.components}",
        faster,
        25.0 if case.components >= 5000 else 3.0,
    )


def whole_fit(em: EM, data: Data, steps: int) -> dict[str, Any]:
    """Fit ours with the library's warm-up and at most ``steps`` EM steps."""
    clock = Clock()
    phases = list(our_fit(em, data.x, epochs=steps).history["phase"])
    seconds, score = clock.read(), nll_of(our_parameters(em), data.heldout)
    warmup = phases.count("warm-up")
    return {"warmup": warmup, "steps": len(phases) - warmup, "fit_s": seconds, "nll": score}


def whole_fit_sklearn(data: Data, seeds: Parameters, steps: int) -> dict[str, Any]:
    """Fit the peer from the same start."""
    clock = Clock()
    model = fit_sklearn(data, seeds, steps)
    seconds = clock.read()
    score = nll_of_normals(model.weights_, model.means_, model.covariances_, data.heldout)
    return {"warmup": 0, "steps": steps, "fit_s": seconds, "nll": score}


def fit_sklearn(data: Data, seeds: Parameters, steps: int) -> Any:
    """Return a diagonal GaussianMixture in float32 after ``steps`` steps from our start."""
    from sklearn.mixture import GaussianMixture as SklearnMixture

    start = {
        "weights_init": seeds.weights.numpy(),
        "means_init": seeds.loc.numpy(),
        "precisions_init": (1 / seeds.noise).numpy(),
    }
    options = {
        "covariance_type": "diag",
        "reg_covar": SMALLEST_VARIANCE,
        "tol": 0.0,
        "max_iter": steps,
    }
    model = SklearnMixture(len(seeds.loc), **options, **start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it does not converge
        return model.fit(data.x.numpy())


def whole_fit_kmeans(case: Case, data: Data) -> dict[str, Any]:
    """Run MiniBatchKMeans until it stops, and score it as normals with one variance."""
    from sklearn.cluster import MiniBatchKMeans

    batch = 4096
    clock = Clock()
    model = MiniBatchKMeans(case.components, batch_size=batch, n_init=1, random_state=0).fit(
        data.x.numpy()
    )
    seconds = clock.read()
    counts = np.bincount(model.labels_, minlength=case.components) + 1e-3
    variance = model.inertia_ / data.x.numel()
    score = nll_of_normals(counts / counts.sum(), model.cluster_centers_, variance, data.heldout)
    return {"steps": model.n_steps_ * batch / len(data.x), "fit_s": seconds, "nll": score}


def measure_kernel(report: harness.Report, case: Case, data: Data, repeats: int) -> None:
    """Measure the table "kernel": rows in their own order, and by their winning component."""
    em = our_em(case, data, seed=0)
    our_fit(em, data.x, epochs=3, warmup=10)
    search, winner = search_of(em)
    order = winner.argsort(stable=True)
    orders = {
        "rows in their own order": (data.x, search),
        "rows by winner": (data.x[order], search.T[order].T),
    }
    timings = harness.paired(
        {name: densities(em, *rows) for name, rows in orders.items()}, max(repeats, 5)
    )
    pairs, features = int((search >= 0).sum()), data.x.shape[1]
    sgemm, copy = harness.sgemm_gflops(), harness.copy_gbs()
    for name, timing in timings.items():
        gflops = pairs * features * (2 * case.factors + 4) / timing.median / 1e9
        gbs = pairs * features * data.x.element_size() / timing.median / 1e9
        figures = {"gflops": gflops, "sgemm_gflops": sgemm, "over_sgemm": gflops / sgemm}
        figures |= {"gather_gbs": gbs, "copy_gbs": copy, "over_copy": gbs / copy}
        report.row("kernel", **case.label, side=name, pairs=pairs, s=timing.median, **figures)
        need(report, f"kernel, {name}: share of sgemm", gflops / sgemm, 0.35)


def search_of(em: EM) -> tuple[Tensor, Tensor]:
    """Return the search spaces (S, B) of the next E-step, and the winner of each row."""
    from pyro_mixtures.ops.search import search_space

    guide: Any = em.guide
    known = guide.sets.table
    random = torch.randint(guide.components, (len(known), guide.explore), dtype=known.dtype)
    return search_space(known, guide.graph.neighbors, random), known[:, 0]


def densities(em: EM, x: Tensor, search: Tensor) -> Callable[[], Tensor]:
    """Return the density kernel on the pairs of a search, at the current parameters."""
    from pyro_mixtures.ops import Pairs, pair_log_density

    model: Any = em.model
    with torch.no_grad():
        kernel = model.component_distributions().kernel()
    pairs = Pairs(search, model.components)
    return lambda: pair_log_density(x, kernel, pairs)


def measure_memory(report: harness.Report, case: Case) -> None:
    """Measure the table "memory"."""
    data, parameters, growth = (
        b / 1e6 for b in harness.in_fresh_process(memory_of_fit, case).result
    )
    limit = data + 3 * parameters + 200
    report.row(
        "memory",
        **case.label,
        data_mb=data,
        parameters_mb=parameters,
        peak_mb=data + growth,
        limit_mb=limit,
        over_limit=(data + growth) / limit,
    )
    need(report, "memory: peak relative to its limit, at most", (data + growth) / limit, 1.0)


def memory_of_fit(case: Case) -> tuple[int, int, int]:
    """Return the bytes of data, of parameters, and of the memory that a fit adds at its peak."""
    pyro.enable_validation(False)
    data = read_data(case._replace(test=1))
    with harness.peak_memory() as memory:
        em = our_em(case, data, seed=0)
        our_fit(em, data.x, epochs=5)
    return data.x.nbytes, sum(value.nbytes for value in our_parameters(em)), memory.growth


if __name__ == "__main__":
    main()
