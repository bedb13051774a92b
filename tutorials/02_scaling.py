"""Watch the cost of a fit grow sublinearly with the number of components, on your own machine.

Exact EM evaluates every component at every row: N C densities a pass. Here each row keeps 3
candidates and looks only at their neighbours, so a pass over the data costs about as much with 1600
components as with 50. The patches of one picture are fitted with 50, 100, ..., 1600 components,
each time until the fit has converged. What is compared is cost: so few patches do not carry the
largest of these mixtures, which the evidence of held-out patches shows.

Run ``python tutorials/02_scaling.py``; it takes about two minutes on two cores and writes its
picture and figures to ``runs/scaling/``.
"""

import argparse
import json
import time
from pathlib import Path

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
SMALLEST, TIMED_EXACT = (
    50,
    200,
)  # components of the first fit, and up to which a pass of exact EM is timed
BLUE, GREY = "#0072B2", "#555555"


def main(out: Path, rows: int, most: int) -> dict:
    """Tell the whole story once; returns the figures that it prints."""
    # 1. The data: some of the 8 x 8 patches of a noisy picture; 2,000 others are held out.
    train, unseen = patches(rows, heldout=2000)

    # 2. The first fit of a machine compiles the kernels: a small one, not counted.
    converge(train[:500], SMALLEST // 2)
    exact_pass(train[:500], SMALLEST // 2)

    # 3. Twice the components, again and again, each time to convergence.
    sizes = [SMALLEST * 2**k for k in range(12) if SMALLEST * 2**k <= most]
    fits = [measure(train, unseen, components) for components in sizes]

    # 4. A straight line on logarithmic axes is a power of C; its slope is the exponent.
    report = {
        "rows": rows,
        "fits": fits,
        **{f"exponent_{y}": exponent(fits, y) for y in ("evaluations", "seconds")},
    }
    write(out, report)
    tell(report, out)
    return report


def patches(rows: int, *, heldout: int) -> tuple[Tensor, Tensor]:
    """Two sets of distinct patches (rows, 64) and (heldout, 64), with white noise of standard deviation 4/255."""
    rng = np.random.default_rng(0)
    clean = data.camera() / 255
    noisy = clean + rng.normal(scale=NOISE, size=clean.shape)
    every = extract_patches(torch.tensor(noisy, dtype=torch.float32), PATCH)
    order = torch.from_numpy(rng.permutation(len(every)))
    return every[order[:rows]], every[order[rows : rows + heldout]]


def declare(train: Tensor, components: int) -> MixtureOfFactorAnalyzers:
    """The mixture, its means at spread-out rows."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model = MixtureOfFactorAnalyzers(
        components=components, features=train.shape[1], factors=FACTORS
    )
    model.start_at(seed_rows(train, components))
    return model


def converge(train: Tensor, components: int) -> tuple[MixtureOfFactorAnalyzers, dict]:
    """Seed and fit until ``fit`` finds nothing more to gain; the model, and what that cost."""
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
    """Seconds of one pass of exact EM, all components of every row."""
    model = declare(train, components)
    em = EM(model, FullPartition(model, components=components))
    started = time.perf_counter()
    fit(em, train, batch_size=4096, epochs=1, progress=False)
    return time.perf_counter() - started


def measure(train: Tensor, unseen: Tensor, components: int) -> dict:
    """One fit, beside what exact EM would take for as many passes."""
    model, figures = converge(train, components)
    heldout = float(log_evidence(model, unseen).mean())
    exact = figures["passes"] * exact_pass(train, components) if components <= TIMED_EXACT else None
    print(
        f"{components:5d} components: {figures['seconds']:5.1f} s, {figures['evaluations']:.3g} densities",
        flush=True,
    )
    return {
        **figures,
        "evaluations_exact": len(train) * components * figures["passes"],
        "seconds_exact": exact,
        "evidence_heldout": heldout,
    }


def exponent(fits: list[dict], y: str) -> float:
    """Slope of log y over log C, by least squares; 1 is linear growth, 0 none."""
    return float(
        np.polyfit(np.log([f["components"] for f in fits]), np.log([f[y] for f in fits]), 1)[0]
    )


def write(out: Path, report: dict) -> None:
    """The picture and the figures."""
    out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9.5, 4.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw(left, report, "evaluations", "Densities evaluated until convergence")
    draw(right, report, "seconds", "Seconds until convergence")
    figure.savefig(out / "scaling.png")
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")


def draw(ax: Axes, report: dict, y: str, title: str) -> None:
    """What was measured, the line fitted to it, and exact EM's cost of as many passes."""
    fits = report["fits"]
    sizes = np.array([f["components"] for f in fits])
    values = np.array([f[y] for f in fits], dtype=float)
    slope = report[f"exponent_{y}"]
    line = np.exp(np.log(values).mean()) * (sizes / np.exp(np.log(sizes).mean())) ** slope
    exact = [(f["components"], f[f"{y}_exact"]) for f in fits if f[f"{y}_exact"] is not None]
    ax.plot(*zip(*exact, strict=True), "--s", color=GREY, ms=4, label="exact EM, as many passes")
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


def tell(report: dict, out: Path) -> None:
    """The figures, for people."""
    print(f"\n{report['rows']} rows; densities and seconds until convergence")
    print(
        f"{'C':>6}{'densities':>12}{'exact EM':>12}{'share':>8}{'passes':>8}{'seconds':>9}{'held-out evidence':>19}"
    )
    for f in report["fits"]:
        share = f["evaluations"] / f["evaluations_exact"]
        print(
            f"{f['components']:6d}{f['evaluations']:12.3g}{f['evaluations_exact']:12.3g}{share:8.1%}",
            end="",
        )
        print(f"{f['passes']:8d}{f['seconds']:9.1f}{f['evidence_heldout']:19.3f}")
    print(f"densities grow as C^{report['exponent_evaluations']:.2f}", end=", ")
    print(
        f"seconds as C^{report['exponent_seconds']:.2f}; exact EM's as C^1 for a given number of passes"
    )
    print(f"picture and figures in {out}/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/scaling"), help="where to write (runs/scaling)"
    )
    parser.add_argument("--rows", type=int, default=30_000, help="rows N to fit (30000)")
    parser.add_argument(
        "--most", type=int, default=1600, help="largest number of components (1600)"
    )
    options = parser.parse_args()
    main(options.out, options.rows, options.most)
