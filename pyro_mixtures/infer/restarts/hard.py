"""Several fits of a hard partition from different labels, of which the best is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.infer.em.batching import plan
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.em.fit import Fit, fit
from pyro_mixtures.infer.restarts.parallel import fit_together
from pyro_mixtures.infer.restarts.starts import (
    Build,
    Start,
    Starter,
    Trial,
    as_starts,
    check_new,
    labelled_guide,
)
from pyro_mixtures.infer.restarts.stored_fits import (
    StoredFit,
    fresh_store,
    inference_of,
    preserved_random_state,
)


@dataclass(frozen=True)
class RestartsResult:
    """The outcome of :func:`fit_restarts`."""

    best: Fit  # the fit of the smallest objective; its params are in place
    winner: int  # its number among the starts
    objectives: np.ndarray  # (starts,) minus the ELBO that each fit ended with, in nats per row
    labels: Tensor  # (N,) int64, the best fit's partition


def fit_restarts(
    build: Build,
    *rows: Tensor,
    starts: int | Sequence[Start],
    parallel: bool = False,
    on: Tensor | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
    **fit_options: Any,
) -> RestartsResult:
    """Fit a hard partition from several starts; keep the fit of the smallest objective, its params in place.

    Lloyd's algorithm and its kin stop at the first partition that no step improves: another start
    finds another one. Each start runs in a param store of its own, where ``build()`` makes its
    model anew and ``fit`` begins with the start's labels. Afterwards Pyro's store holds what it
    held before, and in it the params of the best.

    :param build: makes a fresh ``EM`` (or ``(model, EM)``) whose guide is a ``HardPartition``. For
        ``parallel`` a function of ``restarts``, one by default: it gives the model and the guide
        K ``restarts`` components, and makes the guide with
        :func:`~pyro_mixtures.guides.hard_partition`.
    :param rows: the model's tensor arguments, each with N rows.
    :param starts: how many, from labels drawn uniformly; or one entry a start: labels (N,), a
        tensor or array, or a method of :func:`~pyro_mixtures.init.labels.start_labels`.
    :param parallel: fit all starts at once, as one mixture of R K components. Every param must have
        one entry per component. Each start converges by the rule of :func:`fit`, and then keeps its
        labels while the others go on: the result is the same as without ``parallel``. ``best`` has
        the model and the guide of one start, and the winner's history except for the seconds;
        callbacks are called with the fit of all starts.
    :param on: rows (N, D) whose positions these methods look at; the first of ``rows`` by default.
    :param generator: source of randomness, on the CPU; torch's global one by default. Each start
        has its own seed, for its labels and for Pyro: a start comes out the same whatever the
        others are. Pyro's random state is put back.
    :param progress: show a progress bar of the starts with the best objective.
    :param fit_options: for :func:`fit`, each time.
    :raises OptionError: for no starts or an unknown method, when ``build`` returns the same model
        or guide again, or, for ``parallel``, when it has no argument ``restarts`` or components share
        params.
    :raises ModelError: when ``build`` returns no EM, a guide without labels, or another number of
        restarts than it was asked for.

    Ctrl-C ends the fit in progress, takes part with it, and starts no other.

    >>> from pyro_mixtures.guides import hard_partition
    >>> from pyro_mixtures.infer import EM
    >>> from pyro_mixtures.models import GaussianMixture
    >>> def build(restarts=1):
    ...     model = GaussianMixture(components=2 * restarts, features=2)
    ...     guide = hard_partition(model, components=2 * restarts, restarts=restarts)
    ...     return EM(model, guide)
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> found = fit_restarts(build, x, starts=["kmeans++", "uniform"], progress=False)
    >>> found.best.guide.sizes.tolist()
    [50, 50]
    >>> at_once = fit_restarts(build, x, starts=10, parallel=True, progress=False)
    >>> at_once.objectives.shape, at_once.best.guide.components
    ((10,), 2)
    """
    rows, several = Batches(rows).tensors, as_starts(starts)
    starter = Starter(rows, on)
    seeds = torch.randint(1 << 31, (len(several),), generator=generator, device="cpu").tolist()
    with (
        preserved_random_state(),
        tqdm(total=len(several), desc="restarts", disable=not progress, unit="start") as bar,
    ):
        if parallel and len(several) > 1:
            best, objectives = fit_together(build, rows, several, seeds, starter, fit_options, bar)
        else:
            best, objectives = _one_by_one(build, rows, several, seeds, starter, fit_options, bar)
    StoredFit(best.fit, best.params).use()
    return RestartsResult(
        best.fit, objectives.index(best.objective), np.array(objectives), best.labels
    )


def _one_by_one(
    build: Build,
    rows: tuple[Tensor, ...],
    starts: Sequence[Tensor | str],
    seeds: Sequence[int],
    starter: Starter,
    fit_options: dict[str, Any],
    bar: Any,
) -> tuple[Trial, list[float]]:
    """The best, and the objectives of all."""
    best: Trial | None = None
    objectives: list[float] = []
    for start, seed in zip(starts, seeds, strict=True):
        with fresh_store(seed) as params:
            inference = inference_of(build())
            check_new(inference, [] if best is None else [best.fit])
            trial = _trial(inference, params, rows, start, seed, starter, fit_options)
        best = trial if best is None or trial.objective < best.objective else best
        objectives.append(trial.objective)
        bar.set_postfix(best=f"{best.objective:.4f}", refresh=False)
        bar.update()
        if trial.fit.interrupted:
            break
    assert best is not None
    return best, objectives


def _trial(
    inference: EM,
    params: Any,
    rows: tuple[Tensor, ...],
    start: Tensor | str,
    seed: int,
    starter: Starter,
    fit_options: dict[str, Any],
) -> Trial:
    guide = labelled_guide(inference)
    guide.set_labels(starter.labels(start, guide, seed))
    found = fit(inference, *rows, progress=False, **fit_options)
    assert guide.labels is not None
    return Trial(found, params, _objective(inference, rows, fit_options), guide.labels.long())


def _objective(inference: EM, rows: tuple[Tensor, ...], fit_options: dict[str, Any]) -> float:
    """Minus the ELBO of the last partition under the last params; a fit's history ends before its last update."""
    loss = weight = 0.0
    inference.guide.eval()
    for batch in plan(inference, rows, fit_options.get("batch_size")).batches.in_order():
        posterior = inference.guide.posterior(*batch.args, **batch.kwargs)
        loss -= float(posterior.free_energy())
        weight += float(posterior.row_weight.sum(dtype=torch.float64))
    inference.guide.train()
    return loss / weight
