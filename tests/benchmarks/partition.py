"""Hard partitions of mixtures of linear regressions: quality, speed, memory, prediction.

quality     K=3 regressions, n=240, d=5, squared error; many seeds, the best of ten random starts
            each. ``ratio`` is the final objective F relative to F at the true partition (the sum
            of the minimal losses of the true clusters), its median over the seeds, for each score,
            without and with a capacity of n // K + 10 rows; "loss" and "leave_one_out" with alpha=1
            need at most 1.0
scale       a million rows of 20 features, 50 regressions, float32: seconds of an EM epoch, compared
            with Ridge fits of scikit-learn to the same clusters and predictions by numpy,
            alternately and from the same labels; ``ratio`` is peer / ours; peak memory of a fit in
            a fresh process, the rows included (needed: less than 2 GiB)
restarts    ten random starts of K=3 regressions, n=240, d=5, one thread: seconds of
            ``fit_restarts``, one start after the other and with ``parallel=True``, from the same
            labels to the same objectives; ``ratio`` is sequential / parallel
prediction  R2 on test rows of the mixture, routed by a gate, compared with one ridge regression and
            a random forest; number of clusters and start are chosen on validation rows, then the
            mixture is fitted again to all training rows. Starts: k-means clusters that stay
            unchanged ("frozen"), k-means clusters that EM changes, and random ones. ``oracle``
            routes each test row to its best expert by its outcome: the difference is the loss due
            to routing

Data of the last table: scikit-learn's diabetes, and the prices of diamonds if ``--diamonds`` names
the file diamonds.csv that the PyPI package plotnine contains.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_diabetes
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import Ridge
from torch import Tensor

from pyro_mixtures.guides import HardPartition, hard_partition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.infer.experts.comparison import compare_routing, r2
from pyro_mixtures.infer.restarts.hard import fit_restarts
from pyro_mixtures.models.linear_regressions import MixtureOfRegressions
from tests.benchmarks import harness

RULES: dict[str, dict[str, Any]] = {
    "loss": {"score": "loss"},
    "leave_one_out alpha=1": {"score": "leave_one_out"},
    "leave_one_out alpha=0.5": {"score": "leave_one_out", "alpha": 0.5},
    "modular_bound": {"score": "modular_bound"},
}
NEEDED = ("loss", "leave_one_out alpha=1")
RIDGE = 1e-3
STARTS = ("k-means frozen", "k-means", "random")


class Rows(NamedTuple):
    """Covariates (N, P) and outcomes (N,)."""

    x: Tensor
    y: Tensor


def main() -> None:
    """Run the chosen tables and report."""
    options = parse()
    torch.manual_seed(0)
    pyro.enable_validation(False)
    report = harness.Report(__doc__)
    if "quality" in options.parts:
        compare_rules(report, seeds=options.seeds, starts=3 if options.quick else 10)
    if "scale" in options.parts:
        measure_scale(report, rows=50_000 if options.quick else 1_000_000, rounds=options.rounds)
    if "restarts" in options.parts:
        compare_restarts(report, starts=3 if options.quick else 10, rounds=options.rounds)
    if "prediction" in options.parts:
        compare_predictions(report, options)
    report.finish(options.json)


def parse() -> Any:
    """Read the command line."""
    parser = harness.parser(__doc__)
    parts = ["quality", "scale", "restarts", "prediction"]
    parser.add_argument(
        "--parts", nargs="+", choices=parts, default=parts, help="the tables to run (all)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that it runs")
    parser.add_argument("--seeds", type=int, default=20, help="data sets of the quality table (20)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="timed epochs of scale and runs of restarts (5)"
    )
    parser.add_argument(
        "--splits",
        type=int,
        default=5,
        help="splits into training and test rows for prediction (5)",
    )
    parser.add_argument("--diamonds", type=Path, metavar="CSV", help="path of diamonds.csv")
    return parser.parse_args()


def partition(
    components: int, features: int, *, ridge: float = 0.0, **options: Any
) -> tuple[HardPartition, EM]:
    """Return guide and EM of regressions with squared error and equal weights; clears the store."""
    pyro.clear_param_store()
    model = MixtureOfRegressions(
        components=components, features=features, ridge=ridge, scale=1.0, equal_weights=True
    )
    guide = HardPartition(model, components=components, **options)
    return guide, EM(model, guide, empty="keep")


def settle(em: EM, rows: Rows, *, epochs: int = 30, **options: Any) -> None:
    """Run EM until no row moves, or for all ``epochs``, since some scores do not converge."""
    stop = lambda done: len(done.history) > 1 and done.guide.moved == 0  # noqa: E731
    fit(
        em,
        *rows,
        epochs=epochs,
        tolerance=0.0,
        patience=epochs,
        progress=False,
        callbacks=[stop],
        **options,
    )


# Quality.


def compare_rules(report: harness.Report, *, seeds: int, starts: int) -> None:
    """Report median ratios of all scores, with and without a capacity."""
    problems = [planted_regressions(seed) for seed in range(seeds)]
    for name, rule in RULES.items():
        for capacity in (None, 240 // 3 + 10):
            ratios = [
                best_ratio(rows, truth, starts, capacity=capacity, **rule)
                for rows, truth in problems
            ]
            median, worst = float(np.median(ratios)), float(np.max(ratios))
            met = median <= 1.0 if name in NEEDED else "-"
            report.row(
                "quality",
                score=name,
                capacity=capacity or "-",
                ratio=median,
                worst=worst,
                needed_met=met,
            )


def planted_regressions(
    seed: int, n: int = 240, d: int = 5, components: int = 3
) -> tuple[Rows, float]:
    """Draw rows from three regressions; return them and F at the true partition."""
    draw = np.random.default_rng(seed)
    x, labels = draw.normal(size=(n, d)), draw.integers(components, size=n)
    weight, bias = draw.normal(size=(components, d)), draw.normal(size=components)
    y = (x * weight[labels]).sum(-1) + bias[labels] + 0.3 * draw.normal(size=n)
    return Rows(torch.from_numpy(x), torch.from_numpy(y)), sum(
        minimal_loss(x[labels == k], y[labels == k]) for k in range(3)
    )


def minimal_loss(x: np.ndarray, y: np.ndarray) -> float:
    """Return the minimal loss of a cluster."""
    design = np.column_stack([x, np.ones(len(x))])
    return float(((y - design @ np.linalg.lstsq(design, y)[0]) ** 2).sum() / 2)


def best_ratio(rows: Rows, truth: float, starts: int, **options: Any) -> float:
    """Return the final F of the best of several random starts, relative to F at the truth."""
    objectives = []
    for seed in range(starts):
        guide, em = partition(3, rows.x.shape[1], **options)
        em.model.double()  # type: ignore[attr-defined]
        # Clusters of equal sizes satisfy every capacity.
        guide.set_labels(
            torch.randperm(len(rows.y), generator=torch.Generator().manual_seed(seed)) % 3
        )
        settle(em, rows)
        labels = guide.labels
        assert labels is not None
        losses = (minimal_loss(*(t[labels == k].numpy() for t in rows)) for k in range(3))
        objectives.append(sum(losses))
    return min(objectives) / truth


# Scale.


def measure_scale(report: harness.Report, *, rows: int, rounds: int) -> None:
    """Report the seconds of an epoch of both sides, and the peak memory of a fit."""
    times = harness.in_fresh_process(seconds_per_epoch, rows, rounds).result
    fresh = harness.in_fresh_process(fit_at_scale, rows, rounds)
    report.row(
        "scale",
        rows=rows,
        features=20,
        K=50,
        ours_s=times["ours"],
        peer_s=times["ridge + numpy"],
        ratio=times["ridge + numpy"] / times["ours"],
        peak_gib=fresh.growth / 2**30,
        needed_met=fresh.growth < 2 * 2**30,
        last_moved=fresh.result,
    )


def many_rows(rows: int, features: int = 20, components: int = 50) -> tuple[Rows, Tensor]:
    """Draw rows of many regressions in float32, and labels of which 90 % are true."""
    draw = torch.Generator().manual_seed(0)
    x, labels = (
        torch.randn(rows, features, generator=draw),
        torch.randint(components, (rows,), generator=draw),
    )
    weight, bias = (torch.randn(components, n, generator=draw) for n in (features, 1))
    y = torch.empty(rows)
    for block in torch.arange(rows).split(1 << 16):
        k = labels[block]
        y[block] = (
            (x[block] * weight[k]).sum(-1)
            + bias[k, 0]
            + 0.3 * torch.randn(len(block), generator=draw)
        )
    wrong = torch.rand(rows, generator=draw) < 0.1
    labels[wrong] = torch.randint(components, (int(wrong.sum()),), generator=draw)
    return Rows(x, y), labels


def fit_at_scale(rows: int, rounds: int) -> int:
    """Draw the rows and fit; return how many rows moved in the last epoch."""
    data, labels = many_rows(rows)
    guide, em = partition(50, data.x.shape[1], ridge=RIDGE)
    guide.set_labels(labels)
    fit(em, *data, epochs=rounds, patience=rounds, progress=False)
    return guide.moved


def seconds_per_epoch(rows: int, rounds: int) -> dict[str, float]:
    """Return median seconds: E-step and refit of ours; refits and predictions of the peer."""
    data, labels = many_rows(rows)
    guide, em = partition(50, data.x.shape[1], ridge=RIDGE)
    guide.set_labels(labels)
    x, y, peers = data.x.numpy(), data.y.numpy(), [labels.numpy()]

    def ours() -> None:
        fit(em, *data, epochs=1, progress=False)

    def peer() -> None:
        peers.append(ridge_round(x, y, peers.pop(), 50))

    times = harness.paired({"ours": ours, "ridge + numpy": peer}, rounds, warm=2)
    return {name: timing.median for name, timing in times.items()}


def ridge_round(x: np.ndarray, y: np.ndarray, labels: np.ndarray, components: int) -> np.ndarray:
    """Fit every cluster with scikit-learn, and return the best prediction for each row."""
    fits = [
        Ridge(alpha=RIDGE * (labels == k).sum()).fit(x[labels == k], y[labels == k])
        for k in range(components)
    ]
    error = x @ np.stack([f.coef_ for f in fits]).T.astype(x.dtype)
    error += np.array([f.intercept_ for f in fits], dtype=x.dtype)
    error -= y[:, None]
    return np.square(error, out=error).argmin(1)


# Restarts.

VARIANTS: dict[str, dict[str, Any]] = {
    "loss": {},
    "leave_one_out": {"score": "leave_one_out"},
    "capacity": {"capacity": 240 // 3 + 10},
    "learned weights and scales": {"equal_weights": False, "scale": None},
}


def compare_restarts(report: harness.Report, *, starts: int, rounds: int) -> None:
    """Report one row per variant, on one thread, with the largest difference of the objectives."""
    rows, _ = planted_regressions(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, options in VARIANTS.items():
        objectives: dict[str, np.ndarray] = {}
        sides = {
            way: restarts_of(rows, starts, way, objectives, options)
            for way in ("sequential", "parallel")
        }
        times = harness.paired(sides, rounds, warm=1)
        sequential, parallel = (times[way].median for way in sides)
        difference = float(np.abs(objectives["sequential"] - objectives["parallel"]).max())
        report.row(
            "restarts",
            score=name,
            starts=starts,
            sequential_s=sequential,
            parallel_s=parallel,
            ratio=sequential / parallel,
            difference=difference,
        )
    torch.set_num_threads(threads)


def restarts_of(
    rows: Rows, starts: int, way: str, objectives: dict[str, np.ndarray], options: dict[str, Any]
) -> Callable[[], None]:
    """Return a function that runs all starts and stores their objectives in ``objectives``."""

    def build(restarts: int = 1) -> EM:
        model = MixtureOfRegressions(
            components=3 * restarts, features=rows.x.shape[1], scale=options.get("scale", 1.0),
            equal_weights=options.get("equal_weights", True),
        ).double()  # fmt: skip
        rule = {name: value for name, value in options.items() if name in ("score", "capacity")}
        guide = hard_partition(model, components=3 * restarts, restarts=restarts, **rule)
        return EM(model, guide, empty="keep")

    def run() -> None:
        draw = torch.Generator().manual_seed(0)
        result = fit_restarts(
            build, *rows, starts=starts, parallel=way == "parallel", generator=draw, progress=False
        )
        objectives[way] = result.objectives

    return run


# Prediction.


def compare_predictions(report: harness.Report, options: Any) -> None:
    """Report the test R2 of all data sets and splits, and their means."""
    sets: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
        "diabetes": lambda: load_diabetes(return_X_y=True)
    }
    if options.diamonds is None:
        report.fact("diamonds", "left out: needs --diamonds")
    else:
        sets["diamonds"] = lambda: read_diamonds(options.diamonds)
    for name, load in sets.items():
        x, y = load()
        scores = [
            compare_split(report, name, x, y, seed, options.quick) for seed in range(options.splits)
        ]
        for column in ("mixture", "ridge", "forest"):
            values = [row[column] for row in scores]
            report.fact(f"{name}: {column}, mean R2", float(np.mean(values)))
            report.fact(
                f"{name}: {column}, standard error",
                float(np.std(values, ddof=1) / math.sqrt(len(values))),
            )


def read_diamonds(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return sizes, indicators of cut, color and clarity, and prices."""
    import pandas as pd

    table = pd.read_csv(path)
    wide = pd.get_dummies(table.drop(columns="price"), dtype=float)
    return wide.to_numpy(), table["price"].to_numpy(dtype=float)


