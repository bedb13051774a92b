"""The weight of a row that leaves its part, and what stays behind."""

from typing import NamedTuple

import torch
from torch import Tensor

# What of a part's weight may be rounding, in units of it.
_ROUNDING = 16


class Leaving(NamedTuple):
    """Of each row (B,), in float64: its weight, that of the others of its part, whether there are others."""

    weight: Tensor
    rest: Tensor  # one where there are none
    others: Tensor

    @property
    def ratio(self) -> Tensor:
        """Its weight over that of the others, zero where there are none."""
        return torch.where(self.others, self.weight / self.rest, 0.0)


def leaving(
    total: Tensor, index: Tensor, weight: Tensor | None, size: Tensor | float = 1.0
) -> Leaving:
    """Rows of ``weight`` (B,), one each by default, times their ``size`` leave parts ``index`` of ``total`` (C,).

    >>> gone = leaving(torch.tensor([3.0, 1.0]), torch.tensor([0, 1]), None)
    >>> gone.rest.tolist(), gone.others.tolist()
    ([2.0, 1.0], [True, False])
    """
    given = torch.ones_like(total[index]) if weight is None else weight
    coarse = max(torch.finfo(t.dtype).eps for t in (total, given))
    whole, mass = total.double()[index], given.double() * size
    rest = whole - mass
    others = rest > _ROUNDING * coarse * whole
    return Leaving(given.double(), torch.where(others, rest, 1.0), others)
