"""Small experts compared with one network of as many parameters: accuracy on scikit-learn's digits.

Every model is trained for the same number of full-batch Adam steps. The parameters of the experts
include the gate, a multinomial logistic regression of the cluster of a row on its covariates, which
routes test rows to one expert. Partitions start from k-means; "frozen" keeps them, "learned" is
hard EM on the losses of the experts. "oracle" routes each test row to the expert that predicts it
best, which needs its class: what a perfect gate could reach, not a result. The second, narrow
network has as many parameters as are used for one row: those of the gate and of one expert. Run
``python -m tests.benchmarks.module_experts``.
"""

import statistics
from typing import NamedTuple

import pyro
import torch
from pyro.optim import Adam
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import Tensor

from pyro_mixtures.guides.hard import HardPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.models.experts import MixtureOfExperts
from tests.benchmarks.harness import Report, parser

FEATURES, CLASSES = 64, 10


class Split(NamedTuple):
    """Scaled rows and classes."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def digits(seed: int) -> Split:
    rows, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        rows / 16.0 - 0.3, labels, test_size=0.4, random_state=seed, stratify=labels
    )
    return Split(
        torch.tensor(x).float(), torch.tensor(y), torch.tensor(x_test).float(), torch.tensor(y_test)
    )


def network(hidden: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(FEATURES, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, CLASSES)
    )


def size_of(hidden: int) -> int:
    return hidden * (FEATURES + 1 + CLASSES) + CLASSES


def hidden_of(size: int) -> int:
    """Return the width of the network that is nearest in size."""
    return round((size - CLASSES) / (FEATURES + 1 + CLASSES))


class Outcome(NamedTuple):
    """Accuracies on test rows, by the gate and by the oracle, and mean training loss."""

    accuracy: float
    oracle: float
    loss: float
    moved: int  # rows that left their first cluster


def train(
    data: Split, labels: Tensor, experts: int, hidden: int, args, *, learned: bool
) -> Outcome:
    """Run hard EM of ``experts`` networks from ``labels``, which stay fixed unless ``learned``."""
    pyro.clear_param_store()
    model = MixtureOfExperts(
        lambda: network(hidden),
        components=experts,
        features=FEATURES,
        loss="cross_entropy",
        equal_weights=True,
    )
    guide = HardPartition(model, components=experts)
    guide.set_labels(labels)
    guide.train(learned)
    em = EM(model, guide, gradient=Adam({"lr": args.lr}), gradient_steps=args.gradient_steps)
    for _ in range(args.epochs):
        em.step(data.x, data.y)
    loss = (
        em.evaluate_loss(data.x, data.y) / len(data.x) - torch.tensor(float(experts)).log().item()
    )
    with torch.no_grad():
        right = (
            model.component_distributions(data.x_test).outputs().argmax(-1) == data.y_test
        )  # (C, B)
    cluster = gate(data.x, guide.labels, data.x_test)
    accuracy = right.gather(0, cluster.unsqueeze(0)).float().mean()
    moved = int((guide.labels != labels).sum())
    return Outcome(float(accuracy), float(right.any(0).float().mean()), loss, moved)


def gate(x: Tensor, labels: Tensor, x_test: Tensor) -> Tensor:
    """Predict the clusters (B,) of test rows."""
    if int(labels.min()) == int(labels.max()):
        return labels[:1].long().expand(len(x_test))
    return torch.from_numpy(LogisticRegression(max_iter=1000).fit(x, labels).predict(x_test)).long()


def compare(seed: int, args) -> dict[str, Outcome]:
    """Train all models on one split."""
    torch.manual_seed(seed)
    data, k = digits(seed), args.experts
    start = torch.from_numpy(KMeans(k, n_init=3, random_state=seed).fit_predict(data.x))
    single = torch.zeros(len(data.x), dtype=torch.int64)
    return {
        f"one network, hidden {args.wide}": train(data, single, 1, args.wide, args, learned=False),
        f"one network, hidden {args.narrow}": train(
            data, single, 1, args.narrow, args, learned=False
        ),
        f"{k} experts, hidden {args.hidden}, frozen": train(
            data, start, k, args.hidden, args, learned=False
        ),
        f"{k} experts, hidden {args.hidden}, learned": train(
            data, start, k, args.hidden, args, learned=True
        ),
    }


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--seeds", type=int, default=5, help="number of splits (5)")
    command.add_argument("--experts", type=int, default=4, help="number of experts (4)")
    command.add_argument("--hidden", type=int, default=4, help="hidden units of an expert (4)")
    command.add_argument("--epochs", type=int, default=30, help="number of EM steps (30)")
    command.add_argument(
        "--gradient-steps", type=int, default=10, help="Adam steps per M-step (10)"
    )
    command.add_argument("--lr", type=float, default=0.02, help="learning rate of Adam (0.02)")
    args = command.parse_args()
    gate_size = args.experts * (FEATURES + 1)
    total = args.experts * size_of(args.hidden) + gate_size
    args.wide, args.narrow = hidden_of(total), hidden_of(size_of(args.hidden) + gate_size)
    report = Report(__doc__)
    report.fact("parameters of the experts and their gate", total)
    report.fact("parameters of the wide network", size_of(args.wide))
    report.fact(
        "parameters used for one row: its expert and the gate", size_of(args.hidden) + gate_size
    )
    report.fact("parameters of the narrow network", size_of(args.narrow))
    runs = [compare(seed, args) for seed in range(args.seeds)]
    first = next(iter(runs[0]))
    for name in runs[0]:
        accuracy = [run[name].accuracy for run in runs]
        report.row(
            "digits",
            model=name,
            accuracy=statistics.mean(accuracy),
            deviation=statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0,
            error_ratio=statistics.mean(
                (1 - run[name].accuracy) / (1 - run[first].accuracy) for run in runs
            ),
            oracle=statistics.mean(run[name].oracle for run in runs),
            train_loss=statistics.mean(run[name].loss for run in runs),
            moved=statistics.mean(run[name].moved for run in runs),
        )
    report.finish(args.json)


if __name__ == "__main__":
    main()
