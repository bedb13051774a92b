"""One EM iteration of a softmax mixture relative to its matrix products; truncated and exact EM.

iteration   p=100,000 items with L=64 Gaussian features, K=20 components, N=1,000,000 draws as
            distinct items with counts, float32, for each solver of the M-step (one step each):
            ``seconds`` is the median of an ``EM.step``, all sides alternately in one fresh process.
            ``product_s`` is that of theta (K, L) times all features, 2 p L K operations.
            ``arithmetic_s`` is the time of the necessary arithmetic: as many such products as the
            iteration makes (newton 5, gradient 5: table, sums over draws, means, curvature, trial),
            for Newton 2 p L^2 K operations at the rate of a (L, 512) times (512, K L) product, and
            the exponentials of K x p numbers as often as they are taken (6: table, log evidence,
            responsibilities, means, curvature, trial). ``ratio`` is seconds / arithmetic_s (needed:
            at most 3). ``memory_mb`` is the peak of a step beyond model, draws and features, in a
            fresh process
truncation  C=2,000 components over p=20,000 items with L=16 features, thetas of length --length:
            fits of the same number of epochs from the same start, with TruncatedPartition (C'=5,
            G=15, E=1; its warm-up is included) and with FullPartition. ``seconds`` of a fit;
            ``start`` and ``heldout``: minus the exact log evidence of other draws before and after
            the fit, in nats per draw. With short thetas a draw says little about its component, so
            that a few candidates do not approximate the posterior
"""

import math
import time
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_mixtures.data.items import count_items
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit, log_evidence
from pyro_mixtures.models.softmax import SoftmaxMixture
from tests.benchmarks import harness

PRODUCTS = {"newton": 5, "gradient": 5}
EXPONENTIALS = {"newton": 6, "gradient": 6}
NEEDED = 3.0


class Sizes(NamedTuple):
    """The sizes of one problem."""

    items: int  # p
    features: int  # L
    components: int
    draws: int  # N
    length: float = 2.0  # of the thetas


class Counts(NamedTuple):
    """Distinct items and how often each was drawn."""

    items: Tensor  # (B,)
    counts: Tensor  # (B,)


def main() -> None:
    """Run the chosen tables and report."""
    options = parse()
    pyro.enable_validation(False)
    report = harness.Report(__doc__)
    if "iteration" in options.parts:
        sizes = (
            Sizes(10_000, 32, 10, 100_000) if options.quick else Sizes(100_000, 64, 20, 1_000_000)
        )
        compare_iterations(report, sizes, options.repeats)
    if "truncation" in options.parts:
        sizes = (
            Sizes(4_000, 8, 300, 100_000) if options.quick else Sizes(20_000, 16, 2_000, 1_000_000)
        )
        compare_truncation(report, sizes._replace(length=options.length), options.epochs)
    report.finish(options.json)


def parse() -> Any:
    """Read the command line."""
    parser = harness.parser(__doc__)
    parts = ["iteration", "truncation"]
    parser.add_argument(
        "--parts", nargs="+", choices=parts, default=parts, help="the tables to run (both)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that it runs")
    parser.add_argument("--repeats", type=int, default=7, help="number of timed iterations (7)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of the truncation fits (10)")
    parser.add_argument(
        "--length", type=float, default=4.0, help="length of the thetas of the truncation table (4)"
    )
    return parser.parse_args()


