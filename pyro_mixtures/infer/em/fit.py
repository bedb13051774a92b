"""The fit loop of both strategies: epochs over rows in memory, warm-up, convergence, progress, interruption."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from pyro.infer import SVI
from torch import Tensor
from tqdm.auto import tqdm

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.infer.em.batching import plan
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.em.history import Epoch, History
from pyro_mixtures.infer.em.schedule import SearchSchedule
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.labelled_guide import LabelledGuide
from pyro_mixtures.infer.searching_guide import SearchingGuide
from pyro_mixtures.options import check_whole
from pyro_mixtures.poutine import ReuseMessenger

# Epochs for which rows keep their order: winners change little from one to the next.
_EPOCHS_AN_ORDER = 8

Callback = Callable[["Fit"], Any]


@dataclass
class Fit:
    """The outcome of :func:`fit`: the strategy with its model and guide, and how it went."""

    inference: EM | SVI
    history: History
    converged: bool = False
    interrupted: bool = False

    @property
    def model(self) -> Callable:
        """The fitted program."""
        return self.inference.model

    @property
    def guide(self) -> PartitionGuide:
        """The guide with its row state."""
        return self.inference.guide

    @property
    def elbo(self) -> float:
        """The last epoch's ELBO in nats per row; a row of weight two is two."""
        return self.history.epochs[-1].elbo if self.history.epochs else math.nan


def fit(
    inference: EM | SVI,
    *rows: Tensor,
    batch_size: int | None = None,
    epochs: int = 200,
    warmup: int = 30,
    tolerance: float = 1e-4,
    patience: int = 3,
    search_every: int | None = None,
    progress: bool = True,
    callbacks: Iterable[Callback] = (),
) -> Fit:
    """Run epochs of ``inference`` over ``rows`` until the ELBO settles.

    :param inference: an :class:`EM` (exact or stepwise) or a stock ``pyro.infer.SVI``; the guide
        must be one of
        :mod:`pyro_mixtures.guides`.
    :param rows: the model's tensor arguments, each with N rows.
    :param batch_size: rows a call. Minibatches call ``model(*batch, index=..., size=N)``: exact EM
        adds their statistics up before it updates, stepwise EM and SVI update after each, in random
        order. None calls ``model(*rows)`` once an epoch; but where exact EM has a program that
        takes ``index`` and ``size`` it gives it as many rows at a time as bounds the working
        memory, and for large models in the order of their winning components.
    :param epochs: at most so many passes over the data after warm-up.
    :param warmup: at most so many E-step passes before the first update, which find candidate sets
        and neighbours of the initial components (only guides that search need them).
    :param tolerance: converged when the ELBO gains less than this over its best so far, in nats per
        row *and feature*, in ``patience`` epochs running. Absolute, so shifting or scaling the data
        does not change when a fit stops.
    :param search_every: search for better candidates in every so many EM epochs (1: in all of
        them), and only re-weigh those that rows have in the others. None leaves the choice to the
        fit, by what either gains for its cost.
    :param progress: show a progress bar with the ELBO and the number of evaluations.
    :param callbacks: called with the :class:`Fit` after every epoch; one that returns True stops
        the fit.

    Ctrl-C stops after the pass in progress is abandoned and returns what was reached,
    ``interrupted=True``.
    """
    check_whole(minimum=0, epochs=epochs, warmup=warmup)
    check_whole(patience=patience)
    if search_every is not None:
        check_whole(search_every=search_every)
    # Without end, of either sign, is a tolerance: fits that never converge, or at once.
    if isinstance(tolerance, bool) or not isinstance(tolerance, Real) or math.isnan(tolerance):
        raise OptionError(f"tolerance={tolerance!r} must be a number of nats a row and feature")
    if not isinstance(inference.guide, PartitionGuide):
        raise ModelError("fit needs a guide of pyro_mixtures.guides for the mixture's z")
    result = Fit(inference, History())
    batches, ordered = plan(inference, rows, batch_size)
    schedule = SearchSchedule(search_every)
    loop = _Loop(
        result, batches, tuple(callbacks), tolerance, patience, progress, schedule, ordered
    )
    try:
        if isinstance(inference, EM) and isinstance(inference.guide, SearchingGuide) and warmup:
            loop.run("warm-up", warmup, loop.search)
        phase = "EM" if isinstance(inference, EM) else "SVI"
        result.converged = not loop.stopped and loop.run(phase, epochs, loop.update_pass())
    except KeyboardInterrupt:
        result.interrupted = True
    finally:
        if isinstance(inference.guide, SearchingGuide):
            inference.guide.search = True
        # Statistics of a pass that was not finished must not reach the next one.
        if isinstance(inference, EM):
            inference.forget()
    return result


