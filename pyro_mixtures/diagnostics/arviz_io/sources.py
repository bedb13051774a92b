"""Sources of draws - fits, guides, restarts, bootstraps, MCMC - read into chains of draws."""

from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.diagnostics.arviz_io.chains import (
    Chains,
    Draw,
    LatentValues,
    Model,
    Rows,
    param_leaves,
)
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.infer import Fit, History
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.infer.restarts.stored_fits import (
    State,
    StoredFit,
    StoredModel,
    names_in_modules,
    state_without_modules,
)
from pyro_mixtures.infer.uncertainty.bootstrap import Bootstrap
from pyro_mixtures.options import check_whole
from pyro_mixtures.poutine import ProgramStructure, read_structure

_DEFAULT_DRAWS = 100
_MIN_DIAGNOSTIC_DRAWS = 4  # Pyro computes all MCMC diagnostics or none, and some need four draws


def read_chains(source: Any, rows: tuple[Any, ...], *, draws: int | None, site: str) -> Chains:
    """Read the draws of a fit, a guide, a list of either, a bootstrap, or an MCMC.

    :param source: where the draws come from.
    :param rows: the model's tensor arguments; for an MCMC preceded by its model.
    :param draws: number of draws per chain; None for the default of the source.
    :param site: the discrete site of an MCMC's model.
    :raises OptionError: for an impossible ``draws``, or another kind of source.
    :raises ModelError: if a site other than z has no values, or fits are of different mixtures or
        share their params.
    """
    if draws is not None:
        check_whole(draws=draws)
    return _read(source, rows, draws, site)


@singledispatch
def _read(source: Any, rows: tuple[Any, ...], draws: int | None, site: str) -> Chains:
    raise OptionError(
        f"{type(source).__name__} is not a source of draws: pass a Fit, a guide of "
        "pyro_mixtures.guides, a StoredFit, a list of these, a Bootstrap, or an MCMC and its model"
    )


@_read.register
def _(source: PartitionGuide, rows: tuple[Any, ...], draws: int | None, site: str) -> Chains:
    return _chain_of_guide(source.model, source, History(), rows, draws)


@_read.register(Fit)
@_read.register(StoredFit)
def _(source: Fit | StoredFit, rows: tuple[Any, ...], draws: int | None, site: str) -> Chains:
    return _chain_of_entry(source, rows, draws)


@_read.register(list)
@_read.register(tuple)
def _(source: Sequence[Any], rows: tuple[Any, ...], draws: int | None, site: str) -> Chains:
    """Fits as chains, each in its own param store, because their params have the same names."""
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], Mapping):
        return _chain_of_entry(source, rows, draws)
    if not source:
        raise OptionError("no fits were passed: to_arviz needs at least one")
    fits = [_chain_of_entry(entry, rows, draws) for entry in source]
    _check_same_mixture(fits)
    _check_separate_params(fits)
    return Chains(
        fits[0].structure,
        fits[0].rows,
        [fit.draws[0] for fit in fits],
        "chain",
        histories=[history for fit in fits for history in fit.histories],
    )


@_read.register
def _(source: Bootstrap, rows: tuple[Any, ...], draws: int | None, site: str) -> Chains:
    if draws not in (None, len(source.refits)):
        raise OptionError(
            f"draws={draws}, but the bootstrap has {len(source.refits)} refits: leave draws out"
        )
    fit = _chain_of_entry(source.fit, rows, None)
    if fit.structure.latent:
        raise ModelError(
            f"sites {list(fit.structure.latent)} are latent, but a bootstrap has params only"
        )
    refits = [Draw(refit.model, refit.fit.guide, {}) for refit in source.refits]
    stats = {"elbo": source.elbos[None], "converged": source.converged[None]}
    return Chains(fit.structure, fit.rows, [refits], "draw", fit.draws[0][0], stats=stats)


@_read.register
def _(source: MCMC, rows: tuple[Any, ...], draws: int | None, site: str) -> Chains:
    if not rows or isinstance(rows[0], Tensor) or not callable(rows[0]):
        raise OptionError("draws of an MCMC need its model: pass to_arviz(mcmc, model, x)")
    model, tensors = rows[0], Batches(rows[1:]).tensors
    structure = _structure(model, site, tensors)
    samples = source.get_samples(group_by_chain=True)
    _check_values(structure, samples)
    count = len(next(iter(samples.values()))[0])
    numbers = _evenly_spaced(count, draws)
    values = {name: samples[name] for name in structure.latent}

    def chain(chain_number: int) -> list[Draw]:
        return [
            Draw(model, None, {name: value[chain_number, draw] for name, value in values.items()})
            for draw in numbers
        ]

    return Chains(
        structure,
        tensors,
        [chain(number) for number in range(source.num_chains)],
        "draw",
        draw_numbers=None if len(numbers) == count else numbers,
        stats=_sampler_stats(source, count, numbers),
    )


def _chain_of_guide(
    model: Model, guide: PartitionGuide, history: History, rows: tuple[Any, ...], draws: int | None
) -> Chains:
    """One chain of independent draws from the global guide, or of one point estimate."""
    tensors = Batches(rows).tensors
    structure = _structure(model, guide.site, tensors)
    values = _draw_latents(guide, structure, tensors, draws)
    chain = [Draw(model, guide, latents) for latents in values]
    return Chains(structure, tensors, [chain], histories=[history])


