"""Costs of assigning rows to components, and the number of rows that a cluster needs."""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_mixtures.distributions import Selected
from pyro_mixtures.poutine import Joint, ProgramStructure
from pyro_mixtures.poutine.leave_one_out import LeaveOneOutMessenger

SCORES = ("loss", "leave_one_out", "modular_bound")


class MinimumRowsMessenger(Messenger):
    """Reads how many rows a cluster needs for the model's parameters to be fitted.

    After a run, ``rows`` is the largest number that an observed site asks for.
    """

    def __init__(self, structure: ProgramStructure):
        super().__init__()
        self.structure = structure
        self.rows = 1

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.structure.observed:
            fn = msg["fn"].base_dist if isinstance(msg["fn"], MaskedDistribution) else msg["fn"]
            # Of stock distributions low-rank normals need most: two rows more than their rank.
            needed = fn.family.min_rows if isinstance(fn, Selected) else fn.event_shape.numel() + 2
            self.rows = max(self.rows, needed)


class LeaveOneOutGains:
    """What rows add to the minimal losses of their clusters, in each of R partitions.

    The gains are collected while ``watch(model)`` runs.

    :param statistics: sufficient statistics by site, of the partitions ``components``.
    :param components: (R, N) the component of each row, -1 for rows without one.
    :param score: ``"modular_bound"`` also collects the losses of rows by themselves.
    """

    def __init__(
        self,
        structure: ProgramStructure,
        statistics: Mapping[str, Any],
        components: Tensor,
        score: str,
    ):
        # Losses of rows by themselves are the same in all partitions: one messenger collects them.
        self.messengers = [
            LeaveOneOutMessenger(
                structure, statistics, row_components, score == "modular_bound" and number == 0
            )
            for number, row_components in enumerate(components)
        ]

    def watch(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``model`` with its runs observed."""
        return reduce(lambda program, messenger: messenger(program), self.messengers, model)

    @property
    def total(self) -> Tensor:
        """Gains (R, B)."""
        return torch.stack([messenger.total for messenger in self.messengers])

    @property
    def alone(self) -> Tensor | None:
        """Losses (C, B) of rows by themselves, if the score needs them."""
        return self.messengers[0].alone


def assignment_costs(
    joint: Joint, components: Tensor, gains: LeaveOneOutGains | None, alpha: float
) -> Tensor:
    """Return the costs (C, B) of assigning each row to each component, in nats.

    The cost is the row's loss under the component. With ``gains``, the cost of the component that
    the row is assigned to is ``alpha`` times the row's gain there.

    :param components: (R, B) the component that each row is assigned to in each of R partitions,
        -1 for none.
    """
    costs = -joint.log_joint
    if gains is None:
        return costs
    prior = joint.log_density - joint.log_joint
    if gains.alone is not None:
        costs = (gains.alone + prior) / alpha
    assigned_prior = prior.expand(costs.shape).gather(0, components.clamp_min(0))
    assigned_costs = alpha * (gains.total + assigned_prior)
    # Masked rows, and rows that were not seen before, are assigned to no component.
    partition, row = ((components >= 0) & assigned_costs.isfinite()).nonzero(as_tuple=True)
    return costs.index_put(
        (components[partition, row], row), assigned_costs[partition, row].to(costs)
    )


def cheapest_clusters(costs: Tensor, labels: Tensor) -> Tensor:
    """Return the labels (R, B) of least cost; rows keep their ``labels`` if none is less.

    :param costs: (R, K, B) of R partitions into K clusters.
    :param labels: (R, B) in [0, K), -1 for none.
    """
    least, best = costs.min(1)  # several times faster than argmin
    current = costs.gather(1, labels.clamp_min(0).unsqueeze(1))[:, 0]
    return torch.where((labels >= 0) & (current <= least), labels, best)
