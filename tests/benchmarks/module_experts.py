"""Small experts against one network of as many parameters: test accuracy on scikit-learn's digits, over seeds.

Every model gets as many full-batch Adam steps. The experts' total includes the gate, a multinomial
logistic regression of a row's part on its covariates, by which rows never seen are routed to one
expert. Partitions start from k-means; "frozen" keeps them, "learned" is hard EM on the experts'
losses. "oracle" routes each test row to the expert that is best for it, which needs its class: what
a perfect gate could reach, not a result. The second, narrow network has the parameters that one row
meets: the gate's and one expert's. Run with ``python -m tests.benchmarks.module_experts``.
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
    """Standardised rows and classes."""

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
    """Width of the network nearest in size."""
    return round((size - CLASSES) / (FEATURES + 1 + CLASSES))


class Outcome(NamedTuple):
    """Accuracies on test rows, by the gate and by the oracle, and mean training loss."""

    accuracy: float
    oracle: float
    loss: float
    moved: int  # rows whose part is another than at the start


def train(
    data: Split, labels: Tensor, experts: int, hidden: int, args, *, learned: bool
) -> Outcome:
    """Hard EM of ``experts`` networks from the partition ``labels``, which stays if not ``learned``."""
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
    part = gate(data.x, guide.labels, data.x_test)
    accuracy = right.gather(0, part.unsqueeze(0)).float().mean()
    moved = int((guide.labels != labels).sum())
    return Outcome(float(accuracy), float(right.any(0).float().mean()), loss, moved)


def gate(x: Tensor, labels: Tensor, x_test: Tensor) -> Tensor:
    """Parts (B,) of rows never seen."""
    if int(labels.min()) == int(labels.max()):
        return labels[:1].long().expand(len(x_test))
    return torch.from_numpy(LogisticRegression(max_iter=1000).fit(x, labels).predict(x_test)).long()


def compare(seed: int, args) -> dict[str, Outcome]:
    """All contenders on one split."""
    torch.manual_seed(seed)
    data, k = digits(seed), args.experts
    start = torch.from_numpy(KMeans(k, n_init=3, random_state=seed).fit_predict(data.x))
    one = torch.zeros(len(data.x), dtype=torch.int64)
    return {
        f"one network, hidden {args.wide}": train(data, one, 1, args.wide, args, learned=False),
        f"one network, hidden {args.narrow}": train(data, one, 1, args.narrow, args, learned=False),
        f"{k} experts, hidden {args.hidden}, frozen": train(
            data, start, k, args.hidden, args, learned=False
        ),
        f"{k} experts, hidden {args.hidden}, learned": train(
            data, start, k, args.hidden, args, learned=True
        ),
    }


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--seeds", type=int, default=5)
    command.add_argument("--experts", type=int, default=4)
    command.add_argument("--hidden", type=int, default=4, help="of an expert")
    command.add_argument("--epochs", type=int, default=30, help="EM steps")
    command.add_argument("--gradient-steps", type=int, default=10)
    command.add_argument("--lr", type=float, default=0.02)
    args = command.parse_args()
    gate_size = args.experts * (FEATURES + 1)
    total = args.experts * size_of(args.hidden) + gate_size
    args.wide, args.narrow = hidden_of(total), hidden_of(size_of(args.hidden) + gate_size)
    report = Report(__doc__)
    report.fact("parameters of the experts and their gate", total)
    report.fact("parameters of the wide network", size_of(args.wide))
    report.fact(
        "parameters that a row meets: its expert's and the gate's", size_of(args.hidden) + gate_size
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
