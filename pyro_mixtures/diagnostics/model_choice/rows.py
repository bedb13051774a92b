"""Rows that fits do not see: held out once for all, or fold by fold."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer.restarts.path import Rows


class Fold(NamedTuple):
    """Row numbers to fit to, and those to score; their rows are gathered when they are asked for."""

    rows: Rows
    train: Tensor
    test: Tensor

    def training(self) -> Rows:
        """Rows of the other folds."""
        return tuple(tensor[self.train.to(tensor.device)] for tensor in self.rows)

    def testing(self) -> Rows:
        """Rows of this fold."""
        return tuple(tensor[self.test.to(tensor.device)] for tensor in self.rows)


def folds_of(rows: Rows, count: int, generator: torch.Generator | None) -> list[Fold]:
    """``count`` folds drawn at random; each row is scored in one of them.

    :raises OptionError: for a single fold, or more than rows.

    >>> one, other = folds_of((torch.arange(5),), 2, None)
    >>> sorted(torch.cat([*one.testing(), *other.testing()]).tolist())
    [0, 1, 2, 3, 4]
    """
    if count == 0:
        return []
    if count == 1 or count > len(rows[0]):
        raise OptionError(
            f"folds={count} of {len(rows[0])} rows: give at least 2, and no more than rows"
        )
    parts = torch.randperm(len(rows[0]), generator=generator, device="cpu").tensor_split(count)
    return [Fold(rows, torch.cat(parts[:k] + parts[k + 1 :]), part) for k, part in enumerate(parts)]


def heldout_rows(heldout: Any, rows: Rows) -> Rows | None:
    """``heldout`` as one tensor for each of ``rows``.

    :raises DataError: when shapes of rows differ.
    """
    if heldout is None:
        return None
    tensors = Batches(heldout if isinstance(heldout, tuple | list) else (heldout,)).tensors
    given, wanted = ([tuple(tensor.shape[1:]) for tensor in several] for several in (tensors, rows))
    if given != wanted:
        raise DataError(
            f"rows of heldout= have shapes {given}, those of the fit {wanted}: give one tensor for each"
        )
    return tensors
