r"""Re-seeding of empty components: a large component is split at one of its rows.

A split can lower the ELBO. Take responsibilities q at the parameters that the step would
have had without it. A row keeps at least the fraction :math:`1 - q(empty) - q(like) / 2` of its
likelihood: the half of the split component that stays, and all other components. So the loss is at
most :math:`-\sum_n \log(1 - q_n(empty) - q_n(like) / 2)` above that of the step without a split: at
most log 2 per expected row of the split component, if the empty one has no rows. The gain of a
split comes with the later steps. Components that become empty again after a split wait longer and
longer for the next one.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.poutine import Posterior
from pyro_mixtures.poutine.statistics import SiteStatistics

_ROWS_PER_BATCH = 256


class Split(NamedTuple):
    """``component`` takes half of the rows of ``like``, toward row ``row`` of the reservoir."""

    component: int
    like: int
    row: int


class Reservoir:
    """A few rows of every batch with their most probable components.

    Empty components are re-seeded at these rows.
    """

    def __init__(self) -> None:
        self.winners: list[Tensor] = []
        self.rows: dict[str, list[Tensor]] = {}  # observed values, by site

    def add(self, posterior: Posterior, rows: Mapping[str, Tensor | None]) -> None:
        """Keep evenly spaced rows of a batch, without masked rows and rows with missing values.

        :param rows: the observed rows of each site, None at the discrete site.
        """
        batch_size = len(posterior.index)
        observed = {
            site: value
            for site, value in rows.items()
            if value is not None and len(value) == batch_size
        }
        step = max(1, batch_size // _ROWS_PER_BATCH)
        weight = posterior.row_weight[::step]
        picked = torch.arange(0, batch_size, step, device=weight.device)[weight > 0]
        for value in observed.values():
            if value.is_floating_point():
                numbers = value[picked].reshape(len(picked), value.shape[1:].numel())
                picked = picked[numbers.isfinite().all(-1)]
        self.winners.append(posterior.winner[picked])
        for site, value in observed.items():
            self.rows.setdefault(site, []).append(value[picked])

    def row(self, site: str, number: int) -> Tensor | None:
        """Return row ``number`` as ``site`` observed it; None for a site without rows."""
        return torch.cat(self.rows[site])[number] if site in self.rows else None


class Pauses:
    """How many steps components wait that became empty again after a split.

    In a mixture with more components than the data distinguish, every split fills one component
    and empties another. Components that become empty again therefore share one pause, which
    doubles each time. A component that becomes empty for the first time does not wait.
    """

    def __init__(self) -> None:
        self._recovered: set[int] = set()  # split off, and with enough rows since then
        self._empty_again: set[int] = set()  # recovered, and empty since then
        self._pause, self._until = 1, 0

    def ready(self, empty: list[int], step: int) -> list[int]:
        """Return the components among ``empty`` that may be re-seeded at ``step``.

        It is to be called at every step.
        """
        emptied = self._recovered.intersection(empty)
        if emptied:
            self._recovered -= emptied
            self._empty_again |= emptied
            self._pause *= 2
            self._until = step + self._pause
        return [c for c in empty if c not in self._empty_again or step >= self._until]

    def record(self, splits: Iterable[Split]) -> None:
        """Note which components were split off."""
        for split in splits:
            self._empty_again.discard(split.component)
            self._recovered.add(split.component)


def choose_splits(
    reservoir: Reservoir,
    counts: Tensor,
    min_rows: int,
    empty: list[int],
    generator: torch.Generator | None = None,
) -> list[Split]:
    """Pair ``empty`` components with rows of the largest components, each of which is split once.

    A component is split if half of its rows are at least ``min_rows``.

    :param counts: expected rows (C,) of the components.
    :param generator: picks the row of each component at random; None takes the first row in the
        reservoir.
    """
    if not empty or not reservoir.winners:
        return []
    winners = torch.cat(reservoir.winners)
    sizes = counts.to(winners.device)[winners]
    can_split = sizes >= 2 * max(1, min_rows)
    splits: list[Split] = []
    used: set[int] = set()
    # Rows of the largest components first.
    shuffled = _order(len(winners), generator).to(winners.device)
    order = torch.where(can_split, sizes, -1.0)[shuffled].argsort(descending=True, stable=True)
    for row in shuffled[order][: int(can_split.sum())].tolist():
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


def copy_component(
    site: str, statistics: SiteStatistics, split: Split, reservoir: Reservoir
) -> None:
    """Set the component's own params at ``site`` to those of the half that is split off.

    The family defines which params differ from those of the split component; the others are copied.
    """
    family = statistics.family
    new = family.split(split.like, reservoir.row(site, split.row), statistics.sums)
    for argument, handle in statistics.params.items():
        if argument in new:
            component = slice(split.component, split.component + 1)
            handle.write(new[argument].unsqueeze(0), component)
        elif family.is_per_component(argument):
            handle.copy_row(split.component, split.like)
