"""Dead components: re-seeded by splitting a large component at one of its rows."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.poutine import Posterior
from pyro_mixtures.poutine.statistics import SiteStatistics

_ROWS_A_BATCH = 256


class Split(NamedTuple):
    """``component`` takes half of the rows of ``like``, its mean at row ``row`` of the reservoir."""

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
            if value is not None and len(value) == len(posterior.index) and value.is_floating_point():
                pick = pick[value[pick].reshape(len(pick), -1).isfinite().all(-1)]
        self.winners.append(posterior.winner[pick])
        for name, value in rows.items():
            if value is not None and len(value) == len(posterior.index):
                self.rows.setdefault(name, []).append(value[pick])

    def row(self, site: str, number: int) -> Tensor | None:
        """Row ``number`` as ``site`` observed it."""
        return torch.cat(self.rows[site])[number] if site in self.rows else None


def choose_splits(reservoir: Reservoir, count: Tensor, least: int) -> list[Split]:
    """Pair components with fewer than ``least`` expected rows with rows of components that can spare half of theirs."""
    dead = (count < least).nonzero()[:, 0].tolist()
    if not dead or not reservoir.winners:
        return []
    winners = torch.cat(reservoir.winners)
    can_split = count.to(winners.device)[winners] >= 2 * max(1, least)
    splits: list[Split] = []
    used: set[int] = set()
    # Rows of the largest components first.
    order = torch.argsort(torch.where(can_split, count.to(winners.device)[winners], -1.0), descending=True, stable=True)
    for row in order[: int(can_split.sum())].tolist():
        like = int(winners[row])
        if len(splits) == len(dead):
            break
        if like not in used:
            used.add(like)
            splits.append(Split(dead[len(splits)], like, row))
    return splits


def halve_weights(values: dict[str, Tensor], split: Split) -> None:
    """Share the weight of the split component in the new arguments ``values`` of the MixtureWeights."""
    for argument, value in values.items():
        value[split.like] = value[split.like] / 2 if argument == "probs" else value[split.like] - math.log(2)
        value[split.component] = value[split.like]


def copy_component(site: str, found: SiteStatistics, split: Split, reservoir: Reservoir) -> None:
    """Make the component's own params at ``site`` a copy of those it is split off, its mean moved towards the row."""
    for argument, handle in found.params.items():
        if not found.family.is_own(argument):
            continue
        row = reservoir.row(site, split.row) if argument == found.family.location else None
        if row is None:
            handle.copy_row(split.component, split.like)
        else:
            loc = found.family.split_loc(split.like, row.to(handle.leaf))
            handle.write(loc.unsqueeze(0), slice(split.component, split.component + 1))
