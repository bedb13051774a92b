"""One SVI step of a mixture of factor analyzers, compared with stock Pyro: time and memory.

Both sides run ``SVI(model, guide, Adam, TraceEnum_ELBO)`` on the same minibatches of 8 x 8 RGB
patches (D=192, H=5), from the same parameters. Ours is ``MixtureOfFactorAnalyzers`` with
``TruncatedPartition`` (C'=3, G=15, E=1), its candidate sets those after three passes over the data.
The two peers:

  full enumeration   stock Categorical and LowRankMultivariateNormal(loc[z], ...), z enumerated over
                     all C components, B=1024, C = 50, 100, 200, ... until the next step would need
                     more than --cap GB
  same candidates    the same guide and candidate sets as ours, but a model with the stock
                     distributions, B=4096, C=5000

seconds    median of one step, both sides alternately in one fresh process; a step takes the
           minibatch, runs the E-step (ours and the second peer: search, candidates, graph), the
           gradient, and the update of Adam
memory     peak resident set during steps, beyond the resident set between steps (data, parameters,
           gradients, moments of Adam, candidate sets, compiled code); a fresh process for each side
loss       of the first minibatch before any update, in nats per row: exact for the first peer
faster, smaller   peer / ours

The validation of Pyro is off on both sides; it costs the stock distributions more.
"""

import math
import os
from collections.abc import Callable
from itertools import cycle
from typing import Any, NamedTuple

import pyro
import torch
from pyro import distributions as dist
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures import seed_rows
from pyro_mixtures.guides import TruncatedPartition
from pyro_mixtures.models import MixtureOfFactorAnalyzers
from tests.benchmarks import harness
from tests.benchmarks.photographs import rgb_patches

OURS, FULL, CANDIDATES = "ours", "full enumeration", "same candidates"
PATCH, FACTORS = 8, 5
NEEDED = {FULL: 10.0, CANDIDATES: 5.0}  # ratios of time and of memory
AT = {FULL: 200, CANDIDATES: 5000}  # the C for which they are needed


class Case(NamedTuple):
    """The sizes of one comparison."""

    peer: str
    components: int  # C
    batch: int  # B
    rows: int  # N


class Side(NamedTuple):
    """One side of a comparison, ready to step."""

    step: Callable[[], float]  # takes the next minibatch
    loss: float  # nats per row, of the first minibatch before any update


def main() -> None:
    """Run both comparisons and report."""
    options = parse()
    pyro.enable_validation(False)
    report = harness.Report(__doc__)
    compare_full(report, options)
    components, batch, rows = (200, 512, 4000) if options.quick else (AT[CANDIDATES], 4096, 20000)
    compare(report, Case(CANDIDATES, components, batch, rows), options.repeats)
    report.finish(options.json)


def parse() -> Any:
    """Read the command line."""
    parser = harness.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that it runs")
    parser.add_argument(
        "--repeats", type=int, default=7, help="number of timed steps of each side (7)"
    )
    parser.add_argument(
        "--cap",
        type=float,
        default=12.0,
        help="largest memory of a step of full enumeration, in GB (12)",
    )
    return parser.parse_args()


def compare_full(report: harness.Report, options: Any) -> None:
    """Compare with full enumeration, doubling C until its next step would not fit."""
    batch, rows, most = (256, 4000, 100) if options.quick else (1024, 20000, math.inf)
    cap = min(options.cap, 0.75 * physical_gb())
    components, needed = 50, 0.0
    while components <= most and needed <= cap:
        row = compare(report, Case(FULL, components, batch, rows), options.repeats)
        components, needed = 2 * components, 2 * row["peer_mb"] / 1e3
    report.fact("full enumeration stopped before C", components)
    report.fact("full enumeration would need (GB)", needed)
    report.fact("cap (GB)", cap)


def compare(report: harness.Report, case: Case, repeats: int) -> dict[str, Any]:
    """Report seconds from one process with both sides, and memory from one process per side."""
    timed = harness.in_fresh_process(seconds_of, case, repeats).result
    ours, peer = (
        harness.in_fresh_process(memory_of, side, case).result / 1e6 for side in (OURS, case.peer)
    )
    row = report.row(
        case.peer,
        C=case.components,
        B=case.batch,
        ours_s=timed["seconds"][OURS],
        peer_s=timed["seconds"][case.peer],
        faster=timed["seconds"][case.peer] / timed["seconds"][OURS],
        ours_mb=ours,
        peer_mb=peer,
        smaller=peer / max(ours, 1e-3),
        ours_loss=timed["loss"][OURS],
        peer_loss=timed["loss"][case.peer],
    )
    if case.components == AT[case.peer]:
        need = f"(needed {NEEDED[case.peer]:g})"
        report.fact(f"{case.peer}, C={case.components}: time ratio {need}", row["faster"])
        report.fact(f"{case.peer}, C={case.components}: memory ratio {need}", row["smaller"])
    return row


