"""Model choice: how often BIC and PSIS-LOO find the planted number of components, and their cost.

choice       number of seeds out of --seeds (needed: all) for which each criterion chooses the
             planted number of well-separated Gaussian components (60 rows each, two dimensions,
             centers 10 standard deviations apart), among half of it and from two less to two more.
             "raw" is the largest PSIS-LOO, without the one-standard-error rule
reliability  PSIS-LOO at the planted number: its mean difference from the exact log evidence of
             20,000 new rows, in nats per row, its standard error, and the largest share of rows
             whose Pareto k is too large
scikit       seconds of BIC over the grid, and the time of scikit-learn's GaussianMixture, with as
             many k-means++ starts, divided by ours, both run alternately
"""

import math
import time
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture as Peer

from pyro_mixtures.diagnostics.model_choice.compare import compare_fits
from pyro_mixtures.diagnostics.model_choice.score import Comparison
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM, log_evidence
from pyro_mixtures.init import seed_rows
from pyro_mixtures.models import GaussianMixture
from tests.benchmarks import harness

STARTS = 3


def main() -> None:
    """Run all tables and report."""
    parser = harness.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="number of seeds (10)")
    parser.add_argument(
        "--draws", type=int, default=100, metavar="N", help="refits per fit, for PSIS-LOO (100)"
    )
    parser.add_argument(
        "--planted",
        type=int,
        nargs="+",
        default=[3, 8, 20],
        metavar="C",
        help="planted numbers of components (3 8 20)",
    )
    options = parser.parse_args()
    report = harness.Report(__doc__)
    for planted in options.planted:
        choice(report, planted, options.seeds, options.draws)
    for planted in options.planted:
        peer(report, planted)
    report.finish(options.json)


def centers(components: int, seed: int) -> torch.Tensor:
    """Return centers (C, 2) on a square grid, ten apart."""
    side = math.ceil(components**0.5)
    cells = torch.randperm(side * side, generator=torch.Generator().manual_seed(seed))[:components]
    return 10.0 * torch.stack([cells // side, cells % side], -1)


def rows(components: int, seed: int, each: int = 60) -> torch.Tensor:
    """Draw normal rows (C each, 2) around the centers; each number ``each`` has its own seed."""
    generator = torch.Generator().manual_seed(1000 * seed + each)
    return (
        centers(components, seed)[:, None] + torch.randn(components, each, 2, generator=generator)
    ).flatten(0, 1)


def build(components: int) -> EM:
    model = GaussianMixture(components=components, features=2)
    return EM(model, FullPartition(model, components=components))


def start(model: Any, x: torch.Tensor) -> None:
    model.start_at(seed_rows(x, model.components))


def compared(planted: int, seed: int, draws: int) -> Comparison:
    return compare_fits(
        {"diagonal": build},
        rows(planted, seed),
        components=grid(planted),
        draws=draws,
        starts=STARTS,
        start=start,
        generator=torch.Generator().manual_seed(seed),
        progress=False,
    )


def grid(planted: int) -> list[int]:
    return sorted({max(1, planted // 2), *range(max(1, planted - 2), planted + 3)})


def choice(report: harness.Report, planted: int, seeds: int, draws: int) -> None:
    found: dict[str, int] = dict.fromkeys(("bic", "aic", "icl", "loo", "raw"), 0)
    gaps, errors, unreliable, began = [], [], [], time.perf_counter()
    for seed in range(seeds):
        result = compared(planted, seed, draws)
        for criterion in ("bic", "aic", "icl", "loo"):
            found[criterion] += result.best_by(criterion).components == planted
        found["raw"] += result.best_by("loo", errors=0).components == planted
        right = next(score for score in result.scores if score.components == planted)
        assert right.loo is not None
        n = 60 * planted
        new = float(
            log_evidence(right.model, rows(planted, seed, each=20_000 // planted)).double().mean()
        )
        gaps.append(right.loo.predictive.total / n - new)
        errors.append(right.loo.predictive.standard_error / n)
        unreliable.append(right.loo.unreliable)
    report.row("choice", planted=planted, seeds=seeds, **found, seconds=time.perf_counter() - began)
    report.row(
        "reliability",
        planted=planted,
        difference=float(np.mean(gaps)),
        deviation=float(np.std(gaps)),
        standard_error=float(np.mean(errors)),
        unreliable=max(unreliable),
    )


def peer(report: harness.Report, planted: int) -> None:
    x = rows(planted, 0)

    def theirs() -> list[float]:
        made = (
            Peer(c, covariance_type="diag", n_init=STARTS, init_params="k-means++")
            for c in grid(planted)
        )
        return [one.fit(x).bic(x) for one in made]

    timing = harness.paired({"ours": lambda: compared(planted, 0, 0), "theirs": theirs}, 3)
    ours, theirs_ = timing["ours"].median, timing["theirs"].median
    report.row("scikit", planted=planted, seconds=ours, ratio=theirs_ / ours)


if __name__ == "__main__":
    main()
