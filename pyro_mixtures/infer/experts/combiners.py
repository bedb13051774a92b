"""Combiners of experts: a linear layer over their predictions, for outcomes or for classes."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer.experts.gates import Standard, logistic_regression, standard_of
from pyro_mixtures.options import check_number

# Numbers in float64 alive at once.
_NUMBERS = 1 << 22


class Combiner(NamedTuple):
    """A linear layer over the concatenated predictions of all experts; see :func:`fit_combiner`."""

    weight: Tensor  # (M, C * ...) in float64; M outputs, or one for each class
    bias: Tensor  # (M,), -inf for classes that no row had
    shape: torch.Size  # of an outcome; (M,) for the probabilities of classes
    classes: bool

    def __call__(self, predictions: Tensor) -> Tensor:
        """Outcomes (N, ...), or probabilities (N, L) of classes, for ``predictions`` (N, C, ...)."""
        rows = predictions.flatten(1)
        if rows.shape[1] != self.weight.shape[1]:
            raise DataError(
                f"{rows.shape[1]} predictions a row; the combiner was fitted to {self.weight.shape[1]}"
            )
        out = rows @ self.weight.to(rows).T + self.bias.to(rows)
        return out.softmax(-1) if self.classes else out.reshape(len(rows), *self.shape)


def fit_combiner(predictions: Tensor, y: Tensor, penalty: float = 1.0) -> Combiner:
    """A linear layer from the ``predictions`` (N, C, ...) of all experts to the outcomes ``y`` (N, ...).

    Floating-point outcomes: ridge regression with a free intercept, minimising the sum of squares
    plus ``penalty`` times the squared weights. Integer outcomes (N,) are classes: multinomial
    logistic regression, minimising minus the log likelihood plus half ``penalty`` times the squared
    weights.

    Over *linear* experts such a layer is linear in their covariates, and so never better than one
    regression: it is meant for experts that are not.

    :param penalty: positive, or zero for ridge regression.
    :raises DataError: when predictions and outcomes do not fit together. :raises OptionError: of an
        impossible penalty.

    >>> combiner = fit_combiner(torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 1.0]]), torch.tensor([2.0, 4.0, 6.0]), 0.0)
    >>> combiner(torch.tensor([[5.0, 0.0]]))
    tensor([10.])
    """
    predictions, y = as_rows(predictions), as_rows(y)
    if predictions.dim() < 2 or not len(y) or len(predictions) != len(y):
        raise DataError(
            f"predictions {tuple(predictions.shape)} for outcomes {tuple(y.shape)}: give (N, C, ...), (N, ...)"
        )
    for name, values in (("predictions", predictions), ("outcomes", y)):
        if not bool(values.isfinite().all()):
            raise DataError(f"{name} are not all finite: remove such rows")
    classes = not y.is_floating_point()
    check_number(penalty=penalty)
    if classes and not penalty:
        raise OptionError(
            f"penalty={penalty} must be positive, or zero for outcomes that are no classes"
        )
    rows = predictions.flatten(1)
    standard = standard_of(rows)
    weight, bias, shape = (
        _classifier(rows, y, penalty, standard)
        if classes
        else _ridge(rows, y, penalty, standard.loc)
    )
    return Combiner(weight, bias - weight @ standard.loc, shape, classes)


def _classifier(
    rows: Tensor, y: Tensor, penalty: float, standard: Standard
) -> tuple[Tensor, Tensor, torch.Size]:
    """Weights, and biases over centred rows; found on standardised rows, whose weights pay what those of rows would."""
    if y.dim() != 1 or int(y.min()) < 0:
        raise DataError(
            f"integer outcomes are classes 0, 1, ... (N,), not {tuple(y.shape)} from {int(y.min())}"
        )
    label = y.long()
    counts = torch.bincount(label)
    weight, bias = logistic_regression(
        rows, label, len(counts), penalty / standard.scale.square(), standard
    )
    return weight / standard.scale, bias.masked_fill(counts == 0, -torch.inf), counts.shape


def _ridge(
    rows: Tensor, y: Tensor, penalty: float, loc: Tensor
) -> tuple[Tensor, Tensor, torch.Size]:
    """As :func:`_classifier`, by the normal equations in float64, some rows at a time."""
    outcomes = y.reshape(len(y), -1)
    mean = outcomes.mean(0, dtype=torch.float64)
    gram = penalty * torch.eye(rows.shape[1], dtype=torch.float64, device=rows.device)
    cross = torch.zeros(outcomes.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    size = max(1, _NUMBERS // rows.shape[1])
    for part, outcome in zip(rows.split(size), outcomes.split(size), strict=True):
        centred = part.double() - loc
        gram += centred.T @ centred
        cross += (outcome.double() - mean).T @ centred
    # Predictions of several experts may be collinear: the shortest weights of the best ones.
    return cross @ torch.linalg.pinv(gram, hermitian=True), mean, y.shape[1:]
