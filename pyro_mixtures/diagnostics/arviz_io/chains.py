"""What a posterior comes from - a fit, restarts, MCMC, a bootstrap - in one form: chains of draws that can be run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.infer import Fit, History
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.restarts.stored_fits import (
    State,
    StoredModel,
    names_in_modules,
    state_without_modules,
)
from pyro_mixtures.infer.uncertainty.bootstrap import Bootstrap
from pyro_mixtures.options import check_whole
from pyro_mixtures.poutine import ProgramStructure, read_structure
from pyro_mixtures.poutine.params import leaf_of

Values = Mapping[str, Tensor]  # of the latent sites besides z: one draw
Rows = tuple[Tensor, ...]

_DRAWS = 100


class Draw(NamedTuple):
    """One draw: a program with its params in place, and values of its other latent sites."""

    model: Callable
    guide: PartitionGuide | None
    given: Values


@dataclass
class Chains:
    """Draws of one declaration, as many in each chain."""

    structure: ProgramStructure
    rows: Rows
    draws: list[list[Draw]]
    labels: str | None = (
        None  # what has labels of its own: every "chain", every "draw", or None, all have the same
    )
    reference: Draw | None = None  # whose labels the others are to have, where the source says so
    numbers: np.ndarray | None = None  # (draws,) of the draws, where some were left out
    stats: dict[str, np.ndarray] = field(default_factory=dict)  # (chain, draw), or (chain,)
    histories: list[History] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of chains and of draws in each."""
        return len(self.draws), len(self.draws[0])

    @property
    def all(self) -> list[Draw]:
        """All draws, chain after chain."""
        return [draw for chain in self.draws for draw in chain]


def read_chains(source: Any, rows: tuple, *, draws: int | None, site: str) -> Chains:
    """The draws of a fit, a guide, a list of either, a bootstrap, or an MCMC whose model is the first of ``rows``.

    :raises OptionError: for impossible ``draws``, or a source of another kind.
    :raises ModelError: when a site besides z has no values, or fits are of different mixtures or
        share their params.
    """
    if draws is not None:
        check_whole(draws=draws)
    return _read(source, rows, draws, site)


@singledispatch
def _read(source: Any, rows: tuple, draws: int | None, site: str) -> Chains:
    """Of a guide, which knows its model."""
    if not isinstance(source, PartitionGuide):
        raise OptionError(
            f"{type(source).__name__} has no draws to show: give a Fit, a guide of pyro_mixtures.guides, a list of "
            "them, a Bootstrap, or an MCMC and its model"
        )
    return _one(source.model, source, History(), rows, draws)


@_read.register
def _(source: Fit, rows: tuple, draws: int | None, site: str) -> Chains:
    return _placed(source, rows, draws)


@_read.register(list)
@_read.register(tuple)
def _(source: Sequence[Any], rows: tuple, draws: int | None, site: str) -> Chains:
    """Fits as chains, each in a param store of its own: by name their params would be the same."""
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], Mapping):
        return _placed(source, rows, draws)
    if not source:
        raise OptionError("no fits were given: to_arviz needs at least one")
    chains = [_placed(entry, rows, draws) for entry in source]
    _check_same_mixture(chains)
    _check_own_params(chains)
    first = chains[0]
    together = [chain.draws[0] for chain in chains]
    histories = [history for chain in chains for history in chain.histories]
    return Chains(first.structure, first.rows, together, "chain", histories=histories)


@_read.register
def _(source: Bootstrap, rows: tuple, draws: int | None, site: str) -> Chains:
    if draws not in (None, len(source.refits)):
        raise OptionError(
            f"draws={draws}, but the bootstrap has {len(source.refits)}: leave draws out"
        )
    whole = _placed(source.fit, rows, None)
    if whole.structure.latent:
        raise ModelError(
            f"sites {list(whole.structure.latent)} are latent: a bootstrap is of params alone"
        )
    refits = [Draw(refit.model, refit.fit.guide, {}) for refit in source.refits]
    stats = {"elbo": source.elbos[None], "converged": source.converged[None]}
    return Chains(whole.structure, whole.rows, [refits], "draw", whole.draws[0][0], stats=stats)


@_read.register
def _(source: MCMC, rows: tuple, draws: int | None, site: str) -> Chains:
    if not rows or isinstance(rows[0], Tensor) or not callable(rows[0]):
        raise OptionError("draws of an MCMC need its model: to_arviz(mcmc, model, x)")
    model, tensors = rows[0], Batches(rows[1:]).tensors
    structure = _declaration(model, site, tensors)
    samples = source.get_samples(group_by_chain=True)
    _check_values(structure, samples)
    count = len(next(iter(samples.values()))[0])
    kept = _spread(count, draws)
    values = {name: samples[name] for name in structure.latent}

    def chain(number: int) -> list[Draw]:
        return [
            Draw(model, None, {name: value[number, draw] for name, value in values.items()})
            for draw in kept
        ]

    chains = [chain(number) for number in range(source.num_chains)]
    numbers = None if len(kept) == count else kept
    stats = _sampler_stats(source, count, kept)
    return Chains(structure, tensors, chains, "draw", numbers=numbers, stats=stats)


def _one(
    model: Callable, guide: PartitionGuide, history: History, rows: tuple, draws: int | None
) -> Chains:
    """One chain of independent draws from the guide beside, or of one point."""
    tensors = Batches(rows).tensors
    structure = _declaration(model, guide.site, tensors)
    given = _draw(guide, structure, tensors, draws)
    return Chains(
        structure, tensors, [[Draw(model, guide, values) for values in given]], histories=[history]
    )


