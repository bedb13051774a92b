"""Work and time to convergence of truncated EM, over components, rows, features and factors.

Mixtures of factor analyzers (C'=3, G=15, E=1, other settings the library's defaults) are seeded by
AFK-MC2 and fitted to noisy RGB patches of two photographs until ``fit`` reports convergence. Four
series, each varying one of

  C   components, 100, 200, ..., 6400 at N=100,000, D=192, H=5
  N   rows, 12,500 ... 200,000
  D   features, 48, 108, 192, 432 (patches of 4, 6, 8, 12 pixels)
  H   factors, 1 ... 20; the last three at C=500, N=50,000, D=192, H=5 otherwise

evaluations  joint densities log p(c, x) in the whole fit; per_row: per row and epoch
epochs       passes over the data, including the ``warmup`` passes without update
seconds      seeding (seed_s) and fit together, with compiled kernels
live         components that won at least one row in the last pass
train        minus the last ELBO in nats per row
heldout      minus the log evidence of 10,000 other rows in nats per row, over all C components:
             lower is better
exponent     slope of the least-squares line through log y over log x; 1 is linear

and one comparison, ``loss``: truncated EM and exact EM (``FullPartition``) at C=200, N=100,000 from
the same seeds:

loss         increase of the held-out score over that of exact EM, in percent of its absolute value

Fits run one after the other, one round with a new seed for each of --repeats; exponents are fitted
to all runs.
"""

import math
import time
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullLocator
from torch import Tensor

from pyro_mixtures import EM, fit, log_evidence, seed_rows
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.models import MixtureOfFactorAnalyzers
from tests.benchmarks import harness
from tests.benchmarks.photographs import rgb_patches

TEST = 10_000  # held-out rows
EXACT_BATCH = 8192  # rows of a minibatch of exact EM, which holds B x C arrays
NEEDED = {("C", "evaluations"): 0.15, ("C", "seconds"): 0.35}  # exponents, at most
LOSS_NEEDED = 0.5  # percent, at most
NAMES = {"C": "components C", "N": "rows N", "D": "features D", "H": "factors H"}
POINTS, EXACT = "#0072B2", "#555555"


class Setting(NamedTuple):
    """The sizes of one fit."""

    components: int  # C
    rows: int  # N
    patch: int  # pixels, D = 3 patch^2
    factors: int  # H

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes by the letters of the tables."""
        return {"C": self.components, "N": self.rows, "D": 3 * self.patch**2, "H": self.factors}


class Plan(NamedTuple):
    """The fits of the benchmark."""

    series: dict[str, list[Setting]]
    loss: Setting


def main() -> None:
    """Run the chosen series, fit the exponents, and draw."""
    options = parse()
    plan = planned(quick=options.quick)
    report = harness.Report(__doc__)
    for seed in range(options.repeats):
        for letter in plan.series:
            if letter in options.only:
                run_series(report, letter, plan.series[letter], seed)
        if "loss" in options.only:
            run_loss(report, plan.loss, seed)
    conclude(report)
    if options.plots is not None and series_of(report):
        draw(report, options.plots)
    report.finish(options.json)


def parse() -> Any:
    """Read the command line."""
    parser = harness.parser(__doc__)
    parts = [*NAMES, "loss"]
    parser.add_argument(
        "--only",
        choices=parts,
        nargs="+",
        default=parts,
        help="the series to run, or the loss (all)",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that it runs")
    parser.add_argument(
        "--repeats", type=int, default=1, help="number of rounds, each with a new seed (1)"
    )
    parser.add_argument(
        "--plots", type=Path, metavar="DIR", help="draw the series into DIR/scaling.png"
    )
    return parser.parse_args()


def planned(*, quick: bool) -> Plan:
    """Return the sizes of all fits."""
    if quick:
        base, wide = Setting(100, 4000, 8, 5), Setting(100, 8000, 8, 5)
        values: dict[str, Iterable[int]] = {
            "C": (50, 100, 200),
            "N": (2000, 4000, 8000),
            "D": (4, 6, 8),
            "H": (1, 2, 5),
        }
    else:
        base, wide = Setting(500, 50_000, 8, 5), Setting(200, 100_000, 8, 5)
        values = {
            "C": [100 * 2**k for k in range(7)],
            "N": [12_500 * 2**k for k in range(5)],
            "D": (4, 6, 8, 12),
            "H": (1, 2, 5, 10, 20),
        }
    return Plan(
        {
            "C": [wide._replace(components=c) for c in values["C"]],
            "N": [base._replace(rows=n) for n in values["N"]],
            "D": [base._replace(patch=p) for p in values["D"]],
            "H": [base._replace(factors=h) for h in values["H"]],
        },
        wide,
    )


def run_series(report: harness.Report, letter: str, settings: Sequence[Setting], seed: int) -> None:
    """Run one fit per setting, as rows of the table of the letter."""
    for setting in settings:
        report.row(title(letter), **setting.sizes, seed=seed, **fitted(setting, seed))


def run_loss(report: harness.Report, setting: Setting, seed: int) -> None:
    """Compare truncated and exact EM from the same seeds."""
    truncated = fitted(setting, seed)
    exact = fitted(setting, seed, exact=True)
    loss = 100 * (truncated["heldout"] - exact["heldout"]) / abs(exact["heldout"])
    for name, figures in (("truncated", truncated), ("exact", exact)):
        report.row(
            "loss",
            **setting.sizes,
            seed=seed,
            EM=name,
            **figures,
            loss=loss if name == "truncated" else 0.0,
        )


def fitted(setting: Setting, seed: int, *, exact: bool = False) -> dict[str, Any]:
    """Fit to convergence and return the cost."""
    warm_up(setting.patch, setting.factors, exact=exact)
    train, test = patches(setting.patch, setting.rows)
    return run(setting, train, test, seed, exact=exact)


@cache
def warm_up(patch: int, factors: int, *, exact: bool) -> None:
    """Compile or load the kernels of these sizes, untimed."""
    train, test = patches(patch, 400)
    run(Setting(16, 400, patch, factors), train, test[:100], 0, exact=exact, epochs=2)


def run(
    setting: Setting, train: Tensor, test: Tensor, seed: int, *, exact: bool, epochs: int = 500
) -> dict[str, Any]:
    """Seed and fit on ``train`` (N, D), score ``test``."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    started = time.perf_counter()
    model = MixtureOfFactorAnalyzers(
        components=setting.components, features=train.shape[1], factors=setting.factors
    )
    model.start_at(seed_rows(train, setting.components))
    seeded = time.perf_counter()
    guide = (FullPartition if exact else TruncatedPartition)(model, components=setting.components)
    batch_size = EXACT_BATCH if exact else None
    result = fit(EM(model, guide), train, batch_size=batch_size, epochs=epochs, progress=False)
    ended = time.perf_counter()
    last = result.history.epochs[-1]
    return {
        "evaluations": last.evaluations,
        "per_row": last.evaluations / len(train) / len(result.history),
        "epochs": len(result.history),
        "warmup": int((result.history["phase"] == "warm-up").sum()),
        "converged": result.converged,
        "seconds": ended - started,
        "seed_s": seeded - started,
        "live": last.live,
        "train": -last.elbo,
        "heldout": -float(log_evidence(model, test).mean()),
    }