def planted(sizes: Sizes) -> tuple[SoftmaxMixture, Counts, Counts]:
    """Return a true model, its draws, and a tenth as many held-out draws."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    model = SoftmaxMixture(
        components=sizes.components, features=torch.randn(sizes.items, sizes.features)
    )
    theta = torch.randn(sizes.components, sizes.features)
    model.start_at(sizes.length * theta / theta.norm(dim=-1, keepdim=True))
    with torch.no_grad(), pyro.poutine.block():
        draws = [model(size=n) for n in (sizes.draws, sizes.draws // 10)]
    train, test = (Counts(*count_items(x)) for x in draws)
    return model, train, test


def model_near(truth: SoftmaxMixture, solver: str) -> SoftmaxMixture:
    """Return an unfitted model near the truth; clears the param store."""
    pyro.clear_param_store()
    torch.manual_seed(1)
    model = SoftmaxMixture(components=truth.components, features=truth.item_features, solver=solver)
    theta = truth.theta.detach()
    model.start_at(theta + torch.randn_like(theta) / math.sqrt(truth.features))
    return model


# One iteration.


def compare_iterations(report: harness.Report, sizes: Sizes, repeats: int) -> None:
    """Report one row per solver."""
    for solver in PRODUCTS:
        timed = harness.in_fresh_process(seconds_of_iteration, solver, sizes, repeats).result
        memory = harness.in_fresh_process(memory_of_iteration, solver, sizes).result
        row = report.row(
            "iteration",
            solver=solver,
            p=sizes.items,
            L=sizes.features,
            K=sizes.components,
            **timed,
            ratio=timed["seconds"] / timed["arithmetic_s"],
            memory_mb=memory / 1e6,
        )
        report.fact(
            f"{solver}: iteration relative to its arithmetic (needed {NEEDED:g})", row["ratio"]
        )


def seconds_of_iteration(solver: str, sizes: Sizes, repeats: int) -> dict[str, float]:
    """Return median seconds of an iteration and of its operations; run in a fresh process."""
    truth, train, _ = planted(sizes)
    model = model_near(truth, solver)
    em = EM(model, FullPartition(model, components=sizes.components))
    theta, features = model.theta.detach().clone(), model.item_features
    numbers = theta @ features.T
    chunk, scaled = features[:512], torch.randn(512, theta.numel())
    timings = harness.paired(
        {
            "iteration": lambda: em.step(*train),
            "product": lambda: theta @ features.T,
            "exponentials": lambda: numbers.exp(),
            "curvature": lambda: chunk.T @ scaled,
        },
        repeats,
        warm=2,
    )
    median = {name: timing.median for name, timing in timings.items()}
    curvature = sizes.items / len(chunk) * median["curvature"] if solver == "newton" else 0.0
    products, exponentials = (
        PRODUCTS[solver] * median["product"],
        EXPONENTIALS[solver] * median["exponentials"],
    )
    return {
        "seconds": median["iteration"],
        "product_s": median["product"],
        "arithmetic_s": products + exponentials + curvature,
    }


def memory_of_iteration(solver: str, sizes: Sizes) -> int:
    """Return the bytes that an iteration adds to the resident set; run in a fresh process."""
    truth, train, _ = planted(sizes)
    model = model_near(truth, solver)
    em = EM(model, FullPartition(model, components=sizes.components))
    em.step(*train)
    with harness.peak_memory() as memory:
        em.step(*train)
    return memory.growth


# Many components.


def compare_truncation(report: harness.Report, sizes: Sizes, epochs: int) -> None:
    """Report both fits and compare them."""
    results = {
        kind: harness.in_fresh_process(fitted, kind, sizes, epochs).result
        for kind in ("truncated", "exact")
    }
    for kind, figures in results.items():
        report.row(
            "truncation", guide=kind, p=sizes.items, L=sizes.features, C=sizes.components, **figures
        )
    report.fact(
        "time of exact EM relative to truncated EM",
        results["exact"]["seconds"] / results["truncated"]["seconds"],
    )
    report.fact(
        "loss by truncation, nats per draw",
        results["truncated"]["heldout"] - results["exact"]["heldout"],
    )


def fitted(kind: str, sizes: Sizes, epochs: int) -> dict[str, float]:
    """Return the seconds of a fit and its held-out scores; run in a fresh process."""
    truth, train, test = planted(sizes)
    model = model_near(truth, "gradient")
    start = heldout(model, test)
    guide: Any = FullPartition(model, components=sizes.components)
    if kind == "truncated":
        guide = TruncatedPartition(
            model, components=sizes.components, candidates=5, neighbors=15, seed=0
        )
    em = EM(model, guide, empty="keep")
    # Compile the kernels before the clock starts.
    guide.eval().posterior(*train)
    guide.train()
    began = time.perf_counter()
    fit(em, *train, epochs=epochs, tolerance=0.0, patience=epochs + 1, progress=False)
    return {"seconds": time.perf_counter() - began, "start": start, "heldout": heldout(model, test)}


def heldout(model: SoftmaxMixture, test: Counts) -> float:
    """Return minus the exact log evidence, in nats per draw."""
    with torch.no_grad():
        each = log_evidence(model, *test, chunk=2048).double()
    return -float((each * test.counts).sum() / test.counts.sum())


if __name__ == "__main__":
    main()
