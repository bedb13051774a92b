"""The closed-form M-step of one site: the maximisers of its statistics, written into its params."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.distributions import Components
from pyro_mixtures.distributions.statistics import subset
from pyro_mixtures.infer.em.reseed import Split
from pyro_mixtures.ops.kernels.threads import run_tasks, thread_count
from pyro_mixtures.poutine.statistics import SiteStatistics

# Numbers of parameters maximised at once.
_NUMBERS_A_PART = 1 << 19


class MStep(NamedTuple):
    """How sites are updated."""

    freeze: frozenset[str]  # names of params to hold fixed
    variance_floor: float

    def free(self, site: SiteStatistics) -> frozenset[str]:
        """Arguments of the site whose params are to be set."""
        return frozenset(
            name
            for name, handle in site.params.items()
            if handle.name not in self.freeze and handle.leaf.requires_grad
        )

    def update_weights(
        self, site: SiteStatistics, splits: list[Split], dropped: Tensor | None
    ) -> None:
        """Set the discrete site's params; a component that was split off has half of the other's weight."""
        new = site.family.maximize(site.sums, self.free(site), dropped=dropped)
        for split in splits:
            site.family.halve(new, split.component, split.like)
        _write(site, new)

    def update_components(self, site: SiteStatistics, empty: Tensor) -> None:
        """Maximise some components at a time, so that no second copy of large parameters is ever alive."""
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
        step = max(
            1, min(_NUMBERS_A_PART // max(1, numbers), -(-family.components // thread_count()))
        )

        @torch.no_grad()  # a setting of the thread
        def update_part(i: int) -> None:
            some = slice(i * step, (i + 1) * step)
            _write(
                site,
                _maximum(family.subset(some), subset(site.sums, some), free, floor, empty[some]),
                some,
            )

        run_tasks(update_part, -(-family.components // step))


def _write(site: SiteStatistics, new: dict[str, Tensor], *some: slice) -> None:
    for name, value in new.items():
        site.params[name].write(value, *some)


def _maximum(
    family: Components, sums: Any, free: frozenset[str], floor: Tensor | None, empty: Tensor
) -> dict[str, Tensor]:
    statistics = family.finish(sums)
    new, old = family.maximize(statistics, free, floor=floor), family.arguments
    own = {
        name: _keep(empty, old[name], value)
        for name, value in new.items()
        if family.is_per_component(name)
    }
    tied = free - own.keys()
    if not tied or not bool(empty.any()):
        return {**new, **own}
    # What components share has to suit the components that were held, not where they would have
    # gone.
    arguments: Any = {**old, **own}
    held = family.with_arguments(arguments)
    return {**own, **held.maximize(statistics, tied, floor=floor)}


def _keep(empty: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Leave the parameters of components without rows enough alone; ``new`` is overwritten."""
    held = empty.nonzero()[:, 0]
    if len(held):
        new[held] = old.reshape(new.shape)[held]
    return new
