"""After the fit: how many parts, whether restarts agree, what the parts know, and one page that says it all.

The rows are 569 tumours of the breast: six shapes of their cells' nuclei, and a diagnosis that the
mixtures never see (Street, Wolberg & Mangasarian, "Nuclear feature extraction for breast tumor
diagnosis", 1993; scikit-learn has them).

1. ``compare_fits`` fits two families with one to five parts and asks rows that a fit has not seen.
2. Four restarts of the same mixture with priors become four chains of ArviZ. Their labels are
   arbitrary: ``to_arviz`` gives them a common order, without which no average over chains means
   anything.
3. ArviZ's PSIS-LOO asks once more how many parts. It leaves a row out by weighting draws; the
   Pareto k of a row says how far that can be trusted. A large one marks a row that a part leans on:
   without it the posterior is another. The answer need not be that of 1., which asks single fits
   and takes the smallest of those that are as good.
4. ``partition_information`` tells which features the parts know of, how much of the diagnosis, and
   where in the rows a feature matters: a dependence that holds in one part alone may be averaged
   away over all of them. Not found in the other part is not absent there, the less so where few
   rows have one of the diagnoses.
5. ``report`` writes one self-contained page for the colleague who was not there.

Run ``python tutorials/07_diagnose.py``; it takes less than three minutes on two cores and writes
its picture, figures and ``report.html`` to ``runs/diagnose/``.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.optim import ClippedAdam
from sklearn.datasets import load_breast_cancer
from torch import Tensor

from pyro_mixtures import EM, FullNormals, MixtureWeights, assign, data_plate, fit, seed_rows
from pyro_mixtures.diagnostics import (
    Comparison,
    PartitionReport,
    align,
    compare_fits,
    partition_information,
    plot_comparison,
    plot_ellipses,
    plot_information,
    report,
    to_arviz,
)
from pyro_mixtures.diagnostics.partition_information import ClusterDependence, PartitionInformation
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import Fit
from pyro_mixtures.models import GaussianMixture

FEATURES = ("radius", "texture", "smoothness", "compactness", "symmetry", "fractal dimension")
FAMILIES = ("diagonal", "full")
MOST = 5  # parts
DRAWS = 400  # of every posterior, over all of its chains
COLORS = ("#0072B2", "#E69F00", "#009E73")  # Okabe & Ito's, in the order of the library's plots
INK, GREY = "#222222", "#999999"


class Tumours(NamedTuple):
    """What was measured, and what the mixtures never see."""

    x: Tensor  # (N, D) logarithms of shapes, of mean 0 and variance 1
    malignant: Tensor  # (N,)
    measured: np.ndarray  # (N, D) shapes before that


class Restart(NamedTuple):
    """One start: the fit by EM, and that of the posterior which began there."""

    em: Fit
    bayes: Fit
    state: Any  # of the param store that holds the posterior


class Leaving(NamedTuple):
    """What PSIS-LOO says of one number of parts."""

    behind: float  # nats below the best number
    error: float  # standard error of that difference
    k: np.ndarray  # (N,) Pareto k of the rows
    good: float  # up to which they can be trusted


def main(out: Path, restarts: int, steps: int, permutations: int) -> dict:
    """Tell the whole story once; returns the figures that it prints."""
    out.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(0)
    tumours = read()
    x = tumours.x

    # 1. How many parts? The best fit's params are put in place.
    choice = compare_fits(
        {family: declare(family) for family in FAMILIES},
        x,
        components=range(1, MOST + 1),
        criterion="heldout",
        folds=5,
        start=lambda model, x: model.start_at(seed_rows(x, model.components)),
        generator=torch.Generator().manual_seed(0),
        progress=False,
    )
    best, parts = choice.best.use(), choice.best.components
    labels = assign(best.model, x)

    # 2. Do restarts agree? As chains, with and without a common order of their labels.
    chains = [restart(x, parts, seed=seed, steps=steps) for seed in range(restarts)]
    data = draws_of(chains, x)
    scrambled = draws_of(chains, x, align=False, log_likelihood=False)

    # 3. The same question to PSIS-LOO.
    others = {
        count: draws_of([restart(x, count, seed=0, steps=steps)], x)
        for count in (parts - 1, parts + 1)
        if count
    }
    leaving = leave_out({parts: data, **others})

    # 4. What the parts know, and 5. the page.
    information = partition_information(
        labels,
        x,
        tumours.malignant,
        names=FEATURES,
        permutations=permutations,
        cluster_rows=int(
            torch.bincount(labels).min()
        ),  # all rows of the smallest part, as many of the others
        generator=torch.Generator().manual_seed(0),
    )
    page = out / "report.html"
    summary = report(
        best,
        page,
        x,
        title="Tumours of the breast in parts",
        others=[chain.em for chain in chains],
        information=information,
    )

    figures = figures_of(choice, data, scrambled, leaving, information, summary, tumours, labels)
    (out / "report.json").write_text(json.dumps(figures, indent=2) + "\n")
    draw(out / "diagnose.png", tumours, choice, best, labels, data, leaving, information)
    tell(figures, summary, page)
    return figures


def read() -> Tumours:
    """Sizes and ratios are compared by their logarithms."""
    table = load_breast_cancer()
    columns = [list(table.feature_names).index(f"mean {name}") for name in FEATURES]
    measured = table.data[:, columns]
    shapes = np.log(measured)
    x = (shapes - shapes.mean(0)) / shapes.std(0)
    return Tumours(
        torch.tensor(x, dtype=torch.float32), torch.tensor(table.target == 0).float(), measured
    )


def declare(family: str) -> Callable[[int], EM]:
    """What makes a mixture of so many parts, and the strategy that fits it."""

    def build(components: int) -> EM:
        model = GaussianMixture(components=components, features=len(FEATURES), covariance=family)
        return EM(model, FullPartition(model, components=components))

    return build


def with_priors(components: int) -> Callable:
    """The same mixture with priors, by hand: what is sampled outside the data plate has a posterior."""
    none = torch.zeros(components, len(FEATURES))

    def mixture(x: Tensor, index: Tensor | None = None, size: int | None = None) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((components,), 2.0)))
        loc = pyro.sample("loc", dist.Normal(none, 2.0).to_event(2))
        scale = pyro.sample("scale", dist.LogNormal(none - 0.5, 0.7).to_event(2))
        correlation = pyro.sample(
            "correlation", dist.LKJCholesky(len(FEATURES)).expand([components]).to_event(1)
        )
        with data_plate(x, index, size):
            z = pyro.sample("z", MixtureWeights(weights))
            pyro.sample("x", FullNormals(loc, scale.unsqueeze(-1) * correlation)[z], obs=x)

    return mixture


def restart(x: Tensor, components: int, *, seed: int, steps: int) -> Restart:
    """EM from rows drawn anew; then a normal posterior about where it ended."""
    pyro.set_rng_seed(seed)
    # Stores of their own: fits of the same names would share their params.
    with pyro.get_param_store().scope():
        em = declare("full")(components)
        em.model.start_at(seed_rows(x, components))
        start = fit(em, x, progress=False)
    with pyro.get_param_store().scope() as state:
        model = with_priors(components)
        about = init_to_value(values=values_of(em.model))
        global_guide = AutoMultivariateNormal(
            poutine.block(model, hide=["z"]), init_loc_fn=about, init_scale=0.03
        )
        guide = FullPartition(model, components=components, global_guide=global_guide)
        # The steps get a fiftieth as long in the end: what is left of their noise would look like
        # disagreement.
        svi = SVI(
            model,
            guide,
            ClippedAdam({"lr": 0.02, "lrd": 0.02 ** (1 / steps)}),
            TraceEnum_ELBO(max_plate_nesting=1),
        )
        bayes = fit(svi, x, epochs=steps, patience=steps, progress=False)
    return Restart(start, bayes, state)


def values_of(model: GaussianMixture) -> dict[str, Tensor]:
    """The params of a fit as values of the sites with priors."""
    with torch.no_grad():
        scale = covariances(model).diagonal(dim1=-2, dim2=-1).sqrt()
        correlation = model.scale_tril / scale.unsqueeze(-1)
        return {
            "weights": +model.weights,
            "loc": +model.loc,
            "scale": scale,
            "correlation": correlation,
        }


def covariances(model: GaussianMixture) -> Tensor:
    """(C, D, D)."""
    return (model.scale_tril @ model.scale_tril.mT).detach()


def draws_of(chains: list[Restart], x: Tensor, **options: bool) -> Any:
    """Restarts as chains of ArviZ."""
    pyro.set_rng_seed(0)
    fits = [(chain.bayes, chain.state) for chain in chains]
    return to_arviz(fits, x, draws=DRAWS // len(chains), coords={"feature": FEATURES}, **options)


def leave_out(posteriors: dict[int, Any]) -> dict[int, Leaving]:
    """Of several numbers of parts; ArviZ takes draws for those of a posterior, here a normal one fitted to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Estimated shape parameter of Pareto"
        )  # the picture shows it
        found = {
            str(count): az.loo(data, pointwise=True) for count, data in sorted(posteriors.items())
        }
        table = az.compare(found)
    return {
        int(count): Leaving(
            behind=float(table.loc[count, "elpd_diff"]),
            error=float(table.loc[count, "dse"]),
            k=np.asarray(loo.pareto_k),
            good=float(loo.good_k),
        )
        for count, loo in found.items()
    }


