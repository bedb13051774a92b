"""The fit loop of EM and SVI: warm-up, epochs over the rows, progress bar, interruption."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from types import FunctionType
from typing import Any

from pyro.infer import SVI
from torch import Tensor
from tqdm.auto import tqdm

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.infer.em.batching import plan
from pyro_mixtures.infer.em.convergence import Convergence
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.em.history import Epoch, History
from pyro_mixtures.infer.em.schedule import SearchSchedule
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.labeled_guide import LabeledGuide
from pyro_mixtures.infer.searching_guide import SearchingGuide
from pyro_mixtures.options import check_flag, check_whole
from pyro_mixtures.poutine import ReuseMessenger

# Epochs for which sorted rows keep their order: winners change little from one to the next.
_EPOCHS_PER_ORDER = 8

Callback = Callable[["Fit"], Any]


@dataclass
class Fit:
    """The outcome of :func:`fit`: the strategy with its model and guide, and the history.

    :param inference: the ``EM`` or ``SVI`` that was fitted.
    :param history: one record per epoch.
    :param converged: whether the fit stopped because the ELBO no longer rose.
    :param interrupted: whether Ctrl-C ended it.
    """

    inference: EM | SVI
    history: History
    converged: bool = False
    interrupted: bool = False

    def __repr__(self) -> str:
        strategy = type(self.inference).__name__
        state = "interrupted" if self.interrupted else f"converged={self.converged}"
        names = f"{_name(self.model)}, {type(self.guide).__name__}"
        return f"Fit({strategy}({names}), {state}, {self.history!r})"

    @property
    def model(self) -> Callable[..., Any]:
        """The fitted program."""
        model: Callable[..., Any] = self.inference.model
        return model

    @property
    def guide(self) -> PartitionGuide:
        """The guide with its row state."""
        guide: PartitionGuide = self.inference.guide
        return guide

    @property
    def elbo(self) -> float:
        """ELBO of the last epoch in nats per row; a row of weight two counts as two rows."""
        return self.history.epochs[-1].elbo if self.history.epochs else math.nan


def _name(model: Callable[..., Any]) -> str:
    """Return the name of a function, or of the class of a module."""
    return model.__name__ if isinstance(model, FunctionType) else type(model).__name__


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
    """Run epochs of ``inference`` over ``rows`` until the ELBO converges.

    :param inference: an :class:`EM` (exact or stepwise) or a stock ``pyro.infer.SVI``, whose guide
        is a guide of :mod:`pyro_mixtures.guides`.
    :param rows: the model's tensor arguments, each with N rows.
    :param batch_size: rows per call. Minibatches call ``model(*batch, index=..., size=N)``. Exact
        EM adds up their statistics before it updates; stepwise EM and SVI update after each, in
        random order. None calls ``model(*rows)`` once per epoch. But if the program takes ``index``
        and ``size``, exact EM is given as many rows per call as the working memory allows, and for
        large models in the order of their most probable components.
    :param epochs: maximum number of passes over the data after the warm-up.
    :param warmup: maximum number of E-step passes before the first update. They find candidate sets
        and neighbors of the initial components; only guides that search need them.
    :param tolerance: converged when the ELBO gains less than this over its best so far, in nats per
        row *and feature*, in ``patience`` epochs in succession. It is absolute: shifting or scaling
        the data does not change when a fit stops.
    :param patience: see ``tolerance``.
    :param search_every: search for better candidates in every ``search_every``-th EM epoch, and
        only update the responsibilities of the known candidates in the others. None chooses the
        epochs by the gain and the cost of a search.
    :param progress: whether to show a progress bar with the ELBO and the number of evaluations.
    :param callbacks: called with the :class:`Fit` after every epoch; one that returns True stops
        the fit.
    :returns: the fit. After Ctrl-C, which abandons the pass in progress, it is the state that was
        reached, with ``interrupted=True``.
    :raises OptionError: when an option has an impossible value.
    :raises ModelError: when the guide of ``inference`` is of another kind.

    >>> import torch
    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.models import GaussianMixture
    >>> x = torch.cat([torch.randn(50, 2) - 5, torch.randn(50, 2) + 5])
    >>> model = GaussianMixture(components=2, features=2)
    >>> em = EM(model, FullPartition(model, components=2))
    >>> fit(em, x, progress=False).converged
    True
    """
    check_flag(progress=progress)
    check_whole(minimum=0, epochs=epochs, warmup=warmup)
    check_whole(patience=patience)
    if search_every is not None:
        check_whole(search_every=search_every)
    # An infinite tolerance is allowed: such fits never converge, or converge at once.
    if isinstance(tolerance, bool) or not isinstance(tolerance, Real) or math.isnan(tolerance):
        raise OptionError(f"tolerance={tolerance!r} must be a number, in nats per row and feature")
    if not isinstance(inference, EM | SVI):
        raise ModelError(
            f"inference is of type {type(inference).__name__}: pass an inference over a model and "
            "its guide, fit(EM(model, guide), rows)"
        )
    if not isinstance(callbacks, Iterable) or not all(map(callable, callbacks := list(callbacks))):
        raise OptionError(
            f"callbacks={callbacks!r} must be functions of the fit: pass a list, such as "
            "callbacks=[print]"
        )
    guide = inference.guide
    if not isinstance(guide, PartitionGuide):
        raise ModelError(
            f"fit needs a guide of pyro_mixtures.guides for the mixture's z, not {guide!r}"
        )
    batches, ordered = plan(inference, rows, batch_size)
    result = Fit(inference, History())
    loop = _Loop(result, batches, ordered, tuple(callbacks), progress)
    try:
        if isinstance(inference, EM) and isinstance(guide, SearchingGuide) and warmup:
            convergence = Convergence(tolerance * batches.features, patience)
            loop.run("warm-up", warmup, loop.search_pass, convergence)
        phase = "EM" if isinstance(inference, EM) else "SVI"
        loop.schedule = SearchSchedule(search_every) if phase == "EM" else None
        if not loop.stopped:
            convergence = Convergence(tolerance * batches.features, patience)
            result.converged = loop.run(phase, epochs, loop.update_pass(), convergence)
    except KeyboardInterrupt:
        result.interrupted = True
    finally:
        if isinstance(guide, SearchingGuide):
            guide.search = True
        # Statistics of a pass that was not finished must not enter the next fit.
        if isinstance(inference, EM):
            inference.forget()
    return result


class _Loop:
    """Epochs of one fit."""

    def __init__(
        self,
        result: Fit,
        batches: Batches,
        ordered: bool,
        callbacks: tuple[Callback, ...],
        progress: bool,
    ):
        self.result, self.batches, self.callbacks = result, batches, callbacks
        self.progress = progress
        self.inference, self.guide = result.inference, result.guide
        self.searching = self.guide if isinstance(self.guide, SearchingGuide) else None
        self.schedule: SearchSchedule | None = None  # of EM epochs
        self.ordered = ordered  # whether the loop may choose the order of the rows
        self.order: Tensor | None = None
        self.next_reorder = 1  # epoch after which rows are sorted next
        self.stopped = False  # by a callback
        self.started = time.perf_counter()
        self.initial_evaluations = self.guide.evaluations

    def run(
        self, phase: str, epochs: int, one_pass: Callable[[], float], convergence: Convergence
    ) -> bool:
        """Run at most ``epochs`` passes under a progress bar; return whether the ELBO converged."""
        with tqdm(
            total=epochs, desc=phase, disable=not self.progress, unit="epoch", dynamic_ncols=True
        ) as bar:
            for _ in range(epochs):
                self._epoch(phase, one_pass, convergence, bar)
                # Every callback is called, also after one that stops the fit.
                answers = [callback(self.result) for callback in self.callbacks]
                self.stopped = any(answer is True for answer in answers)
                if self.stopped or convergence.reached:
                    break
        return convergence.reached

    def _epoch(
        self, phase: str, one_pass: Callable[[], float], convergence: Convergence, bar: Any
    ) -> None:
        """Run one pass over the data and record it."""
        evaluations = self.guide.evaluations
        if self.searching is not None:
            self.searching.search = self._next_searches()
        self.guide.reset_counts()
        elbo = -one_pass() / (self.batches.rows * self.guide.mean_weight)
        self._record(phase, elbo, bar)
        searched = self.searching is None or self.searching.search
        gain = convergence.record(elbo, searched=searched)
        if self.schedule is not None:
            spent = (self.guide.evaluations - evaluations) / self.batches.rows
            self.schedule.record(searched, gain, spent, convergence.tolerance)
        self._sort_rows()

    def _next_searches(self) -> bool:
        if self.schedule is None:
            return True
        # Components that were just split off are candidates of no row yet: without a search they
        # would win none.
        update = self.inference.last_update if isinstance(self.inference, EM) else None
        just_reseeded = update is not None and update.reseeded > 0
        return just_reseeded or self.schedule.next()

    def _sort_rows(self) -> None:
        """Sort rows by component from time to time, after an epoch that searched."""
        epochs = len(self.result.history)
        if not self.ordered or epochs < self.next_reorder:
            return
        if self.searching is not None and self.searching.search:
            self.order = self.searching.row_order()
            self.next_reorder = epochs + _EPOCHS_PER_ORDER

    def search_pass(self) -> float:
        """Run E-steps without an update; return the loss."""
        self.guide.reuse = ReuseMessenger()
        loss = sum(
            -float(self.guide.posterior(*batch.args, **batch.kwargs).free_energy())
            for batch in self.batches.in_order(self.order)
        )
        self.guide.reuse = None
        return self._scaled_to_all_rows(loss)

    def update_pass(self) -> Callable[[], float]:
        """Return the function that passes over the data once, updates, and returns the loss."""
        if isinstance(self.inference, EM) and self.inference.step_size is None:
            return self._exact_em_pass
        return self._stochastic_pass

    def _exact_em_pass(self) -> float:
        assert isinstance(self.inference, EM)
        loss = sum(
            self.inference.accumulate(*batch.args, **batch.kwargs)
            for batch in self.batches.in_order(self.order)
        )
        self.inference.maximize()
        return self._scaled_to_all_rows(loss)

    def _scaled_to_all_rows(self, loss: float) -> float:
        """Scale the loss up to all rows: a model may draw a subsample of them itself."""
        return loss * self.batches.rows / max(1, int(self.guide.rows_won.sum()))

    def _stochastic_pass(self) -> float:
        losses = [
            (self.inference.step(*batch.args, **batch.kwargs), batch.rows)
            for batch in self.batches.shuffled()
        ]
        # Each loss is scaled to the data set.
        return sum(loss * rows for loss, rows in losses) / self.batches.rows

    def _record(self, phase: str, elbo: float, bar: Any) -> None:
        update = None
        if phase == "EM" and isinstance(self.inference, EM):
            update = self.inference.last_update
        reseeded_by_guide = self.guide.reseeded if isinstance(self.guide, LabeledGuide) else 0
        epoch = Epoch(
            phase=phase,
            elbo=elbo,
            evaluations=self.guide.evaluations - self.initial_evaluations,
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