@lru_cache(2)
def patches(size: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return training rows (N, D), and held-out rows that are the same for all N."""
    train, _ = rgb_patches(size, train=rows, test=1, seed=0)
    _, test = rgb_patches(size, train=1, test=TEST, seed=1)
    return torch.from_numpy(train), torch.from_numpy(test)


def title(letter: str) -> str:
    """Return the title of the table of a series."""
    return f"over {NAMES[letter]}"


def series_of(report: harness.Report) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of all series that were run, by letter."""
    return {
        letter: report.tables[title(letter)] for letter in NAMES if title(letter) in report.tables
    }


def conclude(report: harness.Report) -> None:
    """Report exponents and the loss, with the values that are needed."""
    for letter, rows in series_of(report).items():
        for column in ("evaluations", "seconds"):
            need = NEEDED.get((letter, column))
            suffix = "" if need is None else f" (at most {need:g})"
            report.fact(
                f"exponent of {column} in {letter}{suffix}", power_law(rows, letter, column)[0]
            )
    losses = [row["loss"] for row in report.tables.get("loss", []) if row["EM"] == "truncated"]
    if losses:
        report.fact(
            f"loss in held-out NLL against exact EM, percent (at most {LOSS_NEEDED:g})",
            median(losses),
        )
    unfinished = sum(not row["converged"] for rows in report.tables.values() for row in rows)
    report.fact("fits that did not converge", unfinished)


def power_law(rows: Sequence[dict[str, Any]], x: str, y: str) -> tuple[float, float]:
    """Return exponent and factor of y = factor x^exponent, by least squares of the logarithms."""
    slope, intercept = np.polyfit(
        [math.log(row[x]) for row in rows], [math.log(row[y]) for row in rows], 1
    )
    return float(slope), math.exp(intercept)


def draw(report: harness.Report, folder: Path) -> None:
    """Draw evaluations above and seconds below, one column per series, on logarithmic axes."""
    series = series_of(report)
    figure = Figure(figsize=(3.6 * len(series), 6.4), dpi=130, layout="constrained")
    axes = figure.subplots(2, len(series), squeeze=False)
    for column, (letter, rows) in enumerate(series.items()):
        if letter == "C":
            draw_exact(axes[0, column], rows)
        for ax, quantity in zip(axes[:, column], ("evaluations", "seconds"), strict=True):
            draw_law(ax, rows, letter, quantity)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "scaling.png")


def draw_law(ax: Axes, rows: Sequence[dict[str, Any]], letter: str, quantity: str) -> None:
    """Draw points and the fitted line."""
    values = sorted({row[letter] for row in rows})
    exponent, factor = power_law(rows, letter, quantity)
    line = [factor * value**exponent for value in values]
    ax.plot([row[letter] for row in rows], [row[quantity] for row in rows], "o", color=POINTS, ms=5)
    ax.plot(values, line, color=POINTS, lw=1.2, label=f"exponent {exponent:.2f}")
    ax.set(xscale="log", yscale="log", xlabel=NAMES[letter], title=f"{quantity} to convergence")
    ax.xaxis.set_major_locator(FixedLocator(values))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    spread(ax)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)


def draw_exact(ax: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Draw the evaluations of exact EM in as many epochs."""
    points = sorted((row["C"], row["N"] * row["C"] * row["epochs"]) for row in rows)
    ax.plot(
        *zip(*points, strict=True), color=EXACT, ls="--", lw=1.2, label="exact EM, as many epochs"
    )


def spread(ax: Axes) -> None:
    """Show at least one decade on the vertical axis, so that a flat line looks flat."""
    low, high = ax.get_ylim()
    if high / low < 10:
        middle = math.sqrt(low * high)
        ax.set_ylim(middle / math.sqrt(10), middle * math.sqrt(10))


if __name__ == "__main__":
    main()