class _Loop:
    """Epochs of one fit."""

    def __init__(
        self,
        result: Fit,
        batches: Batches,
        callbacks: tuple[Callback, ...],
        tolerance: float,
        patience: int,
        progress: bool,
        schedule: SearchSchedule,
        ordered: bool,
    ):
        self.result, self.batches, self.callbacks = result, batches, callbacks
        self.tolerance, self.patience, self.progress = (
            tolerance * batches.features,
            patience,
            progress,
        )
        self.schedule, self.ordered = schedule, ordered
        self.order: Tensor | None = None  # of the rows, where the loop may choose it
        self.reorder = 1  # epochs after which it does so next
        self.stopped = False  # by a callback
        self.inference, self.guide = result.inference, result.guide
        self.searching = self.guide if isinstance(self.guide, SearchingGuide) else None
        self.started = time.perf_counter()
        self.evaluations = self.guide.evaluations

    def run(self, phase: str, epochs: int, one_pass: Callable[[], float]) -> bool:
        """Up to ``epochs`` passes under a progress bar; True when the ELBO has settled."""
        with tqdm(
            total=epochs, desc=phase, disable=not self.progress, unit="epoch", dynamic_ncols=True
        ) as bar:
            return self._passes(phase, epochs, one_pass, bar)

    def _passes(self, phase: str, epochs: int, one_pass: Callable[[], float], bar: Any) -> bool:
        """True when the gain stayed below the tolerance for ``patience`` passes."""
        settled, best = 0, -math.inf
        for _ in range(epochs):
            elbo = self._epoch(phase, one_pass, bar)
            gain, searched = elbo - best, self._searches
            if phase == "EM":
                spent = self.result.history.epochs[-1].evaluations - self.spent
                self.schedule.record(searched, gain, spent / self.batches.rows, self.tolerance)
            if gain > self.tolerance:  # with a tolerance of zero a fit may still come to rest
                settled = 0
            elif searched:  # what only re-weighs must not end a fit
                settled += 1
            best = max(best, elbo)
            answers = [
                callback(self.result) for callback in self.callbacks
            ]  # every callback is called
            self.stopped = any(answer is True for answer in answers)
            if self.stopped or settled >= self.patience:
                return settled >= self.patience
        return False

    def _epoch(self, phase: str, one_pass: Callable[[], float], bar: Any) -> float:
        """One pass over the data; returns its ELBO."""
        self.spent = self.guide.evaluations - self.evaluations
        update = getattr(self.inference, "last_update", None)
        # Components that were just split off are in no row's candidates yet: without a search they
        # would win none.
        just_reseeded = update is not None and update.reseeded > 0
        if self.searching is not None:
            self.searching.search = phase != "EM" or just_reseeded or self.schedule.next()
        self.guide.reset_counts()
        elbo = -one_pass() / (self.batches.rows * self.guide.mean_weight)
        self._record(phase, elbo, bar)
        due = self.ordered and len(self.result.history) >= self.reorder
        if due and self.searching is not None and self.searching.search:
            self.order = self.searching.row_order()
            self.reorder = len(self.result.history) + _EPOCHS_AN_ORDER
        return elbo

    @property
    def _searches(self) -> bool:
        """Whether E-steps of this epoch do all that they can, rather than only re-weigh candidates."""
        return self.searching is None or self.searching.search

    def search(self) -> float:
        """E-steps alone."""
        self.guide.reuse = ReuseMessenger()
        loss = sum(
            -float(self.guide.posterior(*batch.args, **batch.kwargs).free_energy())
            for batch in self.batches.in_order(self.order)
        )
        self.guide.reuse = None
        return self._whole(loss)

    def update_pass(self) -> Callable[[], float]:
        """How this strategy passes over the data once and updates."""
        if isinstance(self.inference, EM) and self.inference.step_size is None:
            return self._exact_em
        return self._stochastic

    def _exact_em(self) -> float:
        assert isinstance(self.inference, EM)
        loss = sum(
            self.inference.accumulate(*batch.args, **batch.kwargs)
            for batch in self.batches.in_order(self.order)
        )
        self.inference.maximize()
        return self._whole(loss)

    def _whole(self, loss: float) -> float:
        """The loss of the rows that were evaluated, scaled up to all rows if the model itself draws a subsample."""
        return loss * self.batches.rows / max(1, int(self.guide.rows_won.sum()))

    def _stochastic(self) -> float:
        losses = [
            (self.inference.step(*batch.args, **batch.kwargs), batch.rows)
            for batch in self.batches.shuffled()
        ]
        # Each loss is scaled up to the data set.
        return sum(loss * rows for loss, rows in losses) / self.batches.rows

    def _record(self, phase: str, elbo: float, bar: Any) -> None:
        update = getattr(self.inference, "last_update", None) if phase == "EM" else None
        reseeded_by_guide = self.guide.reseeded if isinstance(self.guide, LabelledGuide) else 0
        epoch = Epoch(
            phase=phase,
            elbo=elbo,
            evaluations=self.guide.evaluations - self.evaluations,
            live=int((self.guide.rows_won > 0).sum()),
            reseeded=(update.reseeded if update else 0) + reseeded_by_guide,
            dropped=update.dropped if update else 0,
            seconds=time.perf_counter() - self.started,
            searched=self.searching is not None and self.searching.search,
            details=self.guide.epoch_details(),
        )
        self.result.history.epochs.append(epoch)
        bar.set_postfix(
            elbo=f"{elbo:.4f}",
            evaluations=f"{epoch.evaluations:.3g}",
            live=epoch.live,
            refresh=False,
        )
        bar.update()
