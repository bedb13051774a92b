"""The best of several starts: a short EM from each, and a full fit from the most likely one."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_mixtures.errors import NumericalError, OptionError
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.em.fit import Fit, fit
from pyro_mixtures.infer.em.history import History
from pyro_mixtures.infer.restarts.starts import check_new
from pyro_mixtures.infer.restarts.stored_fits import (
    StoredFit,
    fresh_store,
    inference_of,
    preserved_random_state,
)
from pyro_mixtures.options import check_flag, check_integer

Build = Callable[[], EM | tuple[Callable[..., Any], EM]]
Start = Callable[[Any], Any]  # sets the params of the model that it is given


@dataclass(frozen=True)
class BestOf:
    """The outcome of :func:`best_of`.

    :param best: the fit from the most likely start; its params are in Pyro's store.
    :param winner: index of that start.
    :param elbos: (starts,) ELBO after the short EM, in nats per row; -inf where it failed.
    """

    best: Fit
    winner: int
    elbos: np.ndarray


def best_of(
    build: Build,
    *rows: Tensor,
    starts: Sequence[Start],
    steps: int = 10,
    generator: torch.Generator | None = None,
    progress: bool = True,
    **fit_options: Any,
) -> BestOf:
    """Run a short EM from each start, and fit the one with the largest ELBO until convergence.

    The first steps usually show which starts are good. Many starts therefore cost little more than
    one fit. Each short fit calls ``build()`` for a new model and runs in its own param store.
    Afterward the params of the best fit are in Pyro's store; other params there are unchanged.

    :param build: returns a new ``EM`` (or ``(model, EM)``) at each call.
    :param rows: the model's tensor arguments, each with N rows.
    :param starts: functions that set the params of the model that they are given, such as
        :class:`~pyro_mixtures.init.SoftmaxStart`.
    :param steps: epochs of each short fit.
    :param generator: source of randomness, on the CPU; torch's global generator by default. Pyro's
        random state is restored at the end.
    :param progress: show one progress bar over the starts, with the best ELBO so far, and one for
        the final fit.
    :param fit_options: passed to :func:`fit`: to the short fits (except ``epochs``) and to the
        final fit.
    :returns: the final fit, the index of its start, and the ELBO of every start. Ctrl-C stops the
        current fit and all later ones; the best fit so far is returned with ``interrupted=True``.
    :raises OptionError: if there are no starts or no steps, or if ``build`` returns the model or
        guide of an earlier start.
    :raises NumericalError: if no start has a finite ELBO.

    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.infer import EM
    >>> from pyro_mixtures.init import seed_rows
    >>> from pyro_mixtures.models import GaussianMixture
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> def build():
    ...     model = GaussianMixture(components=2, features=2)
    ...     return EM(model, FullPartition(model, components=2))
    >>> def start(model):
    ...     model.start_at(seed_rows(x, 2))
    >>> result = best_of(build, x, starts=[start] * 3, progress=False)
    >>> result.elbos.shape, result.best.converged
    ((3,), True)
    """
    check_flag(progress=progress)
    check_integer(steps=steps)
    if not isinstance(starts, Iterable):
        raise OptionError(
            f"starts={starts!r} is no list: pass one function per start, such as starts=[start] * 3"
        )
    starts = list(starts)
    if not starts or steps < 1:
        raise OptionError(f"{len(starts)} starts and steps={steps}: pass at least one of each")
    short_options = {**fit_options, "epochs": steps, "progress": False}
    seeds = torch.randint(1 << 31, (len(starts),), generator=generator, device="cpu").tolist()
    with preserved_random_state():
        short = _short_fits(build, rows, starts, seeds, short_options, progress)
        result = short.best.use()
        if short.interrupted:
            result = replace(result, interrupted=True)
        else:
            result = fit(result.inference, *rows, progress=progress, **fit_options)
    return BestOf(result, int(np.argmax(short.elbos)), short.elbos)


@dataclass(frozen=True)
class _ShortFits:
    best: StoredFit
    elbos: np.ndarray  # (starts,)
    interrupted: bool


def _short_fits(
    build: Build,
    rows: tuple[Tensor, ...],
    starts: Sequence[Start],
    seeds: Sequence[int],
    fit_options: dict[str, Any],
    progress: bool,
) -> _ShortFits:
    """Fit from each start in turn; only the best fit so far stays in memory."""
    best: StoredFit | None = None
    elbos: list[float] = []
    failures: list[NumericalError] = []
    interrupted = False
    with tqdm(total=len(starts), desc="starts", disable=not progress, unit="start") as bar:
        for start, seed in zip(starts, seeds, strict=True):
            with fresh_store(seed) as state:
                inference = inference_of(build())
                check_new(inference, [] if best is None else [best.fit])
                result = Fit(inference, History())
                try:
                    start(inference.model)
                    result = fit(inference, *rows, **fit_options)
                except NumericalError as failure:  # one bad start must not end the others
                    failures.append(failure)
            elbo = -math.inf if math.isnan(result.elbo) else result.elbo
            if best is None or elbo > max(elbos):
                best = StoredFit(result, state)
            elbos.append(elbo)
            bar.set_postfix(best=f"{max(elbos):.4f}", refresh=False)
            bar.update()
            interrupted = result.interrupted
            if interrupted:
                break
    if best is None or max(elbos) == -math.inf:
        raise NumericalError(
            f"none of {len(starts)} starts has a finite ELBO: check the data and the starts"
        ) from (failures[0] if failures else None)
    return _ShortFits(best, np.array(elbos), interrupted)