def _chain_of_entry(entry: Any, rows: tuple[Any, ...], draws: int | None) -> Chains:
    """The chain of a fit, a guide, a stored fit, or (fit or guide, state of its param store)."""
    if isinstance(entry, StoredFit):
        entry = (entry.fit, entry.state)
    source, state = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, None)
    if not isinstance(source, Fit | PartitionGuide):
        raise OptionError(
            f"{type(source).__name__} is not a source of draws: a list must hold fits, "
            "guides, StoredFits or pairs (fit, state)"
        )
    guide = source.guide if isinstance(source, Fit) else source
    program = source.model if isinstance(source, Fit) else guide.model
    history = source.history if isinstance(source, Fit) else History()
    if state is None:
        model = StoredModel(program, state_without_modules(program, guide))
    else:
        model = StoredModel(program, _check_state(state))
    names_before = set(model.state["params"])
    with model.store():
        chain = _chain_of_guide(program, guide, history, rows, draws)
    created = set(model.state["params"]) - names_before - names_in_modules(program, guide)
    _check_none_created(created)
    chain.draws = [[draw._replace(model=model) for draw in chain.draws[0]]]
    return chain


def _check_state(state: Any) -> State:
    if not isinstance(state, Mapping) or not {"params", "constraints"} <= set(state):
        raise OptionError(
            f"{type(state).__name__} is not the state of a param store: pass (fit, state) with the "
            "state of `with pyro.get_param_store().scope() as state:`"
        )
    return state


def _check_none_created(created: set[str]) -> None:
    if created:
        raise ModelError(
            f"params {sorted(created)} of a fit were not found and would be initialized anew: "
            "params of a function exist in Pyro's store only. Make each fit in its own store, "
            "`with pyro.get_param_store().scope() as state:`, and pass (fit, state), or convert it "
            "while its params are in the store"
        )


def _structure(model: Model, site: str, tensors: Rows) -> ProgramStructure:
    return read_structure(model, site, tuple(tensor[:1] for tensor in tensors), {})


def _draw_latents(
    guide: PartitionGuide, structure: ProgramStructure, rows: Rows, draws: int | None
) -> list[LatentValues]:
    """One mapping of the other latent sites' values per draw; one empty mapping without such."""
    if not structure.latent:
        if draws not in (None, 1):
            raise OptionError(
                f"draws={draws}, but {structure.site!r} is the only latent site, so params are "
                "point estimates: leave draws out"
            )
        return [{}]
    count = _DEFAULT_DRAWS if draws is None else draws
    with pyro.poutine.block(), torch.no_grad():
        values = [guide.latent_values(*rows) for _ in range(count)]
    _check_values(structure, values[0])
    return [{name: draw[name] for name in structure.latent} for draw in values]


def _check_values(structure: ProgramStructure, values: Mapping[str, Any]) -> None:
    missing = [name for name in structure.latent if name not in values]
    if missing:
        raise ModelError(
            f"sites {missing} are latent, but the guide has no values for them: pass it "
            f"global_guide=AutoNormal(poutine.block(model, hide=[{structure.site!r}])), for example"
        )


def _check_same_mixture(fits: list[Chains]) -> None:
    kinds = {
        (fit.structure.site, fit.structure.components, fit.structure.latent, fit.shape)
        for fit in fits
    }
    if len(kinds) > 1:
        raise ModelError(
            "these fits are of different mixtures, (site, components, latent sites, shape) "
            f"{sorted(map(str, kinds))}, but chains are of one mixture: convert each fit by itself "
            "and pass them to arviz.compare"
        )


def _check_separate_params(fits: list[Chains]) -> None:
    """Refuse fits that share a param, because all of them hold the values of the last fit."""
    first_user: dict[int, int] = {}
    for number, fit in enumerate(fits):
        for name, leaf in param_leaves(fit.draws[0][0].model, fit.rows).items():
            if first_user.setdefault(id(leaf), number) != number:
                raise ModelError(
                    f"fits {first_user[id(leaf)]} and {number} share param {name!r}, which has the "
                    "value of the last fit: make each fit in its own store, "
                    "`with pyro.get_param_store().scope() as state:`, and pass (fit, state)"
                )


def _evenly_spaced(count: int, draws: int | None) -> np.ndarray:
    """Numbers of ``draws`` out of ``count`` draws, evenly spaced."""
    if draws is not None and draws > count:
        raise OptionError(f"draws={draws}, but a chain has {count} draws")
    return np.arange(count) if draws is None else np.arange(draws) * count // draws


def _sampler_stats(mcmc: MCMC, count: int, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Pyro's statistics: which trajectories diverged, and the acceptance rates of the chains."""
    if count < _MIN_DIAGNOSTIC_DRAWS:
        return {}
    diagnostics, chains = mcmc.diagnostics(), range(mcmc.num_chains)
    stats = {}
    if "divergences" in diagnostics:
        diverging = np.zeros((len(chains), count), dtype=bool)
        for chain in chains:
            divergences = diagnostics["divergences"][f"chain {chain}"]
            diverging[chain, [draw for draw in divergences if draw < count]] = True
        stats["diverging"] = diverging[:, numbers]
    if "acceptance rate" in diagnostics:
        rates = diagnostics["acceptance rate"]
        stats["mean_acceptance_rate"] = np.array([float(rates[f"chain {c}"]) for c in chains])
    return stats
