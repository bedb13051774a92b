"""R partitions side by side: a mixture of R K components read as R blocks of K."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_mixtures.errors import OptionError

# Of what a block's share of the weights may be off: differences of log joints that are rounded.
_ROUNDING = 0.01


@dataclass(frozen=True)
class Blocks:
    """How the components of R mixtures of K lie in one of R K.

    Every row is in one part of each block. ``local`` numbers count within a block, from 0 to K - 1.

    >>> Blocks(2, 3).numbered(torch.tensor([[0, 2], [1, 1]]))
    tensor([[0, 2],
            [4, 4]])
    """

    count: int  # R
    parts: int  # K

    def numbered(self, local: Tensor) -> Tensor:
        """Numbers among all components, of ``local`` ones (R, ...)."""
        first = torch.arange(0, self.count * self.parts, self.parts, device=local.device)
        return local + first.reshape(-1, *(1,) * (local.dim() - 1))

    def each(self, table: Tensor) -> Tensor:
        """(R K, B) -> (R, K, B)."""
        return table.reshape(self.count, self.parts, table.shape[-1])

    def at(self, table: Tensor, local: Tensor) -> Tensor:
        """Entries (R, B) of ``table`` (R K, B)."""
        return table.gather(0, self.numbered(local))

    def cheapest(self, cost: Tensor, before: Tensor) -> Tensor:
        """Local number (R, B) of least ``cost`` (R K, B) in each block: that of ``before``, where no other is less."""
        least, best = self.each(cost).min(1)  # several times faster than argmin
        now = self.at(cost, before.clamp_min(0))
        return torch.where((before >= 0) & (now <= least), before, best)

    def check_shares(self, log_weights: Tensor) -> None:
        """Refuse weights (R K, B) that would couple the blocks.

        :raises OptionError: when a block has not 1 / R of their sum.
        """
        shares = self.each(log_weights).logsumexp(1).exp() * self.count
        off = (shares.isfinite() & ((shares - 1).abs() > _ROUNDING)).nonzero().tolist()
        for block, row in off[:1]:
            raise OptionError(
                f"block {block} has {float(shares[block, row]) / self.count:.3g} of the weights' sum, not 1 / "
                f"{self.count}: blocks need weights that are equal and constant, or params of the closed-form M-step "
                "(no gate, no empty='drop')"
            )


@dataclass
class Tally:
    """What a pass over the rows found in each block, (R,) float64 or int64 on the CPU."""

    loss: Tensor  # minus the ELBO, in nats
    objective: Tensor  # the losses of the rows where they are, without the prior of z
    moved: Tensor  # rows that changed their part
    reseeded: Tensor  # empty parts that rows were found for

    @classmethod
    def zero(cls, blocks: int) -> "Tally":
        """Nothing yet."""
        real, whole = torch.float64, torch.int64
        return cls(
            *(
                torch.zeros(blocks, dtype=dtype, device="cpu")
                for dtype in (real, real, whole, whole)
            )
        )
