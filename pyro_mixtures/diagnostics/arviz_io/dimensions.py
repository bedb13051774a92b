"""Names of the dimensions of a program's variables, as far as the program determines them."""

from collections.abc import Mapping
from typing import Any

from pyro.distributions import MaskedDistribution
from torch import Tensor

from pyro_mixtures.distributions import Components, MixtureWeights, RestrictedSupport, Selected
from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.distributions.weights import ComponentWeights
from pyro_mixtures.poutine import ProgramStructure
from pyro_mixtures.poutine.params import leaf_of

ROW = "row"
COMPONENT = "component"
CONTRAST = "contrast"  # C - 1 differences of the other components from the first, the reference

# Names of event dimensions by argument of the component families. A covariance has its features
# twice. In xarray a dimension of the variable "factor" must have another name than the variable.
_EVENT_DIMS = {
    "loc": ("feature",),
    "mean": ("feature",),
    "scale": ("feature",),
    "scale_tril": ("feature", "feature_bis"),
    "factor": ("feature", "factor_index"),
    "noise": ("feature",),
    "probs": ("label",),
}
_LOCATIONS = {"loc", "mean"}
EVENT_NAMES = tuple({name for names in _EVENT_DIMS.values() for name in names})

Names = tuple[str, ...]
Nodes = Mapping[str, Any]  # of a trace; Pyro does not type them


def dimension_names(
    nodes: Nodes,
    structure: ProgramStructure,
    observed: Mapping[str, Tensor],
    params: Mapping[str, Tensor],
    latents: Mapping[str, Tensor],
) -> dict[str, Names]:
    """Return the dims of params, latent and observed sites that the program determines.

    Sources are, in this order, the arguments of component families and mixture weights, the rows
    and features of observed values, and plates.
    """
    tensors = {**params, **latents}
    known = _argument_dims(nodes, structure, observed, tensors)
    known |= _row_dims(nodes, structure, observed)
    variable_names = {*tensors, *observed}
    plates = _plate_dims(nodes, structure, {**latents, **observed}, variable_names)
    return {
        name: _first_known(name, known.get(name), plates.get(name))
        for name in known.keys() | plates.keys()
    }


def default_dims(name: str, shape: tuple[int, ...]) -> Names:
    """Return the names that ArviZ gives to the dimensions of a variable."""
    return tuple(f"{name}_dim_{i}" for i in range(len(shape)))


def unmasked(distribution: Any) -> Any:
    """Return the distribution inside ``poutine.mask``'s, or the distribution itself."""
    is_masked = isinstance(distribution, MaskedDistribution)
    return distribution.base_dist if is_masked else distribution


def _argument_dims(
    nodes: Nodes,
    structure: ProgramStructure,
    observed: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> dict[str, Names]:
    """Dims of the ``tensors`` that are arguments of a component family or the mixture weights."""
    names = {id(leaf_of(tensor)): name for name, tensor in tensors.items()}
    dims = {}
    for site in (structure.site, *observed):
        distribution = unmasked(nodes[site]["fn"])
        if isinstance(distribution, RestrictedSupport):
            distribution = distribution.unrestricted
        family = distribution.family if isinstance(distribution, Selected) else distribution
        if not isinstance(family, (Components, ComponentWeights)):
            continue
        for argument, tensor in family.arguments.items():
            name = names.get(id(leaf_of(tensor)))
            # A module's parameters keep ArviZ's default dims, because their meaning is unknown.
            if name is not None and argument in family.arg_constraints:
                dims[name] = _dims_of_argument(name, family, argument, _prefix(site, observed))
    return dims


def _prefix(site: str, observed: Mapping[str, Tensor]) -> str:
    """Several observed sites have separate features."""
    return f"{site}_" if len(observed) > 1 else ""


def _dims_of_argument(name: str, family: Any, argument: str, prefix: str) -> Names:
    """Names where the sizes match; a shared dimension of size 1 keeps ArviZ's default."""
    shape = family.arguments[argument].shape
    if isinstance(family, MixtureWeights):
        return (*default_dims(name, shape)[:-1], COMPONENT)
    if isinstance(family, GatedWeights):
        return (CONTRAST if family.reference else COMPONENT, *default_dims(name, shape)[1:])
    dims = list(default_dims(name, shape))
    first_event_dim = len(shape) - family.arg_constraints[argument].event_dim
    if first_event_dim and shape[first_event_dim - 1] == family.components:
        dims[first_event_dim - 1] = COMPONENT
    event_dims = range(first_event_dim, len(shape))
    for i, dim in zip(event_dims, _EVENT_DIMS.get(argument, ()), strict=False):
        is_all_features = _has_location(family) and shape[i] == family.event_shape[-1]
        if not dim.startswith("feature") or is_all_features:
            dims[i] = prefix + dim
    return tuple(dims)


def _row_dims(
    nodes: Nodes, structure: ProgramStructure, observed: Mapping[str, Tensor]
) -> dict[str, Names]:
    """Dims of observed values: rows, and features if the component family has a location."""
    dims = {}
    for site, value in observed.items():
        distribution = unmasked(nodes[site]["fn"])
        names = list(default_dims(site, value.shape))
        row = value.dim() - distribution.event_dim + structure.dim
        if row >= 0:
            names[row] = ROW
        has_features = isinstance(distribution, Selected) and distribution.event_dim == 1
        if has_features and _has_location(distribution.family):
            names[-1] = _prefix(site, observed) + "feature"
        dims[site] = tuple(names)
    return dims


def _has_location(family: Components) -> bool:
    """Whether components have locations in the space of the rows; otherwise, rows are outcomes."""
    return not _LOCATIONS.isdisjoint(family.arg_constraints)


def _plate_dims(
    nodes: Nodes,
    structure: ProgramStructure,
    values: Mapping[str, Tensor],
    variable_names: set[str],
) -> dict[str, Names]:
    """Dims of sites in plates other than the data plate, named after the plates.

    A plate whose name is that of a variable gives no name.
    """
    unusable = variable_names | {structure.plate}
    dims = {}
    for site, value in values.items():
        node, names = nodes[site], list(default_dims(site, value.shape))
        for frame in node["cond_indep_stack"]:
            if not frame.vectorized or frame.name in unusable:
                continue
            dim = value.dim() - node["fn"].event_dim + frame.dim
            if dim >= 0 and value.shape[dim] == frame.size:
                names[dim] = frame.name
        dims[site] = tuple(names)
    return dims


def _first_known(name: str, *choices: Names | None) -> Names:
    """For each dimension, the first choice that is not ArviZ's default."""
    known = [choice for choice in choices if choice is not None]
    defaults = tuple(f"{name}_dim_{i}" for i in range(len(known[0])))
    return tuple(
        next((dim for dim in dims if dim != default), default)
        for default, *dims in zip(defaults, *known, strict=True)
    )
