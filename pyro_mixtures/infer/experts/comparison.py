"""How well the ways to predict new rows do: routing, mixing and combining compared on rows left out of the fit."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError
from pyro_mixtures.infer.experts.combiners import fit_combiner
from pyro_mixtures.infer.experts.gates import Gate, check_gate, fit_gate
from pyro_mixtures.infer.experts.labels import labels_of
from pyro_mixtures.infer.experts.predictions import chosen, covariates, expert_predictions, mixed
from pyro_mixtures.infer.labelled_guide import LabelledGuide

Rows = tuple[Tensor, Tensor]  # covariates (N, P) and outcomes (N, ...)
Metric = Callable[[Tensor, Tensor], Any]  # predictions and outcomes -> a number


def compare_routing(
    model: Callable,
    guide: LabelledGuide,
    train: Rows,
    test: Rows,
    *,
    gate: Gate | None = None,
    metric: Metric | None = None,
    penalty: float = 1.0,
    observed: str = "y",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> dict[str, float]:
    """How well the ways to predict new rows do on ``test`` rows: gate and combiner learn from ``train`` alone.

    :param guide: the fitted partition of the ``train`` rows (x, y), with its ``labels`` (N,).
    :param gate: None fits a multinomial logistic gate to the labels.
    :param metric: of predictions and outcomes. None takes the coefficient of determination,
        averaged over outputs, for floating-point outcomes, and the accuracy for integer ones:
        classes, for which experts must give scores (N, L).
    :param penalty: of the combiner, see :func:`fit_combiner`.
    :return: the test metric of ``hard`` and ``soft`` routing and of the ``combiner``;
        ``oracle_unattainable`` is that of each row's best expert, chosen by looking at the row's
        own outcome: a bound of routing, not a method.
    :raises PartitionError: when the labels are not those of the ``train`` rows. :raises DataError:
        when rows and outcomes do not fit together, or are not finite.
    """
    (x, y), (new_x, new_y) = _pair("train", train), _pair("test", test)
    if gate is None:
        gate = fit_gate(x, labels_of(guide, len(x)), guide.components)
    check_gate(gate, guide.components)
    options: Any = {"site": guide.site, "observed": observed, "given": given, "chunk": chunk}
    seen, new = expert_predictions(model, x, **options), expert_predictions(model, new_x, **options)
    classes = not y.is_floating_point() and new.dim() == y.dim() + 2
    _check_outcomes(seen, y, classes)
    _check_outcomes(new, new_y, classes)
    score = metric if metric is not None else _default_metric(y, new, classes)
    predicted = {
        "hard": chosen(new, gate.assign(new_x)),
        "soft": mixed(new, gate.log_prob(new_x)),
        "combiner": fit_combiner(seen, y if classes else y.to(seen.dtype), penalty)(new),
        "oracle_unattainable": chosen(new, _error(new, new_y, classes).argmin(1)),
    }
    return {name: float(score(prediction, new_y)) for name, prediction in predicted.items()}


def r2(prediction: Tensor, y: Tensor) -> float:
    """Coefficient of determination of predictions (N, ...), averaged over outputs.

    :raises DataError: when an output is constant: it has no variance to explain.

    >>> import torch
    >>> r2(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])) > 0.7
    True
    """
    value, y = prediction.double().reshape(len(y), -1), y.double().reshape(len(y), -1)
    total = (y - y.mean(0)).square().sum(0)
    if not bool((total > 0).all()):
        raise DataError(
            f"an output is constant in all {len(y)} rows: R2 is not defined; give more rows, or metric="
        )
    return float((1 - (y - value).square().sum(0) / total).mean())


def accuracy(prediction: Tensor, y: Tensor) -> float:
    """Share of rows whose largest score (N, L) is that of their class (N,).

    >>> import torch
    >>> accuracy(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
    0.5
    """
    return float((prediction.argmax(-1) == y).double().mean())


def _default_metric(y: Tensor, predictions: Tensor, classes: bool) -> Metric:
    if y.is_floating_point():
        return r2
    if classes:
        return accuracy
    raise DataError(
        f"integer outcomes are classes, but the experts' predictions (N, C, ...) are {tuple(predictions.shape)}, "
        "without scores of classes: pass y as floating point for R2, or metric=, for two classes for example "
        "lambda p, y: ((p > 0.5) == y).float().mean()"
    )


def _error(predictions: Tensor, y: Tensor, classes: bool) -> Tensor:
    """What each expert (N, C) gets wrong: squared error; for classes whether it errs, then its score."""
    if not classes:
        return (predictions - y.unsqueeze(1)).square().reshape(*predictions.shape[:2], -1).sum(-1)
    score = predictions.gather(2, y.long().reshape(-1, 1, 1).expand(*predictions.shape[:2], 1))[
        ..., 0
    ]
    # Scores need not be probabilities: any rank of them below one keeps mistakes last.
    return (predictions.argmax(-1) != y.unsqueeze(-1)).to(score) - score.sigmoid()


def _check_outcomes(predictions: Tensor, y: Tensor, classes: bool) -> None:
    """Whether outcomes (N, ...) are of the kind that the experts predict, (N, C, ...)."""
    if classes and (int(y.min()) < 0 or int(y.max()) >= predictions.shape[2]):
        raise DataError(
            f"classes lie in [{int(y.min())}, {int(y.max())}], not in [0, {predictions.shape[2]})"
        )
    if not classes and predictions.shape[2:] != y.shape[1:]:
        raise DataError(
            f"outcomes are {tuple(y.shape)}, but the experts' predictions {tuple(predictions.shape)}"
        )


def _pair(name: str, rows: Rows) -> Rows:
    x, y = covariates(rows[0]), as_rows(rows[1])
    if len(x) != len(y):
        raise DataError(f"{len(y)} outcomes for {len(x)} rows of covariates")
    for what, values in (("covariates", x), ("outcomes", y)):
        bad = ~values.flatten(1).isfinite().all(-1) if values.dim() > 1 else ~values.isfinite()
        if bool(bad.any()):
            raise DataError(
                f"row {int(bad.nonzero()[0])} of the {name} {what} holds NaN or infinity: remove such rows"
            )
    return x, y