def figures_of(
    choice: Comparison,
    data: Any,
    scrambled: Any,
    leaving: dict[int, Leaving],
    information: PartitionInformation,
    summary: PartitionReport,
    tumours: Tumours,
    labels: Tensor,
) -> dict:
    """What is printed."""
    second = choice.best_by("heldout", errors=0)
    ahead = second.predictive("heldout")
    return {
        "chosen": {
            name: [choice.best_by(name).family, choice.best_by(name).components]
            for name in choice.criteria()
        },
        "largest_heldout": second.components,
        "ahead": ahead.total - choice.best.value("heldout"),
        "ahead_error": ahead.error_against(choice.best.predictive("heldout")),
        "r_hat": worst_r_hat(data),
        "r_hat_as_they_come": worst_r_hat(scrambled),
        "loo": {
            n: [one.behind, one.error, int((one.k > one.good).sum())] for n, one in leaving.items()
        },
        "malignant": [
            float(tumours.malignant[labels == part].mean())
            for part in range(choice.best.components)
        ],
        "knows": {line.name: line.nats for line in information.variables},
        "entropy": information.entropy,
        "partial": [line._asdict() for line in information.local_dependences()],
        "agreement": [against.rand for against in summary.stability],
    }


def worst_r_hat(data: Any) -> float:
    """Of weights and means: near 1 where chains agree."""
    return float(
        az.summary(data, var_names=["weights", "loc"], round_to="none")["r_hat"].astype(float).max()
    )