def compare_split(
    report: harness.Report, name: str, x: np.ndarray, y: np.ndarray, seed: int, quick: bool
) -> dict[str, Any]:
    """Report the test R2 on one split: 60 % training, 20 % validation, 20 % test rows."""
    order = np.random.default_rng(seed).permutation(len(y))
    cuts = [int(0.6 * len(y)), int(0.8 * len(y))]
    first, second, third = np.split(order, cuts)
    train, both = standardized(x, y, first), np.concatenate([first, second])
    sizes, starts = ((2, 3), STARTS[:2]) if quick else ((2, 3, 4, 6, 8, 12), STARTS)
    grid = [(start, size, how) for start in starts for size in sizes for how in ("hard", "soft")]
    valid: dict[tuple, float] = {}
    for start in starts:
        for size in sizes:
            scores = mixture_r2(train(first), train(second), start, size, seed)
            valid.update({(start, size, how): scores[how] for how in ("hard", "soft")})
    start, size, how = max(grid, key=valid.__getitem__)
    whole = standardized(x, y, both)
    scores = mixture_r2(whole(both), whole(third), start, size, seed)
    ridge, forest = peers_r2(whole(both), whole(third), seed, trees=20 if quick else 100)
    return report.row(
        name,
        split=seed,
        mixture=scores[how],
        ridge=ridge,
        forest=forest,
        K=size,
        start=start,
        route=how,
        oracle=scores["oracle_unattainable"],
    )


