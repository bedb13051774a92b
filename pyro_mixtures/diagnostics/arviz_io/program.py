"""The params, observed values and log prior of a fitted program."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.distributions import Delta, Unit
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mixtures.diagnostics.arviz_io.chains import Model, Rows
from pyro_mixtures.diagnostics.arviz_io.dimensions import dimension_names, unmasked
from pyro_mixtures.errors import ModelError
from pyro_mixtures.poutine import CandidateMessenger, ProgramStructure


class Program(NamedTuple):
    """One run of a mixture's program on all rows."""

    params: dict[str, Tensor]  # constrained, by name without the module's prefix
    observed: dict[str, Tensor]  # values of the observed sites in the data plate, in order
    dims: dict[str, tuple[str, ...]]  # of params, latent and observed sites, where known
    pyro_names: dict[str, str]  # names of the params in Pyro, by their names here


def read_program(
    model: Model, structure: ProgramStructure, rows: Rows, latents: Mapping[str, Tensor]
) -> Program:
    """Run ``model`` on ``rows`` and read its params and observed sites.

    :param latents: values of its latent sites other than z.
    :raises ModelError: if a site other than z is latent in every row, or has no value in
        ``latents``.
    """
    nodes = _trace(model, structure, rows, latents).nodes
    for name in structure.latent:
        if _is_in_data_plate(nodes[name], structure):
            raise ModelError(
                f"site {name!r} is latent in every row, and only {structure.site!r} can be summed "
                f"out of the likelihood: integrate {name!r} out in the model, as FactorAnalyzers "
                "does with its factors"
            )
    values = {name: node["value"] for name, node in nodes.items() if node["type"] == "param"}
    short_names = _short_names(list(values))
    params = {short_names[name]: value for name, value in values.items()}
    observed = {
        name: node["value"]
        for name, node in nodes.items()
        if name in structure.observed and _is_data(node)
    }
    return Program(
        params=params,
        observed=observed,
        dims=dimension_names(nodes, structure, observed, params, latents),
        pyro_names={short_names[name]: name for name in values},
    )


def read_params(
    model: Model, structure: ProgramStructure, rows: Rows, latents: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the constrained params of ``model`` by name, from a run on the first row."""
    return read_program(model, structure, tuple(tensor[:1] for tensor in rows), latents).params


def log_prior(
    model: Model, structure: ProgramStructure, rows: Rows, latents: Mapping[str, Tensor]
) -> float:
    """Return the log probability of all sites outside the data plate, factors included."""
    trace = _trace(model, structure, tuple(tensor[:1] for tensor in rows), latents)

    def is_prior(name: str, node: Any) -> bool:
        return not _is_in_data_plate(node, structure) and not site_is_subsample(node)

    with torch.no_grad():
        return float(trace.log_prob_sum(is_prior))


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return a copy of the values; NumPy has no bfloat16, which becomes float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()


def _trace(
    model: Model, structure: ProgramStructure, rows: Rows, latents: Mapping[str, Tensor]
) -> Any:
    """A trace with z = 0, which needs neither random numbers nor anything of size N x C."""

    def first_component(index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.zeros(1, 1, dtype=torch.long, device=device)

    program = CandidateMessenger(structure, first_component, latents)(model)
    with pyro.poutine.block(), torch.no_grad():
        return pyro.poutine.trace(program).get_trace(*rows)


def _is_in_data_plate(node: Any, structure: ProgramStructure) -> bool:
    return any(frame.name == structure.plate for frame in node["cond_indep_stack"])


def _is_data(node: Any) -> bool:
    """Whether a site is not ``pyro.deterministic`` or ``pyro.factor``, which are observed too."""
    return not isinstance(unmasked(node["fn"]), (Delta, Unit))


def _short_names(names: list[str]) -> dict[str, str]:
    """Param names without module prefixes (``gmm.loc``, ``gmm$$$loc``), where these are unique."""
    short = {name: name.rpartition("$$$")[2].rpartition(".")[2] for name in names}
    all_short = list(short.values())
    return {name: last if all_short.count(last) == 1 else name for name, last in short.items()}