def draw(
    path: Path,
    tumours: Tumours,
    choice: Comparison,
    best: Fit,
    labels: Tensor,
    data: Any,
    leaving: dict[int, Leaving],
    information: PartitionInformation,
) -> None:
    """Six panels."""
    figure = Figure(figsize=(15.5, 9.5), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    axes = figure.subplots(2, 3)
    draw_choice(axes[0, 0], choice)
    draw_parts(axes[0, 1], tumours, best, labels)
    draw_chains(axes[0, 2], data, best)
    draw_leaving(axes[1, 0], leaving)
    draw_knowledge(axes[1, 1], information)
    draw_dependence(axes[1, 2], tumours, labels, information)
    figure.savefig(path)


def title(ax: Axes, name: str, remark: str) -> None:
    """A bold name, and below it what to see."""
    ax.set_title(name, loc="left", fontweight="bold", color=INK, pad=24)
    below = ax.annotate(
        remark,
        (0, 1),
        (0, 8),
        "axes fraction",
        textcoords="offset points",
        color="#555555",
        size=9.5,
    )
    below.set_in_layout(False)  # it would take its room from the axes
    ax.spines[["top", "right"]].set_visible(False)


def draw_choice(ax: Axes, choice: Comparison) -> None:
    """Evidence of rows held out, a line a family."""
    plot_comparison(choice, ax=ax)
    ax.legend(frameon=False, loc="lower right")
    ax.set(xlabel="parts", ylabel="log evidence of rows not seen (nats)")
    title(
        ax, "How many parts?", "cross-validated; bars: standard error of the difference to the best"
    )


def draw_parts(ax: Axes, tumours: Tumours, best: Fit, labels: Tensor) -> None:
    """Rows in their parts' colours, and the parts as ellipses."""
    model: Any = best.model
    plot_ellipses(model.loc, covariances(model), rows=tumours.x, labels=labels, ax=ax)
    share = [
        f"{tumours.malignant[labels == k].mean():.0%} of part {k}" for k in range(model.components)
    ]
    title(ax, "The parts", "lines at two deviations; malignant: " + ", ".join(share))


def draw_chains(ax: Axes, data: Any, best: Fit) -> None:
    """Intervals of the parts' means, a line a chain."""
    loc = in_order_of(best, data.posterior["loc"].values)  # (chain, draw, C, D)
    chains, _, parts, features = loc.shape
    low, middle, high = np.quantile(loc, [0.03, 0.5, 0.97], axis=1)  # (chain, C, D)
    for part in range(parts):
        for chain in range(chains):
            at = np.arange(features) + 0.14 * (chain - (chains - 1) / 2)
            ax.hlines(at, low[chain, part], high[chain, part], color=COLORS[part], lw=1.6)
            ax.plot(middle[chain, part], at, "o", color=COLORS[part], ms=3)
        ax.text(
            middle[0, part, 0],
            -0.45,
            f"part {part}",
            color=COLORS[part],
            ha="center",
            va="bottom",
            weight="bold",
        )
    ax.axvline(0, color=GREY, lw=0.8)
    ax.set_yticks(range(features), FEATURES)
    ax.set_ylim(features - 0.5, -0.85)
    ax.set_xlabel("mean of the part (standard deviations of all rows)")
    title(ax, "Do restarts agree?", f"{chains} restarts, labels aligned; lines: 94% of draws")


def in_order_of(best: Fit, loc: np.ndarray) -> np.ndarray:
    """Draws (chain, draw, C, D), which have a common order of parts, in that of the fit."""
    model: Any = best.model
    order = align([torch.tensor(loc.mean((0, 1)))], model.loc.detach().double())[0]
    return loc[:, :, order.numpy()]


def draw_leaving(ax: Axes, leaving: dict[int, Leaving]) -> None:
    """Each row's Pareto k, a band for each number of parts."""
    rng = np.random.default_rng(0)
    for band, one in enumerate(leaving.values()):
        bad = one.k > one.good
        at = band + rng.uniform(-0.25, 0.25, size=len(one.k))
        ax.scatter(one.k[~bad], at[~bad], s=7, color=GREY, alpha=0.5, linewidths=0)
        ax.scatter(one.k[bad], at[bad], s=40, color="#D55E00", marker="X", linewidths=0)
    good = next(iter(leaving.values())).good
    ax.axvline(good, color=INK, ls="--", lw=1)
    ax.text(good, len(leaving) - 0.4, " not to be trusted", va="top", color=INK, size=9)
    ax.set_yticks(range(len(leaving)), [_standing(count, one) for count, one in leaving.items()])
    ax.set(xlabel="Pareto k of each row", ylim=(-0.5, len(leaving) - 0.3))
    title(ax, "Leaving rows out", "PSIS-LOO; crosses: rows that a part leans on")


def _standing(count: int, one: Leaving) -> str:
    behind = "best" if one.behind == 0 else f"-{one.behind:.0f} ± {one.error:.0f} nats"
    return f"{count} part{'s' * (count > 1)}\n{behind}"


def draw_knowledge(ax: Axes, information: PartitionInformation) -> None:
    """Bars of mutual information."""
    plot_information(information, ax, labels={"x": "all features", "y": "diagnosis"}, legend=False)
    ax.set_xlabel(f"information (nats); dashed: all there is, {information.entropy:.2f}")
    title(
        ax,
        "What the parts know",
        "of each feature, of all together, and of the diagnosis, never seen",
    )


def draw_dependence(
    ax: Axes, tumours: Tumours, labels: Tensor, information: PartitionInformation
) -> None:
    """The most hidden feature of benign and of malignant tumours, in each part."""
    rng, names, lines = np.random.default_rng(0), [], most_hidden(information)
    feature = lines[0].feature
    values = tumours.measured[:, FEATURES.index(feature)]
    for band, line in enumerate(lines):
        for side, kind in enumerate(("benign", "malignant")):
            some = values[((labels == line.cluster) & (tumours.malignant == side)).numpy()]
            at = 2.8 * band + side
            shaken = at + rng.uniform(-0.28, 0.28, size=len(some))
            ax.scatter(some, shaken, s=9, color=COLORS[line.cluster], alpha=0.5, linewidths=0)
            ax.vlines(np.median(some), at - 0.38, at + 0.38, color=INK, lw=2)
            names.append((at, f"{kind}\n({len(some)})"))
        found = f"cluster {line.cluster}: coefficient {line.within:.2f}, p {line.adjusted_p_value:.2g}"
        ax.text(
            0.01,
            2.8 * band - 0.45,
            found,
            transform=ax.get_yaxis_transform(),
            va="bottom",
            size=9.5,
        )
    ax.set_yticks(*zip(*names, strict=True))
    ax.set(xlabel=f"{feature}, as measured", ylim=(2.8 * len(lines) - 1.3, -1.0))
    title(
        ax,
        f"Where {feature} matters",
        f"bars: medians; the coefficient over all rows is {lines[0].overall:.2f}",
    )


def most_hidden(information: PartitionInformation) -> list[ClusterDependence]:
    """A line a part of the feature whose dependence is the most hidden over all rows; of the first one if none is."""
    first = (information.local_dependences() or information.dependences)[0]
    return [line for line in information.dependences if line.feature == first.feature]


def tell(figures: dict, summary: PartitionReport, page: Path) -> None:
    """The figures, for people."""
    chosen = {name: f"{parts} ({family})" for name, (family, parts) in figures["chosen"].items()}
    print("parts chosen by", ", ".join(f"{name}: {value}" for name, value in chosen.items()))
    print(f"restarts as chains: largest r-hat {figures['r_hat']:.2f}", end=", ")
    print(f"{figures['r_hat_as_they_come']:.1f} with their labels as they come")
    for count, (behind, error, bad) in figures["loo"].items():
        standing = (
            "ahead of all" if behind == 0 else f"{behind:.0f} (error {error:.0f}) nats behind"
        )
        print(
            f"PSIS-LOO, {count} part{'s' * (count > 1)}: {standing}; {bad} rows with a Pareto k too large"
        )
    share = " and ".join(f"{share:.0%}" for share in figures["malignant"])
    print(
        f"malignant in the parts: {share}; they know {figures['knows']['y']:.2f} nats of the diagnosis"
    )
    for line in figures["partial"]:
        print(
            f"{line['feature']} tells the diagnosis in part {line['cluster']}, not found elsewhere:",
            end=" ",
        )
        print(f"coefficient {line['within']:.2f} there, {line['overall']:.2f} overall")
    print(f"\n{summary}\n\npage, picture and figures in {page.parent}/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/diagnose"), help="where to write (runs/diagnose)"
    )
    parser.add_argument("--restarts", type=int, default=4, help="chains (4)")
    parser.add_argument(
        "--steps", type=int, default=500, help="gradient steps of each posterior (500)"
    )
    parser.add_argument("--permutations", type=int, default=99, help="of every test (99)")
    options = parser.parse_args()
    main(options.out, options.restarts, options.steps, options.permutations)
