"""After the fit: how many parts, whether restarts agree, what the parts know, and one page that says it all.

The rows are 569 tumours of the breast: six shapes of their cells' nuclei, and a diagnosis that the mixtures never see
(Street, Wolberg & Mangasarian, "Nuclear feature extraction for breast tumor diagnosis", 1993; scikit-learn has them).

1. ``compare_fits`` fits two families with one to five parts and asks rows that a fit has not seen.
2. Four restarts of the same mixture with priors become four chains of ArviZ. Their labels are arbitrary: ``to_arviz``
   gives them a common order, without which no average over chains means anything.
3. ArviZ's PSIS-LOO asks once more how many parts. It leaves a row out by weighting draws; the Pareto k of a row says
   how far that can be trusted. A large one marks a row that a part leans on: without it the posterior is another.
4. ``partition_information`` tells which features the parts know of, how much of the diagnosis, and where in the rows
   a feature matters: a dependence that holds in one part alone is averaged away over all of them.
5. ``report`` writes one self-contained page for the colleague who was not there.

Run ``python tutorials/07_diagnose.py``; it takes less than three minutes on two cores and writes its picture, figures
and ``report.html`` to ``runs/diagnose/``.
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
from pyro_mixtures.diagnostics.information import Dependence, PartitionInformation
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
    texture: np.ndarray  # (N,) as measured


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
    others = {count: draws_of([restart(x, count, seed=0, steps=steps)], x) for count in (parts - 1, parts + 1) if count}
    leaving = leave_out({parts: data, **others})

    # 4. What the parts know, and 5. the page.
    information = partition_information(
        labels,
        x,
        tumours.malignant,
        names=FEATURES,
        permutations=permutations,
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
    shapes = np.log(table.data[:, columns])
    x = (shapes - shapes.mean(0)) / shapes.std(0)
    texture = table.data[:, columns[FEATURES.index("texture")]]
    return Tumours(torch.tensor(x, dtype=torch.float32), torch.tensor(table.target == 0).float(), texture)


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
        correlation = pyro.sample("correlation", dist.LKJCholesky(len(FEATURES)).expand([components]).to_event(1))
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
        beside = AutoMultivariateNormal(poutine.block(model, hide=["z"]), init_loc_fn=about, init_scale=0.03)
        guide = FullPartition(model, components=components, beside=beside)
        # The steps get a fiftieth as long in the end: what is left of their noise would look like disagreement.
        svi = SVI(model, guide, ClippedAdam({"lr": 0.02, "lrd": 0.02 ** (1 / steps)}), TraceEnum_ELBO())
        bayes = fit(svi, x, epochs=steps, patience=steps, progress=False)
    return Restart(start, bayes, state)


def values_of(model: GaussianMixture) -> dict[str, Tensor]:
    """The params of a fit as values of the sites with priors."""
    with torch.no_grad():
        scale = covariances(model).diagonal(dim1=-2, dim2=-1).sqrt()
        correlation = model.scale_tril / scale.unsqueeze(-1)
        return {"weights": +model.weights, "loc": +model.loc, "scale": scale, "correlation": correlation}


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
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto")  # the picture shows it
        found = {str(count): az.loo(data, pointwise=True) for count, data in sorted(posteriors.items())}
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
        "chosen": {name: [choice.best_by(name).family, choice.best_by(name).components] for name in choice.criteria()},
        "largest_heldout": second.components,
        "ahead": ahead.total - choice.best.value("heldout"),
        "ahead_error": ahead.error_against(choice.best.predictive("heldout")),
        "r_hat": worst_r_hat(data),
        "r_hat_as_they_come": worst_r_hat(scrambled),
        "loo": {n: [one.behind, one.error, int((one.k > one.good).sum())] for n, one in leaving.items()},
        "malignant": [float(tumours.malignant[labels == part].mean()) for part in range(choice.best.components)],
        "knows": {line.name: line.nats for line in information.knowledge},
        "entropy": information.entropy,
        "partial": [line._asdict() for line in information.partial()],
        "agreement": [against.rand for against in summary.stability],
    }


def worst_r_hat(data: Any) -> float:
    """Of weights and means: near 1 where chains agree."""
    return float(az.summary(data, var_names=["weights", "loc"], round_to="none")["r_hat"].astype(float).max())


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
    plot_information(information, axes[1, 1])
    title(axes[1, 1], "What the parts know", "information on each variable; the diagnosis (y) was never seen")
    draw_texture(axes[1, 2], tumours, labels, information)
    figure.savefig(path)


def title(ax: Axes, name: str, remark: str, *, above: float = 0.0) -> None:
    """A bold name, and below it what to see; ``above`` a legend of so many points."""
    ax.set_title(name, loc="left", fontweight="bold", color=INK, pad=24 + above)
    ax.annotate(remark, (0, 1), (0, 8 + above), "axes fraction", textcoords="offset points", color="#555555", size=9.5)
    ax.spines[["top", "right"]].set_visible(False)


def draw_choice(ax: Axes, choice: Comparison) -> None:
    """Evidence of rows held out, a line a family."""
    plot_comparison(choice, ax=ax)
    ax.legend(frameon=False, loc="lower right")
    ax.set(xlabel="parts", ylabel="log evidence of rows not seen (nats)")
    title(ax, "How many parts?", "bars: one standard error of the difference to the largest")


def draw_parts(ax: Axes, tumours: Tumours, best: Fit, labels: Tensor) -> None:
    """Rows in their parts' colours, and the parts as ellipses."""
    model: Any = best.model
    plot_ellipses(model.loc, covariances(model), rows=tumours.x, labels=labels, ax=ax)
    share = [f"part {k}: {tumours.malignant[labels == k].mean():.0%}" for k in range(model.components)]
    title(ax, "The parts", "malignant in " + ", ".join(share) + "; lines at two deviations")


