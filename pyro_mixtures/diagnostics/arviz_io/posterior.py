"""The ArviZ posterior: draws of the latent sites, or the params if there are none."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from pyro_mixtures.diagnostics.arviz_io.chains import Chains, Draw, LatentValues
from pyro_mixtures.diagnostics.arviz_io.component_variables import ComponentVariables
from pyro_mixtures.diagnostics.arviz_io.container import SAMPLE_DIMS, Variable
from pyro_mixtures.diagnostics.arviz_io.program import Program, read_params, to_numpy

DimNames = Mapping[str, tuple[str, ...]]
Group = dict[str, Variable]
Groups = dict[str, Group]


class Source(NamedTuple):
    """Draws, the program of the first of them, and the dims of its variables."""

    chains: Chains
    program: Program
    dims: DimNames  # without chain and draw


class Relabeling(NamedTuple):
    """How to relabel each draw."""

    permutations: Tensor  # (chain, draw, C)
    variables: ComponentVariables

    def relabel(self, values: LatentValues, permutation: Tensor) -> LatentValues:
        """Return one draw's variables with components in the order of ``permutation`` (C,)."""
        return {**values, **self.variables.relabel(values, permutation)}


def posterior_groups(source: Source, relabeling: Relabeling | None) -> Groups:
    """Return the posterior of the latent sites, with the params as constant data.

    Without latent sites other than z the posterior consists of the params.
    """
    chains, dims = source.chains, source.dims
    if not chains.structure.latent:
        params = [_params(source, draw) for draw in chains.all]
        return {"posterior": _stack_draws(_relabel(params, relabeling), dims, chains.shape)}
    latents = [draw.latents for draw in chains.all]
    return {
        "posterior": _stack_draws(_relabel(latents, relabeling), dims, chains.shape),
        "constant_data": _constant_params(source, relabeling),
    }


def named_draws(values: Mapping[str, np.ndarray], dims: DimNames) -> Group:
    """Return arrays (chain, draw, ...) with the names of their dimensions."""
    return {name: Variable(value, (*SAMPLE_DIMS, *dims[name])) for name, value in values.items()}


def _params(source: Source, draw: Draw) -> LatentValues:
    if draw.model is source.chains.all[0].model:
        return source.program.params
    return read_params(draw.model, source.chains.structure, source.chains.rows, draw.latents)


def _relabel(draws: list[LatentValues], relabeling: Relabeling | None) -> list[LatentValues]:
    """All draws, chain after chain, relabeled."""
    if relabeling is None:
        return draws
    permutations = relabeling.permutations.flatten(0, 1)
    return [
        relabeling.relabel(values, permutation)
        for values, permutation in zip(draws, permutations, strict=True)
    ]


def _constant_params(source: Source, relabeling: Relabeling | None) -> Group:
    """The params that accompany draws of latent sites: one value, or one per chain."""
    chains, dims, params = source.chains, source.dims, source.program.params
    if chains.labels_of != "chain":
        return {name: Variable(to_numpy(value), dims[name]) for name, value in params.items()}
    by_chain = [_params(source, chain[0]) for chain in chains.draws]
    if relabeling is not None:
        permutations = relabeling.permutations[:, 0]
        by_chain = [
            relabeling.relabel(values, permutation)
            for values, permutation in zip(by_chain, permutations, strict=True)
        ]
    chain_dim = SAMPLE_DIMS[0]
    return {
        name: Variable(
            np.stack([to_numpy(values[name]) for values in by_chain]), (chain_dim, *dims[name])
        )
        for name in params
    }


def _stack_draws(draws: Sequence[LatentValues], dims: DimNames, shape: tuple[int, int]) -> Group:
    """Values of all draws as arrays (chain, draw, ...)."""
    stacked = {name: np.stack([to_numpy(values[name]) for values in draws]) for name in draws[0]}
    return named_draws(
        {name: values.reshape(*shape, *values.shape[1:]) for name, values in stacked.items()}, dims
    )
