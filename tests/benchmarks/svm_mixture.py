"""Test accuracy of four linear SVMs, routed by a gate, against one linear SVM and an RBF SVM; mean and sd over splits.

All see standardised features and 70% of the rows. The RBF SVM is scikit-learn's SVC() as it comes.
The linear SVM's ridge, and the mixture's ridge and closeness, are chosen by 3-fold cross-validation
within the training rows.

Partitions. "joint": z ~ equal weights, x ~ Normal(loc[z], constant), y ~ SVM[z](x), so that rows
pay for their SVM's loss and for their distance from their part's centre, and parts stay where a
gate can find them. "k-means": parts of x alone, one fit. "loss": rows pay for the loss alone (a
partition may then tell classes apart that no gate can).

Gates see x alone and are fitted to the final parts. "softmax mixed" weighs the decisions by a
softmax regression's probabilities, "softmax" takes the most probable SVM, "centre" the nearest
centre, "RBF" asks an SVC(C=10), which is an RBF SVM itself: a mixture with it is no longer a small
model.
"""

import warnings
from typing import NamedTuple

import numpy as np
import pyro
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_digits, make_moons
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from pyro_mixtures.guides import HardPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.models import MixtureOfSVMs
from tests.benchmarks.harness import Report, parser

COMPONENTS = 4
RIDGES = (1e-3, 1e-2)
INPUT_DENSITY = (0.1, 0.5, 2.0)  # weight of |x - loc|^2 / P beside the hinge loss
GATES = ("softmax mixed", "softmax", "centre", "RBF")


class Split(NamedTuple):
    """Standardised training and test rows."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def rows(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a data set; ``seed`` draws those that are drawn."""
    if name == "moons":
        return make_moons(1000, noise=0.2, random_state=seed)
    if name == "xor":
        random = np.random.default_rng(seed)
        x = random.standard_normal((1000, 2))
        return x, ((x[:, 0] * x[:, 1] > 0) ^ (random.random(1000) < 0.05)).astype(int)
    if name == "breast cancer":
        return load_breast_cancer(return_X_y=True)
    x, y = load_digits(return_X_y=True)
    return x[(y == 4) | (y == 9)], (y[(y == 4) | (y == 9)] == 9).astype(int)


DATA = ("moons", "xor", "breast cancer", "digits 4 and 9")


def standardised(x, y, x_test, y_test) -> Split:
    scale = StandardScaler().fit(x)
    return Split(scale.transform(x), y, scale.transform(x_test), y_test)


def split_of(name: str, seed: int) -> Split:
    x, y = rows(name, seed)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, random_state=seed, stratify=y)
    return standardised(x, y, x_test, y_test)


def folds(split: Split, seed: int) -> list[Split]:
    """Three splits of the training rows."""
    cut = StratifiedKFold(3, shuffle=True, random_state=seed).split(split.x, split.y)
    return [standardised(split.x[a], split.y[a], split.x[b], split.y[b]) for a, b in cut]


def linear(split: Split, ridge: float) -> float:
    machine = LinearSVC(C=1 / (2 * len(split.x) * ridge), dual=False, max_iter=10_000)
    return machine.fit(split.x, split.y).score(split.x_test, split.y_test)


def mixture(
    split: Split,
    seed: int,
    *,
    kind: str = "joint",
    ridge: float = 1e-3,
    input_density: float = 0.5,
    steps=30,
):
    """Test accuracy by gate of a mixture that starts from k-means."""
    means = KMeans(COMPONENTS, n_init=5, random_state=seed).fit(split.x)
    x, y = torch.as_tensor(split.x, dtype=torch.float32), torch.as_tensor(split.y)
    pyro.clear_param_store()
    given = {
        "features": x.shape[1],
        "ridge": ridge,
        "input_density": input_density if kind == "joint" else None,
    }
    model = MixtureOfSVMs(components=COMPONENTS, **given)
    guide = HardPartition(model, components=COMPONENTS)
    guide.set_labels(torch.as_tensor(means.labels_))
    em = EM(model, guide, empty="keep")
    em.step(x, y)
    for _ in range(0 if kind == "k-means" else steps):
        guide.reset_counts()
        em.step(x, y)
        if guide.moved == 0:
            break
    centres = {
        "joint": model.loc if kind == "joint" else None,
        "k-means": torch.as_tensor(means.cluster_centers_),
    }.get(kind)
    return accuracies(split, model, guide.labels.numpy(), centres)


