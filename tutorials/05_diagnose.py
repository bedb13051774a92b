"""Diagnose a fit: number of components, agreement of restarts, information in clusters, a report.

The rows are 569 breast tumors: six shape features of their cell nuclei, and a diagnosis that the
mixtures never see (Street, Wolberg & Mangasarian, "Nuclear feature extraction for breast tumor
diagnosis", 1993; the data come with scikit-learn).

1. ``compare_fits`` fits two families with one to five components and scores them on held-out rows.
2. Four restarts of the same mixture with priors become four ArviZ chains. Their labels are
   arbitrary; ``to_arviz`` gives them a common order, without which averages over chains are
   meaningless.
3. The PSIS-LOO of ArviZ compares numbers of components again. It leaves a row out by reweighting
   draws, and the Pareto k of a row says how reliable that is. A large value marks a row that the
   posterior depends on strongly. The answer may differ from that of step 1, which scores single
   fits and takes the smallest of those within one standard error.
4. ``partition_information`` estimates how much information the clusters carry about each feature
   and about the diagnosis, and in which cluster a feature is related to the diagnosis: a dependence
   that holds in one cluster alone may vanish in the average over all rows. A dependence that is not
   found in a cluster may still exist, especially where few rows have one of the diagnoses.
5. ``report`` writes one self-contained HTML page.

Run ``python tutorials/05_diagnose.py``; it takes less than three minutes on two cores and writes
its picture, results and ``report.html`` to ``runs/diagnose/``.
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
MAX_COMPONENTS = 5
DRAWS = 400  # of each posterior, over all of its chains
# The palette of Okabe & Ito, in the order of the library's plots.
COLORS = ("#0072B2", "#E69F00", "#009E73")
INK, GRAY = "#222222", "#999999"


class Tumors(NamedTuple):
    """The features, and the diagnosis that the mixtures never see."""

    x: Tensor  # (N, D) standardized logarithms of the features
    malignant: Tensor  # (N,)
    measured: np.ndarray  # (N, D) features as measured


class Restart(NamedTuple):
    """A fit by EM, and a fit of the posterior that started there."""

    em: Fit
    posterior: Fit
    state: Any  # of the param store that holds the posterior


class LeaveOneOut(NamedTuple):
    """PSIS-LOO for one number of components."""

    difference: float  # nats below the best number
    error: float  # standard error of the difference
    k: np.ndarray  # (N,) Pareto k of the rows
    reliable: float  # largest reliable Pareto k

    @property
    def unreliable_rows(self) -> np.ndarray:
        """Whether each row (N,) has a Pareto k that is too large."""
        return self.k > self.reliable


def main(out: Path, restarts: int, steps: int, permutations: int) -> dict[str, Any]:
    """Run the tutorial and return the results that it prints."""
    out.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(0)
    tumors = read()
    x = tumors.x

    # 1. How many components? use() writes the params of the best fit into Pyro's param store.
    comparison = compare_fits(
        {family: declare(family) for family in FAMILIES},
        x,
        components=range(1, MAX_COMPONENTS + 1),
        criterion="heldout",
        folds=5,
        start=lambda model, x: model.start_at(seed_rows(x, model.components)),
        generator=torch.Generator().manual_seed(0),
        progress=False,
    )
    best, components = comparison.best.use(), comparison.best.components
    labels = assign(best.model, x)

    # 2. Do restarts agree? As chains, with and without a common order of their labels.
    chains = [restart(x, components, seed=seed, steps=steps) for seed in range(restarts)]
    data = draws_of(chains, x)
    unaligned = draws_of(chains, x, align=False, log_likelihood=False)

    # 3. PSIS-LOO for neighboring numbers of components.
    others = {
        count: draws_of([restart(x, count, seed=0, steps=steps)], x)
        for count in (components - 1, components + 1)
        if count
    }
    loo = leave_one_out({components: data, **others})

    # 4. Information in the clusters. Every cluster gives as many rows as the smallest one has.
    information = partition_information(
        labels,
        x,
        tumors.malignant,
        names=FEATURES,
        permutations=permutations,
        cluster_rows=int(torch.bincount(labels).min()),
        generator=torch.Generator().manual_seed(0),
    )

    # 5. The page.
    page = out / "report.html"
    summary = report(
        best,
        page,
        x,
        title="Clusters of breast tumors",
        others=[chain.em for chain in chains],
        information=information,
    )

    figures = {
        **figures_of_comparison(comparison),
        **figures_of_posteriors(data, unaligned, loo),
        **figures_of_clusters(information, summary, tumors, labels),
    }
    (out / "report.json").write_text(json.dumps(figures, indent=2) + "\n")
    draw(out / "diagnose.png", tumors, comparison, best, labels, data, loo, information)
    print_report(figures, summary, page)
    return figures


def read() -> Tumors:
    """Read the data. Sizes and ratios are compared on a logarithmic scale."""
    table = load_breast_cancer()
    columns = [list(table.feature_names).index(f"mean {name}") for name in FEATURES]
    measured = table.data[:, columns]
    logarithms = np.log(measured)
    x = (logarithms - logarithms.mean(0)) / logarithms.std(0)
    malignant = torch.tensor(table.target == 0).float()
    return Tumors(torch.tensor(x, dtype=torch.float32), malignant, measured)


def declare(family: str) -> Callable[[int], EM]:
    """Return a function that builds the mixture and its EM for a number of components."""

    def build(components: int) -> EM:
        model = GaussianMixture(components=components, features=len(FEATURES), covariance=family)
        return EM(model, FullPartition(model, components=components))

    return build


def with_priors(components: int) -> Callable:
    """Declare the same mixture with priors: sites outside of the data plate have a posterior."""
    zeros = torch.zeros(components, len(FEATURES))

    def mixture(x: Tensor, index: Tensor | None = None, size: int | None = None) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((components,), 2.0)))
        loc = pyro.sample("loc", dist.Normal(zeros, 2.0).to_event(2))
        scale = pyro.sample("scale", dist.LogNormal(zeros - 0.5, 0.7).to_event(2))
        correlation = pyro.sample(
            "correlation", dist.LKJCholesky(len(FEATURES)).expand([components]).to_event(1)
        )
        with data_plate(x, index, size):
            z = pyro.sample("z", MixtureWeights(weights))
            pyro.sample("x", FullNormals(loc, scale.unsqueeze(-1) * correlation)[z], obs=x)

    return mixture


def restart(x: Tensor, components: int, *, seed: int, steps: int) -> Restart:
    """Run EM from random rows, then fit a normal posterior around its result."""
    pyro.set_rng_seed(seed)
    # Without scopes, fits with the same param names would share their params.
    with pyro.get_param_store().scope():
        em = declare("full")(components)
        em.model.start_at(seed_rows(x, components))
        fitted = fit(em, x, progress=False)
    with pyro.get_param_store().scope() as state:
        model = with_priors(components)
        init_loc_fn = init_to_value(values=values_of(em.model))
        global_guide = AutoMultivariateNormal(
            poutine.block(model, hide=["z"]), init_loc_fn=init_loc_fn, init_scale=0.03
        )
        guide = FullPartition(model, components=components, global_guide=global_guide)
        # The step size falls to a fiftieth, since the noise of larger steps would look like
        # disagreement between chains.
        optimizer = ClippedAdam({"lr": 0.02, "lrd": 0.02 ** (1 / steps)})
        svi = SVI(model, guide, optimizer, TraceEnum_ELBO(max_plate_nesting=1))
        posterior = fit(svi, x, epochs=steps, patience=steps, progress=False)
    return Restart(fitted, posterior, state)


def values_of(model: GaussianMixture) -> dict[str, Tensor]:
    """Return the params of a fit as values of the sites with priors."""
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
    """Return the covariances (C, D, D)."""
    return (model.scale_tril @ model.scale_tril.mT).detach()


def draws_of(chains: list[Restart], x: Tensor, **options: bool) -> Any:
    """Return restarts as chains of one ArviZ object."""
    pyro.set_rng_seed(0)
    fits = [(chain.posterior, chain.state) for chain in chains]
    return to_arviz(fits, x, draws=DRAWS // len(chains), coords={"feature": FEATURES}, **options)


def leave_one_out(posteriors: dict[int, Any]) -> dict[int, LeaveOneOut]:
    """Compare numbers of components by PSIS-LOO over draws from the fitted normal posteriors."""
    with warnings.catch_warnings():
        # The picture shows the rows that this warning is about.
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto")
        results = {
            str(count): az.loo(data, pointwise=True) for count, data in sorted(posteriors.items())
        }
        table = az.compare(results)
    return {
        int(count): LeaveOneOut(
            difference=float(table.loc[count, "elpd_diff"]),
            error=float(table.loc[count, "dse"]),
            k=np.asarray(result.pareto_k),
            reliable=float(result.good_k),
        )
        for count, result in results.items()
    }


def figures_of_comparison(comparison: Comparison) -> dict[str, Any]:
    """Return the choice of each criterion, and the best held-out score without a standard error."""
    largest = comparison.best_by("heldout", errors=0)
    score = largest.predictive("heldout")
    return {
        "chosen": {
            name: [comparison.best_by(name).family, comparison.best_by(name).components]
            for name in comparison.criteria()
        },
        "largest_heldout": largest.components,
        "largest_heldout_gain": score.total - comparison.best.value("heldout"),
        "largest_heldout_gain_error": score.error_against(comparison.best.predictive("heldout")),
    }


def figures_of_posteriors(data: Any, unaligned: Any, loo: dict[int, LeaveOneOut]) -> dict[str, Any]:
    """Return R-hat with and without aligned labels, and PSIS-LOO."""
    return {
        "r_hat": largest_r_hat(data),
        "r_hat_unaligned": largest_r_hat(unaligned),
        "loo": {
            count: [result.difference, result.error, int(result.unreliable_rows.sum())]
            for count, result in loo.items()
        },
    }


def figures_of_clusters(
    information: PartitionInformation, summary: PartitionReport, tumors: Tumors, labels: Tensor
) -> dict[str, Any]:
    """Return the shares of malignant tumors, information, and agreement of restarts."""
    clusters = range(int(labels.max()) + 1)
    return {
        "malignant": [float(tumors.malignant[labels == cluster].mean()) for cluster in clusters],
        "information": {line.name: line.nats for line in information.variables},
        "entropy": information.entropy,
        "local_dependences": [line._asdict() for line in information.local_dependences()],
        "agreement": [against.rand for against in summary.stability],
    }


def largest_r_hat(data: Any) -> float:
    """Return the largest R-hat of weights and means: near 1 where chains agree."""
    summary = az.summary(data, var_names=["weights", "loc"], round_to="none")
    return float(summary["r_hat"].astype(float).max())


def draw(
    path: Path,
    tumors: Tumors,
    comparison: Comparison,
    best: Fit,
    labels: Tensor,
    data: Any,
    loo: dict[int, LeaveOneOut],
    information: PartitionInformation,
) -> None:
    """Draw six panels."""
    figure = Figure(figsize=(15.5, 9.5), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    axes = figure.subplots(2, 3)
    draw_comparison(axes[0, 0], comparison)
    draw_clusters(axes[0, 1], tumors, best, labels)
    draw_chains(axes[0, 2], data, best)
    draw_leave_one_out(axes[1, 0], loo)
    draw_information(axes[1, 1], information)
    draw_dependence(axes[1, 2], tumors, labels, information)
    figure.savefig(path)


def title(ax: Axes, name: str, remark: str) -> None:
    """Write a bold title and a remark below it."""
    ax.set_title(name, loc="left", fontweight="bold", color=INK, pad=24)
    annotation = ax.annotate(
        remark,
        (0, 1),
        (0, 8),
        "axes fraction",
        textcoords="offset points",
        color="#555555",
        size=9.5,
    )
    annotation.set_in_layout(False)  # otherwise a long remark would shrink the axes
    ax.spines[["top", "right"]].set_visible(False)


def draw_comparison(ax: Axes, comparison: Comparison) -> None:
    """Draw the log evidence of held-out rows, one line per family."""
    plot_comparison(comparison, ax=ax)
    ax.legend(frameon=False, loc="lower right")
    ax.set(xlabel="components", ylabel="log evidence of held-out rows (nats)")
    remark = "cross-validated; bars: standard error of the difference to the best"
    title(ax, "How many components?", remark)


def draw_clusters(ax: Axes, tumors: Tumors, best: Fit, labels: Tensor) -> None:
    """Draw rows in the colors of their clusters, and components as ellipses."""
    model: Any = best.model
    plot_ellipses(model.loc, covariances(model), rows=tumors.x, labels=labels, ax=ax)
    shares = [
        f"{tumors.malignant[labels == cluster].mean():.0%} of cluster {cluster}"
        for cluster in range(model.components)
    ]
    title(ax, "The clusters", "ellipses: two deviations; malignant: " + ", ".join(shares))


def draw_chains(ax: Axes, data: Any, best: Fit) -> None:
    """Draw intervals of the means of the components, one line per chain."""
    loc = in_order_of(best, data.posterior["loc"].values)  # (chain, draw, C, D)
    chains, _, components, features = loc.shape
    low, median, high = np.quantile(loc, [0.03, 0.5, 0.97], axis=1)  # (chain, C, D)
    for component in range(components):
        color = COLORS[component]
        for chain in range(chains):
            y = np.arange(features) + 0.14 * (chain - (chains - 1) / 2)
            ax.hlines(y, low[chain, component], high[chain, component], color=color, lw=1.6)
            ax.plot(median[chain, component], y, "o", color=color, ms=3)
        name, x = f"component {component}", median[0, component, 0]
        ax.text(x, -0.45, name, color=color, ha="center", va="bottom", weight="bold")
    ax.axvline(0, color=GRAY, lw=0.8)
    ax.set_yticks(range(features), FEATURES)
    ax.set_ylim(features - 0.5, -0.85)
    ax.set_xlabel("mean of the component (standard deviations)")
    title(ax, "Do restarts agree?", f"{chains} restarts, labels aligned; lines: 94% of draws")


def in_order_of(best: Fit, loc: np.ndarray) -> np.ndarray:
    """Return draws (chain, draw, C, D) with the components in the order of the fit."""
    model: Any = best.model
    order = align([torch.tensor(loc.mean((0, 1)))], model.loc.detach().double())[0]
    return loc[:, :, order.numpy()]


def draw_leave_one_out(ax: Axes, loo: dict[int, LeaveOneOut]) -> None:
    """Draw the Pareto k of each row, one band per number of components."""
    rng = np.random.default_rng(0)
    for band, result in enumerate(loo.values()):
        bad = result.unreliable_rows
        y = band + rng.uniform(-0.25, 0.25, size=len(bad))
        ax.scatter(result.k[~bad], y[~bad], s=7, color=GRAY, alpha=0.5, linewidths=0)
        ax.scatter(result.k[bad], y[bad], s=40, color="#D55E00", marker="X", linewidths=0)
    reliable = next(iter(loo.values())).reliable
    ax.axvline(reliable, color=INK, ls="--", lw=1)
    ax.text(reliable, len(loo) - 0.4, " unreliable", va="top", color=INK, size=9)
    ax.set_yticks(range(len(loo)), [_rank(count, result) for count, result in loo.items()])
    ax.set(xlabel="Pareto k of each row", ylim=(-0.5, len(loo) - 0.3))
    title(ax, "Leaving rows out", "PSIS-LOO; crosses: rows that the posterior depends on")


def _rank(count: int, result: LeaveOneOut) -> str:
    difference = f"-{result.difference:.0f} ± {result.error:.0f} nats"
    components = f"{count} component{'s' * (count > 1)}"
    return f"{components}\n{'best' if result.difference == 0 else difference}"


def draw_information(ax: Axes, information: PartitionInformation) -> None:
    """Draw bars of mutual information."""
    plot_information(information, ax, labels={"x": "all features", "y": "diagnosis"}, legend=False)
    ax.set_xlabel(f"mutual information (nats); dashed: entropy, {information.entropy:.2f}")
    remark = "with each feature, all features, and the diagnosis (not used in the fit)"
    title(ax, "Information in the clusters", remark)


def draw_dependence(
    ax: Axes, tumors: Tumors, labels: Tensor, information: PartitionInformation
) -> None:
    """Draw the values of one feature for benign and malignant tumors of each cluster."""
    rng, ticks, lines = np.random.default_rng(0), [], most_hidden(information)
    feature = lines[0].feature
    measured = tumors.measured[:, FEATURES.index(feature)]
    for band, line in enumerate(lines):
        for side, diagnosis in enumerate(("benign", "malignant")):
            rows = (labels == line.cluster) & (tumors.malignant == side)
            values, y = measured[rows.numpy()], 2.8 * band + side
            jitter = rng.uniform(-0.28, 0.28, size=len(values))
            ax.scatter(values, y + jitter, s=9, color=COLORS[line.cluster], alpha=0.5, linewidths=0)
            ax.vlines(np.median(values), y - 0.38, y + 0.38, color=INK, lw=2)
            ticks.append((y, f"{diagnosis}\n({len(values)})"))
        p_value = line.adjusted_p_value
        text = f"cluster {line.cluster}: coefficient {line.within:.2f}, p = {p_value:.2g}"
        transform = ax.get_yaxis_transform()
        ax.text(0.01, 2.8 * band - 0.45, text, transform=transform, va="bottom", size=9.5)
    ax.set_yticks(*zip(*ticks, strict=True))
    ax.set(xlabel=f"{feature}, as measured", ylim=(2.8 * len(lines) - 1.3, -1.0))
    remark = f"bars: medians; the coefficient over all rows is {lines[0].overall:.2f}"
    title(ax, f"Where {feature} matters", remark)


def most_hidden(information: PartitionInformation) -> list[ClusterDependence]:
    """Return the dependences, one per cluster, of the feature that all rows together hide most."""
    first = (information.local_dependences() or information.dependences)[0]
    return [line for line in information.dependences if line.feature == first.feature]


def print_report(figures: dict[str, Any], summary: PartitionReport, page: Path) -> None:
    """Print the results."""
    chosen = ", ".join(
        f"{components} ({family}) by {name}"
        for name, (family, components) in figures["chosen"].items()
    )
    print(f"number of components: {chosen}")
    print(f"restarts as chains: largest R-hat {figures['r_hat']:.2f}", end=", ")
    print(f"{figures['r_hat_unaligned']:.1f} without aligned labels")
    for count, (difference, error, unreliable) in figures["loo"].items():
        below = f"{difference:.0f} (standard error {error:.0f}) nats below the best"
        print(
            f"PSIS-LOO, {count} component{'s' * (count > 1)}: "
            f"{'best' if difference == 0 else below}; rows with unreliable Pareto k: {unreliable}"
        )
    shares = " and ".join(f"{share:.0%}" for share in figures["malignant"])
    print(
        f"malignant in the clusters: {shares}; "
        f"mutual information with the diagnosis: {figures['information']['y']:.2f} nats"
    )
    for line in figures["local_dependences"]:
        print(
            f"{line['feature']} is related to the diagnosis in cluster {line['cluster']} alone: "
            f"coefficient {line['within']:.2f} there, {line['overall']:.2f} over all rows"
        )
    print(f"\n{summary}\n\npage, picture and results in {page.parent}/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/diagnose"), help="where to write (runs/diagnose)"
    )
    parser.add_argument("--restarts", type=int, default=4, help="number of chains (4)")
    parser.add_argument(
        "--steps", type=int, default=500, help="gradient steps of each posterior (500)"
    )
    parser.add_argument(
        "--permutations", type=int, default=99, help="permutations of each test (99)"
    )
    options = parser.parse_args()
    main(options.out, options.restarts, options.steps, options.permutations)
