"""Measure how the cost of a fit grows sublinearly with the number of components.

Exact EM evaluates every component at every row: N C densities per pass. Truncated EM keeps 3
candidates per row and evaluates only their neighbors, so a pass over the data costs about as much
with 1600 components as with 50. The tutorial fits the patches of one picture with 50, 100, ...,
1600 components, each time to convergence. It compares costs, not models: so few patches do not
support the largest of these mixtures, as the log evidence of held-out patches shows.

Run ``python tutorials/02_scaling.py``; it takes about two minutes on two cores and writes its
picture and results to ``runs/scaling/``.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator
from skimage import data
from torch import Tensor

from pyro_mixtures import EM, fit, log_evidence, seed_rows
from pyro_mixtures.data import extract_patches
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.models import MixtureOfFactorAnalyzers

NOISE = 4 / 255
PATCH, FACTORS = 8, 2
SMALLEST = 50  # components of the first fit
TIMED_EXACT = 200  # largest number of components for which a pass of exact EM is timed
BLUE, GRAY = "#0072B2", "#555555"


def main(out: Path, rows: int, most: int) -> dict[str, Any]:
    """Run the tutorial and return the results that it prints."""
    # 1. The data: 8 x 8 patches of a noisy picture, and 2,000 held-out patches.
    train, heldout = patches(rows, heldout=2000)

    # 2. The first fit on a machine compiles the kernels: a small one, which is not timed.
    converge(train[:500], SMALLEST // 2)
    exact_pass(train[:500], SMALLEST // 2)

    # 3. The number of components doubles; each fit runs to convergence.
    sizes = [SMALLEST * 2**k for k in range(12) if SMALLEST * 2**k <= most]
    fits = [measure(train, heldout, components) for components in sizes]

    # 4. A power of C is a straight line on logarithmic axes; its slope is the exponent.
    report = {
        "rows": rows,
        "fits": fits,
        **{f"exponent_{y}": exponent(fits, y) for y in ("evaluations", "seconds")},
    }
    write(out, report)
    print_report(report, out)
    return report


def patches(rows: int, *, heldout: int) -> tuple[Tensor, Tensor]:
    """Return distinct patches (rows, 64) and (heldout, 64), with white noise added."""
    rng = np.random.default_rng(0)
    clean = data.camera() / 255
    noisy = clean + rng.normal(scale=NOISE, size=clean.shape)
    all_patches = extract_patches(torch.tensor(noisy, dtype=torch.float32), PATCH)
    order = torch.from_numpy(rng.permutation(len(all_patches)))
    return all_patches[order[:rows]], all_patches[order[rows : rows + heldout]]


def declare(train: Tensor, components: int) -> MixtureOfFactorAnalyzers:
    """Return the mixture with its means at rows that lie far apart."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model = MixtureOfFactorAnalyzers(
        components=components, features=train.shape[1], factors=FACTORS
    )
    model.start_at(seed_rows(train, components))
    return model


def converge(train: Tensor, components: int) -> tuple[MixtureOfFactorAnalyzers, dict[str, Any]]:
    """Seed and fit to convergence; return the model and the cost."""
    started = time.perf_counter()
    model = declare(train, components)
    guide = TruncatedPartition(model, components=components, candidates=3, neighbors=15, explore=1)
    fitted = fit(EM(model, guide), train, progress=False)
    return model, {
        "components": components,
        "evaluations": fitted.history.epochs[-1].evaluations,
        "seconds": time.perf_counter() - started,
        "passes": len(fitted.history),
        "converged": fitted.converged,
    }


def exact_pass(train: Tensor, components: int) -> float:
    """Return the seconds of one pass of exact EM: all components for every row."""
    model = declare(train, components)
    em = EM(model, FullPartition(model, components=components))
    started = time.perf_counter()
    fit(em, train, batch_size=4096, epochs=1, progress=False)
    return time.perf_counter() - started


