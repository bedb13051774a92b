"""One value of each of a model's latent sites other than z, chosen without side effects."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_mixtures.data.rows import spaced_rows
from pyro_mixtures.infer.em.fit import Fit
from pyro_mixtures.infer.restarts.stored_fits import preserved_random_state


class LatentPoint(NamedTuple):
    """Values of the latent sites other than z."""

    values: dict[str, Tensor]
    kind: str  # "the guide's median", or "one draw of the guide"

    def __str__(self) -> str:
        return f"{', '.join(sorted(self.values))} at {self.kind}" if self.values else ""


def latent_point(fit: Fit, rows: Sequence[Tensor], seed: int = 0) -> LatentPoint:
    """Return the median of the global guide, or a draw from it if it has no median.

    :param fit: the fit whose guide is used.
    :param rows: the model's tensor arguments.
    :param seed: of the draw.
    """
    guide = fit.guide
    with _temporary_seed(seed, rows), pyro.poutine.block(), torch.no_grad():
        names = guide.read(*spaced_rows(rows, guide.components)).latent
        # The first call of an autoguide sets it up and uses random numbers for that.
        guide.latent_values(*rows)
        pyro.set_rng_seed(seed)
        draw = guide.latent_values(*rows)
        median = _median(guide.global_guide, rows)
    has_median = set(names) <= median.keys()
    values = median if has_median else draw
    kind = "the guide's median" if has_median else "one draw of the guide"
    return LatentPoint({name: values[name] for name in names if name in values}, kind)


@contextmanager
def isolated_randomness(generator: torch.Generator | None) -> Iterator[torch.Generator]:
    """Yield the only source of randomness of the context, and restore Pyro's random state.

    :param generator: the source; None for a copy of torch's global generator.

    >>> with isolated_randomness(None) as generator:
    ...     drawn = torch.rand((), generator=generator, device="cpu")
    >>> bool(drawn == torch.rand((), device="cpu"))
    True
    """
    with preserved_random_state():
        if generator is None:
            yield torch.Generator("cpu").set_state(torch.get_rng_state())
        else:
            yield generator


def _median(global_guide: Any, rows: Sequence[Tensor]) -> dict[str, Tensor]:
    """The medians of an autoguide; nothing for other guides and for autoguides without median.

    An ``AutoGuideList`` omits the sites of members that have no median.
    """
    if not isinstance(global_guide, AutoGuide):
        return {}
    try:
        medians: dict[str, Tensor] = global_guide.median(*rows)
    except NotImplementedError:
        return {}
    return medians


@contextmanager
def _temporary_seed(seed: int, rows: Sequence[Tensor]) -> Iterator[None]:
    """Seed Pyro and the devices of the rows, and restore their random states at the end."""
    devices = sorted({tensor.device.index or 0 for tensor in rows if tensor.is_cuda})
    with preserved_random_state(), torch.random.fork_rng(devices=devices):
        pyro.set_rng_seed(seed)
        yield
