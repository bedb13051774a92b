"""Several fits of a hard partition from different labels, of which the best is kept."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_mixtures.data.rows import Batches, as_rows
from pyro_mixtures.errors import DataError, ModelError, OptionError
from pyro_mixtures.infer.batching import plan
from pyro_mixtures.infer.em import EM
from pyro_mixtures.infer.fit import Fit, fit
from pyro_mixtures.infer.protocol import Guide
from pyro_mixtures.init.labels import METHODS, start_labels

Build = Callable[[], EM | tuple[Callable, EM]]
Start = Tensor | str


@runtime_checkable
class PlantedGuide(Guide, Protocol):
    """A guide that starts from labels: ``pyro_mixtures.guides.HardPartition`` is one."""

    labels: Tensor | None
    capacity: int | None

    def plant(self, labels: Tensor) -> None: ...


@dataclass(frozen=True)
class RestartsResult:
    """The outcome of :func:`fit_restarts`."""

    best: Fit  # the fit of the smallest objective; its params are in place
    winner: int  # its number among the starts
    objectives: np.ndarray  # (starts,) minus the ELBO that each fit ended with, in nats per row
    labels: Tensor  # (N,) int64, the best fit's partition


class _Trial(NamedTuple):
    """The fit from one start, and the param store that it left behind."""

    fit: Fit
    params: Any
    objective: float
    labels: Tensor


def fit_restarts(
    build: Build,
    *rows: Tensor,
    starts: int | Sequence[Start],
    on: Tensor | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
    **fit_options: Any,
) -> RestartsResult:
    """Fit a hard partition from several starts; keep the fit of the smallest objective, its params in place.

    Lloyd's algorithm and its kin stop at the first partition that no step improves: another start finds another one.
    Each start runs in a param store of its own, where ``build()`` makes its model anew and ``fit`` begins with the
    start's labels. Afterwards Pyro's store holds what it held before, and in it the params of the best.

    :param build: makes a fresh ``EM`` (or ``(model, EM)``) whose guide is a ``HardPartition``.
    :param rows: the model's tensor arguments, each with N rows.
    :param starts: how many, from labels drawn uniformly; or one entry a start: labels (N,), or a method of
        :func:`~pyro_mixtures.init.labels.start_labels`.
    :param on: rows (N, D) whose positions these methods look at; the first of ``rows`` by default.
    :param generator: source of randomness, on the CPU; torch's global one by default. Each start has its own seed, for
        its labels and for Pyro: a start comes out the same whatever the others are. Pyro's random state is put back.
    :param progress: show a progress bar of the starts with the best objective.
    :param fit_options: for :func:`fit`, each time.
    :raises OptionError: for no starts or an unknown method, or when ``build`` returns the same model or guide again.
    :raises ModelError: when ``build`` returns no EM, or its guide takes no labels.

    Ctrl-C ends the fit in progress, takes part with it, and starts no other.

    >>> from pyro_mixtures.guides import HardPartition
    >>> from pyro_mixtures.infer import EM
    >>> from pyro_mixtures.models import GaussianMixture
    >>> def build():
    ...     model = GaussianMixture(components=2, features=2)
    ...     return EM(model, HardPartition(model, components=2))
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> found = fit_restarts(build, x, starts=["kmeans++", "uniform"], progress=False)
    >>> found.best.guide.sizes.tolist()
    [50, 50]
    """
    run, best = _Runner(build, Batches(rows).tensors, on, fit_options), None
    several = _as_starts(starts)
    seeds = torch.randint(1 << 31, (len(several),), generator=generator, device="cpu").tolist()
    objectives: list[float] = []
    with _random_state_kept(), tqdm(total=len(several), desc="restarts", disable=not progress, unit="start") as bar:
        for start, seed in zip(several, seeds, strict=True):
            trial = run(start, seed, best)
            best = trial if best is None or trial.objective < best.objective else best
            objectives.append(trial.objective)
            bar.set_postfix(best=f"{best.objective:.4f}", refresh=False)
            bar.update()
            if trial.fit.interrupted:
                break
    assert best is not None
    _put_in_place(best.params)
    return RestartsResult(best.fit, objectives.index(best.objective), np.array(objectives), best.labels)


def _as_starts(starts: int | Sequence[Start]) -> list[Start]:
    several: list[Start] = ["uniform"] * starts if isinstance(starts, int) else list(starts)
    if not several:
        raise OptionError(f"starts={starts!r}: give a positive number, or an entry for each start")
    unknown = [start for start in several if not isinstance(start, Tensor) and start not in METHODS]
    if unknown:
        raise OptionError(f"starts {unknown} are neither labels (N,), a tensor, nor methods: choose of {METHODS}")
    return several


class _Runner:
    """Fits from one start each."""

    def __init__(self, build: Build, rows: tuple[Tensor, ...], on: Tensor | None, fit_options: dict[str, Any]):
        self.build, self.rows, self.fit_options = build, rows, fit_options
        self.places = rows[0].reshape(len(rows[0]), -1) if on is None else as_rows(on)
        if len(self.places) != len(rows[0]):
            raise DataError(f"on= has {len(self.places)} rows, the data have {len(rows[0])}: give one for each")

    def __call__(self, start: Start, seed: int, best: _Trial | None) -> _Trial:
        pyro.set_rng_seed(seed)
        with pyro.get_param_store().scope() as params:
            built = self.build()
            inference = built[-1] if isinstance(built, tuple) else built
            guide = _guide_of(inference, best)
            guide.plant(self._labels(start, guide, seed))
            found = fit(inference, *self.rows, progress=False, **self.fit_options)
            objective = self._objective(inference, guide)
        assert guide.labels is not None
        return _Trial(found, params, objective, guide.labels.long())

    def _labels(self, start: Start, guide: PlantedGuide, seed: int) -> Tensor:
        if isinstance(start, Tensor):
            return start
        capacity = guide.capacity if start == "balanced" else None
        generator = torch.Generator("cpu").manual_seed(seed)
        return start_labels(self.places, guide.components, method=start, capacity=capacity, generator=generator)

    def _objective(self, inference: EM, guide: PlantedGuide) -> float:
        """Minus the ELBO of the last partition under the last params; a fit's history ends before its last update."""
        guide.eval()
        loss, count = 0.0, 0
        for batch in plan(inference, self.rows, self.fit_options.get("batch_size")).batches.in_order():
            posterior = guide.posterior(*batch.args, **batch.kwargs)
            loss, count = loss - float(posterior.free_energy()), count + len(posterior.index)
        guide.train()
        return loss / count


def _guide_of(inference: EM, best: _Trial | None) -> PlantedGuide:
    """The guide of what ``build()`` returned, all of it anew."""
    if not isinstance(inference, EM):
        raise ModelError(f"build() returned {type(inference).__name__}: restarts need an EM, or (model, EM)")
    guide, model = inference.guide, inference.model
    if not isinstance(guide, PlantedGuide):
        raise ModelError(f"{type(guide).__name__} does not start from labels: restarts need a HardPartition guide")
    # The params of a plain function live in the store alone, and so are new in every start.
    same = best is not None and (guide is best.fit.guide or (model is best.fit.model and isinstance(model, nn.Module)))
    if same:
        raise OptionError("build() returned the model or guide of an earlier start: make them inside build()")
    return guide


def _put_in_place(params: Any) -> None:
    """Add params to Pyro's store, in place of others of their names."""
    store = pyro.get_param_store()
    for name in params["params"].keys() & store.keys():
        del store[name]
    store.set_state(params)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