def accuracies(
    split: Split, model: MixtureOfSVMs, labels: np.ndarray, centres: torch.Tensor | None
) -> dict[str, float]:
    """By gate, each fitted to the training rows' final ``labels``."""
    x = torch.as_tensor(split.x_test, dtype=torch.float32)
    all_components = torch.arange(COMPONENTS).unsqueeze(-1).expand(-1, len(x))
    decisions = model.component_distributions(x)[all_components].mean.detach().numpy()
    shares = {name: np.eye(COMPONENTS)[z].T for name, z in routes(split, labels).items()}
    shares["softmax mixed"] = mixed(split, labels)
    if centres is not None:
        nearest = torch.cdist(x, centres.detach().float()).argmin(-1).numpy()
        shares["centre"] = np.eye(COMPONENTS)[nearest].T
    decided = {name: ((share * decisions).sum(0) > 0).astype(int) for name, share in shares.items()}
    return {
        name: float((decided[name] == split.y_test).mean()) for name in GATES if name in decided
    }


def softmax_gate(split: Split, labels: np.ndarray) -> LogisticRegression:
    return LogisticRegression(max_iter=10_000).fit(split.x, labels)


def routes(split: Split, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Parts of the test rows by the gates that take one."""
    if len(set(labels)) == 1:
        alone = np.full(len(split.x_test), labels[0])
        return {"softmax": alone, "RBF": alone}
    gates = {"softmax": softmax_gate(split, labels), "RBF": SVC(C=10).fit(split.x, labels)}
    return {name: gate.predict(split.x_test) for name, gate in gates.items()}


def mixed(split: Split, labels: np.ndarray) -> np.ndarray:
    """Probabilities (C, N) of the parts."""
    out = np.zeros((COMPONENTS, len(split.x_test)))
    if len(set(labels)) == 1:
        out[labels[0]] = 1.0
        return out
    gate = softmax_gate(split, labels)
    out[gate.classes_] = gate.predict_proba(split.x_test).T
    return out


def chosen(split: Split, seed: int) -> tuple[float, dict[str, float]]:
    """The linear SVM's ridge, and the mixture's options, of the best cross-validated accuracy (mixed softmax gate)."""
    parts = folds(split, seed)
    ridge = max(RIDGES, key=lambda ridge: np.mean([linear(part, ridge) for part in parts]))
    grid = [
        {"ridge": ridge, "input_density": input_density}
        for ridge in RIDGES
        for input_density in INPUT_DENSITY
    ]
    best = max(
        grid,
        key=lambda options: np.mean([mixture(p, seed, **options)["softmax mixed"] for p in parts]),
    )
    return ridge, best


def one_split(name: str, seed: int) -> dict[str, float]:
    """Test accuracies by classifier."""
    torch.manual_seed(seed)
    split = split_of(name, seed)
    ridge, options = chosen(split, seed)
    found = {
        "linear SVM": linear(split, ridge),
        "RBF SVM": SVC().fit(split.x, split.y).score(split.x_test, split.y_test),
    }
    for kind in ("joint", "k-means", "loss"):
        fit = mixture(split, seed, kind=kind, **options)
        found |= {f"{kind}, {gate}": accuracy for gate, accuracy in fit.items()}
    return found


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--splits", type=int, default=10)
    command.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    arguments = command.parse_args()
    warnings.simplefilter("ignore")  # scikit-learn's, of gates between parts of very few rows
    report = Report(__doc__)
    for name in arguments.data:
        found = [one_split(name, seed) for seed in range(arguments.splits)]
        for classifier in found[0]:
            percent = 100 * np.array([accuracy[classifier] for accuracy in found])
            above = percent - 100 * np.array([accuracy["linear SVM"] for accuracy in found])
            below = 100 * np.array([accuracy["RBF SVM"] for accuracy in found]) - percent
            report.row(
                name,
                classifier=classifier,
                mean=round(float(percent.mean()), 2),
                sd=round(float(percent.std(ddof=1)) if len(percent) > 1 else 0.0, 2),
                above_linear=round(float(above.mean()), 2),
                below_rbf=round(float(below.mean()), 2),
            )
    report.finish(arguments.json)


if __name__ == "__main__":
    main()
