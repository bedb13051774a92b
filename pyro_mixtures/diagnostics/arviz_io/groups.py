"""Groups of an ArviZ container: named arrays of draws, of what they say of rows, and of what was given."""

import inspect
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from pyro_mixtures.diagnostics.arviz_io.chains import Chains, Draw, Values
from pyro_mixtures.diagnostics.arviz_io.datasets import SAMPLE_DIMS, Variable
from pyro_mixtures.diagnostics.arviz_io.draws import (
    Scores,
    predictive,
    predictive_numbers,
    prior_draws,
)
from pyro_mixtures.diagnostics.arviz_io.ownership import Owned
from pyro_mixtures.diagnostics.arviz_io.program import (
    ROW,
    Program,
    array,
    default_dims,
    read_params,
)
from pyro_mixtures.infer import History
from pyro_mixtures.infer.restarts.stored_fits import StoredModel

Group = dict[str, Variable]
Groups = dict[str, Group]


class Source(NamedTuple):
    """Draws, the program of the first of them, and dims of its variables without chain and draw."""

    chains: Chains
    program: Program
    dims: Mapping[str, tuple[str, ...]]


class Labels(NamedTuple):
    """How to relabel each draw."""

    permutations: Tensor  # (chain, draw, C)
    owned: Owned

    def relabel(self, values: Values, permutation: Tensor) -> Values:
        """Those of one draw's variables that components own, in the order of ``permutation`` (C,)."""
        return {**values, **self.owned.relabel(values, permutation)}


def posterior(source: Source, labels: Labels | None) -> Groups:
    """Draws of the latent sites and the params beside them; without latent sites the params themselves."""
    chains, dims = source.chains, source.dims
    if not chains.structure.latent:
        return {
            "posterior": _samples(
                _relabelled([_params(source, d) for d in chains.all], labels), dims, chains.shape
            )
        }
    latent = [draw.given for draw in chains.all]
    return {
        "posterior": _samples(_relabelled(latent, labels), dims, chains.shape),
        "constant_data": _constants(source, labels),
    }


def _params(source: Source, draw: Draw) -> Values:
    if draw.model is source.chains.all[0].model:
        return source.program.params
    return read_params(draw.model, source.chains.structure, source.chains.rows, draw.given)


def _relabelled(draws: list[Values], labels: Labels | None) -> list[Values]:
    """All draws, chain after chain."""
    if labels is None:
        return draws
    orders = labels.permutations.flatten(0, 1)
    return [labels.relabel(values, order) for values, order in zip(draws, orders, strict=True)]


def _constants(source: Source, labels: Labels | None) -> Group:
    """The params beside draws of latent sites: one value of each, or one a chain."""
    chains, dims = source.chains, source.dims
    if chains.labels != "chain":
        return {
            name: Variable(array(value), dims[name])
            for name, value in source.program.params.items()
        }
    first = [_params(source, chain[0]) for chain in chains.draws]
    if labels is not None:
        first = [labels.relabel(*one) for one in zip(first, labels.permutations[:, 0], strict=True)]
    return {
        name: Variable(
            np.stack([array(values[name]) for values in first]), (SAMPLE_DIMS[0], *dims[name])
        )
        for name in source.program.params
    }


def evidence_group(source: Source, scores: Scores) -> Groups:
    """Each row's log evidence under each draw, and the draws' log joints."""
    rows = (*SAMPLE_DIMS, row_dim(source))
    terms = {name: Variable(values, rows) for name, values in scores.terms.items()}
    return {"log_likelihood": terms, "sample_stats": {"lp": Variable(scores.lp, SAMPLE_DIMS)}}


def row_dim(source: Source) -> str:
    """The rows' name in the observed values, which the user may have chosen."""
    program = source.program
    for site in program.observed:
        if ROW in program.dims[site]:
            return source.dims[site][program.dims[site].index(ROW)]
    return ROW


def sampler_stats(chains: Chains) -> Group:
    """What the source of the draws tells of them."""
    return {
        name: Variable(values, SAMPLE_DIMS[: values.ndim]) for name, values in chains.stats.items()
    }


def predictive_group(source: Source, count: int) -> Groups:
    """New data sets of a chain."""
    numbers = predictive_numbers(source.chains, count)
    values = predictive(source.chains, numbers, source.program.observed)
    return {"posterior_predictive": _named(values, source.dims)}


def prior_group(source: Source, count: int) -> Groups:
    """Draws of the latent sites from the program itself, and of the observed ones with them."""
    latent, observed = prior_draws(source.chains, count, source.program.observed)
    return {"prior": _named(latent, source.dims), "prior_predictive": _named(observed, source.dims)}


def data_groups(source: Source) -> Groups:
    """What was observed, and the arguments that were not."""
    observed = {
        name: Variable(array(x), source.dims[name]) for name, x in source.program.observed.items()
    }
    return {"observed_data": observed, "constant_data": _covariates(source)}


def _covariates(source: Source) -> Group:
    """The program's arguments that no site observes, by their names, if no param has the name."""
    model = source.chains.all[0].model
    model = model.model if isinstance(model, StoredModel) else model
    names = list(inspect.signature(getattr(model, "forward", model)).parameters)
    taken = {**source.program.params, **source.program.observed}
    seen = {id(value) for value in source.program.observed.values()}
    return {
        name: Variable(array(rows), (row_dim(source), *default_dims(name, rows.shape)[1:]))
        for name, rows in zip(names, source.chains.rows, strict=False)
        if id(rows) not in seen and name not in taken
    }


def _samples(
    draws: Sequence[Values], dims: Mapping[str, tuple[str, ...]], shape: tuple[int, int]
) -> Group:
    """Values of all draws as arrays (chain, draw, ...)."""
    stacked = {name: np.stack([array(values[name]) for values in draws]) for name in draws[0]}
    return _named(
        {name: values.reshape(*shape, *values.shape[1:]) for name, values in stacked.items()}, dims
    )


def _named(values: Mapping[str, np.ndarray], dims: Mapping[str, tuple[str, ...]]) -> Group:
    return {name: Variable(value, (*SAMPLE_DIMS, *dims[name])) for name, value in values.items()}


def histories(histories: list[History]) -> Group:
    """The epochs of the fits: columns as they are of one, a row for each of several."""
    tables = [
        {name: np.array(column) for name, column in h.to_dict().items() if column}
        for h in histories
    ]
    if len(tables) == 1:
        return {
            name: Variable(values, ("epoch", "part")[: values.ndim])
            for name, values in tables[0].items()
        }
    names = [
        name for name in (tables[0] if tables else {}) if all(name in table for table in tables)
    ]
    dims = (SAMPLE_DIMS[0], "epoch", "part")
    padded = {name: _padded([table[name] for table in tables]) for name in names}
    return {name: Variable(values, dims[: values.ndim]) for name, values in padded.items()}


def _padded(columns: list[np.ndarray]) -> np.ndarray:
    """One array (chain, epoch, ...): shorter columns are filled up."""
    length = max(map(len, columns))
    if any(len(column) < length for column in columns):
        columns = [
            column if column.dtype.kind == "U" else column.astype(float) for column in columns
        ]
    fill = "" if columns[0].dtype.kind == "U" else np.nan
    return np.stack(
        [np.concatenate([c, np.full((length - len(c), *c.shape[1:]), fill)]) for c in columns]
    )


def merged(*parts: Groups) -> Groups:
    """The groups of all parts, variables of the same group together."""
    groups: Groups = {}
    for part in parts:
        for name, variables in part.items():
            groups[name] = groups.get(name, {}) | variables
    return groups