def _placed(entry: Any, rows: tuple, draws: int | None) -> Chains:
    """The chain of a fit or a guide, or of (fit, state of the param store that it was fitted in)."""
    source, state = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, None)
    if not isinstance(source, Fit | PartitionGuide):
        raise OptionError(
            f"{type(source).__name__} has no draws to show: a list holds fits or guides of fits, or (fit, state)"
        )
    guide = source.guide if isinstance(source, Fit) else source
    program = source.model if isinstance(source, Fit) else guide.model
    model = StoredModel(
        program,
        _checked_state(state) if state is not None else state_without_modules(program, guide),
    )
    before = set(model.state["params"])
    with model.store():
        chain = _one(
            program, guide, source.history if isinstance(source, Fit) else History(), rows, draws
        )
    _check_known(set(model.state["params"]) - before - names_in_modules(program, guide))
    chain.draws = [[draw._replace(model=model) for draw in chain.draws[0]]]
    return chain


def _checked_state(state: Any) -> State:
    if not isinstance(state, Mapping) or not {"params", "constraints"} <= set(state):
        raise OptionError(
            f"{type(state).__name__} is no state of a param store: give (fit, state) with the state of "
            "`with pyro.get_param_store().scope() as state:`"
        )
    return state


def _check_known(created: set[str]) -> None:
    if created:
        raise ModelError(
            f"params {sorted(created)} of a fit are nowhere, and began anew: a function's live in Pyro's store alone. "
            "Make each fit in a store of its own, `with pyro.get_param_store().scope() as state:`, and give "
            "(fit, state), or convert it while its params are in the store"
        )


def _declaration(model: Callable, site: str, tensors: Rows) -> ProgramStructure:
    return read_structure(model, site, tuple(tensor[:1] for tensor in tensors), {})


def _draw(
    guide: PartitionGuide, structure: ProgramStructure, rows: Rows, draws: int | None
) -> list[Values]:
    """Values of the other latent sites, one mapping a draw; one empty mapping for a point estimate."""
    if not structure.latent:
        if draws not in (None, 1):
            raise OptionError(
                f"draws={draws}, but {structure.site!r} is the only latent site: params are points"
            )
        return [{}]
    with pyro.poutine.block(), torch.no_grad():
        given = [guide.latent_values(*rows) for _ in range(_DRAWS if draws is None else draws)]
    _check_values(structure, given[0])
    return [{name: values[name] for name in structure.latent} for values in given]


def _check_values(structure: ProgramStructure, values: Mapping[str, Any]) -> None:
    missing = [name for name in structure.latent if name not in values]
    if missing:
        raise ModelError(
            f"sites {missing} are latent and the guide has no values for them: give it global_guide=, a guide over them, for "
            f"example AutoNormal(poutine.block(model, hide=[{structure.site!r}]))"
        )


def _check_same_mixture(chains: list[Chains]) -> None:
    kinds = {
        (c.structure.site, c.structure.components, c.structure.latent, c.shape) for c in chains
    }
    if len(kinds) > 1:
        raise ModelError(
            f"these fits are of different mixtures, (site, components, latent sites, shape) {sorted(map(str, kinds))}: "
            "chains are of one; convert each by itself and give them to arviz.compare"
        )


def _check_own_params(chains: list[Chains]) -> None:
    """Fits that share a param hold the values of the last one alone."""
    owner: dict[int, int] = {}
    for number, chain in enumerate(chains):
        for name, leaf in leaves(chain.draws[0][0].model, chain.rows).items():
            if owner.setdefault(id(leaf), number) != number:
                raise ModelError(
                    f"fits {owner[id(leaf)]} and {number} share param {name!r}, whose value is that of the last fit: "
                    "make each in a store of its own, `with pyro.get_param_store().scope() as state:`, and give "
                    "(fit, state)"
                )


def leaves(model: Callable, rows: Rows) -> dict[str, Tensor]:
    """The unconstrained tensors of a program's params, by their names in Pyro."""
    with pyro.poutine.block(), torch.no_grad():
        run = pyro.poutine.trace(model, param_only=True).get_trace(*(tensor[:1] for tensor in rows))
    nodes: dict[str, Any] = dict(run.nodes)
    return {name: leaf_of(node["value"]) for name, node in nodes.items() if node["type"] == "param"}


def _spread(count: int, draws: int | None) -> np.ndarray:
    """Numbers of ``draws`` out of ``count`` draws, evenly spread."""
    if draws is not None and draws > count:
        raise OptionError(f"draws={draws}, but a chain has {count}")
    return np.arange(count) if draws is None else np.arange(draws) * count // draws


def _sampler_stats(mcmc: MCMC, count: int, kept: np.ndarray) -> dict[str, np.ndarray]:
    """What Pyro's kernels tell: which draws ended divergent trajectories, and how many proposals were accepted."""
    if count < 4:  # Pyro computes all its diagnostics or none, and the others need four
        return {}
    found, chains = mcmc.diagnostics(), range(mcmc.num_chains)
    stats = {}
    if "divergences" in found:
        diverging = np.zeros((len(chains), count), dtype=bool)
        for chain in chains:
            diverging[
                chain, [draw for draw in found["divergences"][f"chain {chain}"] if draw < count]
            ] = True
        stats["diverging"] = diverging[:, kept]
    if "acceptance rate" in found:
        stats["mean_acceptance_rate"] = np.array(
            [float(found["acceptance rate"][f"chain {c}"]) for c in chains]
        )
    return stats
