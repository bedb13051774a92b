"""Fits of one family over growing numbers of components, each warm started from its neighbours."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.errors import NumericalError
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.em.fit import Fit, fit
from pyro_mixtures.infer.restarts.best_of import best_of
from pyro_mixtures.infer.restarts.growth import inherit
from pyro_mixtures.infer.restarts.placed import Placed
from pyro_mixtures.infer.restarts.pruning import Values, losses, weights_of, without
from pyro_mixtures.infer.restarts.trials import inference_of, own_params, params_of, value_of
from pyro_mixtures.poutine.params import ParamHandle

Build = Callable[[int], EM | tuple[Callable, EM]]
Start = Callable[..., Any]  # of the model and the rows: sets the model's params
Rows = tuple[Tensor, ...]
Tick = Callable[[], Any]  # called after every fit

# Short fits of a growth, each from other splits of the largest components: the first may part what
# belongs together.
_SPLITS = 3

# Down, up, down: fits whose neighbours have not changed are not made again.
_SWEEPS = 3


class Plan(NamedTuple):
    """How each number of components is fitted."""

    warm: bool  # grow from the number before, and shrink from the one after
    starts: int  # fresh ones besides; at least one where nothing has grown yet
    start: Start | None
    chunk: int | None
    fit_options: dict[str, Any]

    def fits(self, sizes: int) -> int:
        """Fits of one path."""
        return sizes + _SWEEPS * (sizes - 1) if self.warm else sizes


class Member(NamedTuple):
    """The fit of one number of components, and the param store that it left behind."""

    components: int
    fit: Fit
    freeze: frozenset[str]  # names of params that were held fixed
    values: Values
    store: Any

    @property
    def model(self) -> Placed:
        """The fitted program with these params, whatever Pyro's store holds."""
        return Placed(self.fit.model, self.store)


class Path:
    """Fits of one family to the same rows."""

    def __init__(self, build: Build, rows: Rows, plan: Plan, tick: Tick):
        self.build, self.rows, self.plan, self.tick = build, rows, plan, tick

    def __call__(self, sizes: Sequence[int], seeds: Sequence[int]) -> list[Member]:
        """The likeliest fit found of each size: upwards by growth and fresh starts, downwards by shrinking.

        A better fit of one size is tried on its neighbours, too, for some sweeps.
        """
        found = list(self._upwards(sizes, seeds))
        if not self.plan.warm:
            return found
        up = list(pairwise(range(len(found))))
        tried = {pair: found[pair[0]] for pair in up}
        down = [(larger, smaller) for smaller, larger in reversed(up)]
        for sweep in range(_SWEEPS):
            way, step = (down, self._shrunk) if sweep % 2 == 0 else (up, self._grown)
            for source, target in way:
                if tried.get((source, target)) is found[source]:
                    self.tick()
                    continue
                tried[source, target] = found[source]
                other = self._named(step, sizes[target], seeds[target], found[source])
                found[target] = _likelier(found[target], other)
        return found

    def refit(self, member: Member, rows: Rows, seed: int) -> Member:
        """A fit to other rows that begins with the params of ``member``."""
        return self._from(member.components, member.values, rows, seed)

    def _upwards(self, sizes: Sequence[int], seeds: Sequence[int]) -> Iterator[Member]:
        before: Member | None = None
        for size, seed in zip(sizes, seeds, strict=True):
            before = self._named(self._first, size, seed, before if self.plan.warm else None)
            yield before

    def _named(self, one: Callable[..., Member], size: int, *args: Any) -> Member:
        try:
            found = one(size, *args)
        except NumericalError as error:
            raise NumericalError(f"the fit of {size} components failed: {error}") from error
        self.tick()
        return found

    def _first(self, size: int, seed: int, before: Member | None) -> Member:
        grown = None if before is None else self._grown(size, seed, before)
        # A guide that finds rows for empty components itself does not split others: what has grown
        # is the fit before.
        if grown is not None and not self.plan.starts and not grown.fit.guide.reseeds:
            return grown
        return _likelier(grown, self._fresh(size, seed, max(1, self.plan.starts)))

    def _fresh(self, size: int, seed: int, starts: int) -> Member:
        def start(model: Any, _: EM) -> None:
            if self.plan.start is not None:
                self.plan.start(model, *self.rows)

        return self._best_of(start, size, seed, starts)

    def _grown(self, size: int, seed: int, before: Member) -> Member:
        def start(_: Any, inference: EM) -> None:
            inherit(inference, self.rows, before.values, size, before.components)

        return self._best_of(start, size, seed, _SPLITS)

    def _best_of(
        self, start: Callable[[Any, EM], None], size: int, seed: int, count: int
    ) -> Member:
        """The likeliest of ``count`` short fits that begin as ``start(model, inference)`` says, fitted to its end."""
        made: list[EM] = []

        def build() -> EM:
            made.append(inference_of(self.build(size)))
            return made[-1]

        def begin(model: Any) -> None:
            start(model, made[-1])

        starts, options = [begin] * count, self.plan.fit_options
        with own_params(seed) as store:
            found = best_of(build, *self.rows, starts=starts, progress=False, **options)
            return _member(size, found.best, self.rows, store)

    def _shrunk(self, size: int, seed: int, after: Member) -> Member:
        values = after.values
        for larger, smaller in pairwise(range(after.components, size - 1, -1)):
            values = without(
                self._least(larger, values, seed), self._params(smaller, seed), values, larger
            )
        return self._from(size, values, self.rows, seed)

    def _least(self, size: int, values: Values, seed: int) -> int:
        """The component that the rows miss least."""
        with own_params(seed):
            inference = inference_of(self.build(size))
            params = params_of(inference, self.rows)
            _write(params, values)
            weights, site = weights_of(params, values, size), inference.guide.site
            return int(
                losses(
                    inference.model, self.rows, weights, site=site, chunk=self.plan.chunk
                ).argmin()
            )

    def _params(self, size: int, seed: int) -> dict[str, ParamHandle]:
        with own_params(seed):
            return params_of(inference_of(self.build(size)), self.rows)

    def _from(self, size: int, values: Values, rows: Rows, seed: int) -> Member:
        with own_params(seed) as store:
            inference = inference_of(self.build(size))
            _write(params_of(inference, rows), values)
            return _member(
                size, fit(inference, *rows, progress=False, **self.plan.fit_options), rows, store
            )


def _likelier(one: Member | None, other: Member) -> Member:
    return one if one is not None and one.fit.elbo >= other.fit.elbo else other


def _write(params: dict[str, ParamHandle], values: Values) -> None:
    for name, param in params.items():
        param.write(values[name])


def _member(size: int, found: Fit, rows: Rows, store: Any) -> Member:
    if found.interrupted:  # what is compared has to have come to its end
        raise KeyboardInterrupt
    assert isinstance(found.inference, EM)
    with torch.no_grad():
        values = {
            name: value_of(param).clone()
            for name, param in params_of(found.inference, rows).items()
        }
    return Member(size, found, found.inference.freeze, values, store)
