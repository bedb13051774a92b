"""Rows for parts that have become empty: the worst fitted ones of another part."""

import torch
from torch import Tensor

# Badly fitted rows kept of every batch.
_WORST = 256


class WorstRows:
    """The most badly fitted rows of a pass in each of R blocks, at least ``keep`` of every batch.

    >>> worst = WorstRows(keep=2)
    >>> worst.add(torch.tensor([[0.5, 3.0, 1.0]]), torch.tensor([7, 8, 9]))
    >>> [rows.tolist() for rows in worst.in_order()]
    [[8, 9, 7]]
    """

    def __init__(self, keep: int = 0):
        self.keep = max(_WORST, keep)
        self.clear()

    def clear(self) -> None:
        """Forget them, for a new pass."""
        self._losses: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, loss: Tensor, index: Tensor) -> None:
        """Rows ``index`` (B,) of ``loss`` (R, B); -inf leaves a row out."""
        worst = loss.topk(min(self.keep, loss.shape[1]), dim=1)
        self._losses.append(worst.values.to("cpu", torch.float64))
        self._rows.append(index[worst.indices].to("cpu"))

    def in_order(self) -> list[Tensor]:
        """Row numbers of each block, the worst first; no blocks before anything was added."""
        if not self._rows:
            return []
        loss, rows = torch.cat(self._losses, 1), torch.cat(self._rows, 1)
        order = loss.argsort(dim=1, descending=True, stable=True)
        counts = loss.isfinite().sum(1).tolist()
        return [some[:count] for some, count in zip(rows.gather(1, order), counts, strict=True)]


def rows_for_empty(
    labels: Tensor, worst: Tensor, parts: int, *, fewest: int = 1, capacity: int | None = None
) -> Tensor | None:
    """The empty part (N,) that each row is to be moved to, -1 for rows that stay; None where nothing is to be moved.

    Every empty part gets rows of one other, of which the worst fitted one is: half of them at most.
    Fitted by themselves they cost no more than where they were, and neither do those that are left.

    :param labels: (N,) parts of the rows, -1 for rows without one.
    :param worst: row numbers, the worst fitted first.
    :param parts: K.
    :param fewest: rows that a part needs to be fitted; parts that would get less stay empty.
    :param capacity: largest number of rows of a cluster. Empty parts are closed while rows are
        moved to them: nothing is moved where the others have no room for all rows.

    >>> rows_for_empty(torch.tensor([0, 0, 0, 0]), torch.tensor([2, 1, 0, 3]), 2)
    tensor([-1,  1,  1, -1], dtype=torch.int32)
    """
    sizes = torch.bincount(labels[labels >= 0].long(), minlength=parts)
    empty = (sizes == 0).nonzero()[:, 0].tolist()
    if not empty or (capacity is not None and capacity * (parts - len(empty)) < int(sizes.sum())):
        return None
    moves = torch.full((len(labels),), -1, dtype=torch.int32, device="cpu")
    for part in empty:
        free = worst[moves[worst] < 0]
        spare = (sizes // 2).clamp_max(len(labels) if capacity is None else capacity)
        taken = _of_one_part(free, labels[free].long(), spare, fewest)
        sizes -= torch.bincount(labels[taken].long(), minlength=parts)
        moves[taken] = part
    return moves if bool((moves >= 0).any()) else None


def _of_one_part(rows: Tensor, labels: Tensor, spare: Tensor, fewest: int) -> Tensor:
    """The first of ``rows`` (M,) of one part, as many as it can ``spare`` (K,); of the first part with ``fewest``."""
    have = torch.bincount(labels, minlength=len(spare)).minimum(spare)
    able = (have[labels] >= max(1, fewest)).nonzero()[:, 0]
    if not len(able):
        return rows[:0]
    donor = labels[able[0]]
    return rows[labels == donor][: int(have[donor])]
