"""One objective, many mixtures: k-means, Poisson clustering, regressions and support vector machines by the same call.

A hard partition gives each row to one component and fits each component to its rows. The sum of
their losses falls with every exact step, whatever the components are: means, rates, lines,
classifiers. The model says which; the guide and the fit stay as they are. Such a fit ends at the
first partition that no step improves, hence the restarts; and there is a pitfall in what a row pays
for a component, which the last panel shows.

Run ``python tutorials/03_one_objective_many_mixtures.py``; it takes less than a minute on two cores
and writes its picture and figures to ``runs/partitions/``.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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

PARTS, NOISE, RIDGE = 3, 0.3, 1e-2
COLORS = np.array(["#0072B2", "#D55E00", "#009E73"])  # Okabe & Ito's, for colour-blind eyes too
BLUE, INK, GREY = "#0072B2", "#222222", "#999999"
# What a row pays for a component: name, colour, line, and how thick.
SCORES = {
    "loss": ("its loss there (Lloyd)", "#0072B2", "-", 4.5),
    "leave_one_out": ("leave-one-out in its own part", "#E69F00", "-", 1.8),
    "modular_bound": ("literal modular bound", "#D55E00", "--", 1.8),
}


class Partition(NamedTuple):
    """The best of several fits."""

    labels: Tensor  # (N,)
    objectives: np.ndarray  # (starts,) in nats per row
    params: dict[str, np.ndarray]


def main(out: Path, starts: int, rows: int) -> dict:
    """Tell the whole story once; returns the figures that it prints."""
    data = {
        "k-means": points(rows),
        "Poisson": counts(rows),
        "regressions": lines(rows),
        "SVMs": classes(rows),
    }
    data["places + SVMs"] = data["SVMs"]

    # 1. The declarations: what the components of a mixture are.
    models: dict[str, Callable] = {
        "k-means": lambda: KMeans(components=PARTS, features=2),
        "Poisson": lambda: BregmanMixture(
            components=PARTS, features=2, divergence="kl", equal_weights=True
        ),
        "regressions": regressions,
        "SVMs": lambda: MixtureOfSVMs(components=PARTS, features=2, ridge=RIDGE),
        "places + SVMs": lambda: places_and_machines,
    }

    # 2. The same call fits them all, each from several partitions, and keeps the best.
    fits = {
        name: partition(declare, *data[name][:-1], starts=starts)
        for name, declare in models.items()
    }

    # 3. The pitfall: three rules for what a row pays, from the same start.
    x, y, _ = data["regressions"]
    start = start_labels(x, PARTS, generator=torch.Generator().manual_seed(4))
    rules = {score: descend(regressions, x, y, start=start, score=score) for score in SCORES}

    report = figures(data, fits, rules)
    write(out, data, fits, rules, report)
    tell(report, out)
    return report


def regressions() -> MixtureOfRegressions:
    """Lines with squared error, in units of the noise."""
    return MixtureOfRegressions(
        components=PARTS, features=1, scale=NOISE, ridge=1e-3, equal_weights=True
    )


def places_and_machines(
    x: Tensor, y: Tensor | None = None, index: Tensor | None = None, size: int | None = None
):
    """Rows that lie together and whose classes one machine tells apart: two observations under one z.

    Machines alone put the rows of one class into one part, where telling them apart is easy; and
    nothing says which machine a row without a label should ask. Here that is the one at the nearest
    place.
    """
    loc = pyro.param("loc", lambda: torch.randn(PARTS, 2))
    weight, bias = (
        pyro.param("weight", torch.zeros(PARTS, 2)),
        pyro.param("bias", torch.zeros(PARTS)),
    )
    with data_plate(x, index, size):
        z = pyro.sample("z", MixtureWeights(torch.full((PARTS,), 1 / PARTS)))
        pyro.sample("x", IsotropicNormals(loc, torch.ones(PARTS))[z], obs=x)
        pyro.sample("y", SupportVectorMachines(x, weight, bias, ridge=RIDGE)[z], obs=y)


def partition(declare: Callable, *rows: Tensor, starts: int) -> Partition:
    """The best of several hard partitions of ``rows`` into the parts of the mixture that ``declare()`` makes."""

    def build() -> EM:
        model = declare()
        # The guide gives empty parts new rows: EM need not split others for them.
        return EM(model, HardPartition(model, components=PARTS), empty="keep")

    # The best fit's params are left in Pyro's store: here in one of its own, from which they are
    # read at once.
    with pyro.get_param_store().scope():
        several = [("uniform", "kmeans++")[start % 2] for start in range(starts)]
        found = fit_restarts(
            build, *rows, starts=several, generator=torch.Generator().manual_seed(0)
        )
        params = {name: value.detach().numpy() for name, value in pyro.get_param_store().items()}
    return Partition(found.labels, found.objectives, params)


def descend(declare: Callable, *rows: Tensor, start: Tensor, score: str) -> np.ndarray:
    """Minus the ELBO (nats per row) of one fit, epoch by epoch, from given labels."""
    # A param store of its own: models of the same names would share their params.
    with pyro.get_param_store().scope():
        model = declare()
        guide = HardPartition(model, components=PARTS, score=score)
        guide.set_labels(start)
        fitted = fit(EM(model, guide, empty="keep"), *rows, epochs=25, patience=25, progress=False)
        # The first epoch's ELBO is that of the params before any row was seen.
        return -fitted.history["elbo"][1:]


# The data: three parts each, and which part a row was drawn from.


def points(rows: int) -> tuple[Tensor, Tensor]:
    """Positions (N, 2) about three centres."""
    rng, part = np.random.default_rng(0), np.arange(rows) % PARTS
    centers = np.array([[-2.6, -1.0], [2.6, -1.0], [0.0, 2.6]])
    return tensor(centers[part] + rng.normal(size=(rows, 2))), torch.from_numpy(part)


def counts(rows: int) -> tuple[Tensor, Tensor]:
    """Two counts a row (N, 2): small rates have small spread."""
    rng, part = np.random.default_rng(1), np.arange(rows) % PARTS
    rates = np.array([[3.0, 4.0], [14.0, 5.0], [50.0, 60.0]])
    return tensor(rng.poisson(rates[part])), torch.from_numpy(part)


def lines(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Covariates (N, 1) and outcomes (N,) along three lines that cross."""
    rng, part = np.random.default_rng(2), np.arange(rows) % PARTS
    x = rng.uniform(-2, 2, size=rows)
    slope, offset = np.array([2.0, -1.5, 0.2])[part], np.array([1.0, 0.5, -3.0])[part]
    return (
        tensor(x[:, None]),
        tensor(slope * x + offset + 0.3 * rng.normal(size=rows)),
        torch.from_numpy(part),
    )


