"""Test accuracy of four linear SVMs, routed by a gate, compared with one linear SVM and an RBF SVM.

Means and standard deviations over splits. All models see standardized features and 70 % of the
rows. The RBF SVM is scikit-learn's SVC() with default settings. 3-fold cross-validation within the
training rows chooses the ridge of the linear SVM, and the ridge and the input density of the
mixture.

Partitions. "joint": z ~ equal weights, x ~ Normal(loc[z], constant), y ~ SVM[z](x); the cost of a
row is the loss of its SVM plus the distance from the center of its cluster, so that a gate can find
the clusters. "k-means": clusters of x alone, one fit. "loss": the cost of a row is the loss alone
(a partition may then separate classes in a way that no gate can reproduce).

Gates see x alone and are fitted to the final clusters. "softmax mixed" weights the decisions by the
probabilities of a softmax regression, "softmax" takes the most probable SVM, "center" the nearest
center, "RBF" asks an SVC(C=10), which is an RBF SVM itself: a mixture with it is no longer a small
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
INPUT_DENSITY = (0.1, 0.5, 2.0)  # weight of |x - loc|^2 / P relative to the hinge loss
GATES = ("softmax mixed", "softmax", "center", "RBF")


class Split(NamedTuple):
    """Standardized training and test rows."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def rows(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a data set; ``seed`` is that of simulated ones."""
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


def standardized(x, y, x_test, y_test) -> Split:
    scale = StandardScaler().fit(x)
    return Split(scale.transform(x), y, scale.transform(x_test), y_test)


def split_of(name: str, seed: int) -> Split:
    x, y = rows(name, seed)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, random_state=seed, stratify=y)
    return standardized(x, y, x_test, y_test)


def folds(split: Split, seed: int) -> list[Split]:
    """Return three splits of the training rows."""
    cut = StratifiedKFold(3, shuffle=True, random_state=seed).split(split.x, split.y)
    return [standardized(split.x[a], split.y[a], split.x[b], split.y[b]) for a, b in cut]


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
    """Return the test accuracy, by gate, of a mixture that starts from k-means."""
    means = KMeans(COMPONENTS, n_init=5, random_state=seed).fit(split.x)
    x, y = torch.as_tensor(split.x, dtype=torch.float32), torch.as_tensor(split.y)
    pyro.clear_param_store()
    options = {
        "features": x.shape[1],
        "ridge": ridge,
        "input_density": input_density if kind == "joint" else None,
    }
    model = MixtureOfSVMs(components=COMPONENTS, **options)
    guide = HardPartition(model, components=COMPONENTS)
    guide.set_labels(torch.as_tensor(means.labels_))
    em = EM(model, guide, empty="keep")
    em.step(x, y)
    for _ in range(0 if kind == "k-means" else steps):
        guide.reset_counts()
        em.step(x, y)
        if guide.moved == 0:
            break
    centers = {
        "joint": model.loc if kind == "joint" else None,
        "k-means": torch.as_tensor(means.cluster_centers_),
    }.get(kind)
    return accuracies(split, model, guide.labels.numpy(), centers)


def accuracies(
    split: Split, model: MixtureOfSVMs, labels: np.ndarray, centers: torch.Tensor | None
) -> dict[str, float]:
    """Return accuracies by gate, each fitted to the final ``labels`` of the training rows."""
    x = torch.as_tensor(split.x_test, dtype=torch.float32)
    all_components = torch.arange(COMPONENTS).unsqueeze(-1).expand(-1, len(x))
    decisions = model.component_distributions(x)[all_components].mean.detach().numpy()
    shares = {name: np.eye(COMPONENTS)[z].T for name, z in routes(split, labels).items()}
    shares["softmax mixed"] = mixed(split, labels)
    if centers is not None:
        nearest = torch.cdist(x, centers.detach().float()).argmin(-1).numpy()
        shares["center"] = np.eye(COMPONENTS)[nearest].T
    decided = {name: ((share * decisions).sum(0) > 0).astype(int) for name, share in shares.items()}
    return {
        name: float((decided[name] == split.y_test).mean()) for name in GATES if name in decided
    }


def softmax_gate(split: Split, labels: np.ndarray) -> LogisticRegression:
    return LogisticRegression(max_iter=10_000).fit(split.x, labels)


def routes(split: Split, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the clusters of the test rows by the gates that choose one."""
    if len(set(labels)) == 1:
        constant = np.full(len(split.x_test), labels[0])
        return {"softmax": constant, "RBF": constant}
    gates = {"softmax": softmax_gate(split, labels), "RBF": SVC(C=10).fit(split.x, labels)}
    return {name: gate.predict(split.x_test) for name, gate in gates.items()}


def mixed(split: Split, labels: np.ndarray) -> np.ndarray:
    """Return the probabilities (C, N) of the clusters."""
    out = np.zeros((COMPONENTS, len(split.x_test)))
    if len(set(labels)) == 1:
        out[labels[0]] = 1.0
        return out
    gate = softmax_gate(split, labels)
    out[gate.classes_] = gate.predict_proba(split.x_test).T
    return out


def chosen(split: Split, seed: int) -> tuple[float, dict[str, float]]:
    """Choose the ridge of the linear SVM and the options of the mixture by cross-validation.

    The mixture is scored with the mixed softmax gate.
    """
    splits = folds(split, seed)
    ridge = max(RIDGES, key=lambda ridge: np.mean([linear(fold, ridge) for fold in splits]))
    grid = [
        {"ridge": ridge, "input_density": input_density}
        for ridge in RIDGES
        for input_density in INPUT_DENSITY
    ]
    best = max(
        grid,
        key=lambda options: np.mean(
            [mixture(fold, seed, **options)["softmax mixed"] for fold in splits]
        ),
    )
    return ridge, best


def one_split(name: str, seed: int) -> dict[str, float]:
    """Return test accuracies by classifier."""
    torch.manual_seed(seed)
    split = split_of(name, seed)
    ridge, options = chosen(split, seed)
    accuracies_by_name = {
        "linear SVM": linear(split, ridge),
        "RBF SVM": SVC().fit(split.x, split.y).score(split.x_test, split.y_test),
    }
    for kind in ("joint", "k-means", "loss"):
        fit = mixture(split, seed, kind=kind, **options)
        accuracies_by_name |= {f"{kind}, {gate}": accuracy for gate, accuracy in fit.items()}
    return accuracies_by_name


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--splits", type=int, default=10, help="number of splits (10)")
    command.add_argument("--data", nargs="+", choices=DATA, default=DATA, help="data sets (all)")
    arguments = command.parse_args()
    warnings.simplefilter("ignore")  # of scikit-learn, for gates between very small clusters
    report = Report(__doc__)
    for name in arguments.data:
        results = [one_split(name, seed) for seed in range(arguments.splits)]
        for classifier in results[0]:
            percent = 100 * np.array([accuracy[classifier] for accuracy in results])
            above = percent - 100 * np.array([accuracy["linear SVM"] for accuracy in results])
            below = 100 * np.array([accuracy["RBF SVM"] for accuracy in results]) - percent
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