def seconds_of(case: Case, repeats: int) -> dict[str, dict[str, float]]:
    """Return median seconds of a step and the first loss of both sides; run in a fresh process."""
    sides = prepare((OURS, case.peer), case)
    timings = harness.paired({name: side.step for name, side in sides.items()}, repeats, warm=2)
    return {
        "seconds": {name: timing.median for name, timing in timings.items()},
        "loss": {name: side.loss for name, side in sides.items()},
    }


def memory_of(side: str, case: Case) -> int:
    """Return the bytes that steps add to the resident set; run in a fresh process."""
    step = prepare((side,), case)[side].step
    step()  # the first step allocates gradients and the moments of Adam
    with harness.peak_memory() as memory:
        for _ in range(3):
            step()
    return memory.growth


def prepare(names: tuple[str, ...], case: Case) -> dict[str, Side]:
    """Return the named sides with equal parameters, candidate sets and minibatches."""
    pyro.enable_validation(False)
    pyro.set_rng_seed(0)
    x = torch.from_numpy(rgb_patches(PATCH, train=case.rows, test=1, noise=4 / 255, seed=0)[0])
    model = MixtureOfFactorAnalyzers(
        components=case.components, features=x.shape[1], factors=FACTORS
    )
    model.start_at(seed_rows(x, case.components, method="random"))
    guide = settled(model, x, case)
    batches = [torch.randint(case.rows, (case.batch,)) for _ in range(5)]
    return {name: make_side(*program_of(name, model, guide, case), x, batches) for name in names}


def settled(model: MixtureOfFactorAnalyzers, x: Tensor, case: Case) -> TruncatedPartition:
    """Return our guide after three E-step passes, which also compile or load the kernels."""
    guide = truncated(model, case)
    for _ in range(3):
        for index in torch.arange(len(x)).split(case.batch):
            guide.posterior(x[index], index=index, size=len(x))
    return guide


def truncated(model: Callable, case: Case) -> TruncatedPartition:
    """Return the guide of both truncated sides."""
    return TruncatedPartition(
        model, components=case.components, candidates=3, neighbors=15, explore=1, seed=0
    )


def program_of(
    name: str, model: MixtureOfFactorAnalyzers, guide: TruncatedPartition, case: Case
) -> tuple[Callable, Callable]:
    """Return the model and the guide of a side."""
    if name == OURS:
        return model, guide
    stock = stock_program(model)
    if name == FULL:
        return stock, no_guide
    same = truncated(stock, case)
    same.load_state_dict(guide.state_dict())
    return stock, same


def no_guide(*args: Any, **kwargs: Any) -> None:
    """Do nothing: z is enumerated in the model."""


def stock_program(start: MixtureOfFactorAnalyzers) -> Callable:
    """Return the same mixture in stock Pyro, with the params of ``start`` as initial values."""
    values = {
        name: getattr(start, name).detach().clone()
        for name in ("weights", "loc", "factor", "noise")
    }

    def program(x: Tensor, index: Tensor, size: int) -> None:
        weights = pyro.param("stock_weights", values["weights"], constraint=constraints.simplex)
        loc = pyro.param("stock_loc", values["loc"])
        factor = pyro.param("stock_factor", values["factor"])
        noise = pyro.param("stock_noise", values["noise"], constraint=constraints.positive)
        with pyro.plate("data", size, subsample=index):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.LowRankMultivariateNormal(loc[z], factor[z], noise[z]), obs=x)

    return program


def make_side(model: Callable, guide: Callable, x: Tensor, batches: list[Tensor]) -> Side:
    """Return an SVI step on successive minibatches, and the loss before the first step."""
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    svi = SVI(model, guide, Adam({"lr": 1e-3}), elbo)
    stream = cycle(batches)

    def step() -> float:
        index = next(stream)
        return svi.step(x[index], index=index, size=len(x))

    with torch.no_grad():
        loss = elbo.loss(model, guide, x[batches[0]], index=batches[0], size=len(x)) / len(x)
    return Side(step, loss)


def physical_gb() -> float:
    """Return the memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


if __name__ == "__main__":
    main()
