"""Summary of a fit: model, guide, strategy and their options, rows, params, phases."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

import pyro_mixtures
from pyro_mixtures.diagnostics.arviz_io.program import read_program
from pyro_mixtures.diagnostics.reports.fitted_rows import params_of
from pyro_mixtures.infer.em.fit import Fit
from pyro_mixtures.infer.em.history import Epoch

_PRINTED_TYPES = (bool, int, float, str, frozenset, type(None))


def what_was_fitted(fit: Fit, rows: Sequence[Tensor]) -> list[tuple[str, str]]:
    """Return names and values that describe a fit."""
    return [
        ("model", _describe(fit.model)),
        ("guide", _describe(fit.guide)),
        ("strategy", _describe(fit.inference)),
        ("components", f"{fit.guide.components} at site {fit.guide.site!r}"),
        ("rows", ", ".join(f"{tuple(tensor.shape)} {_dtype(tensor)}" for tensor in rows)),
        (
            "result",
            f"{_ending(fit)} after {len(fit.history)} epochs, ELBO {fit.elbo:.6g} nats per row",
        ),
        (
            "versions",
            f"pyro-mixtures {pyro_mixtures.__version__}, Pyro {pyro.__version__}, "
            f"torch {torch.__version__}",
        ),
    ]


def params_of_fit(
    fit: Fit, rows: Sequence[Tensor], given: Mapping[str, Tensor]
) -> list[tuple[str, str, str, int]]:
    """Return name, shape with names of dimensions if known, dtype and size of each param."""
    first_row = tuple(tensor[:1] for tensor in rows)
    with params_of(fit):
        program = read_program(fit.model, fit.guide.read(*first_row), first_row, given)
    return [
        (name, _shape(value, program.dims.get(name, ())), _dtype(value), value.numel())
        for name, value in program.params.items()
    ]


def phases(epochs: Sequence[Epoch]) -> list[tuple[str, int, float, int, float, int]]:
    """Return a summary of each phase of a fit.

    :returns: phase, number of its epochs, and at its end: ELBO, evaluations and seconds since the
        beginning of the fit, non-empty components.
    """
    last_epochs = {epoch.phase: epoch for epoch in epochs}
    counts = {phase: sum(epoch.phase == phase for epoch in epochs) for phase in last_epochs}
    return [
        (phase, counts[phase], last.elbo, last.evaluations, round(last.seconds, 2), last.live)
        for phase, last in last_epochs.items()
    ]


def _ending(fit: Fit) -> str:
    if fit.interrupted:
        return "interrupted"
    return "converged" if fit.converged else "not converged"


def _describe(thing: Any) -> str:
    """The class with those options that it still holds under their names, or a function's name."""
    if inspect.isfunction(thing):
        return f"{thing.__name__}()"
    attributes, options = vars(thing), inspect.signature(type(thing)).parameters
    printed = ", ".join(
        f"{name}={_value(attributes[name])}"
        for name in options
        if name in attributes and isinstance(attributes[name], _PRINTED_TYPES)
    )
    return f"{type(thing).__name__}({printed})"


def _value(value: Any) -> str:
    return repr(sorted(value)) if isinstance(value, frozenset) else repr(value)


def _shape(value: Tensor, dims: Sequence[str]) -> str:
    shape = str(tuple(value.shape))
    return f"{shape} {', '.join(dims)}" if dims and len(dims) == value.dim() else shape


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
