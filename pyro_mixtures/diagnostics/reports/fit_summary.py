"""What was fitted, as names and values: program, guide, strategy and their options, rows, params, epochs."""

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

_SIMPLE = (bool, int, float, str, frozenset, type(None))


def what_was_fitted(fit: Fit, rows: Sequence[Tensor]) -> list[tuple[str, str]]:
    """Lines of a table."""
    ending = "interrupted" if fit.interrupted else "converged" if fit.converged else "not converged"
    shapes = ", ".join(f"{tuple(tensor.shape)} {_kind(tensor)}" for tensor in rows)
    return [
        ("model", _described(fit.model)),
        ("guide", _described(fit.guide)),
        ("strategy", _described(fit.inference)),
        ("components", f"{fit.guide.components} at site {fit.guide.site!r}"),
        ("rows", shapes),
        ("outcome", f"{ending} after {len(fit.history)} epochs, ELBO {fit.elbo:.6g} nats a row"),
        (
            "versions",
            f"pyro-mixtures {pyro_mixtures.__version__}, Pyro {pyro.__version__}, torch {torch.__version__}",
        ),
    ]


def params_of_fit(
    fit: Fit, rows: Sequence[Tensor], given: Mapping[str, Tensor]
) -> list[tuple[str, str, str, int]]:
    """Each param's name, shape with the meaning of its dimensions where that is known, dtype, and numbers in it."""
    first = tuple(tensor[:1] for tensor in rows)
    with params_of(fit):
        program = read_program(fit.model, fit.guide.read(*first), first, given)
    return [
        (name, _shape(value, program.dims.get(name, ())), _kind(value), value.numel())
        for name, value in program.params.items()
    ]


def phases(epochs: Sequence[Epoch]) -> list[tuple]:
    """For each phase of a fit its epochs, last ELBO, evaluations so far, seconds so far, components with rows."""
    last = {epoch.phase: epoch for epoch in epochs}
    count = {phase: sum(epoch.phase == phase for epoch in epochs) for phase in last}
    return [
        (p, count[p], e.elbo, e.evaluations, round(e.seconds, 2), e.live) for p, e in last.items()
    ]


def _described(thing: Any) -> str:
    """Its class, or a function's name, with the options that it was made with and still holds under their names."""
    if inspect.isfunction(thing):
        return f"{thing.__name__}()"
    held, names = vars(thing), inspect.signature(type(thing)).parameters
    options = {
        name: held[name] for name in names if name in held and isinstance(held[name], _SIMPLE)
    }
    return f"{type(thing).__name__}({', '.join(f'{name}={_value(value)}' for name, value in options.items())})"


def _value(value: Any) -> str:
    return repr(sorted(value)) if isinstance(value, frozenset) else repr(value)


def _shape(value: Tensor, dims: Sequence[str]) -> str:
    names = dims if len(dims) == value.dim() else ()
    return f"{tuple(value.shape)}" + (f" {', '.join(names)}" if names else "")


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
