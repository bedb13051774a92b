"""The weight of a row that leaves its cluster, and the weight of the rows that remain."""

from typing import NamedTuple

import torch
from torch import Tensor

# A remaining weight of fewer units of rounding of the cluster's weight counts as zero.
_ROUNDING = 16


class Leaving(NamedTuple):
    """The weights of rows (B,) and of the other rows of their clusters, in float64."""

    weight: Tensor  # of each row
    rest: Tensor  # total weight of the other rows of its cluster; one where there are none
    others: Tensor  # whether there are any

    @property
    def ratio(self) -> Tensor:
        """The row's weight over that of the other rows, zero where there are none."""
        return torch.where(self.others, self.weight / self.rest, 0.0)


def leaving(
    total: Tensor, index: Tensor, weight: Tensor | None, size: Tensor | float = 1.0
) -> Leaving:
    """Compute what remains of each row's cluster without the row.

    :param total: (C,) total weights of the clusters.
    :param index: (B,) cluster of each row.
    :param weight: (B,) weights of the rows; one each by default.
    :param size: how many rows a row counts for in ``total``, if not one.

    >>> left = leaving(torch.tensor([3.0, 1.0]), torch.tensor([0, 1]), None)
    >>> left.rest.tolist(), left.others.tolist()
    ([2.0, 1.0], [True, False])
    """
    row_weight = torch.ones_like(total[index]) if weight is None else weight
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (total, row_weight))
    cluster_weight, row_mass = total.double()[index], row_weight.double() * size
    rest = cluster_weight - row_mass
    others = rest > _ROUNDING * eps * cluster_weight
    return Leaving(row_weight.double(), torch.where(others, rest, 1.0), others)