def classes(rows: int, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Positions (N, 2) along the sides of a triangle, and whether they lie outside (N,): one side tells only some."""
    rng, part = np.random.default_rng(seed), np.arange(rows) % PARTS
    angle, y = 2 * np.pi * part / PARTS + 0.5 * np.pi, rng.integers(2, size=rows)
    normal, side = (
        np.stack([np.cos(angle), np.sin(angle)], -1),
        np.stack([-np.sin(angle), np.cos(angle)], -1),
    )
    away, along = (2 * y - 1) * rng.uniform(0.15, 1.0, size=rows), rng.uniform(-1.6, 1.6, size=rows)
    return (
        tensor((2 + away)[:, None] * normal + along[:, None] * side),
        torch.from_numpy(y),
        torch.from_numpy(part),
    )


def tensor(values: np.ndarray) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def figures(data: dict, fits: dict[str, Partition], rules: dict[str, np.ndarray]) -> dict:
    """What is printed: objectives, agreement with the parts that rows were drawn from, errors on rows not seen."""
    agreement = {
        name: adjusted_rand_score(data[name][-1], found.labels) for name, found in fits.items()
    }
    lloyd = partition(lambda: KMeans(components=PARTS, features=2), data["Poisson"][0], starts=3)
    x, y, _ = (values.numpy() for values in data["SVMs"])
    fresh, label, _ = (values.numpy() for values in classes(5000, seed=4))
    return {
        "objectives": {name: found.objectives.tolist() for name, found in fits.items()},
        "adjusted_rand": {
            **agreement,
            "k-means on the counts": adjusted_rand_score(data["Poisson"][-1], lloyd.labels),
        },
        "error_places_and_machines": float(
            (ask_nearest(fits["places + SVMs"].params, fresh) != label).mean()
        ),
        "error_one_machine": float((LinearSVC(C=1.0).fit(x, y).predict(fresh) != label).mean()),
        "rules": {score: curve.tolist() for score, curve in rules.items()},
    }


def ask_nearest(params: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Classes (N,) of rows (N, 2) without labels: by the machine at the nearest place."""
    nearest = np.square(x[:, None] - params["loc"]).sum(-1).argmin(-1)
    return ((x * params["weight"][nearest]).sum(-1) + params["bias"][nearest] > 0).astype(int)


def write(
    out: Path, data: dict, fits: dict[str, Partition], rules: dict[str, np.ndarray], report: dict
) -> None:
    """The picture and the figures."""
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
        f"counts; adjusted Rand {rand['Poisson']:.2f}, by k-means {rand['k-means on the counts']:.2f}",
    )
    draw_lines(axes[0, 2], *data["regressions"][:2], fits["regressions"])
    title(axes[0, 2], "Regressions", f"three lines; adjusted Rand {rand['regressions']:.2f}")
    draw_classes(axes[1, 0], *data["SVMs"][:2], fits["places + SVMs"])
    wrong, wrong_alone = report["error_places_and_machines"], report["error_one_machine"]
    title(
        axes[1, 0],
        "Places with SVMs",
        f"errors on new rows {wrong:.1%}; of one SVM {wrong_alone:.0%}",
    )
    draw_restarts(axes[1, 1], fits)
    title(axes[1, 1], "Restarts", "one dot a start; how many end at the best")
    draw_rules(axes[1, 2], rules)
    title(axes[1, 2], "The pitfall", "regressions: what a row pays for a part")
    figure.savefig(out / "partitions.png")
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")


