"""Re-seeding of empty clusters with the rows that fit another cluster worst."""

import torch
from torch import Tensor

# Rows that are stored per batch, at least.
_ROWS_PER_BATCH = 256


class WorstRows:
    """The rows of largest loss of a pass over the data, in each of R blocks.

    :param keep: smallest number of rows that are stored per batch.

    >>> worst = WorstRows(keep=2)
    >>> worst.add(torch.tensor([[0.5, 3.0, 1.0]]), torch.tensor([7, 8, 9]))
    >>> [rows.tolist() for rows in worst.in_order()]
    [[8, 9, 7]]
    """

    def __init__(self, keep: int = 0):
        self.keep = max(_ROWS_PER_BATCH, keep)
        self.clear()

    def clear(self) -> None:
        """Delete all rows, before a new pass."""
        self._losses: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, loss: Tensor, index: Tensor) -> None:
        """Add a batch of rows.

        :param loss: (R, B) losses in each block; -inf leaves a row out.
        :param index: (B,) row numbers.
        """
        worst = loss.topk(min(self.keep, loss.shape[1]), dim=1)
        self._losses.append(worst.values.to("cpu", torch.float64))
        self._rows.append(index[worst.indices].to("cpu"))

    def in_order(self) -> list[Tensor]:
        """Return the row numbers of each block, largest loss first; empty before any batch."""
        if not self._rows:
            return []
        loss, rows = torch.cat(self._losses, 1), torch.cat(self._rows, 1)
        order = loss.argsort(dim=1, descending=True, stable=True)
        counts = loss.isfinite().sum(1).tolist()
        blocks = zip(rows.gather(1, order), counts, strict=True)
        return [block_rows[:count] for block_rows, count in blocks]


def moves_to_empty_clusters(
    labels: Tensor, worst: Tensor, clusters: int, *, min_rows: int = 1, capacity: int | None = None
) -> Tensor | None:
    """Choose rows to re-seed the empty clusters.

    Each empty cluster gets up to half of the rows of one other cluster, the worst-fitting ones
    first. The loss cannot rise: neither the moved rows nor the remaining ones lose when a cluster
    is fitted to them alone.

    :param labels: (N,) clusters of the rows, -1 for rows without one.
    :param worst: row numbers, largest loss first.
    :param clusters: K.
    :param min_rows: rows that are needed to fit a cluster. A cluster that would get fewer stays
        empty.
    :param capacity: largest number of rows of a cluster. Empty clusters take no other rows while
        rows are moved to them: nothing is moved if the other clusters cannot hold all rows.
    :returns: (N,) int32 the empty cluster to which each row moves, -1 for rows that stay; None if
        no row moves.

    >>> moves_to_empty_clusters(torch.tensor([0, 0, 0, 0]), torch.tensor([2, 1, 0, 3]), 2)
    tensor([-1,  1,  1, -1], dtype=torch.int32)
    """
    sizes = torch.bincount(labels[labels >= 0].long(), minlength=clusters)
    empty = (sizes == 0).nonzero()[:, 0].tolist()
    if not empty:
        return None
    if capacity is not None and capacity * (clusters - len(empty)) < int(sizes.sum()):
        return None
    moves = torch.full((len(labels),), -1, dtype=torch.int32, device="cpu")
    for cluster in empty:
        unmoved = worst[moves[worst] < 0]
        limits = (sizes // 2).clamp_max(len(labels) if capacity is None else capacity)
        moved = _rows_of_one_cluster(unmoved, labels[unmoved].long(), limits, min_rows)
        sizes -= torch.bincount(labels[moved].long(), minlength=clusters)
        moves[moved] = cluster
    return moves if bool((moves >= 0).any()) else None


def _rows_of_one_cluster(rows: Tensor, labels: Tensor, limits: Tensor, min_rows: int) -> Tensor:
    """Return the first of ``rows`` (M,) of one cluster, at most its entry of ``limits`` (K,).

    It is the cluster of the first row whose cluster can give ``min_rows``.
    """
    available = torch.bincount(labels, minlength=len(limits)).minimum(limits)
    candidates = (available[labels] >= max(1, min_rows)).nonzero()[:, 0]
    if not len(candidates):
        return rows[:0]
    donor = labels[candidates[0]]
    return rows[labels == donor][: int(available[donor])]
