"""Fitted mixtures as ArviZ data."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.diagnostics.datasets import SAMPLE_DIMS, Coords, Dims, Variable, to_container
from pyro_mixtures.diagnostics.program import ROW, Program, default_dims, log_prior, read_program
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.infer import Fit, History, evidence
from pyro_mixtures.infer.protocol import Guide
from pyro_mixtures.poutine import Declaration, read_declaration

Values = Mapping[str, Tensor]  # of the latent sites besides z: one draw

_DRAWS = 100


def to_arviz(
    fit: Fit | Guide,
    *rows: Tensor,
    draws: int | None = None,
    log_likelihood: bool = True,
    observed_data: bool = True,
    truncated: bool = False,
    chunk: int | None = None,
    dims: Dims | None = None,
    coords: Coords | None = None,
) -> Any:
    """A fitted mixture in ArviZ's container: ``arviz.InferenceData`` (0.x) or ``xarray.DataTree`` (1.x).

    ===================  ==========================================================================================
    group                holds
    ===================  ==========================================================================================
    ``posterior``        (chain=1, draw, ...): independent draws of the model's other latent sites from the guide
                         ``beside``. Without such sites the model's params, one draw: the point estimate
    ``constant_data``    the params, where ``posterior`` has draws
    ``log_likelihood``   (chain, draw, row), in nats: each row's log evidence, z summed out. Named after the observed
                         site; several sites under one z have one evidence, and their names joined by "_".
                         "evidence" where there is none, but a ``pyro.factor``
    ``sample_stats``     ``lp`` (chain, draw): the log likelihood of all rows plus the log prior of the draw
    ``observed_data``    values of the observed sites
    ``fit_history``      (epoch,): the columns of :class:`~pyro_mixtures.infer.History`, ``elbo`` in nats per row
    ===================  ==========================================================================================

    Params and latent sites that are passed on as they are to our component families and to ``MixtureWeights`` have
    the dims "component", "feature", "factor_index" and "label"; other tensors have ArviZ's default names. With several
    observed sites under one z the last three are "x_feature" and so on. Rows have the dim "row".

    :param fit: the outcome of :func:`~pyro_mixtures.infer.fit`, or a guide of :mod:`pyro_mixtures.guides`, which knows
        its model. ``FullPartition(model, components=C, beside=autoguide)`` makes one for a fit by other means.
    :param rows: the model's tensor arguments, N rows each. They need not be those of the fit.
    :param draws: number of draws from ``beside``, 100 by default; their random numbers are Pyro's.
    :param truncated: sum over the candidates that the guide finds for each row, not over all C components: a lower
        bound, cheaper when C is large. Memory for the log likelihood is draws x N numbers in either case.
    :param chunk: rows evaluated at once.
    :param dims: names of dimensions by variable, without chain and draw; they replace the names above.
    :param coords: labels by dimension; the default is 0, 1, ...
    :raises OptionError: for impossible draws, dims or coords.
    :raises ModelError: when a site besides z has no value, or is latent in every row.

    A point estimate has no spread: ``az.summary`` gives NaN for it, with a RuntimeWarning, and ``az.loo`` needs draws.
    ``az.loo`` takes the draws for draws from the posterior. Those of a variational guide are approximate, mostly too
    narrow, and so is what it says: see Magnusson, Andersen, Jonasson & Vehtari, "Bayesian leave-one-out
    cross-validation for large data", ICML 2019.

    >>> from pyro_mixtures.guides import FullPartition
    >>> from pyro_mixtures.models import GaussianMixture
    >>> guide = FullPartition(GaussianMixture(components=3, features=2), components=3)
    >>> data = to_arviz(guide, torch.randn(5, 2))
    >>> dict(data.posterior["loc"].sizes)
    {'chain': 1, 'draw': 1, 'component': 3, 'feature': 2}
    >>> dict(data.log_likelihood["x"].sizes)
    {'chain': 1, 'draw': 1, 'row': 5}
    """
    source = _source(fit, rows)
    given = _draw(source, draws)
    program = read_program(source.model, source.declaration, source.rows, given[0])
    dims = _checked_dims(program, given[0], dims or {})
    groups = _posterior(program, given, dims)
    if log_likelihood:
        groups |= _log_likelihood(source, program, given, dims, truncated=truncated, chunk=chunk)
    if observed_data:
        groups["observed_data"] = {name: Variable(_array(x), dims[name]) for name, x in program.observed.items()}
    groups["fit_history"] = _history(source.history)
    return to_container(groups, coords=coords)


class _Source(NamedTuple):
    model: Callable
    guide: Guide
    declaration: Declaration
    rows: tuple[Tensor, ...]
    history: History


def _source(fit: Fit | Guide, rows: tuple) -> _Source:
    tensors = Batches(rows).tensors
    guide = fit.guide if isinstance(fit, Fit) else fit
    declaration = read_declaration(fit.model, guide.site, tuple(tensor[:1] for tensor in tensors), {})
    return _Source(fit.model, guide, declaration, tensors, fit.history if isinstance(fit, Fit) else History())


def _draw(source: _Source, draws: int | None) -> list[Values]:
    """Values of the other latent sites, one mapping a draw; one empty mapping for a point estimate."""
    latent = source.declaration.latent
    if not latent:
        if draws not in (None, 1):
            raise OptionError(
                f"draws={draws}, but {source.declaration.site!r} is the only latent site: params are points"
            )
        return [{}]
    count = _DRAWS if draws is None else draws
    if count < 1:
        raise OptionError(f"draws={draws} must be positive")
    with pyro.poutine.block(), torch.no_grad():
        given = [source.guide.latent_values(*source.rows) for _ in range(count)]
    missing = [name for name in latent if name not in given[0]]
    if missing:
        raise ModelError(
            f"sites {missing} are latent and the guide has no values for them: give it beside=, a guide over them, for "
            f"example AutoNormal(poutine.block(model, hide=[{source.declaration.site!r}]))"
        )
    return [{name: values[name] for name in latent} for values in given]


def _checked_dims(program: Program, given: Values, chosen: Dims) -> dict[str, tuple[str, ...]]:
    """Dims of every variable but for chain and draw: the user's, else what the program tells, else ArviZ's default."""
    variables = {**program.params, **given, **program.observed}
    unknown = sorted(set(chosen) - set(variables))
    if unknown:
        raise OptionError(f"dims= names {unknown}, but the variables are {sorted(variables)}")
    for name, names in chosen.items():
        if len(names) != variables[name].dim():
            raise OptionError(
                f"dims= has {tuple(names)} for {name!r}, whose shape is {tuple(variables[name].shape)}: give one name "
                "for each dimension besides chain and draw"
            )
    known = {name: default_dims(name, value.shape) for name, value in variables.items()} | program.dims
    return known | {name: tuple(names) for name, names in chosen.items()}


def _posterior(program: Program, given: list[Values], dims: Dims) -> dict[str, dict[str, Variable]]:
    params = {name: Variable(_array(value), tuple(dims[name])) for name, value in program.params.items()}
    if not given[0]:
        return {"posterior": {name: _samples(p.values[None], p.dims) for name, p in params.items()}}
    stacked = {name: _array(torch.stack([values[name] for values in given])) for name in given[0]}
    latent = {name: _samples(values, dims[name]) for name, values in stacked.items()}
    return {"posterior": latent, "constant_data": params}


def _log_likelihood(
    source: _Source, program: Program, given: list[Values], dims: Dims, *, truncated: bool, chunk: int | None
) -> dict[str, dict[str, Variable]]:
    options: dict[str, Any] = {"guide": source.guide if truncated else None, "site": source.guide.site, "chunk": chunk}
    terms = [_array(evidence(source.model, *source.rows, given=values, **options)) for values in given]
    prior = [log_prior(source.model, source.declaration, source.rows, values) for values in given]
    total = np.array([term.sum(dtype=np.float64) for term in terms]) + np.array(prior)
    name = "_".join(program.observed) or "evidence"
    return {
        "log_likelihood": {name: _samples(np.stack(terms), (_row_dim(program, dims),))},
        "sample_stats": {"lp": _samples(total, ())},
    }


def _row_dim(program: Program, dims: Dims) -> str:
    """The rows' name in the observed values, which the user may have chosen."""
    for site in program.observed:
        if ROW in program.dims[site]:
            return dims[site][program.dims[site].index(ROW)]
    return ROW


def _samples(values: np.ndarray, dims: Any) -> Variable:
    """Draws of one chain."""
    return Variable(values[None], (*SAMPLE_DIMS, *dims))


def _history(history: History) -> dict[str, Variable]:
    columns = {name: np.array(column) for name, column in history.to_dict().items() if column}
    return {name: Variable(values, ("epoch", "part")[: values.ndim]) for name, values in columns.items()}


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()