def draw_chains(ax: Axes, data: Any, best: Fit) -> None:
    """Intervals of the parts' means, a line a chain."""
    loc = in_order_of(best, data.posterior["loc"].values)  # (chain, draw, C, D)
    chains, _, parts, features = loc.shape
    low, middle, high = np.quantile(loc, [0.03, 0.5, 0.97], axis=1)  # (chain, C, D)
    for part in range(parts):
        for chain in range(chains):
            at = np.arange(features) + 0.14 * (chain - (chains - 1) / 2)
            ends = low[chain, part], high[chain, part]
            ax.hlines(at, *ends, color=COLORS[part], lw=1.6, label=f"part {part}" if not chain else None)
            ax.plot(middle[chain, part], at, "o", color=COLORS[part], ms=3)
    ax.axvline(0, color=GREY, lw=0.8)
    ax.set_yticks(range(features), FEATURES)
    ax.set_ylim(features - 0.5, -0.5)
    ax.set_xlabel("mean of the part (standard deviations of all rows)")
    ax.legend(frameon=False, loc="lower right")
    title(ax, "Do restarts agree?", f"{chains} restarts, labels aligned; lines hold 94% of the draws")


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
    ax.text(good, len(leaving) - 0.45, " not to be trusted", va="bottom", color=INK, size=9)
    ax.set_yticks(range(len(leaving)), [_standing(count, one) for count, one in leaving.items()])
    ax.set(xlabel="Pareto k of each row", ylim=(-0.5, len(leaving) - 0.3), xlim=(None, 1.02))
    title(ax, "Leaving rows out", "PSIS-LOO of each number of parts; crosses: rows that a part leans on")


def _standing(count: int, one: Leaving) -> str:
    behind = "best" if one.behind == 0 else f"-{one.behind:.0f} ± {one.error:.0f} nats"
    return f"{count} part{'s' * (count > 1)}\n{behind}"


def draw_texture(ax: Axes, tumours: Tumours, labels: Tensor, information: PartitionInformation) -> None:
    """Texture of benign and malignant tumours, in each part."""
    rng, names, lines = np.random.default_rng(0), [], textures(information)
    for band, line in enumerate(lines):
        for side, kind in enumerate(("benign", "malignant")):
            rows = ((labels == line.part) & (tumours.malignant == side)).numpy()
            at = 2.6 * band + side
            texture = tumours.texture[rows]
            ax.scatter(
                texture,
                at + rng.uniform(-0.3, 0.3, size=len(texture)),
                s=9,
                color=COLORS[line.part],
                alpha=0.45,
                linewidths=0,
            )
            ax.vlines(np.median(texture), at - 0.42, at + 0.42, color=INK, lw=2)
            names.append((at, f"{kind}\n({len(texture)})"))
        found = f"part {line.part}: coefficient {line.inside:.2f}, adjusted p = {line.adjusted:.2g}"
        ax.text(0.99, 2.6 * band - 0.52, found, transform=ax.get_yaxis_transform(), ha="right", va="bottom", size=9.5)
    ax.set_yticks(*zip(*names, strict=True))
    ax.set(xlabel="texture", ylim=(2.6 * len(lines) - 0.9, -0.85))
    title(
        ax,
        "Where texture tells",
        f"the diagnosis; bars: medians. Over all rows the coefficient is {lines[0].overall:.2f}",
    )


def textures(information: PartitionInformation) -> list[Dependence]:
    """How the diagnosis depends on texture in each part."""
    return [line for line in information.dependences if line.feature == "texture"]


def tell(figures: dict, summary: PartitionReport, page: Path) -> None:
    """The figures, for people."""
    chosen = {name: f"{parts} ({family})" for name, (family, parts) in figures["chosen"].items()}
    print("parts chosen by", ", ".join(f"{name}: {value}" for name, value in chosen.items()))
    print(f"restarts as chains: largest r-hat {figures['r_hat']:.2f}", end=", ")
    print(f"{figures['r_hat_as_they_come']:.1f} with their labels as they come")
    for count, (behind, error, bad) in figures["loo"].items():
        standing = "ahead of all" if behind == 0 else f"{behind:.0f} (error {error:.0f}) nats behind"
        print(f"PSIS-LOO, {count} part{'s' * (count > 1)}: {standing}; {bad} rows with a Pareto k too large")
    share = " and ".join(f"{share:.0%}" for share in figures["malignant"])
    print(f"malignant in the parts: {share}; they know {figures['knows']['y']:.2f} nats of the diagnosis")
    for line in figures["partial"]:
        print(f"{line['feature']} tells the diagnosis in part {line['part']} only:", end=" ")
        print(f"coefficient {line['inside']:.2f} there, {line['overall']:.2f} overall")
    print(f"\n{summary}\n\npage, picture and figures in {page.parent}/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/diagnose"), help="where to write (runs/diagnose)")
    parser.add_argument("--restarts", type=int, default=4, help="chains (4)")
    parser.add_argument("--steps", type=int, default=500, help="gradient steps of each posterior (500)")
    parser.add_argument("--permutations", type=int, default=199, help="of every test (199)")
    options = parser.parse_args()
    main(options.out, options.restarts, options.steps, options.permutations)
