r"""Dead components: re-seeded by splitting a large component at one of its rows.

A split may cost the step its gain. With responsibilities q at the parameters that the step would
have had without it, a row is left at least :math:`1 - q(empty) - q(like) / 2` of its evidence: the
half that stays, and all other components. So the loss is at most :math:`-\sum_n \log(1 - q_n(empty)
- q_n(like) / 2)` above that of the step without a split: at most log 2 for each expected row of the
component that is split, where the dead one has no rows. What a split gains comes with the steps
after it. Components that die again after a split wait longer and longer for the next.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.poutine import Posterior
from pyro_mixtures.poutine.statistics import SiteStatistics

_ROWS_A_BATCH = 256


class Split(NamedTuple):
    """``component`` takes half of the rows of ``like``, towards row ``row`` of the reservoir."""

    component: int
    like: int
    row: int


class Reservoir:
    """A few rows of every batch with their winning components: where dead components may start again."""

    def __init__(self) -> None:
        self.winners: list[Tensor] = []
        self.rows: dict[str, list[Tensor]] = {}

    def add(self, posterior: Posterior, rows: Mapping[str, Tensor | None]) -> None:
        """Keep evenly spaced rows of the batch (of those that are not masked)."""
        step = max(1, len(posterior.index) // _ROWS_A_BATCH)
        weight = posterior.row_weight[::step]
        pick = torch.arange(0, len(posterior.index), step, device=weight.device)[weight > 0]
        for value in rows.values():
            if (
                value is not None
                and len(value) == len(posterior.index)
                and value.is_floating_point()
            ):
                pick = pick[
                    value[pick].reshape(len(pick), value.shape[1:].numel()).isfinite().all(-1)
                ]
        self.winners.append(posterior.winner[pick])
        for name, value in rows.items():
            if value is not None and len(value) == len(posterior.index):
                self.rows.setdefault(name, []).append(value[pick])

    def row(self, site: str, number: int) -> Tensor | None:
        """Row ``number`` as ``site`` observed it."""
        return torch.cat(self.rows[site])[number] if site in self.rows else None


class Pauses:
    """How long components wait that have died again after a split: twice as many steps from one such death to the next.

    Where a mixture has more components than its data tell apart, a split brings one to life and
    starves another in turn; so they all share one pause. A component that dies for the first time
    does not wait.
    """

    def __init__(self) -> None:
        self._alive: set[int] = (
            set()
        )  # components that were split off, and have had rows enough since
        self._again: set[int] = set()  # those of them that have died since
        self._pause, self._until = 1, 0

    def ready(self, empty: list[int], step: int) -> list[int]:
        """The components among the ``empty`` that may be split off another at ``step``, of all steps in turn."""
        died = self._alive.intersection(empty)
        if died:
            self._alive -= died
            self._again |= died
            self._pause *= 2
            self._until = step + self._pause
        return [c for c in empty if c not in self._again or step >= self._until]

    def record(self, splits: Iterable[Split]) -> None:
        """Remember what was split off."""
        for split in splits:
            self._again.discard(split.component)
            self._alive.add(split.component)


def choose_splits(
    reservoir: Reservoir,
    count: Tensor,
    least: int,
    empty: list[int],
    generator: torch.Generator | None = None,
) -> list[Split]:
    """Pair ``empty`` components with rows of components that can spare half of theirs, of ``least`` rows or more.

    Of each the first row in the reservoir, or a random one of the ``generator``.
    """
    if not empty or not reservoir.winners:
        return []
    winners = torch.cat(reservoir.winners)
    can_split = count.to(winners.device)[winners] >= 2 * max(1, least)
    splits: list[Split] = []
    used: set[int] = set()
    # Rows of the largest components first.
    shuffled = _order(len(winners), generator).to(winners.device)
    size = torch.where(can_split, count.to(winners.device)[winners], -1.0)[shuffled]
    order = shuffled[torch.argsort(size, descending=True, stable=True)]
    for row in order[: int(can_split.sum())].tolist():
        like = int(winners[row])
        if len(splits) == len(empty):
            break
        if like not in used:
            used.add(like)
            splits.append(Split(empty[len(splits)], like, row))
    return splits


def _order(count: int, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return torch.arange(count, device="cpu")
    return torch.randperm(count, generator=generator, device="cpu")


def copy_component(site: str, found: SiteStatistics, split: Split, reservoir: Reservoir) -> None:
    """Make the component's own params at ``site`` those of a half split off another, as the family has it."""
    new = found.family.split(split.like, reservoir.row(site, split.row), found.sums)
    for argument, handle in found.params.items():
        if argument in new:
            handle.write(new[argument].unsqueeze(0), slice(split.component, split.component + 1))
        elif found.family.is_per_component(argument):
            handle.copy_row(split.component, split.like)
