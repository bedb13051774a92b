"""What rows pay for the parts of a hard partition, by leave-one-out gains in their own; how many a part needs."""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_mixtures.distributions import Selected
from pyro_mixtures.guides.hard_blocks import Blocks
from pyro_mixtures.poutine import Joint, ProgramStructure
from pyro_mixtures.poutine.leave_one_out import LeaveOneOutMessenger

SCORES = ("loss", "leave_one_out", "modular_bound")


class FewestRows(Messenger):
    """Reads how many rows a part needs to be fitted: after a run ``rows`` is the most that any site asks for."""

    def __init__(self, structure: ProgramStructure):
        super().__init__()
        self.structure, self.rows = structure, 1

    def _pyro_post_sample(self, msg) -> None:
        if msg["name"] in self.structure.observed:
            fn = msg["fn"].base_dist if isinstance(msg["fn"], MaskedDistribution) else msg["fn"]
            # Of stock distributions low-rank normals ask for most: two more than their rank.
            own = fn.family.min_rows if isinstance(fn, Selected) else fn.event_shape.numel() + 2
            self.rows = max(self.rows, own)


class Gains:
    """What rows add to their parts, collected while ``watch(model)`` runs, one block beside the other.

    :param statistics: by site, of the partition ``labels`` (R, N) of local numbers, -1 for rows
        without a part.
    """

    def __init__(
        self,
        d: ProgramStructure,
        statistics: Mapping[str, Any],
        labels: Tensor,
        blocks: Blocks,
        score: str,
    ):
        numbers = torch.where(labels >= 0, blocks.numbered(labels), -1)
        alone = score == "modular_bound"
        # Losses of rows by themselves belong to all components: one of the messengers collects
        # them.
        self.messengers = [
            LeaveOneOutMessenger(d, statistics, own, alone and block == 0)
            for block, own in enumerate(numbers)
        ]

    def watch(self, model: Callable) -> Callable:
        """``model``, its runs looked at."""
        return reduce(lambda program, messenger: messenger(program), self.messengers, model)

    @property
    def total(self) -> Tensor:
        """Gains (R, B)."""
        return torch.stack([messenger.total for messenger in self.messengers])

    @property
    def alone(self) -> Tensor | None:
        """Losses (C, B) of rows by themselves, if the score wants them."""
        return self.messengers[0].alone


def paid(joint: Joint, before: Tensor, blocks: Blocks, gains: Gains | None, alpha: float) -> Tensor:
    """Costs (C, B) of rows that were in parts ``before`` (R, B): their losses, but ``alpha`` times the gain there."""
    cost = -joint.log_joint
    if gains is None:
        return cost
    prior = joint.log_density - joint.log_joint
    if gains.alone is not None:
        cost = (gains.alone + prior) / alpha
    own = alpha * (gains.total + blocks.at(prior.expand(cost.shape), before.clamp_min(0)))
    # A row that is masked, or that nobody has seen before, has no part of its own.
    block, row = ((before >= 0) & own.isfinite()).nonzero(as_tuple=True)
    return cost.index_put((blocks.numbered(before)[block, row], row), own[block, row].to(cost))