def title(ax: Axes, name: str, remark: str) -> None:
    """A bold name, and below it what to see."""
    ax.set_title(name, loc="left", fontweight="bold", color=INK, pad=20)
    ax.text(0, 1.02, remark, transform=ax.transAxes, color="#555555", fontsize=9.5, va="bottom")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors="#555555", labelsize=9)


def scatter(ax: Axes, x: np.ndarray, y: np.ndarray, labels: np.ndarray, **options) -> None:
    """Rows in the colours of their parts."""
    ax.scatter(x, y, **{"c": COLORS[labels], "s": 16, "alpha": 0.75, "linewidths": 0, **options})


def draw_points(ax: Axes, x: Tensor, found: Partition) -> None:
    """Rows, and the means of the parts."""
    scatter(ax, *x.numpy().T, found.labels.numpy())
    ax.scatter(
        *found.params["mean"].T,
        marker="X",
        s=130,
        c=COLORS,
        edgecolors="white",
        linewidths=1.5,
        zorder=3,
    )
    ax.set(xlabel="first feature", ylabel="second feature", aspect="equal")
    ax.set_adjustable("datalim")


def draw_counts(ax: Axes, x: Tensor, found: Partition) -> None:
    """Counts on axes of square roots, on which Poisson noise is as wide everywhere; shaken, since many coincide."""
    shaken = np.maximum(x.numpy() + np.random.default_rng(0).uniform(-0.35, 0.35, size=x.shape), 0)
    scatter(ax, *shaken.T, found.labels.numpy())
    ax.scatter(
        *found.params["mean"].T,
        marker="X",
        s=130,
        c=COLORS,
        edgecolors="white",
        linewidths=1.5,
        zorder=3,
    )
    ax.set_xscale("function", functions=(lambda v: np.sqrt(np.maximum(v, 0)), np.square))
    ax.set_yscale("function", functions=(lambda v: np.sqrt(np.maximum(v, 0)), np.square))
    ticks = FixedLocator([0, 1, 5, 10, 20, 40, 60, 80])
    ax.xaxis.set_major_locator(ticks)
    ax.yaxis.set_major_locator(FixedLocator(ticks.locs))
    ax.set(xlabel="first count", ylabel="second count", xlim=(-0.01, None), ylim=(-0.01, None))


