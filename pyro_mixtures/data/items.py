"""Draws of items as distinct items with their counts."""

from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError


def count_items(draws: Any) -> tuple[Tensor, Tensor]:
    """Distinct item numbers (B,), ascending, of ``draws`` (N,), and how often each was drawn (B,).

    A mixture of softmax distributions needs no more than these: ``model(items, counts)``, counts as
    row weights.

    :raises DataError: for draws that are no integers (N,), or negative.

    >>> count_items([4, 1, 4])
    (tensor([1, 4]), tensor([1, 2]))
    """
    draws = as_rows(draws)
    if (
        draws.dim() != 1
        or draws.is_floating_point()
        or draws.is_complex()
        or draws.dtype == torch.bool
    ):
        raise DataError(
            f"draws are {draws.dtype} {tuple(draws.shape)}, but must be item numbers: integers (N,)"
        )
    if len(draws) and int(draws.min()) < 0:
        raise DataError(f"draws hold the item {int(draws.min())}: items are numbered from zero")
    items, counts = torch.unique(draws, return_counts=True)
    return items.long(), counts
