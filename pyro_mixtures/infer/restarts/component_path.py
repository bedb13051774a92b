"""Fits of one family over increasing numbers of components, each warm-started from neighbors."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from pyro_mixtures.errors import NumericalError
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.em.fit import fit
from pyro_mixtures.infer.labeled_guide import LabeledGuide
from pyro_mixtures.infer.restarts.best_of import best_of
from pyro_mixtures.infer.restarts.growth import inherit_values
from pyro_mixtures.infer.restarts.pruning import component_weights, prune_values, pruning_losses
from pyro_mixtures.infer.restarts.stored_fits import (
    Params,
    StoredFit,
    Values,
    fresh_store,
    inference_of,
    params_of,
    write_values,
)

Build = Callable[[int], EM | tuple[Callable[..., Any], EM]]
Start = Callable[..., Any]  # of the model and the rows: sets the model's params
Rows = tuple[Tensor, ...]
Tick = Callable[[], Any]  # called after every fit

# Short fits per growth, each with other random splits of the largest components: the first split
# may separate rows of one cluster.
_SPLITS = 3

# Sweeps of warm starts between neighbors: by pruning, by growth, by pruning.
_SWEEPS = 3


class PathOptions(NamedTuple):
    """How the mixture is fitted with each number of components."""

    warm_start: bool  # grow from the next smaller number, and prune from the next larger one
    starts: int  # fresh starts per number; at least one where there is nothing to grow from
    start: Start | None
    chunk: int | None
    fit_options: dict[str, Any]

    def fits(self, sizes: int) -> int:
        """Return the number of fits in a path over ``sizes`` numbers of components."""
        return sizes + _SWEEPS * (sizes - 1) if self.warm_start else sizes


class ComponentPath:
    """The fits of one family to the same rows, over increasing numbers of components.

    :param build: returns a new ``EM`` (or ``(model, EM)``) with the given number of components.
    :param rows: the model's tensor arguments, each with N rows.
    :param tick: called after every fit.
    """

    def __init__(self, build: Build, rows: Rows, options: PathOptions, tick: Tick):
        self.build = build
        self.rows = rows
        self.options = options
        self.tick = tick

    def fit(self, sizes: Sequence[int], seeds: Sequence[int]) -> list[StoredFit]:
        """Return the most likely fit found for each number of components in ``sizes``.

        The first pass goes up, by growth and fresh starts. Then sweeps down (by pruning) and up (by
        growth) try each fit as a warm start of its neighbor. A pair of neighbors is skipped if its
        source has not changed since it was last tried.
        """
        fits = self._first_pass(sizes, seeds)
        if not self.options.warm_start:
            return fits
        upward = list(pairwise(range(len(fits))))
        downward = [(larger, smaller) for smaller, larger in reversed(upward)]
        tried_sources = {pair: fits[pair[0]] for pair in upward}
        for sweep in range(_SWEEPS):
            pairs, warm_start = (
                (downward, self._pruned) if sweep % 2 == 0 else (upward, self._grown)
            )
            for source, target in pairs:
                if tried_sources.get((source, target)) is fits[source]:
                    self.tick()
                    continue
                tried_sources[source, target] = fits[source]
                candidate = self._counted(warm_start, sizes[target], seeds[target], fits[source])
                fits[target] = _more_likely(fits[target], candidate)
        return fits

    def fit_from(self, size: int, values: Values, rows: Rows, seed: int) -> StoredFit:
        """Fit any rows with ``size`` components, starting from ``values`` of the params."""
        with fresh_store(seed) as state:
            inference = inference_of(self.build(size))
            write_values(params_of(inference, rows), values)
            result = fit(inference, *rows, progress=False, **self.options.fit_options)
        return _finished(StoredFit(result, state))

    def _first_pass(self, sizes: Sequence[int], seeds: Sequence[int]) -> list[StoredFit]:
        fits: list[StoredFit] = []
        for size, seed in zip(sizes, seeds, strict=True):
            smaller = fits[-1] if fits and self.options.warm_start else None
            fits.append(self._counted(self._first_fit, size, seed, smaller))
        return fits

    def _counted(self, make_fit: Callable[..., StoredFit], size: int, *args: Any) -> StoredFit:
        try:
            result = make_fit(size, *args)
        except NumericalError as error:
            raise NumericalError(f"the fit with {size} components failed: {error}") from error
        self.tick()
        return result

    def _first_fit(self, size: int, seed: int, smaller: StoredFit | None) -> StoredFit:
        if smaller is None:
            return self._fresh(size, seed, max(1, self.options.starts))
        grown = self._grown(size, seed, smaller)
        # A guide that fills empty clusters itself does not split components: the grown fit would
        # only be the smaller one again.
        if self.options.starts or isinstance(grown.fit.guide, LabeledGuide):
            return _more_likely(grown, self._fresh(size, seed, max(1, self.options.starts)))
        return grown

    def _fresh(self, size: int, seed: int, starts: int) -> StoredFit:
        def start(inference: EM) -> None:
            if self.options.start is not None:
                self.options.start(inference.model, *self.rows)

        return self._best_of(start, size, seed, starts)

    def _grown(self, size: int, seed: int, smaller: StoredFit) -> StoredFit:
        values = smaller.values(self.rows)

        def start(inference: EM) -> None:
            inherit_values(inference, self.rows, values, size, _size(smaller))

        return self._best_of(start, size, seed, _SPLITS)

    def _best_of(self, start: Callable[[EM], None], size: int, seed: int, starts: int) -> StoredFit:
        """Return the best of several short fits from ``start(inference)``, run to convergence."""
        built: list[EM] = []

        def build() -> EM:
            built.append(inference_of(self.build(size)))
            return built[-1]

        def start_model(model: Any) -> None:
            start(built[-1])

        options = self.options.fit_options
        with fresh_store(seed) as state:
            result = best_of(
                build, *self.rows, starts=[start_model] * starts, progress=False, **options
            )
        return _finished(StoredFit(result.best, state))

    def _pruned(self, size: int, seed: int, larger: StoredFit) -> StoredFit:
        values = larger.values(self.rows)
        for current_size in range(_size(larger), size, -1):
            component = self._least_needed(current_size, values, seed)
            params = self._params(current_size - 1, seed)
            values = prune_values(component, params, values, current_size)
        return self.fit_from(size, values, self.rows, seed)

    def _least_needed(self, size: int, values: Values, seed: int) -> int:
        """Return the component whose removal costs the least log likelihood."""
        with fresh_store(seed):
            inference = inference_of(self.build(size))
            params = params_of(inference, self.rows)
            write_values(params, values)
            weights = component_weights(params, values, size)
            site, chunk = inference.guide.site, self.options.chunk
            losses = pruning_losses(inference.model, self.rows, weights, site=site, chunk=chunk)
        return int(losses.argmin())

    def _params(self, size: int, seed: int) -> Params:
        with fresh_store(seed):
            return params_of(inference_of(self.build(size)), self.rows)


def _size(stored: StoredFit) -> int:
    return stored.fit.guide.components


def _more_likely(first: StoredFit, second: StoredFit) -> StoredFit:
    return first if first.fit.elbo >= second.fit.elbo else second


def _finished(stored: StoredFit) -> StoredFit:
    """Return the fit.

    :raises KeyboardInterrupt: if it was interrupted; only finished fits can be compared.
    """
    if stored.fit.interrupted:
        raise KeyboardInterrupt
    return stored
