"""Rows that fits do not see: a held-out set, or the folds of cross-validation."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer.restarts.component_path import Rows


class Fold(NamedTuple):
    """Row numbers to fit and row numbers to score; the rows are gathered on demand."""

    rows: Rows
    train: Tensor
    test: Tensor

    def train_rows(self) -> Rows:
        """Return the rows of the other folds."""
        return _gather(self.rows, self.train)

    def test_rows(self) -> Rows:
        """Return the rows of this fold."""
        return _gather(self.rows, self.test)


def make_folds(rows: Rows, count: int, generator: torch.Generator | None) -> list[Fold]:
    """Split the rows at random into ``count`` folds; each row is scored in exactly one of them.

    :returns: the folds; an empty list if ``count`` is 0.
    :raises OptionError: for a single fold, or more folds than rows.

    >>> first, second = make_folds((torch.arange(5),), 2, None)
    >>> sorted(torch.cat([*first.test_rows(), *second.test_rows()]).tolist())
    [0, 1, 2, 3, 4]
    """
    if count == 0:
        return []
    if count == 1 or count > len(rows[0]):
        raise OptionError(
            f"folds={count} for {len(rows[0])} rows: pass at least 2 folds, and no more than rows"
        )
    shuffled = torch.randperm(len(rows[0]), generator=generator, device="cpu")
    tests = shuffled.tensor_split(count)
    return [
        Fold(rows, train=torch.cat(tests[:k] + tests[k + 1 :]), test=test)
        for k, test in enumerate(tests)
    ]


def heldout_rows(heldout: Tensor | Sequence[Tensor] | None, rows: Rows) -> Rows | None:
    """Return ``heldout`` as one tensor for each of ``rows``.

    :raises DataError: if the number of tensors or the shape of a row differs.
    """
    if heldout is None:
        return None
    tensors = Batches(heldout if isinstance(heldout, tuple | list) else (heldout,)).tensors
    heldout_shapes, fitted_shapes = _row_shapes(tensors), _row_shapes(rows)
    if heldout_shapes != fitted_shapes:
        raise DataError(
            f"rows of heldout= have shapes {heldout_shapes}, those of the fit {fitted_shapes}: "
            "pass one tensor for each of the fit's, with rows of the same shape"
        )
    return tensors


def _gather(rows: Rows, index: Tensor) -> Rows:
    return tuple(tensor[index.to(tensor.device)] for tensor in rows)


def _row_shapes(rows: Rows) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape[1:]) for tensor in rows]
