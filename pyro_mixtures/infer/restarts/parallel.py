"""Restarts in parallel: R starts of K components are one fit of R K components."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.errors import ModelError, OptionError, PartitionError
from pyro_mixtures.infer.em.batching import plan
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.em.fit import Fit, fit
from pyro_mixtures.infer.em.history import Epoch, History
from pyro_mixtures.infer.parallel_guide import ParallelGuide, RestartCounts
from pyro_mixtures.infer.restarts.starts import (
    Build,
    Restarts,
    Rows,
    StartSampler,
    check_new,
    labeled_guide,
)
from pyro_mixtures.infer.restarts.stored_fits import (
    Params,
    StoredFit,
    constrained_value,
    fresh_store,
    inference_of,
    params_of,
)
from pyro_mixtures.poutine.params import ParamHandle


class _Built(NamedTuple):
    """What ``build()`` returned, not yet fitted, and its params."""

    stored: StoredFit
    params: Params

    @property
    def components(self) -> int:
        return self.stored.fit.guide.components


def fit_together(restarts: Restarts, bar: Any) -> tuple[StoredFit, list[float]]:
    """Fit all starts at once, by ``build(restarts=R)``.

    Each start is also built by itself, with ``build(restarts=1)`` under its seed. Its initial
    params and labels are copied into the fit of all starts, and those of the best start are copied
    back.

    :returns: the best start, and the objectives of all starts.
    :raises OptionError: if ``build`` has no argument ``restarts``, or starts would share params.
    :raises ModelError: if ``build`` does not make as many restarts and components as it was asked
        for.
    """
    build, rows, starts, seeds, sampler, fit_options = restarts
    _check_build(build)
    singles: list[_Built] = []
    for seed in seeds:
        singles.append(_built(build, rows, seed, 1, singles))
    labels = [
        _start_labels(single, start, seed, sampler, len(rows[0]))
        for single, start, seed in zip(singles, starts, seeds, strict=True)
    ]
    combined = _built(build, rows, seeds[0], len(starts), singles)
    guide = _parallel_guide(combined, singles)
    _check_params(combined, singles)
    _copy_params_in(combined, singles)
    guide.set_labels(torch.stack(labels))
    monitor = _RestartMonitor(guide, rows, fit_options, bar)
    # The monitor decides when to stop.
    options = {
        **fit_options,
        "tolerance": -math.inf,
        "callbacks": (monitor, *fit_options.get("callbacks", ())),
    }
    with combined.stored.model.store():
        outcome = fit(combined.stored.em, *rows, progress=False, **options)
        objectives = _objectives(combined.stored.em, guide, rows, fit_options.get("batch_size"))
    winner = objectives.index(min(objectives))
    best = singles[winner]
    _copy_params_back(combined, best, winner)
    assert guide.labels is not None
    labeled_guide(best.stored.em).set_labels(guide.labels[winner])
    best_fit = Fit(
        best.stored.em,
        monitor.history(winner),
        converged=bool(monitor.converged[winner]),
        interrupted=outcome.interrupted,
    )
    return StoredFit(best_fit, best.stored.state), objectives


def _check_build(build: Callable[..., Any]) -> None:
    parameters = inspect.signature(build).parameters.values()
    if not any(p.name == "restarts" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise OptionError(
            "parallel=True calls build(restarts=R), but this build has no argument restarts: "
            "write def build(restarts=1), give the model K * restarts components, and make the "
            "guide with hard_partition(model, components=K * restarts, restarts=restarts); or "
            "leave parallel out"
        )


def _built(build: Build, rows: Rows, seed: int, restarts: int, earlier: Sequence[_Built]) -> _Built:
    with fresh_store(seed) as state:
        inference = inference_of(build(restarts=restarts))
        check_new(inference, [built.stored.fit for built in earlier])
        labeled_guide(inference)
        if inference.empty == "drop":
            raise OptionError(
                "empty='drop' would share the weights of dropped components among all starts: "
                "choose empty='keep'"
            )
        params = params_of(inference, rows)
    return _Built(StoredFit(Fit(inference, History()), state), params)


def _start_labels(
    single: _Built, start: Tensor | str, seed: int, sampler: StartSampler, rows: int
) -> Tensor:
    """Return the labels (N,) of one start, as its guide accepts them."""
    guide = labeled_guide(single.stored.em)
    guide.set_labels(sampler.labels(start, guide, seed))
    assert guide.labels is not None
    if guide.labels.shape != (rows,):
        raise PartitionError(
            f"a start has labels {tuple(guide.labels.shape)}, but the data have {rows} rows: pass "
            "one label per row"
        )
    return guide.labels


def _parallel_guide(combined: _Built, singles: Sequence[_Built]) -> ParallelGuide:
    guide, restarts = combined.stored.fit.guide, len(singles)
    components = restarts * singles[0].components
    made = guide.restarts if isinstance(guide, ParallelGuide) else 1
    if not isinstance(guide, ParallelGuide) or (made, guide.components) != (restarts, components):
        raise ModelError(
            f"build(restarts={restarts}) made a {type(guide).__name__} of restarts={made} and "
            f"components={guide.components}, not of {restarts} and {components}: make the guide "
            "with hard_partition(model, components=K * restarts, restarts=restarts)"
        )
    return guide


def _check_params(combined: _Built, singles: Sequence[_Built]) -> None:
    """Refuse params without one entry per component: shared ones would couple the starts."""
    restarts, single_params = len(singles), singles[0].params
    if combined.params.keys() != single_params.keys():
        raise OptionError(
            f"params {sorted(combined.params.keys() ^ single_params.keys())} exist only for one "
            "number of components: parallel restarts need params with one entry per component; "
            "leave parallel out"
        )
    shared = []
    for name, param in combined.params.items():
        single_shape = constrained_value(single_params[name]).shape
        shape = constrained_value(param).shape
        if not single_shape or shape != (restarts * single_shape[0], *single_shape[1:]):
            shared.append(name)
    if shared:
        raise OptionError(
            f"params {sorted(shared)} are shared by all components and would couple the starts: "
            "make them constants, give every component its own, or leave parallel out"
        )


def _copy_params_in(combined: _Built, singles: Sequence[_Built]) -> None:
    """Set the params of the fit of all starts to those of the starts."""
    for name, param in combined.params.items():
        value = torch.cat([constrained_value(single.params[name]) for single in singles])
        param.write(value / len(singles) if _is_weights(param, value) else value)


def _copy_params_back(combined: _Built, single: _Built, restart: int) -> None:
    """Set the params of a start to those of its components in the fit of all starts."""
    for name, param in single.params.items():
        components = len(constrained_value(param))
        first = restart * components
        value = constrained_value(combined.params[name])[first : first + components]
        param.write(value / value.sum() if _is_weights(param, value) else value)


def _is_weights(param: ParamHandle, value: Tensor) -> bool:
    """Whether the entries of all components sum to one, rather than those of each."""
    return param.constraint is constraints.simplex and value.dim() == 1


def _objectives(
    inference: EM, guide: ParallelGuide, rows: Rows, batch_size: int | None
) -> list[float]:
    """Return minus the ELBO of each restart's partition under the last params, in nats per row."""
    batches = plan(inference, rows, batch_size).batches
    losses = [guide.losses(*batch.args, **batch.kwargs) for batch in batches.in_order()]
    objectives: list[float] = (
        torch.stack(losses).sum(0) / (batches.rows * guide.mean_weight)
    ).tolist()
    return objectives


