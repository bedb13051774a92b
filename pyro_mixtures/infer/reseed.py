"""Dead components: re-seeded by splitting a large component at one of its rows."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.distributions import MixtureWeights
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
                pick = pick[value[pick].flatten(1).isfinite().all(-1)]
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


def copy_split(
    values: dict[str, dict[str, Tensor]], sites: Mapping[str, SiteStatistics], split: Split, reservoir: Reservoir
) -> None:
    """Write the split into the new parameter ``values`` of all sites: a copy, moved to the row, of half the weight."""
    new, old = split.component, split.like
    for name, arguments in values.items():
        family = sites[name].family
        for argument, value in arguments.items():
            if isinstance(family, MixtureWeights):
                value[old] = value[old] / 2 if argument == "probs" else value[old] - math.log(2)
                value[new] = value[old]
            elif family.is_own(argument):
                row = reservoir.row(name, split.row) if argument == "loc" else None
                value[new] = value[old] if row is None else row
