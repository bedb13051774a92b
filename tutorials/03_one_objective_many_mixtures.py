"""One objective, many mixtures: k-means, Poisson clustering, regressions and SVMs by the same call.

A hard partition assigns each row to one component and fits each component to its rows. Every exact
step lowers the sum of the losses, for all kinds of components: means, rates, lines, classifiers.
The model defines the components; the guide and the fit stay the same. A fit ends at the first
partition that no step improves, so it is restarted several times. The last panel shows a pitfall in
the cost of assigning a row to a component.

Run ``python tutorials/03_one_objective_many_mixtures.py``; it takes less than a minute on two cores
and writes its picture and results to ``runs/partitions/``.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from sklearn.metrics import adjusted_rand_score
from sklearn.svm import LinearSVC
from torch import Tensor

from pyro_mixtures import (
    EM,
    IsotropicNormals,
    MixtureWeights,
    data_plate,
    fit,
    fit_restarts,
    start_labels,
)
from pyro_mixtures.distributions import SupportVectorMachines
from pyro_mixtures.guides import HardPartition
from pyro_mixtures.models import BregmanMixture, KMeans, MixtureOfRegressions, MixtureOfSVMs

CLUSTERS, NOISE, RIDGE = 3, 0.3, 1e-2
# The palette of Okabe & Ito, which color-blind readers can tell apart.
COLORS = np.array(["#0072B2", "#D55E00", "#009E73"])
BLUE, INK, GRAY = "#0072B2", "#222222", "#999999"
# The cost of assigning a row to a component: name, color, line style, line width.
SCORES = {
    "loss": ("loss (Lloyd)", "#0072B2", "-", 4.5),
    "leave_one_out": ("leave-one-out in its own cluster", "#E69F00", "-", 1.8),
    "modular_bound": ("literal modular bound", "#D55E00", "--", 1.8),
}


Data = dict[str, tuple[Tensor, ...]]  # rows, and last the true clusters


class Partition(NamedTuple):
    """The best of several fits."""

    labels: Tensor  # (N,)
    objectives: np.ndarray  # (starts,) in nats per row
    params: dict[str, np.ndarray]


def main(out: Path, starts: int, rows: int) -> dict[str, Any]:
    """Run the tutorial and return the results that it prints."""
    data = {
        "k-means": points(rows),
        "Poisson": counts(rows),
        "regressions": lines(rows),
        "SVMs": classes(rows),
    }
    data["positions + SVMs"] = data["SVMs"]

    # 1. The models: what the components of a mixture are.
    models: dict[str, Callable] = {
        "k-means": lambda: KMeans(components=CLUSTERS, features=2),
        "Poisson": lambda: BregmanMixture(
            components=CLUSTERS, features=2, divergence="kl", equal_weights=True
        ),
        "regressions": regressions,
        "SVMs": lambda: MixtureOfSVMs(components=CLUSTERS, features=2, ridge=RIDGE),
        "positions + SVMs": lambda: positions_and_svms,
    }

    # 2. The same call fits all of them, each from several start partitions, and keeps the best fit.
    fits = {
        name: partition(declare, *data[name][:-1], starts=starts)
        for name, declare in models.items()
    }

    # 3. The pitfall: three costs of assigning a row, from the same start.
    x, y, _ = data["regressions"]
    start = start_labels(x, CLUSTERS, generator=torch.Generator().manual_seed(4))
    curves = {score: descend(regressions, x, y, start=start, score=score) for score in SCORES}

    report = figures(data, fits, curves)
    write(out, data, fits, curves, report)
    print_report(report, out)
    return report


def regressions() -> MixtureOfRegressions:
    """Return a mixture of lines with squared errors in units of the noise."""
    return MixtureOfRegressions(
        components=CLUSTERS, features=1, scale=NOISE, ridge=1e-3, equal_weights=True
    )


def positions_and_svms(
    x: Tensor, y: Tensor | None = None, index: Tensor | None = None, size: int | None = None
) -> None:
    """Declare clusters with a position and an SVM each: two observations under one z.

    SVMs alone would put all rows of one class into one cluster, where the classification is
    trivial, and could not tell which SVM classifies a new row. Here it is that of the nearest
    position.
    """
    loc = pyro.param("loc", lambda: torch.randn(CLUSTERS, 2))
    weight = pyro.param("weight", torch.zeros(CLUSTERS, 2))
    bias = pyro.param("bias", torch.zeros(CLUSTERS))
    with data_plate(x, index, size):
        z = pyro.sample("z", MixtureWeights(torch.full((CLUSTERS,), 1 / CLUSTERS)))
        pyro.sample("x", IsotropicNormals(loc, torch.ones(CLUSTERS))[z], obs=x)
        pyro.sample("y", SupportVectorMachines(x, weight, bias, ridge=RIDGE)[z], obs=y)


def partition(declare: Callable, *rows: Tensor, starts: int) -> Partition:
    """Return the best of several hard partitions of ``rows`` under the model of ``declare()``."""

    def build() -> EM:
        model = declare()
        # The guide assigns new rows to empty clusters, so EM need not re-seed them.
        return EM(model, HardPartition(model, components=CLUSTERS), empty="keep")

    # The params of the best fit stay in Pyro's param store. The scope keeps those of other
    # mixtures apart.
    with pyro.get_param_store().scope():
        methods = [("uniform", "kmeans++")[start % 2] for start in range(starts)]
        restarts = fit_restarts(
            build, *rows, starts=methods, generator=torch.Generator().manual_seed(0)
        )
        params = {name: value.detach().numpy() for name, value in pyro.get_param_store().items()}
    return Partition(restarts.labels, restarts.objectives, params)


def descend(declare: Callable, *rows: Tensor, start: Tensor, score: str) -> np.ndarray:
    """Return minus the ELBO (nats per row) of one fit after each epoch, from given labels."""
    # Without a scope, models with the same param names would share their params.
    with pyro.get_param_store().scope():
        model = declare()
        guide = HardPartition(model, components=CLUSTERS, score=score)
        guide.set_labels(start)
        fitted = fit(EM(model, guide, empty="keep"), *rows, epochs=25, patience=25, progress=False)
        # The ELBO of the first epoch belongs to the initial params.
        return -fitted.history["elbo"][1:]


# The data sets: three clusters each, with the cluster that each row was drawn from.


def points(rows: int) -> tuple[Tensor, Tensor]:
    """Draw positions (N, 2) about three centers, and return them with their clusters (N,)."""
    rng, cluster = np.random.default_rng(0), np.arange(rows) % CLUSTERS
    centers = np.array([[-2.6, -1.0], [2.6, -1.0], [0.0, 2.6]])
    return tensor(centers[cluster] + rng.normal(size=(rows, 2))), torch.from_numpy(cluster)


def counts(rows: int) -> tuple[Tensor, Tensor]:
    """Draw two counts per row (N, 2), and clusters (N,). Small rates have a small spread."""
    rng, cluster = np.random.default_rng(1), np.arange(rows) % CLUSTERS
    rates = np.array([[3.0, 4.0], [14.0, 5.0], [50.0, 60.0]])
    return tensor(rng.poisson(rates[cluster])), torch.from_numpy(cluster)


def lines(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw covariates (N, 1) and outcomes (N,) along three crossing lines, and clusters (N,)."""
    rng, cluster = np.random.default_rng(2), np.arange(rows) % CLUSTERS
    x = rng.uniform(-2, 2, size=rows)
    slope = np.array([2.0, -1.5, 0.2])[cluster]
    offset = np.array([1.0, 0.5, -3.0])[cluster]
    y = slope * x + offset + NOISE * rng.normal(size=rows)
    return tensor(x[:, None]), tensor(y), torch.from_numpy(cluster)


