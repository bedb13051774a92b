"""The closed-form M-step of one site: maximize its statistics and write its params."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.distributions import Components
from pyro_mixtures.distributions.statistics import subset
from pyro_mixtures.infer.em.reseed import Split
from pyro_mixtures.ops.kernels.threads import run_tasks, thread_count
from pyro_mixtures.poutine.statistics import SiteStatistics

# Numbers of parameters that are maximized at once.
_NUMBERS_PER_BLOCK = 1 << 19


class MStep(NamedTuple):
    """Options of the M-step, and the update of each site's params."""

    freeze: frozenset[str]  # names of params that stay as they are
    variance_floor: float  # as a fraction of the variances of the data

    def free(self, site: SiteStatistics) -> frozenset[str]:
        """Return the names of the site's arguments whose params are estimated."""
        return frozenset(
            name
            for name, handle in site.params.items()
            if handle.name not in self.freeze and handle.leaf.requires_grad
        )

    def update_weights(
        self, site: SiteStatistics, splits: list[Split], dropped: Tensor | None
    ) -> None:
        """Set the discrete site's params; both halves of a split component get half its weight."""
        new = site.family.maximize(site.sums, self.free(site), dropped=dropped)
        for split in splits:
            site.family.halve(new, split.component, split.like)
        _write(site, new)

    def update_components(self, site: SiteStatistics, empty: Tensor) -> None:
        """Set an observed site's params.

        Blocks of components are maximized in turn, so that large parameters are never copied as a
        whole.

        :param empty: (C,) components with too few rows, which keep their parameters.
        """
        free, family = self.free(site), site.family
        floor = family.floor(site.sums, self.variance_floor)
        tied = [name for name in free if not family.is_per_component(name)]
        if tied or len(family.batch_shape) != 1 or not family.maximizes_in_blocks:
            _write(site, _maximum(family, site.sums, free, floor, empty))
            return
        numbers = sum(
            value[:1].numel()
            for name, value in family.arguments.items()
            if family.is_per_component(name)
        )
        per_thread = -(-family.components // thread_count())
        step = max(1, min(_NUMBERS_PER_BLOCK // max(1, numbers), per_thread))

        @torch.no_grad()  # a setting of the thread
        def update_block(i: int) -> None:
            block = slice(i * step, (i + 1) * step)
            components, sums = family.subset(block), subset(site.sums, block)
            _write(site, _maximum(components, sums, free, floor, empty[block]), block)

        run_tasks(update_block, -(-family.components // step))


def _write(site: SiteStatistics, new: dict[str, Tensor], *block: slice) -> None:
    for name, value in new.items():
        site.params[name].write(value, *block)


def _maximum(
    family: Components, sums: Any, free: frozenset[str], floor: Tensor | None, empty: Tensor
) -> dict[str, Tensor]:
    statistics = family.finish(sums)
    new, old = family.maximize(statistics, free, floor=floor), family.arguments
    per_component = {
        name: _keep_empty(empty, old[name], value)
        for name, value in new.items()
        if family.is_per_component(name)
    }
    tied = free - per_component.keys()
    if not tied or not bool(empty.any()):
        return {**new, **per_component}
    # Tied arguments have to fit the parameters that empty components keep, not their maximizers.
    with_empty = family.with_arguments({**old, **per_component})
    return {**per_component, **with_empty.maximize(statistics, tied, floor=floor)}


def _keep_empty(empty: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Put the ``old`` parameters of ``empty`` components back into ``new``, in place."""
    numbers = empty.nonzero()[:, 0]
    if len(numbers):
        new[numbers] = old.reshape(new.shape)[numbers]
    return new