def measure(train: Tensor, heldout: Tensor, components: int) -> dict[str, Any]:
    """Return the cost of one fit, and the cost of exact EM for the same number of passes."""
    model, figures = converge(train, components)
    log_evidence_heldout = float(log_evidence(model, heldout).mean())
    exact = figures["passes"] * exact_pass(train, components) if components <= TIMED_EXACT else None
    print(
        f"{components:5d} components: {figures['seconds']:5.1f} s, "
        f"{figures['evaluations']:.3g} densities",
        flush=True,
    )
    return {
        **figures,
        "evaluations_exact": len(train) * components * figures["passes"],
        "seconds_exact": exact,
        "log_evidence_heldout": log_evidence_heldout,
    }


def exponent(fits: list[dict[str, Any]], quantity: str) -> float:
    """Return the slope of log quantity over log C: 1 for linear growth, 0 for none."""
    log_components = np.log([figures["components"] for figures in fits])
    log_values = np.log([figures[quantity] for figures in fits])
    return float(np.polyfit(log_components, log_values, 1)[0])


def write(out: Path, report: dict[str, Any]) -> None:
    """Write the picture and the results."""
    out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9.5, 4.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw(left, report, "evaluations", "Densities evaluated until convergence")
    draw(right, report, "seconds", "Seconds until convergence")
    figure.savefig(out / "scaling.png")
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")


def draw(ax: Axes, report: dict[str, Any], quantity: str, title: str) -> None:
    """Draw the measurements, the fitted line, and the cost of as many passes of exact EM."""
    fits = report["fits"]
    sizes = np.array([figures["components"] for figures in fits])
    values = np.array([figures[quantity] for figures in fits], dtype=float)
    slope = report[f"exponent_{quantity}"]
    line = np.exp(np.log(values).mean()) * (sizes / np.exp(np.log(sizes).mean())) ** slope
    exact = [
        (figures["components"], figures[f"{quantity}_exact"])
        for figures in fits
        if figures[f"{quantity}_exact"] is not None
    ]
    ax.plot(*zip(*exact, strict=True), "--s", color=GRAY, ms=4, label="exact EM, same passes")
    ax.plot(sizes, values, "o", color=BLUE, label="truncated EM")
    ax.plot(sizes, line, color=BLUE, lw=1.2, label=f"proportional to C^{slope:.2f}")
    ax.set(xscale="log", yscale="log", xlabel="Components C")
    ax.set_title(title, loc="left")
    ax.set_ylim(values.min() / 2, max(values.max(), *(value for _, value in exact)) * 2)
    ax.xaxis.set_major_locator(FixedLocator(sizes.tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    ax.legend(frameon=False)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def print_report(report: dict[str, Any], out: Path) -> None:
    """Print the results."""
    print(f"\n{report['rows']} rows; densities and seconds until convergence")
    print(
        f"{'C':>6}{'densities':>12}{'exact EM':>12}{'share':>8}{'passes':>8}{'seconds':>9}"
        f"{'held-out log evidence':>23}"
    )
    for figures in report["fits"]:
        share = figures["evaluations"] / figures["evaluations_exact"]
        print(
            f"{figures['components']:6d}{figures['evaluations']:12.3g}"
            f"{figures['evaluations_exact']:12.3g}{share:8.1%}",
            end="",
        )
        print(
            f"{figures['passes']:8d}{figures['seconds']:9.1f}"
            f"{figures['log_evidence_heldout']:23.3f}"
        )
    print(f"densities grow as C^{report['exponent_evaluations']:.2f}", end=", ")
    print(
        f"seconds as C^{report['exponent_seconds']:.2f}; "
        "exact EM takes C^1 for a given number of passes"
    )
    print(f"picture and results in {out}/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/scaling"), help="where to write (runs/scaling)"
    )
    parser.add_argument("--rows", type=int, default=30_000, help="number of rows N (30000)")
    parser.add_argument(
        "--most", type=int, default=1600, help="largest number of components (1600)"
    )
    options = parser.parse_args()
    main(options.out, options.rows, options.most)