def standardized(x: np.ndarray, y: np.ndarray, train: np.ndarray) -> Callable[[np.ndarray], Rows]:
    """Return a function of row numbers that standardizes by the training rows."""
    center, spread = x[train].mean(0), x[train].std(0)
    x = (x - center) / np.where(spread > 0, spread, 1.0)
    y = (y - y[train].mean()) / y[train].std()
    return lambda rows: Rows(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]))


def mixture_r2(train: Rows, test: Rows, start: str, components: int, seed: int) -> dict[str, float]:
    """Return the R2 of a mixture fitted to ``train``, by kind of routing."""
    guide, em = partition(components, train.x.shape[1], ridge=RIDGE)
    em.model.double()  # type: ignore[attr-defined]
    guide.set_labels(start_labels(train, start, components, seed))
    settle(em, train, epochs=1 if start == "k-means frozen" else 30)
    return compare_routing(em.model, guide, train=train, test=test)


def start_labels(train: Rows, start: str, components: int, seed: int) -> Tensor:
    """Return random labels, or those of k-means over the covariates."""
    if start == "random":
        return torch.randint(
            components, (len(train.y),), generator=torch.Generator().manual_seed(seed)
        )
    return torch.from_numpy(
        KMeans(components, n_init=3, random_state=seed).fit_predict(train.x.numpy())
    )


def peers_r2(train: Rows, test: Rows, seed: int, *, trees: int) -> tuple[float, float]:
    """Return the R2 of a cross-validated ridge regression and of a random forest."""
    from sklearn.linear_model import RidgeCV

    ridge = RidgeCV(np.logspace(-3, 3, 13))
    forest = RandomForestRegressor(trees, random_state=seed, n_jobs=torch.get_num_threads())
    models = [peer.fit(train.x.numpy(), train.y.numpy()) for peer in (ridge, forest)]
    scores = [r2(torch.from_numpy(peer.predict(test.x.numpy())), test.y) for peer in models]
    return scores[0], scores[1]


if __name__ == "__main__":
    main()
