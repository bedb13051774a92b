"""A mixture of factor analyzers with more than 10^9 parameters, fitted on one machine.

Data: RGB patches of 32 x 32 pixels (D=3072) at random positions of the nine color photographs that
ship with scikit-image, N=500,000 rows held as bytes, values 0 ... 255. The model is
``MixtureOfFactorAnalyzers`` with C=50,000, H=5 in float32, fitted with ``TruncatedPartition``
(C'=3, G=15, E=1) and ``EM(empty="keep", variance_floor=0.01)``; means start at random rows. It runs
--warmup E-steps without update, then --steps EM steps, without a convergence test.

seconds      of one pass over all rows, update included
elbo         in nats per row, before the update of the pass
gain         of the ELBO over the pass before, whose update it shows
evaluations  joint densities log p(c, x) in this pass
live         components that won at least one row
rss_gib      resident memory after the pass
peak_gib     the highest resident memory so far, including data and libraries
share        joint densities evaluated in the whole fit, relative to N C in every pass
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_mixtures.guides import TruncatedPartition
from pyro_mixtures.infer import EM, Fit, fit
from pyro_mixtures.init import Seeds, seed_rows
from pyro_mixtures.models import MixtureOfFactorAnalyzers
from tests.benchmarks import harness

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
FACTORS = 5
STRATEGY = {"candidates": 3, "neighbors": 15, "explore": 1}
VARIANCE_FLOOR = 1e-2
PARAMETERS_NEEDED, MINUTES_NEEDED, GIB_NEEDED = 10**9, 30, 20
BLOCK_ROWS = 4096  # patches gathered at once
GIB = 2**30


class Case(NamedTuple):
    """What is fitted, and for how long."""

    components: int = 50_000  # C
    rows: int = 500_000  # N
    patch: int = 32
    warmup: int = 2
    steps: int = 20

    @property
    def features(self) -> int:
        """D."""
        return 3 * self.patch**2


QUICK = Case(components=500, rows=5000, patch=16, steps=3)


def main() -> None:
    """Fit and report."""
    options = parse()
    pyro.set_rng_seed(options.seed)
    pyro.clear_param_store()
    pyro.enable_validation(False)
    report = harness.Report(__doc__)
    run(report, case_of(options), options.seed, progress=options.progress)
    report.finish(options.json)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser, full = harness.parser(__doc__), Case()
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that it runs")
    parser.add_argument("--components", type=int, help=f"C ({full.components})")
    parser.add_argument("--rows", type=int, help=f"N ({full.rows})")
    parser.add_argument(
        "--patch", type=int, help=f"side of the patches, D = 3 side^2 ({full.patch})"
    )
    parser.add_argument(
        "--warmup", type=int, help=f"E-steps before the first update ({full.warmup})"
    )
    parser.add_argument("--steps", type=int, help=f"EM steps ({full.steps})")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of patches, means and searches (0)"
    )
    parser.add_argument("--progress", action="store_true", help="show a progress bar")
    return parser.parse_args()


def case_of(options: argparse.Namespace) -> Case:
    """Return the full or the quick case with the sizes from the command line."""
    given = {name: value for name in Case._fields if (value := getattr(options, name)) is not None}
    return (QUICK if options.quick else Case())._replace(**given)


def run(report: harness.Report, case: Case, seed: int, *, progress: bool) -> None:
    """Run all stages, each a row of the first table, then report the result."""
    stages = Stages(report)
    x = photograph_patches(case, seed)
    stages.done("data")
    seeds = random_seeds(x, case.components)
    stages.done("seeds")
    model = MixtureOfFactorAnalyzers(
        components=case.components, features=case.features, factors=FACTORS
    )
    model.start_at(seeds)
    stages.done("model")
    guide = TruncatedPartition(model, components=case.components, **STRATEGY)
    guide.add_candidates(seeds.index, torch.arange(case.components), size=case.rows)
    del seeds  # as large as the means
    em = EM(model, guide, empty="keep", variance_floor=VARIANCE_FLOOR)
    result = fit(
        em,
        x,
        warmup=case.warmup,
        epochs=case.steps,
        tolerance=0.0,
        patience=1000,
        progress=progress,
        callbacks=[Watch(report)],
    )
    stages.done("fit")
    conclude(report, case, result, stages.minutes)


class Stages:
    """Seconds and memory of the stages of the benchmark."""

    def __init__(self, report: harness.Report):
        self.report = report
        self.started = self.last = time.perf_counter()

    @property
    def minutes(self) -> float:
        """Minutes from the start to the end of the last stage."""
        return (self.last - self.started) / 60

    def done(self, stage: str) -> None:
        """Record the end of a stage."""
        now = time.perf_counter()
        self.report.row("stage", stage=stage, seconds=now - self.last, **memory())
        self.last = now


class Watch:
    """A callback of ``fit`` that prints each pass."""

    def __init__(self, report: harness.Report):
        self.report = report
        self.seconds, self.evaluations, self.elbo = 0.0, 0, float("nan")

    def __call__(self, result: Fit) -> None:
        epoch = result.history.epochs[-1]
        seconds, evaluations = epoch.seconds - self.seconds, epoch.evaluations - self.evaluations
        self.report.row(
            "pass",
            number=len(result.history),
            phase=epoch.phase,
            seconds=seconds,
            elbo=epoch.elbo,
            gain=epoch.elbo - self.elbo,
            evaluations=evaluations,
            live=epoch.live,
            searched=epoch.searched,
            **memory(),
        )
        self.seconds, self.evaluations, self.elbo = epoch.seconds, epoch.evaluations, epoch.elbo


def conclude(report: harness.Report, case: Case, result: Fit, minutes: float) -> None:
    """Report the single facts."""
    history = result.history
    report.fact("sizes", f"C={case.components} D={case.features} H={FACTORS} N={case.rows}")
    report.fact(f"parameters (needed {PARAMETERS_NEEDED:.0e})", number_of_parameters(result.model))
    report.fact(f"minutes in all (needed < {MINUTES_NEEDED})", minutes)
    report.fact(f"peak resident memory, GiB (needed < {GIB_NEEDED})", memory()["peak_gib"])
    report.fact("ELBO finite in every pass", bool(np.isfinite(history["elbo"]).all()))
    gains = em_gains(history["elbo"], history["phase"])
    report.fact("ELBO rose at every EM step", bool(len(gains) and (gains > 0).all()))
    report.fact(
        "smallest gain of an EM step, nats per row",
        float(gains.min()) if len(gains) else float("nan"),
    )
    report.fact("last ELBO, nats per row", result.elbo)
    report.fact("live components", history.epochs[-1].live)
    if isinstance(result.inference, EM) and result.inference.last_update is not None:
        report.fact("components that the last EM step updated", result.inference.last_update.live)
    evaluations = history.epochs[-1].evaluations
    report.fact("joint densities evaluated", evaluations)
    report.fact("share of N C per pass", evaluations / (case.rows * case.components * len(history)))


def em_gains(elbo: NDArray[np.float64], phase: NDArray[np.str_]) -> NDArray[np.float64]:
    """Return the gain of each EM step over the pass before it."""
    return np.diff(elbo)[phase[1:] == "EM"]


def number_of_parameters(model: Any) -> int:
    """Return the number of entries of all params."""
    return sum(leaf.numel() for leaf in model.parameters())


def memory() -> dict[str, float]:
    """Return the current and the peak resident memory of this process in GiB."""
    return {"rss_gib": harness.resident() / GIB, "peak_gib": harness.peak() / GIB}


def random_seeds(x: Tensor, components: int) -> Seeds:
    """Return means at random rows.

    AFK-MC2 would take O(C^2 D), and ``seed_rows`` would copy all rows to float.
    """
    chosen = torch.randperm(len(x))[:components]
    seeds = seed_rows(x[chosen], components, method="random")
    return seeds._replace(index=chosen[seeds.index])


def photograph_patches(case: Case, seed: int) -> Tensor:
    """Return bytes (N, D): photograph and position of every row are uniform draws."""
    rng = np.random.default_rng(seed)
    x = np.empty((case.rows, case.features), dtype=np.uint8)
    photograph = rng.integers(len(PHOTOGRAPHS), size=case.rows)
    for number, name in enumerate(PHOTOGRAPHS):
        windows = patch_windows(read_photograph(name), case.patch)
        fill(x, np.flatnonzero(photograph == number), windows, rng)
    return torch.from_numpy(x)


def read_photograph(name: str) -> NDArray[np.uint8]:
    """Read a photograph (height, width, 3) of the installed package, without a download."""
    from skimage.data import data_dir
    from skimage.io import imread

    return imread(Path(data_dir) / name)


def patch_windows(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return a view of all patches, (rows, columns, size, size, 3)."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))
    return windows.transpose(0, 1, 3, 4, 2)


def fill(
    x: NDArray[np.uint8],
    rows: NDArray[np.intp],
    windows: NDArray[np.uint8],
    rng: np.random.Generator,
) -> None:
    """Write patches at random positions to the given rows of ``x``, in blocks."""
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        down, across = (rng.integers(top, size=len(block)) for top in windows.shape[:2])
        x[block] = windows[down, across].reshape(len(block), -1)


if __name__ == "__main__":
    main()
