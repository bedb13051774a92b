"""Restarts of a hard partition: fits from several starts, of which the best is returned."""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
    Restarts,
    Start,
    StartSampler,
    as_starts,
    check_new,
    labeled_guide,
)
from pyro_mixtures.infer.restarts.stored_fits import (
    StoredFit,
    fresh_store,
    inference_of,
    preserved_random_state,
)
from pyro_mixtures.options import check_flag


@dataclass(frozen=True)
class RestartsResult:
    """The outcome of :func:`fit_restarts`.

    :param best: the fit with the smallest objective; its params are in Pyro's store.
    :param winner: index of its start.
    :param objectives: (starts,) minus the final ELBO of each fit, in nats per row.
    :param labels: (N,) int64, the partition of the best fit.
    """

    best: Fit
    winner: int
    objectives: np.ndarray
    labels: Tensor = field(repr=False)


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
    """Fit a hard partition from several starts, and return the fit with the smallest objective.

    Lloyd's algorithm and the analogous algorithms for regressions stop at the first partition that
    no step improves. Other starts lead to other partitions. For each start, ``build()`` makes a new
    model in its own param store, and ``fit`` begins with the start's labels. Afterward the params
    of the best fit are in Pyro's store; other params there are unchanged.

    :param build: returns a new ``EM`` (or ``(model, EM)``) whose guide is a ``HardPartition``. For
        ``parallel`` it has an argument ``restarts``, one by default: it gives the model and the
        guide K ``restarts`` components, and makes the guide with
        :func:`~pyro_mixtures.guides.hard_partition`.
    :param rows: the model's tensor arguments, each with N rows.
    :param starts: the number of starts, with labels drawn uniformly; or one entry per start: labels
        (N,), as a tensor or array, or a method of
        :func:`~pyro_mixtures.init.labels.start_labels`.
    :param parallel: fit all starts at once, as one mixture of R K components. Every param must have
        one entry per component. Each start converges by the rule of :func:`fit`, and then keeps its
        labels while the others continue: the result is the same as without ``parallel``. ``best``
        has the model and the guide of one start, and the winner's history except for the seconds;
        callbacks are called with the fit of all starts.
    :param on: positions (N, D) of the rows, for the methods; the first of ``rows`` by default.
    :param generator: source of randomness, on the CPU; torch's global generator by default. Each
        start has its own seed, so its result does not depend on the other starts. Pyro's random
        state is restored at the end.
    :param progress: show a progress bar over the starts, with the best objective so far.
    :param fit_options: passed to :func:`fit` for every start.
    :returns: the best fit, the index of its start, all objectives, and the labels. Ctrl-C ends the
        current fit, which still competes, and skips the remaining starts.
    :raises OptionError: if there are no starts or a method is unknown; if ``build`` returns a model
        or guide again; or, for ``parallel``, if it has no argument ``restarts`` or components share
        params.
    :raises ModelError: if ``build`` returns no EM, a guide without labels, or another number of
        restarts than it was asked for.

    >>> from pyro_mixtures.guides import hard_partition
    >>> from pyro_mixtures.infer import EM
    >>> from pyro_mixtures.models import GaussianMixture
    >>> def build(restarts=1):
    ...     model = GaussianMixture(components=2 * restarts, features=2)
    ...     guide = hard_partition(model, components=2 * restarts, restarts=restarts)
    ...     return EM(model, guide)
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> result = fit_restarts(build, x, starts=["kmeans++", "uniform"], progress=False)
    >>> result.best.guide.sizes.tolist()
    [50, 50]
    >>> at_once = fit_restarts(build, x, starts=10, parallel=True, progress=False)
    >>> at_once.objectives.shape, at_once.best.guide.components
    ((10,), 2)
    """
    check_flag(parallel=parallel, progress=progress)
    tensors, entries = Batches(rows).tensors, as_starts(starts)
    seeds = torch.randint(1 << 31, (len(entries),), generator=generator, device="cpu").tolist()
    restarts = Restarts(build, tensors, entries, seeds, StartSampler(tensors, on), fit_options)
    fit_all = fit_together if parallel and len(entries) > 1 else _fit_one_by_one
    with (
        preserved_random_state(),
        tqdm(total=len(entries), desc="restarts", disable=not progress, unit="start") as bar,
    ):
        best, objectives = fit_all(restarts, bar)
    best.use()
    labels = labeled_guide(best.em).labels
    assert labels is not None
    winner = objectives.index(min(objectives))
    return RestartsResult(best.fit, winner, np.array(objectives), labels.long())


def _fit_one_by_one(restarts: Restarts, bar: Any) -> tuple[StoredFit, list[float]]:
    """Return the best fit, and the objectives of all."""
    best: StoredFit | None = None
    objectives: list[float] = []
    for start, seed in zip(restarts.starts, restarts.seeds, strict=True):
        current, objective = _fit_start(restarts, start, seed, best)
        if best is None or objective < min(objectives):
            best = current
        objectives.append(objective)
        bar.set_postfix(best=f"{min(objectives):.4f}", refresh=False)
        bar.update()
        if current.fit.interrupted:
            break
    assert best is not None
    return best, objectives


def _fit_start(
    restarts: Restarts, start: Tensor | str, seed: int, best: StoredFit | None
) -> tuple[StoredFit, float]:
    """Return the fit from one start, and its objective."""
    with fresh_store(seed) as state:
        inference = inference_of(restarts.build())
        check_new(inference, [] if best is None else [best.fit])
        guide = labeled_guide(inference)
        guide.set_labels(restarts.sampler.labels(start, guide, seed))
        result = fit(inference, *restarts.rows, progress=False, **restarts.fit_options)
        objective = _objective(inference, restarts)
    return StoredFit(result, state), objective


def _objective(inference: EM, restarts: Restarts) -> float:
    """Return minus the ELBO of the last partition under the last params, in nats per row.

    The last ELBO of a fit's history is older: it precedes the last update.
    """
    batch_size = restarts.fit_options.get("batch_size")
    loss = weight = 0.0
    inference.guide.eval()
    for batch in plan(inference, restarts.rows, batch_size).batches.in_order():
        posterior = inference.guide.posterior(*batch.args, **batch.kwargs)
        loss -= float(posterior.free_energy())
        weight += float(posterior.row_weight.sum(dtype=torch.float64))
    inference.guide.train()
    return loss / weight