def draw_lines(ax: Axes, x: Tensor, y: Tensor, found: Partition) -> None:
    """Rows, and the line of each part."""
    scatter(ax, x[:, 0].numpy(), y.numpy(), found.labels.numpy())
    at = np.array([-2.1, 2.1])
    for weight, bias, color in zip(
        found.params["weight"][:, 0], found.params["bias"], COLORS, strict=True
    ):
        ax.plot(at, weight * at + bias, color="white", lw=4)
        ax.plot(at, weight * at + bias, color=color, lw=2)
    ax.set(xlabel="covariate", ylabel="outcome")


def draw_classes(ax: Axes, x: Tensor, y: Tensor, found: Partition) -> None:
    """Rows, their classes by markers, and the part of each machine's boundary that runs through its rows."""
    places, labels, outside = x.numpy(), found.labels.numpy(), y.numpy() == 1
    scatter(ax, *places[outside].T, labels[outside], label="class 1")
    hollow = {"facecolors": "none", "edgecolors": COLORS[labels[~outside]], "linewidths": 1.1}
    ax.scatter(*places[~outside].T, s=14, alpha=0.75, label="class 0", **hollow)
    for k, color in enumerate(COLORS):
        weight, bias = found.params["weight"][k], found.params["bias"][k]
        along = np.array([-weight[1], weight[0]]) / np.linalg.norm(weight)
        rows = places[labels == k]
        foot = rows.mean(0) - (rows.mean(0) @ weight + bias) / (weight @ weight) * weight
        reach = np.quantile((rows - foot) @ along, [0.0, 1.0])
        ends = foot + reach[:, None] * along
        ax.plot(*ends.T, color="white", lw=4.5)
        ax.plot(*ends.T, color=color, lw=2.2)
    ax.set(xlabel="first feature", ylabel="second feature", aspect="equal")
    ax.set_adjustable("datalim")
    legend = ax.legend(frameon=False, loc="upper right", handletextpad=0.1, borderpad=0, fontsize=9)
    for handle in legend.legend_handles:
        handle.set(facecolor=GREY if handle is legend.legend_handles[0] else "none", edgecolor=GREY)


def draw_restarts(ax: Axes, fits: dict[str, Partition]) -> None:
    """One line a mixture, one dot a start, and how many of them found the best."""
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
            c=np.where(at_best, BLUE, GREY),
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


def draw_rules(ax: Axes, rules: dict[str, np.ndarray]) -> None:
    """The objective, epoch by epoch, under each rule; the names stand at the curves."""
    for score, curve in rules.items():
        name, color, style, width = SCORES[score]
        ax.plot(np.arange(1, len(curve) + 1), curve, color=color, ls=style, lw=width, label=name)
    ax.set(yscale="log", xlabel="round", ylabel="objective (nats per row)", ylim=(0.9, None))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter("{x:g}")
    ax.legend(frameon=False, loc="center right", fontsize=9.5, bbox_to_anchor=(1.0, 0.5))
    ax.grid(alpha=0.3)


def tell(report: dict, out: Path) -> None:
    """The figures, for people."""
    print(
        f"\n{'':>14}{'best':>9}{'worst':>9}   adjusted Rand index; objectives in nats per row, best and worst start"
    )
    for name, objectives in report["objectives"].items():
        print(
            f"{name:>14}{min(objectives):9.3f}{max(objectives):9.3f}{report['adjusted_rand'][name]:8.2f}"
        )
    print(
        f"errors on new rows: {report['error_places_and_machines']:.1%} by places with SVMs",
        end=", ",
    )
    print(f"{report['error_one_machine']:.1%} by one SVM")
    ends = {score: curve[-1] for score, curve in report["rules"].items()}
    print(
        "regressions end at", ", ".join(f"{value:.2f} ({score})" for score, value in ends.items())
    )
    print(f"picture and figures in {out}/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/partitions"), help="where to write (runs/partitions)"
    )
    parser.add_argument("--starts", type=int, default=12, help="starts of each fit (12)")
    parser.add_argument("--rows", type=int, default=450, help="rows N of each data set (450)")
    options = parser.parse_args()
    main(options.out, options.starts, options.rows)
