"""Restarts side by side: R starts of K components are one fit of R K."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.errors import ModelError, OptionError, PartitionError
from pyro_mixtures.infer.em.batching import plan
from pyro_mixtures.infer.em.em import EM
from pyro_mixtures.infer.em.fit import Fit, fit
from pyro_mixtures.infer.em.history import Epoch, History
from pyro_mixtures.infer.labelled_guide import ParallelGuide
from pyro_mixtures.infer.restarts.starts import (
    Build,
    Starter,
    Trial,
    check_new,
    labelled_guide,
)
from pyro_mixtures.infer.restarts.stored_fits import (
    constrained_value,
    fresh_store,
    inference_of,
    params_of,
)
from pyro_mixtures.poutine.params import ParamHandle

Rows = tuple[Tensor, ...]


class Member(NamedTuple):
    """A fit as ``build()`` makes it, with its params."""

    inference: EM
    store: Any  # the state of its param store
    params: dict[str, ParamHandle]


def fit_together(
    build: Build,
    rows: Rows,
    starts: Sequence[Tensor | str],
    seeds: Sequence[int],
    starter: Starter,
    fit_options: dict[str, Any],
    bar: Any,
) -> tuple[Trial, list[float]]:
    """The best of R starts and the objectives of all, by one fit of ``build(blocks=R)``.

    Every start has a member of its own, ``build(blocks=1)`` under its seed. Its initial params and
    labels go into the fit of all, and the winner's come back.

    :raises OptionError: when ``build`` takes no ``blocks``, or starts would share params.
    :raises ModelError: when it does not make as many blocks and components as it was asked for.
    """
    _check_build(build)
    members: list[Member] = []
    for seed in seeds:
        members.append(_member(build, rows, seed, 1, members))
    labels = [
        _labels(*given, starter, len(rows[0])) for given in zip(members, starts, seeds, strict=True)
    ]
    whole = _member(build, rows, seeds[0], len(starts), members)
    guide = _blocked_guide(whole, members)
    _check_params(whole, members)
    _gather(whole, members)
    guide.set_labels(torch.stack(labels))
    watch = _Watch(guide, rows, fit_options, bar)
    # The watch says when to stop.
    options = {
        **fit_options,
        "tolerance": -math.inf,
        "callbacks": (watch, *fit_options.get("callbacks", ())),
    }
    with pyro.get_param_store().scope(whole.store):
        found = fit(whole.inference, *rows, progress=False, **options)
        objectives = _objectives(whole.inference, guide, rows, fit_options.get("batch_size"))
    winner = objectives.index(min(objectives))
    best = members[winner]
    _hand_back(whole, best, winner)
    assert guide.labels is not None
    labelled_guide(best.inference).set_labels(guide.labels[winner])
    result = Fit(
        best.inference, watch.history(winner), bool(watch.settled[winner]), found.interrupted
    )
    return Trial(result, best.store, objectives[winner], guide.labels[winner].long()), objectives


def _check_build(build: Callable) -> None:
    taken = inspect.signature(build).parameters.values()
    if not any(p.name == "blocks" or p.kind is p.VAR_KEYWORD for p in taken):
        raise OptionError(
            "parallel=True calls build(blocks=R), but this build takes no blocks: def build(blocks=1), with "
            "components=K * blocks for the model and the guide, and blocks=blocks for the guide; or leave parallel out"
        )


def _member(build: Build, rows: Rows, seed: int, blocks: int, earlier: Sequence[Member]) -> Member:
    with fresh_store(seed) as store:
        inference = inference_of(build(blocks=blocks))
        check_new(inference, [member.inference for member in earlier])
        labelled_guide(inference)
        if inference.empty == "drop":
            raise OptionError(
                "empty='drop' shares the weights of dropped components among all starts: choose 'keep'"
            )
        params = params_of(inference, rows)
    return Member(inference, store, params)


def _labels(member: Member, start: Tensor | str, seed: int, starter: Starter, size: int) -> Tensor:
    """Labels (N,) of one start, as its own guide takes them."""
    guide = labelled_guide(member.inference)
    guide.set_labels(starter.labels(start, guide, seed))
    assert guide.labels is not None
    if len(guide.labels) != size:
        raise PartitionError(
            f"a start has the labels of {len(guide.labels)} rows, but the data have {size}"
        )
    return guide.labels


def _blocked_guide(whole: Member, members: Sequence[Member]) -> ParallelGuide:
    guide, blocks = whole.inference.guide, len(members)
    if not isinstance(guide, ParallelGuide):
        raise ModelError(
            f"{type(guide).__name__} holds one partition: restarts in parallel need a HardPartition guide"
        )
    wanted = blocks * members[0].inference.guide.components
    if guide.blocks != blocks or guide.components != wanted:
        raise ModelError(
            f"build(blocks={blocks}) made a guide of blocks={guide.blocks} and components={guide.components}, not of "
            f"{blocks} and {wanted}: hand blocks= on to the guide, and components=K * blocks to both"
        )
    return guide


def _check_params(whole: Member, members: Sequence[Member]) -> None:
    """Refuse params that are not one entry a component: shared ones would couple the starts."""
    blocks, one = len(members), members[0].params
    if whole.params.keys() != one.keys():
        raise OptionError(
            f"params {sorted(whole.params.keys() ^ one.keys())} exist for one number of components alone: restarts in "
            "parallel need params with one entry a component; leave parallel out"
        )
    shapes = {
        name: (constrained_value(one[name]).shape, constrained_value(handle).shape)
        for name, handle in whole.params.items()
    }
    own = {
        name for name, (few, all_) in shapes.items() if few and all_ == (blocks * few[0], *few[1:])
    }
    shared = sorted(shapes.keys() - own)
    if shared:
        raise OptionError(
            f"params {shared} are shared by all components and would couple the starts: make them constants, give "
            "every component its own, or leave parallel out"
        )


def _gather(whole: Member, members: Sequence[Member]) -> None:
    """Set the params of the fit of all to those of its members."""
    for name, param in whole.params.items():
        value = torch.cat([constrained_value(member.params[name]) for member in members])
        param.write(value / len(members) if _is_weights(param, value) else value)


def _hand_back(whole: Member, member: Member, block: int) -> None:
    """Set a member's params to those of its block."""
    for name, param in member.params.items():
        components = len(constrained_value(param))
        value = constrained_value(whole.params[name])[block * components : (block + 1) * components]
        param.write(value / value.sum() if _is_weights(param, value) else value)


