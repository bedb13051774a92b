"""Combiners of experts: a linear layer over their predictions, for outcomes or for classes."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer.experts.gates import Standard, logistic_regression, standard_of
from pyro_mixtures.options import check_number

# Numbers in float64 per block of rows.
_NUMBERS = 1 << 22


class Combiner(NamedTuple):
    """A linear layer over the concatenated predictions of all experts; see :func:`fit_combiner`."""

    weight: Tensor  # (M, C * ...) in float64, for M outputs or classes
    bias: Tensor  # (M,), -inf for classes without rows
    shape: torch.Size  # of an outcome; (M,) for class probabilities
    classes: bool

    def __call__(self, predictions: Tensor) -> Tensor:
        """Return outcomes (N, ...) or class probabilities (N, L) for predictions (N, C, ...)."""
        rows = predictions.flatten(1)
        if rows.shape[1] != self.weight.shape[1]:
            raise DataError(
                f"{rows.shape[1]} predictions per row, but the combiner was fitted to "
                f"{self.weight.shape[1]}"
            )
        outputs = rows @ self.weight.to(rows).T + self.bias.to(rows)
        return outputs.softmax(-1) if self.classes else outputs.reshape(len(rows), *self.shape)


class _Layer(NamedTuple):
    weight: Tensor  # (M, R)
    bias: Tensor  # (M,), for centered rows
    shape: torch.Size


def fit_combiner(predictions: Tensor, y: Tensor, penalty: float = 1.0) -> Combiner:
    """Fit a linear layer from the predictions of all experts to the outcomes ``y``.

    Floating-point outcomes: ridge regression with a free intercept. It minimizes the sum of squares
    plus ``penalty`` times the squared weights. Integer outcomes (N,) are classes: multinomial
    logistic regression. It minimizes the negative log likelihood plus half of ``penalty`` times the
    squared weights.

    Such a layer over *linear* experts is linear in their covariates, so it cannot be better than a
    single regression: it is meant for nonlinear experts.

    :param predictions: (N, C, ...) of all experts, from :func:`expert_predictions`.
    :param y: (N, ...) outcomes of the same rows.
    :param penalty: positive; ridge regression also allows zero.
    :returns: the combiner, a function of predictions (N, C, ...).
    :raises DataError: if predictions and outcomes do not match, or are not finite.
    :raises OptionError: if the penalty is invalid.

    >>> predictions = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 1.0]])
    >>> combiner = fit_combiner(predictions, torch.tensor([2.0, 4.0, 6.0]), 0.0)
    >>> combiner(torch.tensor([[5.0, 0.0]]))
    tensor([10.])
    """
    predictions, y = as_rows(predictions), as_rows(y)
    if predictions.dim() < 2 or not len(y) or len(predictions) != len(y):
        raise DataError(
            f"predictions have shape {tuple(predictions.shape)} for outcomes {tuple(y.shape)}: "
            "pass (N, C, ...) and (N, ...) with N >= 1"
        )
    for name, values in (("predictions", predictions), ("outcomes", y)):
        if not bool(values.isfinite().all()):
            raise DataError(f"{name} are not all finite: remove the rows that are not")
    classes = not y.is_floating_point()
    check_number(penalty=penalty)
    if classes and not penalty:
        raise OptionError(
            f"penalty={penalty} must be positive for classes; zero is for floating-point outcomes"
        )
    rows = predictions.flatten(1)
    standard = standard_of(rows)
    if classes:
        layer = _fit_classes(rows, y, penalty, standard)
    else:
        layer = _fit_ridge(rows, y, penalty, standard.loc)
    bias = layer.bias - layer.weight @ standard.loc
    return Combiner(layer.weight, bias, layer.shape, classes)


def _fit_classes(rows: Tensor, y: Tensor, penalty: float, standard: Standard) -> _Layer:
    """Fit logistic regression on standardized rows, penalizing the weights of the original rows."""
    if y.dim() != 1 or int(y.min()) < 0:
        raise DataError(
            f"integer outcomes must be classes 0, 1, ... of shape (N,), but have shape "
            f"{tuple(y.shape)} and the smallest value {int(y.min())}"
        )
    label = y.long()
    counts = torch.bincount(label)
    penalties = penalty / standard.scale.square()
    weight, bias = logistic_regression(rows, label, len(counts), penalties, standard)
    bias = bias.masked_fill(counts == 0, -torch.inf)
    return _Layer(weight / standard.scale, bias, counts.shape)


def _fit_ridge(rows: Tensor, y: Tensor, penalty: float, loc: Tensor) -> _Layer:
    """Solve the normal equations in float64, summed over blocks of rows."""
    outcomes = y.reshape(len(y), -1)
    mean = outcomes.mean(0, dtype=torch.float64)
    width = rows.shape[1]
    gram = penalty * torch.eye(width, dtype=torch.float64, device=rows.device)
    cross = torch.zeros(outcomes.shape[1], width, dtype=torch.float64, device=rows.device)
    block_size = max(1, _NUMBERS // width)
    for row_block, outcome in zip(rows.split(block_size), outcomes.split(block_size), strict=True):
        centered = row_block.double() - loc
        gram += centered.T @ centered
        cross += (outcome.double() - mean).T @ centered
    # Predictions of experts may be collinear: the pseudo-inverse gives the shortest solution.
    weight = cross @ torch.linalg.pinv(gram, hermitian=True)
    return _Layer(weight, mean, y.shape[1:])