class _RestartEpoch(NamedTuple):
    """One epoch of all restarts."""

    epoch: Epoch
    counts: RestartCounts
    sizes: Tensor  # (R, K)
    elbo: Tensor  # (R,) nats per row


class _RestartMonitor:
    """Callback of :func:`fit` that records each restart and stops when all have converged.

    A restart converges by the rule of :func:`fit`. Its rows keep their labels from then on.
    """

    def __init__(self, guide: ParallelGuide, rows: Rows, fit_options: dict[str, Any], bar: Any):
        defaults = inspect.signature(fit).parameters
        tolerance, self.patience = (
            fit_options.get(name, defaults[name].default) for name in ("tolerance", "patience")
        )
        batches = Batches(rows)
        self.guide = guide
        self.rows = batches.rows
        self.tolerance = tolerance * batches.features
        self.bar = bar
        self.best = torch.full((guide.restarts,), -math.inf, dtype=torch.float64, device="cpu")
        self.epochs_without_gain = torch.zeros(guide.restarts, dtype=torch.int64, device="cpu")
        self.converged = torch.zeros(guide.restarts, dtype=torch.bool, device="cpu")
        self.length = torch.zeros_like(self.epochs_without_gain)  # epochs until convergence
        self.epochs: list[_RestartEpoch] = []

    def __call__(self, fit: Fit) -> bool:
        counts = self.guide.restart_counts
        elbo = -counts.loss / (self.rows * self.guide.mean_weight)
        self.epochs.append(_RestartEpoch(fit.history.epochs[-1], counts, self.guide.sizes, elbo))
        gained = elbo - self.best > self.tolerance
        self.epochs_without_gain = torch.where(gained, 0, self.epochs_without_gain + 1)
        self.best = torch.maximum(self.best, elbo)
        self.length = torch.where(self.converged, self.length, len(self.epochs))
        self.converged = self.converged | (self.epochs_without_gain >= self.patience)
        self.guide.hold(self.converged)
        self.bar.set_postfix(best=f"{-float(self.best.max()):.4f}", refresh=False)
        self.bar.update(int(self.converged.sum()) - self.bar.n)
        return bool(self.converged.all())

    def history(self, restart: int) -> History:
        """Return the epochs of one restart until it converged, with its share of evaluations."""
        length = int(self.length[restart])
        return History([self._epoch_of(restart, recorded) for recorded in self.epochs[:length]])

    def _epoch_of(self, restart: int, recorded: _RestartEpoch) -> Epoch:
        sizes = recorded.sizes[restart]
        details = {
            "moved": int(recorded.counts.moved[restart]),
            "objective": float(recorded.counts.objective[restart]),
            "sizes": tuple(sizes.tolist()),
        }
        return recorded.epoch._replace(
            elbo=float(recorded.elbo[restart]),
            evaluations=recorded.epoch.evaluations // self.guide.restarts,
            live=int((sizes > 0).sum()),
            reseeded=int(recorded.counts.reseeded[restart]),
            details=details,
        )
