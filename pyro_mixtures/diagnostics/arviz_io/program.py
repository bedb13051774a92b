"""What a fitted program consists of: params, observed rows, log prior, and what the dimensions of its tensors mean."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.distributions import Delta, MaskedDistribution, Unit
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mixtures.distributions import Components, MixtureWeights, RestrictedSupport, Selected
from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.distributions.weights import ComponentWeights
from pyro_mixtures.errors import ModelError
from pyro_mixtures.poutine import CandidateMessenger, ProgramStructure
from pyro_mixtures.poutine.params import leaf_of

ROW = "row"
COMPONENT = "component"
CONTRAST = (
    "contrast"  # of another component with the first, the reference: one less than components
)

# Event dimensions by argument of the component families. A covariance has its features twice; a
# dimension of the variable "factor" must have another name than the variable, for xarray's sake.
_EVENT_DIMS = {
    "loc": ("feature",),
    "mean": ("feature",),
    "scale": ("feature",),
    "scale_tril": ("feature", "feature_bis"),
    "factor": ("feature", "factor_index"),
    "noise": ("feature",),
    "probs": ("label",),
}
_PLACES = {"loc", "mean"}
EVENT_NAMES = tuple({name for names in _EVENT_DIMS.values() for name in names})


class Program(NamedTuple):
    """One run of a mixture's program on all rows."""

    params: dict[str, Tensor]  # constrained, by name without the module's prefix
    observed: dict[
        str, Tensor
    ]  # values of the observed sites inside the data plate, in the program's order
    dims: dict[str, tuple[str, ...]]  # of params, latent and observed sites, where they are known
    names: dict[str, str]  # of the params in Pyro, by their names here


def read_program(
    model: Callable, structure: ProgramStructure, rows: tuple, given: Mapping[str, Tensor]
) -> Program:
    """Run ``model`` on ``rows``, its other latent sites at ``given``, and read its params and observed sites.

    :raises ModelError: when a site other than z is latent in every row, or has no value in
        ``given``.
    """
    trace = _run(model, structure, rows, given)
    for name in structure.latent:
        if _inside(trace.nodes[name], structure):
            raise ModelError(
                f"site {name!r} is latent in every row, and only {structure.site!r} can be summed out of the "
                f"likelihood: integrate {name!r} out in the model, as FactorAnalyzers does with its factors"
            )
    found = {name: node["value"] for name, node in trace.nodes.items() if node["type"] == "param"}
    short = _short_names(list(found))
    sites = [
        name for name in trace.nodes if name in structure.observed and _is_data(trace.nodes[name])
    ]
    observed = {name: trace.nodes[name]["value"] for name in sites}
    tensors = {short[name]: value for name, value in found.items()} | dict(given)
    known = _argument_dims(trace, structure, observed, tensors) | _row_dims(
        trace, structure, observed
    )
    plates = _plate_dims(trace, structure, {**given, **observed}, taken={*tensors, *observed})
    return Program(
        params={short[name]: value for name, value in found.items()},
        observed=observed,
        dims={
            name: _first_known(name, known.get(name), plates.get(name))
            for name in known.keys() | plates.keys()
        },
        names={short[name]: name for name in found},
    )


