"""Where a fit is looked at: one value of each of the model's other latent sites; and no random state moves."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_mixtures.data.rows import spaced_rows
from pyro_mixtures.infer.em.fit import Fit
from pyro_mixtures.infer.restarts.stored_fits import preserved_random_state


class Point(NamedTuple):
    """Values of the latent sites besides z."""

    values: dict[str, Tensor]
    kind: str  # of the values: "the guide's median", or "one draw of the guide"

    def __str__(self) -> str:
        return f"{', '.join(sorted(self.values))} at {self.kind}" if self.values else ""


def point_of(fit: Fit, rows: Sequence[Tensor], seed: int = 0) -> Point:
    """The median of the guide beside where it is an autoguide that has one, otherwise its draw with this ``seed``."""
    guide = fit.guide
    with _seeded(seed, rows), pyro.poutine.block(), torch.no_grad():
        names = guide.read(*spaced_rows(rows, guide.components)).latent
        guide.latent_values(
            *rows
        )  # an autoguide's first call sets it up, from random numbers of its own
        pyro.set_rng_seed(seed)
        drawn = guide.latent_values(*rows)
        median = _median(guide.global_guide, rows)
    known = set(names) <= median.keys()
    values = median if known else drawn
    kind = "the guide's median" if known else "one draw of the guide"
    return Point({name: values[name] for name in names if name in values}, kind)


def _median(global_guide: Callable | None, rows: Sequence[Tensor]) -> dict[str, Tensor]:
    """Nothing for other guides and for autoguides without it; Pyro's lists leave out the sites of such members."""
    if not isinstance(global_guide, AutoGuide):
        return {}
    try:
        return global_guide.median(*rows)
    except NotImplementedError:
        return {}


@contextmanager
def looking(generator: torch.Generator | None) -> Iterator[torch.Generator]:
    """The only source of randomness: ``generator``, or a copy of torch's global one; Pyro's random state is put back.

    >>> with looking(None) as generator:
    ...     drawn = torch.rand((), generator=generator, device="cpu")
    >>> bool(drawn == torch.rand((), device="cpu"))
    True
    """
    with preserved_random_state():
        yield (
            torch.Generator("cpu").set_state(torch.get_rng_state())
            if generator is None
            else generator
        )


@contextmanager
def _seeded(seed: int, rows: Sequence[Tensor]) -> Iterator[None]:
    """Pyro's random state, and that of the rows' devices, of this ``seed``; put back at the end."""
    devices = sorted({tensor.device.index or 0 for tensor in rows if tensor.is_cuda})
    with preserved_random_state(), torch.random.fork_rng(devices=devices):
        pyro.set_rng_seed(seed)
        yield