def classes(rows: int, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Draw positions (N, 2) along the sides of a triangle, their classes (N,) and clusters (N,).

    The class says whether a row lies outside of the triangle, so that each side separates the
    classes of its own rows only.
    """
    rng, cluster = np.random.default_rng(seed), np.arange(rows) % CLUSTERS
    angle = 2 * np.pi * cluster / CLUSTERS + 0.5 * np.pi
    y = rng.integers(2, size=rows)
    normal = np.stack([np.cos(angle), np.sin(angle)], -1)
    side = np.stack([-np.sin(angle), np.cos(angle)], -1)
    across = (2 * y - 1) * rng.uniform(0.15, 1.0, size=rows)
    along = rng.uniform(-1.6, 1.6, size=rows)
    positions = (2 + across)[:, None] * normal + along[:, None] * side
    return tensor(positions), torch.from_numpy(y), torch.from_numpy(cluster)


def tensor(values: np.ndarray) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def figures(
    data: Data, fits: dict[str, Partition], curves: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Return objectives, agreement with the true clusters, and errors on new rows."""
    agreement = {
        name: adjusted_rand_score(data[name][-1], best.labels) for name, best in fits.items()
    }
    lloyd = partition(lambda: KMeans(components=CLUSTERS, features=2), data["Poisson"][0], starts=3)
    x, y, _ = (values.numpy() for values in data["SVMs"])
    new_x, new_y, _ = (values.numpy() for values in classes(5000, seed=4))
    predicted = classify(fits["positions + SVMs"].params, new_x)
    single_svm = LinearSVC(C=1.0).fit(x, y).predict(new_x)
    return {
        "objectives": {name: best.objectives.tolist() for name, best in fits.items()},
        "adjusted_rand": {
            **agreement,
            "k-means on the counts": adjusted_rand_score(data["Poisson"][-1], lloyd.labels),
        },
        "error_positions_and_svms": float((predicted != new_y).mean()),
        "error_single_svm": float((single_svm != new_y).mean()),
        "curves": {score: curve.tolist() for score, curve in curves.items()},
    }


def classify(params: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Return classes (N,) of new rows (N, 2) by the SVM of the nearest position."""
    nearest = np.square(x[:, None] - params["loc"]).sum(-1).argmin(-1)
    return ((x * params["weight"][nearest]).sum(-1) + params["bias"][nearest] > 0).astype(int)


def write(
    out: Path,
    data: Data,
    fits: dict[str, Partition],
    curves: dict[str, np.ndarray],
    report: dict[str, Any],
) -> None:
    """Write the picture and the results."""
    out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(12.5, 8.0), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes = figure.subplots(2, 3)
    rand = report["adjusted_rand"]
    draw_points(axes[0, 0], data["k-means"][0], fits["k-means"])
    title(axes[0, 0], "k-means", f"squared distances; adjusted Rand {rand['k-means']:.2f}")
    draw_counts(axes[0, 1], data["Poisson"][0], fits["Poisson"])
    title(
        axes[0, 1],
        "Poisson clustering",
        f"counts; adjusted Rand {rand['Poisson']:.2f} "
        f"(k-means: {rand['k-means on the counts']:.2f})",
    )
    draw_lines(axes[0, 2], *data["regressions"][:2], fits["regressions"])
    title(axes[0, 2], "Regressions", f"three lines; adjusted Rand {rand['regressions']:.2f}")
    draw_classes(axes[1, 0], *data["SVMs"][:2], fits["positions + SVMs"])
    error, error_single = report["error_positions_and_svms"], report["error_single_svm"]
    title(
        axes[1, 0],
        "Positions with SVMs",
        f"errors on new rows {error:.1%} (a single SVM: {error_single:.0%})",
    )
    draw_restarts(axes[1, 1], fits)
    title(axes[1, 1], "Restarts", "one dot per start; how many end at the best")
    draw_curves(axes[1, 2], curves)
    title(axes[1, 2], "The pitfall", "regressions: three costs of assigning a row")
    figure.savefig(out / "partitions.png")
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")


def title(ax: Axes, name: str, remark: str) -> None:
    """Write a bold title and a remark below it."""
    ax.set_title(name, loc="left", fontweight="bold", color=INK, pad=20)
    ax.text(0, 1.02, remark, transform=ax.transAxes, color="#555555", fontsize=9.5, va="bottom")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors="#555555", labelsize=9)


def scatter(ax: Axes, x: np.ndarray, y: np.ndarray, labels: np.ndarray, **options) -> None:
    """Draw rows in the colors of their clusters."""
    ax.scatter(x, y, **{"c": COLORS[labels], "s": 16, "alpha": 0.75, "linewidths": 0, **options})


def draw_means(ax: Axes, best: Partition) -> None:
    """Mark the means of the clusters."""
    style: dict[str, Any] = {"marker": "X", "s": 130, "edgecolors": "white", "linewidths": 1.5}
    ax.scatter(*best.params["mean"].T, c=COLORS, zorder=3, **style)


def draw_points(ax: Axes, x: Tensor, best: Partition) -> None:
    """Draw rows and the means of the clusters."""
    scatter(ax, *x.numpy().T, best.labels.numpy())
    draw_means(ax, best)
    ax.set(xlabel="first feature", ylabel="second feature", aspect="equal")
    ax.set_adjustable("datalim")


def draw_counts(ax: Axes, x: Tensor, best: Partition) -> None:
    """Draw counts on square-root axes, where Poisson noise has the same width everywhere.

    Jitter separates equal counts.
    """
    jitter = np.random.default_rng(0).uniform(-0.35, 0.35, size=x.shape)
    scatter(ax, *np.maximum(x.numpy() + jitter, 0).T, best.labels.numpy())
    draw_means(ax, best)
    ax.set_xscale("function", functions=(lambda v: np.sqrt(np.maximum(v, 0)), np.square))
    ax.set_yscale("function", functions=(lambda v: np.sqrt(np.maximum(v, 0)), np.square))
    ticks = FixedLocator([0, 1, 5, 10, 20, 40, 60, 80])
    ax.xaxis.set_major_locator(ticks)
    ax.yaxis.set_major_locator(FixedLocator(ticks.locs))
    ax.set(xlabel="first count", ylabel="second count", xlim=(-0.01, None), ylim=(-0.01, None))


def draw_lines(ax: Axes, x: Tensor, y: Tensor, best: Partition) -> None:
    """Draw rows and the line of each cluster."""
    scatter(ax, x[:, 0].numpy(), y.numpy(), best.labels.numpy())
    ends = np.array([-2.1, 2.1])
    slopes, offsets = best.params["weight"][:, 0], best.params["bias"]
    for slope, offset, color in zip(slopes, offsets, COLORS, strict=True):
        ax.plot(ends, slope * ends + offset, color="white", lw=4)
        ax.plot(ends, slope * ends + offset, color=color, lw=2)
    ax.set(xlabel="covariate", ylabel="outcome")


def draw_classes(ax: Axes, x: Tensor, y: Tensor, best: Partition) -> None:
    """Draw rows, with classes as markers, and the boundary of each SVM where its rows lie."""
    positions, labels, outside = x.numpy(), best.labels.numpy(), y.numpy() == 1
    scatter(ax, *positions[outside].T, labels[outside], label="class 1")
    hollow = {"facecolors": "none", "edgecolors": COLORS[labels[~outside]], "linewidths": 1.1}
    ax.scatter(*positions[~outside].T, s=14, alpha=0.75, label="class 0", **hollow)
    for cluster, color in enumerate(COLORS):
        weight, bias = best.params["weight"][cluster], best.params["bias"][cluster]
        along = np.array([-weight[1], weight[0]]) / np.linalg.norm(weight)
        rows = positions[labels == cluster]
        foot = rows.mean(0) - (rows.mean(0) @ weight + bias) / (weight @ weight) * weight
        reach = np.quantile((rows - foot) @ along, [0.0, 1.0])
        ends = foot + reach[:, None] * along
        ax.plot(*ends.T, color="white", lw=4.5)
        ax.plot(*ends.T, color=color, lw=2.2)
    ax.set(xlabel="first feature", ylabel="second feature", aspect="equal")
    ax.set_adjustable("datalim")
    legend = ax.legend(frameon=False, loc="upper right", handletextpad=0.1, borderpad=0, fontsize=9)
    for handle in legend.legend_handles:
        handle.set(facecolor=GRAY if handle is legend.legend_handles[0] else "none", edgecolor=GRAY)


def draw_restarts(ax: Axes, fits: dict[str, Partition]) -> None:
    """Draw one line per mixture and one dot per start; count those that end at the best."""
    rng = np.random.default_rng(0)
    names = list(reversed(fits))
    plain = {"facecolor": "white", "edgecolor": "none", "pad": 4}
    widest = max(float(np.ptp(fits[name].objectives)) for name in names)
    for line, name in enumerate(names):
        above = fits[name].objectives - fits[name].objectives.min()
        at_best = above < 0.01
        ax.axhline(line, color="#E5E5E5", lw=1, zorder=0)
        ax.scatter(
            above,
            line + rng.uniform(-0.22, 0.22, size=len(above)),
            c=np.where(at_best, BLUE, GRAY),
            s=28,
            alpha=0.7,
        )
        ax.text(
            1.3 * widest,
            line,
            f"{at_best.sum()} of {len(above)}",
            color=BLUE,
            ha="right",
            va="center",
            bbox=plain,
        )
    ax.set_yticks(range(len(names)), names)
    ax.set(
        xlabel="nats per row above the best",
        xlim=(-0.06 * widest, 1.32 * widest),
        ylim=(-0.6, len(names) - 0.4),
    )
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)


def draw_curves(ax: Axes, curves: dict[str, np.ndarray]) -> None:
    """Draw the objective after each epoch for each score."""
    for score, curve in curves.items():
        name, color, style, width = SCORES[score]
        ax.plot(np.arange(1, len(curve) + 1), curve, color=color, ls=style, lw=width, label=name)
    ax.set(yscale="log", xlabel="epoch", ylabel="objective (nats per row)", ylim=(0.9, None))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter("{x:g}")
    ax.legend(frameon=False, loc="center right", fontsize=9.5, bbox_to_anchor=(1.0, 0.5))
    ax.grid(alpha=0.3)


def print_report(report: dict[str, Any], out: Path) -> None:
    """Print the results."""
    print("\nobjective of the best and the worst start (nats per row); adjusted Rand index")
    print(f"{'':>16}{'best':>9}{'worst':>9}{'Rand':>8}")
    for name, objectives in report["objectives"].items():
        rand = report["adjusted_rand"][name]
        print(f"{name:>16}{min(objectives):9.3f}{max(objectives):9.3f}{rand:8.2f}")
    print(
        f"errors on new rows: {report['error_positions_and_svms']:.1%} by positions with SVMs",
        end=", ",
    )
    print(f"{report['error_single_svm']:.1%} by a single SVM")
    ends = {score: curve[-1] for score, curve in report["curves"].items()}
    print(
        "regressions end at", ", ".join(f"{value:.2f} ({score})" for score, value in ends.items())
    )
    print(f"picture and results in {out}/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/partitions"), help="where to write (runs/partitions)"
    )
    parser.add_argument("--starts", type=int, default=12, help="number of starts per mixture (12)")
    parser.add_argument(
        "--rows", type=int, default=450, help="number of rows N of each data set (450)"
    )
    options = parser.parse_args()
    main(options.out, options.starts, options.rows)