def read_params(
    model: Callable, structure: ProgramStructure, rows: tuple, given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The params of ``model``, constrained, by name without the module's prefix: its run on the first row alone."""
    return read_program(model, structure, tuple(tensor[:1] for tensor in rows), given).params


def log_prior(
    model: Callable, structure: ProgramStructure, rows: tuple, given: Mapping[str, Tensor]
) -> float:
    """Log probability of all sites outside the data plate: latent sites at ``given``, and factors."""
    trace = _run(model, structure, tuple(tensor[:1] for tensor in rows), given)

    def outside(name: str, node: Any) -> bool:
        return not _inside(node, structure) and not site_is_subsample(node)

    with torch.no_grad():
        return float(trace.log_prob_sum(outside))


def _run(model: Callable, structure: ProgramStructure, rows: tuple, given: Mapping[str, Tensor]):
    """Trace the program with z := 0, which needs neither random numbers nor anything of size N x C."""

    def first(index: Tensor, size: int, device: torch.device) -> Tensor:
        return torch.zeros(1, 1, dtype=torch.long, device=device)

    with pyro.poutine.block(), torch.no_grad():
        return pyro.poutine.trace(CandidateMessenger(structure, first, given)(model)).get_trace(
            *rows
        )


def _inside(node, structure: ProgramStructure) -> bool:
    return any(frame.name == structure.plate for frame in node["cond_indep_stack"])


def _is_data(node) -> bool:
    """Not ``pyro.deterministic`` or ``pyro.factor``, which count as observed too."""
    return not isinstance(_unmasked(node["fn"]), (Delta, Unit))


def _unmasked(fn):
    return fn.base_dist if isinstance(fn, MaskedDistribution) else fn


def _short_names(names: list[str]) -> dict[str, str]:
    """Param names without module prefixes (``gmm.loc``, ``gmm$$$loc``), where these are unique."""
    short = {name: name.rpartition("$$$")[2].rpartition(".")[2] for name in names}
    taken = list(short.values())
    return {name: last if taken.count(last) == 1 else name for name, last in short.items()}


def _argument_dims(
    trace,
    structure: ProgramStructure,
    observed: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> dict[str, tuple[str, ...]]:
    """Dims of the ``tensors`` that a component family or the mixture weights take as they are."""
    names = {id(leaf_of(tensor)): name for name, tensor in tensors.items()}
    dims = {}
    for site in (structure.site, *observed):
        fn = _unmasked(trace.nodes[site]["fn"])
        fn = fn.unrestricted if isinstance(fn, RestrictedSupport) else fn
        family = fn.family if isinstance(fn, Selected) else fn
        if not isinstance(family, (Components, ComponentWeights)):
            continue
        for argument, tensor in family.arguments.items():
            name = names.get(id(leaf_of(tensor)))
            # A module's parameters have ArviZ's default dims: nobody knows what their dimensions
            # mean.
            if name is not None and argument in family.arg_constraints:
                dims[name] = _dims_of_argument(name, family, argument, _prefix(site, observed))
    return dims


def _prefix(site: str, observed: Mapping[str, Tensor]) -> str:
    """Several observed sites have features of their own."""
    return f"{site}_" if len(observed) > 1 else ""


def _dims_of_argument(name: str, family: Any, argument: str, prefix: str) -> tuple[str, ...]:
    """Names where the sizes fit; a dimension of size 1 that is shared by features or components has ArviZ's default."""
    shape = family.arguments[argument].shape
    if isinstance(family, MixtureWeights):
        return (*default_dims(name, shape)[:-1], COMPONENT)
    if isinstance(family, GatedWeights):
        return (CONTRAST if family.reference else COMPONENT, *default_dims(name, shape)[1:])
    dims = list(default_dims(name, shape))
    lead = len(shape) - family.arg_constraints[argument].event_dim
    if lead and shape[lead - 1] == family.components:
        dims[lead - 1] = COMPONENT
    for i, dim in zip(range(lead, len(shape)), _EVENT_DIMS.get(argument, ()), strict=False):
        if not dim.startswith("feature") or (
            _is_over_features(family) and shape[i] == family.event_shape[-1]
        ):
            dims[i] = prefix + dim
    return tuple(dims)


def _row_dims(
    trace, structure: ProgramStructure, observed: Mapping[str, Tensor]
) -> dict[str, tuple[str, ...]]:
    """Dims of observed values: rows, and the features of those with a component family."""
    dims = {}
    for site, value in observed.items():
        fn, names = _unmasked(trace.nodes[site]["fn"]), list(default_dims(site, value.shape))
        row = value.dim() - fn.event_dim + structure.dim
        if row >= 0:
            names[row] = ROW
        if isinstance(fn, Selected) and fn.event_dim == 1 and _is_over_features(fn.family):
            names[-1] = _prefix(site, observed) + "feature"
        dims[site] = tuple(names)
    return dims


def _is_over_features(family: Components) -> bool:
    """Whether components have a place among its rows; else these are outcomes, or choices."""
    return not _PLACES.isdisjoint(family.arg_constraints)


def _plate_dims(
    trace, structure: ProgramStructure, values: Mapping[str, Tensor], taken: set[str]
) -> dict[str, tuple[str, ...]]:
    """Dims of sites in plates other than the data plate, whose names they have where no variable is called so."""
    dims = {}
    for site, value in values.items():
        node, names = trace.nodes[site], list(default_dims(site, value.shape))
        for frame in node["cond_indep_stack"]:
            place = value.dim() - node["fn"].event_dim + frame.dim if frame.vectorized else -1
            if (
                place >= 0
                and frame.name not in taken | {structure.plate}
                and value.shape[place] == frame.size
            ):
                names[place] = frame.name
        dims[site] = tuple(names)
    return dims


def _first_known(name: str, *choices: tuple[str, ...] | None) -> tuple[str, ...]:
    """Dimension by dimension the first of the choices that is not the default."""
    given = [choice for choice in choices if choice is not None]
    defaults = tuple(f"{name}_dim_{i}" for i in range(len(given[0])))
    return tuple(
        next((dim for dim in dims if dim != default), default)
        for default, *dims in zip(defaults, *given, strict=True)
    )


def default_dims(name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The names that ArviZ gives to the dimensions of a variable."""
    return tuple(f"{name}_dim_{i}" for i in range(len(shape)))


def array(tensor: Tensor) -> np.ndarray:
    """A copy as numpy has it, which knows no bfloat16."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()
