"""Comparison of ways to predict new rows: hard and soft routing, and a combiner of the experts."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError
from pyro_mixtures.infer.experts.combiners import fit_combiner
from pyro_mixtures.infer.experts.gates import Gate, check_gate, fit_gate
from pyro_mixtures.infer.experts.labels import labels_of
from pyro_mixtures.infer.experts.predictions import (
    checked_covariates,
    expert_predictions,
    mix_experts,
    select_experts,
)
from pyro_mixtures.infer.labeled_guide import LabeledGuide

Rows = tuple[Tensor, Tensor]  # covariates (N, P) and outcomes (N, ...)
Metric = Callable[[Tensor, Tensor], Any]  # predictions and outcomes -> a number


def compare_routing(
    model: Callable[..., Any],
    guide: LabeledGuide,
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
    """Compare hard routing, soft routing and a combiner of the experts on ``test`` rows.

    Gate and combiner are fitted to the ``train`` rows alone.

    :param model: the fitted program; see :func:`expert_predictions`.
    :param guide: the fitted partition of the ``train`` rows, with its ``labels`` (N,).
    :param train: covariates (N, P) and outcomes (N, ...) of the fit.
    :param test: covariates and outcomes of new rows.
    :param gate: None fits a multinomial logistic gate to the labels.
    :param metric: a function of predictions and outcomes. None takes the coefficient of
        determination, averaged over outputs, for floating-point outcomes; and the accuracy for
        integer ones. These are classes, for which experts must predict scores (N, L).
    :param penalty: of the combiner; see :func:`fit_combiner`.
    :param observed: name of the site of the outcomes.
    :param given: values of the model's other latent sites, if it has any.
    :param chunk: rows evaluated at once.
    :returns: the metric on the test rows of ``hard`` and ``soft`` routing and of the ``combiner``.
        ``oracle_unattainable`` is that of each row's best expert, chosen with knowledge of the
        row's outcome: an upper bound for routing, not a method.
    :raises PartitionError: if the labels are not those of the ``train`` rows.
    :raises DataError: if covariates and outcomes do not match, or are not finite.

    >>> import torch
    >>> from pyro_mixtures.guides import HardPartition
    >>> from pyro_mixtures.infer import EM, fit
    >>> from pyro_mixtures.models import MixtureOfRegressions
    >>> x = torch.randn(200, 1)
    >>> y = 3 * x[:, 0].abs()
    >>> model = MixtureOfRegressions(components=2, features=1, ridge=1e-3)
    >>> guide = HardPartition(model, components=2)
    >>> result = fit(EM(model, guide), x, y, progress=False)
    >>> list(compare_routing(model, guide, (x, y), (x, y)))
    ['hard', 'soft', 'combiner', 'oracle_unattainable']
    """
    train_x, train_y = _checked_pair("train", train)
    test_x, test_y = _checked_pair("test", test)
    if gate is None:
        gate = fit_gate(train_x, labels_of(guide, len(train_x)), guide.components)
    check_gate(gate, guide.components)
    options: Any = {"site": guide.site, "observed": observed, "given": given, "chunk": chunk}
    train_predictions = expert_predictions(model, train_x, **options)
    test_predictions = expert_predictions(model, test_x, **options)
    classes = not train_y.is_floating_point() and test_predictions.dim() == train_y.dim() + 2
    _check_outcomes(train_predictions, train_y, classes)
    _check_outcomes(test_predictions, test_y, classes)
    score = metric if metric is not None else _default_metric(train_y, test_predictions, classes)
    target = train_y if classes else train_y.to(train_predictions.dtype)
    combiner = fit_combiner(train_predictions, target, penalty)
    best_expert = _expert_errors(test_predictions, test_y, classes).argmin(1)
    predicted = {
        "hard": select_experts(test_predictions, gate.assign(test_x)),
        "soft": mix_experts(test_predictions, gate.log_prob(test_x)),
        "combiner": combiner(test_predictions),
        "oracle_unattainable": select_experts(test_predictions, best_expert),
    }
    return {name: float(score(prediction, test_y)) for name, prediction in predicted.items()}


def r2(prediction: Tensor, y: Tensor) -> float:
    """Return the coefficient of determination of predictions (N, ...), averaged over outputs.

    :raises DataError: if an output is constant, which has no variance to explain.

    >>> import torch
    >>> r2(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])) > 0.7
    True
    """
    from sklearn.metrics import r2_score  # here, because importing it takes a second

    targets = y.double().reshape(len(y), -1)
    if bool((targets == targets[0]).all(0).any()):
        raise DataError(
            f"an output is constant in all {len(y)} rows, so R2 is not defined: pass more rows, or "
            "metric="
        )
    predictions = prediction.double().reshape(len(y), -1)
    return float(r2_score(targets.cpu(), predictions.cpu()))


def accuracy(prediction: Tensor, y: Tensor) -> float:
    """Return the share of rows whose largest score (N, L) is that of their class (N,).

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
        "integer outcomes are classes, but the experts' predictions (N, C, ...) have shape "
        f"{tuple(predictions.shape)}, without scores of classes: pass y as floating point for R2, "
        "or pass metric=; for two classes, for example, "
        "metric=lambda p, y: ((p > 0.5) == y).float().mean()"
    )


def _expert_errors(predictions: Tensor, y: Tensor, classes: bool) -> Tensor:
    """Return each expert's error (N, C): squared; for classes wrong before right, then by score."""
    if not classes:
        squares = (predictions - y.unsqueeze(1)).square()
        return squares.reshape(*predictions.shape[:2], -1).sum(-1)
    rows, experts = predictions.shape[:2]
    labels = y.long().reshape(-1, 1, 1).expand(rows, experts, 1)
    score = predictions.gather(2, labels).squeeze(-1)
    wrong = (predictions.argmax(-1) != y.unsqueeze(-1)).to(score)
    # Scores need not be probabilities. The sigmoid keeps their order and lies below one, so wrong
    # predictions have the larger error.
    return wrong - score.sigmoid()


def _check_outcomes(predictions: Tensor, y: Tensor, classes: bool) -> None:
    """Refuse outcomes (N, ...) that experts with predictions (N, C, ...) cannot predict."""
    if classes and (int(y.min()) < 0 or int(y.max()) >= predictions.shape[2]):
        raise DataError(
            f"classes lie in [{int(y.min())}, {int(y.max())}], not in [0, {predictions.shape[2]})"
        )
    if not classes and predictions.shape[2:] != y.shape[1:]:
        raise DataError(
            f"outcomes have shape {tuple(y.shape)}, but the experts' predictions "
            f"{tuple(predictions.shape)}: both must be (N, ...) and (N, C, ...)"
        )


def _checked_pair(name: str, rows: Rows) -> Rows:
    x, y = checked_covariates(rows[0]), as_rows(rows[1])
    if len(x) != len(y):
        raise DataError(f"{len(y)} outcomes for {len(x)} rows of covariates in {name}")
    for what, values in (("covariates", x), ("outcomes", y)):
        invalid = ~values.reshape(len(values), -1).isfinite().all(-1)
        if bool(invalid.any()):
            raise DataError(
                f"row {int(invalid.nonzero()[0])} of the {name} {what} contains NaN or infinity: "
                "remove such rows"
            )
    return x, y
