"""Write a component family of your own in 25 lines, and fit it by every algorithm of the package.

A family consists of formulas for one row and the arguments of its component: the log density, a
draw, the mean, what a row contributes to the sufficient statistics, and the arguments that maximize
the expected log density. ``GatheredComponents`` adds the rest: candidates and padding,
responsibilities and row weights, minibatches, frozen arguments, gradients. Here the family is the
geometric distribution, and a row is the number of failed attempts before the first success of a
learner. There are three kinds of learners.

Before you publish a family, test it with the conformance suite, as this one is in
``tests/tutorials/test_your_own_family.py``: say how to build it, give a stock distribution as the
oracle and the textbook M-step, and more than 70 tests follow.

Run ``python tutorials/06_your_own_family.py``; it takes a few seconds and writes its picture and
results to ``runs/your_own_family/``.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.nn import PyroModule, PyroParam
from pyro.optim import Adam
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures import EM, MixtureWeights, data_plate, fit, log_evidence
from pyro_mixtures.distributions import GatheredComponents
from pyro_mixtures.guides import FullPartition, HardPartition

PROBS, WEIGHTS = (0.6, 0.15, 0.02), (0.5, 0.3, 0.2)  # of the three kinds of learners
BLUE, GRAY, COLORS = "#0072B2", "#BBBBBB", ("#D55E00", "#009E73", "#CC79A7")


# 1. The family.


class Attempts(NamedTuple):
    """Sums over the rows of each component."""

    successes: Tensor  # (C,)
    failures: Tensor  # (C,)


class Geometrics(GatheredComponents):
    """Numbers of failures before the first success, of probability ``probs`` (C,)."""

    argument_names = ("probs",)
    arg_constraints = {"probs": constraints.unit_interval}
    support = constraints.nonnegative_integer
    min_rows = 1

    def __init__(self, probs: Tensor, *, validate_args: bool | None = None):
        self.probs = probs
        super().__init__(probs.shape, torch.Size(), validate_args=validate_args)

    def log_density(self, value: Tensor, probs: Tensor) -> Tensor:
        return probs.log() + torch.special.xlog1py(value, -probs)

    def draw(self, probs: Tensor) -> Tensor:
        return (torch.log1p(-torch.rand_like(probs)) / torch.log1p(-probs)).floor()

    def expectation(self, probs: Tensor) -> Tensor:
        return (1 - probs) / probs

    def row_statistics(self, value: Tensor, probs: Tensor) -> Attempts:
        return Attempts(torch.ones_like(value), value)

    def best_arguments(self, statistics: Attempts) -> dict[str, Tensor]:
        return {"probs": statistics.successes / (statistics.successes + statistics.failures)}


# 2. The mixture: plain Pyro, the same for every algorithm.


class Learners(PyroModule):
    """A mixture of geometric distributions over rows ``x`` (B,)."""

    weights: Any
    probs: Any

    def __init__(self, components: int):
        super().__init__()
        equal = torch.full((components,), 1 / components)
        spread = torch.logspace(-1.5, -0.3, components)
        self.weights = PyroParam(equal, constraint=constraints.simplex)
        self.probs = PyroParam(spread, constraint=constraints.unit_interval)

    def forward(
        self, x: Tensor | None = None, index: Tensor | None = None, size: int | None = None
    ) -> Tensor:
        with data_plate(x, index, size):
            z = pyro.sample("z", MixtureWeights(self.weights))
            rows: Tensor = pyro.sample("x", Geometrics(self.probs)[z], obs=x)
            return rows


# 3. Three algorithms.


def main(out: Path, rows: int) -> dict[str, Any]:
    """Fit the mixture by EM, by hard EM and by stochastic gradients; return what is printed."""
    pyro.set_rng_seed(0)
    x = learners(rows)
    results = {
        "EM": by_em(x, FullPartition),
        "hard EM": by_em(x, HardPartition),
        "SVI": by_gradients(x),
    }
    report = {"rows": rows, "truth": {"weights": WEIGHTS, "probs": PROBS}, "results": results}
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    draw_fit(out / "your_own_family.png", x, results["EM"])
    print_results(report, out)
    return report


def learners(rows: int) -> Tensor:
    """Draw numbers of failures (N,)."""
    kinds = torch.multinomial(torch.tensor(WEIGHTS), rows, replacement=True)
    return Geometrics(torch.tensor(PROBS))[kinds].sample()


def by_em(x: Tensor, guide_class: Any) -> dict[str, Any]:
    """Fit by closed-form EM; the guide decides whether assignments are soft or hard."""
    pyro.clear_param_store()
    model = Learners(len(PROBS))
    fit(EM(model, guide_class(model, components=len(PROBS))), x, progress=False)
    return summary(model, x)


def by_gradients(x: Tensor) -> dict[str, Any]:
    """Fit by stock SVI, with q(z) exact."""
    pyro.clear_param_store()
    model = Learners(len(PROBS))
    guide = FullPartition(model, components=len(PROBS))
    svi = SVI(model, guide, Adam({"lr": 0.05}), TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(300):
        svi.step(x)
    return summary(model, x)


def summary(model: Learners, x: Tensor) -> dict[str, Any]:
    """Return the mean log evidence and the parameters, in the order of ``probs``."""
    order = model.probs.argsort(descending=True)
    return {
        "weights": model.weights[order].tolist(),
        "probs": model.probs[order].tolist(),
        "log_evidence": float(log_evidence(model, x).mean()),
    }


# 4. Results.


def draw_fit(path: Path, x: Tensor, result: dict[str, Any]) -> None:
    """Draw the frequencies of the rows, the fitted mixture, and its components."""
    largest = 40
    values = torch.arange(largest + 1)
    probs = torch.tensor(result["probs"])
    family = Geometrics(probs)
    shares = (
        torch.tensor(result["weights"]) * family.log_prob(values.unsqueeze(-1)).exp()
    )  # (values, C)
    frequencies = torch.bincount(x.long(), minlength=largest + 1)[: largest + 1] / len(x)
    figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.bar(values.numpy(), frequencies.numpy(), color=GRAY, label="rows")
    for component, color in enumerate(COLORS):
        label = f"component of probability {probs[component]:.2f}"
        axes.plot(values.numpy(), shares[:, component].numpy(), color=color, lw=1.2, label=label)
    axes.plot(values.numpy(), shares.sum(-1).numpy(), "o", color=BLUE, ms=3, label="mixture")
    axes.set(yscale="log", xlabel="Failures before the first success")
    axes.set_ylim(float(frequencies[frequencies > 0].min()) / 2, 1)
    axes.set_title("Share of the rows", loc="left")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def print_results(report: dict[str, Any], out: Path) -> None:
    """Print the results."""
    print(
        f"{report['rows']} rows; weights and probabilities of success, log evidence in nats per row"
    )
    for name, result in {"truth": report["truth"], **report["results"]}.items():
        weights = "  ".join(f"{value:.3f}" for value in result["weights"])
        probs = "  ".join(f"{value:.3f}" for value in result["probs"])
        evidence = f"{result['log_evidence']:9.4f}" if "log_evidence" in result else ""
        print(f"{name:>8}   {weights}   {probs}   {evidence}")
    print(f"picture and results in {out}/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/your_own_family"),
        help="where to write (runs/your_own_family)",
    )
    parser.add_argument("--rows", type=int, default=20_000, help="rows N to draw (20000)")
    options = parser.parse_args()
    main(options.out, options.rows)
