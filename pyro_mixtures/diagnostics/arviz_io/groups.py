"""The ArviZ groups other than the posterior: likelihood, predictions, prior, data, fit history."""

import inspect
from typing import Any

import numpy as np
from torch import nn

from pyro_mixtures.diagnostics.arviz_io.chains import Chains, Model
from pyro_mixtures.diagnostics.arviz_io.container import SAMPLE_DIMS, Variable
from pyro_mixtures.diagnostics.arviz_io.dimensions import COMPONENT, ROW, default_dims
from pyro_mixtures.diagnostics.arviz_io.log_likelihood import LogLikelihood
from pyro_mixtures.diagnostics.arviz_io.posterior import Group, Groups, Source, named_draws
from pyro_mixtures.diagnostics.arviz_io.predictive import (
    predictive_draws,
    predictive_numbers,
    prior_draws,
)
from pyro_mixtures.diagnostics.arviz_io.program import to_numpy
from pyro_mixtures.infer import History
from pyro_mixtures.infer.restarts.stored_fits import StoredModel


def log_likelihood_group(source: Source, likelihood: LogLikelihood) -> Groups:
    """Return the log likelihood of each row under each draw, and the log joints of the draws."""
    dims = (*SAMPLE_DIMS, row_dim(source))
    terms = {name: Variable(values, dims) for name, values in likelihood.terms.items()}
    log_joint = {"lp": Variable(likelihood.lp, SAMPLE_DIMS)}
    return {"log_likelihood": terms, "sample_stats": log_joint}


def row_dim(source: Source) -> str:
    """Return the name of the rows in the observed values, which the user may have chosen."""
    program = source.program
    for site in program.observed:
        if ROW in program.dims[site]:
            return source.dims[site][program.dims[site].index(ROW)]
    return ROW


def sampler_stats(chains: Chains) -> Group:
    """Return the statistics that the source of the draws reports."""
    return {
        name: Variable(values, SAMPLE_DIMS[: values.ndim]) for name, values in chains.stats.items()
    }


def predictive_group(source: Source, count: int) -> Groups:
    """Return ``count`` new data sets per chain."""
    numbers = predictive_numbers(source.chains, count)
    values = predictive_draws(source.chains, numbers, source.program.observed)
    return {"posterior_predictive": named_draws(values, source.dims)}


def prior_group(source: Source, count: int) -> Groups:
    """Return ``count`` draws of the latent and observed sites from the program itself."""
    latent, observed = prior_draws(source.chains, count, source.program.observed)
    return {
        "prior": named_draws(latent, source.dims),
        "prior_predictive": named_draws(observed, source.dims),
    }


def data_groups(source: Source) -> Groups:
    """Return the observed values, and the arguments of the program that it does not observe."""
    observed = {
        name: Variable(to_numpy(value), source.dims[name])
        for name, value in source.program.observed.items()
    }
    return {"observed_data": observed, "constant_data": _covariates(source)}


def _covariates(source: Source) -> Group:
    """The arguments that no site observes, by name, unless a param has the same name."""
    program = source.program
    reserved_names = {**program.params, **program.observed}
    observed_ids = {id(value) for value in program.observed.values()}
    names = _argument_names(source.chains.all[0].model)
    return {
        name: Variable(to_numpy(rows), (row_dim(source), *default_dims(name, rows.shape)[1:]))
        for name, rows in zip(names, source.chains.rows, strict=False)
        if id(rows) not in observed_ids and name not in reserved_names
    }


def _argument_names(model: Model) -> list[str]:
    program: Any = model.model if isinstance(model, StoredModel) else model
    function = program.forward if isinstance(program, nn.Module) else program
    return list(inspect.signature(function).parameters)


def history_group(histories: list[History], components: int) -> Group:
    """Return the epochs of one fit, or of several fits as chains."""
    tables = [
        {name: np.array(column) for name, column in history.to_dict().items() if column}
        for history in histories
    ]
    if not tables:
        return {}
    lead_dims: tuple[str, ...] = ("epoch",)
    columns = tables[0]
    if len(tables) > 1:
        lead_dims = (SAMPLE_DIMS[0], "epoch")
        common_names = [name for name in columns if all(name in table for table in tables)]
        columns = {name: _pad([table[name] for table in tables]) for name in common_names}
    return {
        name: Variable(values, _history_dims(name, values, lead_dims, components))
        for name, values in columns.items()
    }


def _history_dims(
    name: str, values: np.ndarray, lead_dims: tuple[str, ...], components: int
) -> tuple[str, ...]:
    """Chains and epochs, then components or ArviZ's default names."""
    shape = values.shape[len(lead_dims) :]
    is_by_component = shape == (components,)
    return (*lead_dims, *((COMPONENT,) if is_by_component else default_dims(name, shape)))


def _pad(columns: list[np.ndarray]) -> np.ndarray:
    """One array (chain, epoch, ...), the shorter columns padded with NaN or ""."""
    length = max(map(len, columns))
    is_text = columns[0].dtype.kind == "U"
    if any(len(column) < length for column in columns) and not is_text:
        columns = [column.astype(float) for column in columns]
    fill = "" if is_text else np.nan
    return np.stack(
        [
            np.concatenate([column, np.full((length - len(column), *column.shape[1:]), fill)])
            for column in columns
        ]
    )


def merge_groups(*sources: Groups) -> Groups:
    """Merge groups; variables of the same group are combined."""
    merged: Groups = {}
    for groups in sources:
        for name, variables in groups.items():
            merged[name] = merged.get(name, {}) | variables
    return merged
