"""Row weights of the models: how often each row of a program counts."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_mixtures.data.exact import as_floating
from pyro_mixtures.errors import DataError


def weighted_rows(
    row_weight: Tensor, rows: int, dtype: torch.dtype
) -> AbstractContextManager[None]:
    """Return the context in which the sites of ``rows`` rows count ``row_weight`` times.

    Every model of the package enters it together with its data plate, and no other code of the
    models handles row weights: ``poutine.scale`` carries them to every inference algorithm.

    :param row_weight: (rows,) numbers of zero or more.
    :param rows: number of observed rows.
    :param dtype: dtype of the model's params, to which the weights are cast.
    :returns: a context manager; the weights are checked before it is entered.
    :raises DataError: see :func:`check_row_weight`.
    """
    check_row_weight(row_weight, rows)
    return _scaled(as_floating(row_weight, dtype, "row weights"))


@contextmanager
def _scaled(row_weight: Tensor) -> Iterator[None]:
    positive: Any = row_weight > 0
    if bool(positive.all()):
        with pyro.poutine.scale(scale=row_weight):
            yield
        return
    # Pyro's scales must be positive: rows of weight zero are masked instead.
    scale: Any = row_weight.masked_fill(~positive, 1)
    with pyro.poutine.scale(scale=scale), pyro.poutine.mask(mask=positive):
        yield


def check_row_weight(row_weight: Tensor, rows: int) -> None:
    """Check that ``row_weight`` are (rows,) finite numbers of zero or more.

    All of them may be zero, since a program may be called with a batch of such rows.

    :raises DataError: if they are not; the message names the first row with an invalid weight.
    """
    check_tensor("row_weight", row_weight)
    if row_weight.shape != (rows,):
        raise DataError(
            f"row_weight {tuple(row_weight.shape)} for {rows} rows: pass one weight per row"
        )
    invalid = ~(row_weight.isfinite() & (row_weight >= 0))
    if bool(invalid.any()):
        row = int(invalid.nonzero()[0])
        raise DataError.at_row(
            row,
            f"row_weight of row {{row}} is {row_weight[row].item()}: "
            "weights must be finite and not negative",
        )


def check_tensor(name: str, value: Any) -> None:
    """Check that ``value`` is a tensor with at least one dimension.

    Programs take tensors only; the functions of :mod:`pyro_mixtures.infer` also take arrays.

    :raises DataError: if it is not.
    """
    if isinstance(value, Tensor) and value.dim():
        return
    actual = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise DataError(
        f"{name} must be a tensor (N, ...), not {actual}: pass pyro_mixtures.data.as_rows({name})"
    )
