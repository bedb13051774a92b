"""Draws of items as distinct items with their counts."""

from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError


def count_items(draws: Any) -> tuple[Tensor, Tensor]:
    """Count how often each item was drawn.

    A mixture of softmax distributions needs only these counts: ``model(items, counts)``, with the
    counts as row weights.

    :param draws: (N,) item numbers.
    :returns: the distinct item numbers (B,) in ascending order, and their counts (B,).
    :raises DataError: for draws that are not integers (N,), or are negative.

    >>> count_items([4, 1, 4])
    (tensor([1, 4]), tensor([1, 2]))
    """
    draws = as_rows(draws)
    is_integer = not (draws.is_floating_point() or draws.is_complex() or draws.dtype == torch.bool)
    if draws.dim() != 1 or not is_integer:
        raise DataError(
            f"draws are {draws.dtype} {tuple(draws.shape)}, but must be item numbers: integers (N,)"
        )
    if len(draws) and int(draws.min()) < 0:
        raise DataError(f"draws contain the item {int(draws.min())}: items are numbered from zero")
    items, counts = torch.unique(draws, return_counts=True)
    return items.long(), counts