def _is_weights(param: ParamHandle, value: Tensor) -> bool:
    """Whether all components' entries have the sum one, rather than each component's."""
    return param.constraint is constraints.simplex and value.dim() == 1


def _objectives(
    inference: EM, guide: ParallelGuide, rows: Rows, batch_size: int | None
) -> list[float]:
    """Minus the ELBO of every block's last partition under the last params, in nats per row."""
    batches = plan(inference, rows, batch_size).batches
    losses = [guide.losses(*batch.args, **batch.kwargs) for batch in batches.in_order()]
    return (torch.stack(losses).sum(0) / (batches.rows * guide.mean_weight)).tolist()


class _Watch:
    """Follows every start: its history, and whether it has settled by the rule of :func:`fit`. True stops the fit."""

    def __init__(self, guide: ParallelGuide, rows: Rows, fit_options: dict[str, Any], bar: Any):
        defaults = inspect.signature(fit).parameters
        tolerance, self.patience = (
            fit_options.get(name, defaults[name].default) for name in ("tolerance", "patience")
        )
        batches = Batches(rows)
        self.guide, self.rows, self.tolerance, self.bar = (
            guide,
            batches.rows,
            tolerance * batches.features,
            bar,
        )
        self.best = torch.full((guide.blocks,), -math.inf, dtype=torch.float64, device="cpu")
        self.still = torch.zeros(guide.blocks, dtype=torch.int64, device="cpu")
        self.settled = torch.zeros(guide.blocks, dtype=torch.bool, device="cpu")
        self.length = torch.zeros_like(self.still)  # epochs until it settled
        self.passes: list[tuple[Epoch, Any, Tensor, Tensor]] = []

    def __call__(self, fit: Fit) -> bool:
        elbo = -self.guide.tally.loss / (self.rows * self.guide.mean_weight)
        self.passes.append((fit.history.epochs[-1], self.guide.tally, self.guide.sizes, elbo))
        self.still = torch.where(elbo - self.best > self.tolerance, 0, self.still + 1)
        self.best = torch.maximum(self.best, elbo)
        self.length = torch.where(self.settled, self.length, len(self.passes))
        self.settled = self.settled | (self.still >= self.patience)
        self.guide.hold(self.settled)
        self.bar.set_postfix(best=f"{-float(self.best.max()):.4f}", refresh=False)
        self.bar.update(int(self.settled.sum()) - self.bar.n)
        return bool(self.settled.all())

    def history(self, block: int) -> History:
        """The epochs of one start until it settled, with its share of the evaluations."""
        return History([self._epoch(block, *one) for one in self.passes[: int(self.length[block])]])

    def _epoch(self, block: int, epoch: Epoch, tally: Any, sizes: Tensor, elbo: Tensor) -> Epoch:
        return epoch._replace(
            elbo=float(elbo[block]),
            evaluations=epoch.evaluations // self.guide.blocks,
            live=int((sizes[block] > 0).sum()),
            reseeded=int(tally.reseeded[block]),
            details={
                "moved": int(tally.moved[block]),
                "objective": float(tally.objective[block]),
                "sizes": tuple(sizes[block].tolist()),
            },
        )
