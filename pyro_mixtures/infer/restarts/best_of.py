"""A short EM from each of several starts; the most likely one goes on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_mixtures.errors import NumericalError, OptionError
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.em.fit import Fit, fit
from pyro_mixtures.infer.restarts.starts import check_new
from pyro_mixtures.infer.restarts.trials import (
    inference_of,
    own_params,
    put_in_place,
    random_state_kept,
)

Build = Callable[[], EM | tuple[Callable, EM]]
Start = Callable[[Any], Any]  # sets the params of the model that it is given


@dataclass(frozen=True)
class BestOf:
    """The outcome of :func:`best_of`."""

    best: Fit  # the most likely start's fit, carried on until it settled; its params are in place
    winner: int  # its number among the starts
    elbos: np.ndarray  # (starts,) ELBO after the short EM, in nats per row; -inf where it failed


class _Trial(NamedTuple):
    made: EM | None  # by build(); kept of the best so far alone, as is its fit
    fit: Fit | None
    params: Any
    elbo: float
    failure: NumericalError | None = None
    interrupted: bool = False

    def without_fit(self) -> "_Trial":
        """All but what takes memory."""
        return self._replace(made=None, fit=None, params=None)


def best_of(
    build: Build,
    *rows: Tensor,
    starts: Sequence[Start],
    steps: int = 10,
    generator: torch.Generator | None = None,
    progress: bool = True,
    **fit_options: Any,
) -> BestOf:
    """Run ``steps`` epochs of EM from each start, keep the one of the largest ELBO, and fit it to the end.

    Most of what tells a good start from a bad one shows in the first steps, so that many starts
    cost little more than one fit. Each runs in a param store of its own, where ``build()`` makes
    its model anew. Afterwards Pyro's store holds what it held before, and in it the params of the
    best.

    :param build: makes a fresh ``EM`` (or ``(model, EM)``).
    :param rows: the model's tensor arguments, each with N rows.
    :param starts: functions that set the params of the model they are given, as
        :class:`~pyro_mixtures.init.SoftmaxStart` does.
    :param steps: epochs of each trial.
    :param generator: source of randomness, on the CPU; torch's global one by default. Pyro's random
        state is put back.
    :param progress: show a bar of the starts with the best ELBO, then that of the fit.
    :param fit_options: for :func:`fit`, of the trials (but for their ``epochs``) and of the last
        fit.
    :raises OptionError: without starts or steps, or when ``build`` returns the model or guide of an
        earlier start.
    :raises NumericalError: when no start has a finite ELBO.

    Ctrl-C ends the start in progress, or the last fit, and starts no other: the best so far is
    returned.

    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.infer import EM
    >>> from pyro_mixtures.init import seed_rows
    >>> from pyro_mixtures.models import GaussianMixture
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> def build():
    ...     model = GaussianMixture(components=2, features=2)
    ...     return EM(model, FullPartition(model, components=2))
    >>> found = best_of(build, x, starts=[lambda model: model.start_at(seed_rows(x, 2))] * 3, progress=False)
    >>> found.elbos.shape, found.best.converged
    ((3,), True)
    """
    starts = list(starts)
    if not starts or steps < 1:
        raise OptionError(f"{len(starts)} starts and steps={steps}: give at least one of each")
    run = _Runner(build, rows, {**fit_options, "epochs": steps, "progress": False})
    seeds = torch.randint(1 << 31, (len(starts),), generator=generator, device="cpu").tolist()
    trials: list[_Trial] = []
    with random_state_kept():
        with tqdm(total=len(starts), desc="starts", disable=not progress, unit="start") as bar:
            for start, seed in zip(starts, seeds, strict=True):
                trials.append(
                    run(start, seed, [trial.made for trial in trials if trial.made is not None])
                )
                best = max(trials, key=lambda trial: trial.elbo)  # the first of equals
                trials = [trial if trial is best else trial.without_fit() for trial in trials]
                bar.set_postfix(best=f"{best.elbo:.4f}", refresh=False)
                bar.update()
                if trials[-1].interrupted:
                    break
        if best.elbo == -math.inf or best.fit is None:
            raise NumericalError(
                f"none of {len(starts)} starts has a finite ELBO: check the data and the starts"
            ) from best.failure
        put_in_place(best.params)
        interrupted = trials[-1].interrupted
        result = (
            best.fit
            if interrupted
            else fit(best.fit.inference, *rows, progress=progress, **fit_options)
        )
    winner = next(i for i, trial in enumerate(trials) if trial is best)
    return BestOf(
        replace(result, interrupted=True) if interrupted else result, winner, _elbos(trials)
    )


def _elbos(trials: list[_Trial]) -> np.ndarray:
    return np.array([trial.elbo for trial in trials])


class _Runner:
    """Short fits from one start each."""

    def __init__(self, build: Build, rows: tuple[Tensor, ...], fit_options: dict[str, Any]):
        self.build, self.rows, self.fit_options = build, rows, fit_options

    def __call__(self, start: Start, seed: int, earlier: list[EM]) -> _Trial:
        with own_params(seed) as params:
            inference = inference_of(self.build())
            check_new(inference, earlier)
            try:
                start(inference.model)
                found = fit(inference, *self.rows, **self.fit_options)
            except NumericalError as failure:  # one bad start must not end the others
                return _Trial(inference, None, None, -math.inf, failure)
        elbo = -math.inf if math.isnan(found.elbo) else found.elbo
        return _Trial(inference, found, params, elbo, interrupted=found.interrupted)
