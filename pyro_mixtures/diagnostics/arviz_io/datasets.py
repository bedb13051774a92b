"""Named arrays as xarray data sets, in the container that the installed ArviZ reads. Knows nothing of torch."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import xarray

from pyro_mixtures.errors import OptionError

SAMPLE_DIMS = ("chain", "draw")

Dims = Mapping[str, Sequence[str]]
Coords = Mapping[str, Sequence[Any] | np.ndarray]


class Variable(NamedTuple):
    """An array with one name for each of its dimensions."""

    values: np.ndarray
    dims: tuple[str, ...]


Groups = Mapping[str, Mapping[str, Variable]]


Masks = Mapping[str, np.ndarray]


def to_container(
    groups: Groups,
    *,
    coords: Coords | None = None,
    own: Mapping[str, Coords] | None = None,
    parts: Mapping[str, Masks] | None = None,
) -> Any:
    """The groups as ``arviz.InferenceData`` (ArviZ 0.x) or ``xarray.DataTree`` (ArviZ 1.x).

    :param groups: variables by name, by group; empty groups are left out. A dimension has the same
        size everywhere, but for chains and draws, of which every group may have its own number.
    :param coords: labels of dimensions; those not named are numbered from 0. Of chains and draws
        they are those of the first group that has them, and of others of its size.
    :param own: labels of chains and draws of some groups.
    :param parts: masks by dimension, by group, of what some groups have of a dimension.
    :raises OptionError: when dimensions or labels have conflicting sizes, or labels belong to no
        dimension.
    """
    groups = {name: variables for name, variables in groups.items() if variables}
    for variables in groups.values():
        _check_names(variables)
    own, parts = own or {}, parts or {}
    labels = _labels(_sizes(groups, parts), coords or {})

    def mine(name: str) -> Mapping[str, np.ndarray]:
        some = {dim: labels[dim][mask] for dim, mask in parts.get(name, {}).items()}
        return labels | _sample_labels(groups[name], labels, own.get(name, {})) | some

    return _container({name: _dataset(variables, mine(name)) for name, variables in groups.items()})


def _sample_labels(
    variables: Mapping[str, Variable], labels: Mapping[str, np.ndarray], own: Coords
) -> dict[str, np.ndarray]:
    """Labels of a group's chains and draws: its own, those of all groups, or numbers."""
    found = {}
    for dim, size in _group_sizes(variables, {}, {}).items():
        if dim in SAMPLE_DIMS:
            shared = labels[dim] if len(labels[dim]) == size else np.arange(size)
            found[dim] = np.asarray(own[dim]) if dim in own else shared
    return found


def _container(datasets: Mapping[str, xarray.Dataset]) -> Any:
    """The one difference between the versions of ArviZ."""
    import arviz  # here, since it takes seconds and plots do not need it

    if int(arviz.__version__.partition(".")[0]) >= 1:
        return xarray.DataTree.from_dict(dict(datasets))
    container: Any = arviz.InferenceData
    return container(**datasets)


def _dataset(variables: Mapping[str, Variable], labels: Mapping[str, np.ndarray]) -> xarray.Dataset:
    used = {dim for variable in variables.values() for dim in variable.dims}
    attributes = {
        "created_at": datetime.now(UTC).isoformat(),
        "inference_library": "pyro_mixtures",
        "inference_library_version": importlib.metadata.version("pyro-mixtures"),
    }
    data = {name: (variable.dims, variable.values) for name, variable in variables.items()}
    return xarray.Dataset(data, {dim: labels[dim] for dim in labels if dim in used}, attributes)


def _check_names(variables: Mapping[str, Variable]) -> None:
    """xarray wants the labels of a dimension under its name, which therefore no variable beside them can have."""
    for name in SAMPLE_DIMS:
        if name in variables:
            raise OptionError(
                f"{name!r} is the name of a variable, and of a dimension of all draws: rename it in the model"
            )
    for name, variable in variables.items():
        taken = [dim for dim in variable.dims if dim in variables]
        if taken:
            raise OptionError(
                f"dims {taken} of variable {name!r} are names of variables too: pass dims={{{name!r}: ...}}"
            )


def _sizes(groups: Groups, parts: Mapping[str, Masks]) -> dict[str, int]:
    """Sizes of all dimensions; of chains and draws those of the first group that has them."""
    sizes: dict[str, int] = {}
    for name, variables in groups.items():
        shared = {dim: size for dim, size in sizes.items() if dim not in SAMPLE_DIMS}
        sizes = _group_sizes(variables, shared, parts.get(name, {})) | sizes
    return sizes


def _group_sizes(
    variables: Mapping[str, Variable], known: Mapping[str, int], part: Masks
) -> dict[str, int]:
    """Sizes of a group's dimensions and the ``known``; of a dimension that it has in part, the whole."""
    sizes = dict(known)
    for name, variable in variables.items():
        if len(set(variable.dims)) != len(variable.dims):
            raise OptionError(
                f"variable {name!r} has dims {variable.dims}: give it different names in dims="
            )
        for dim, size in zip(variable.dims, variable.values.shape, strict=True):
            size = len(part[dim]) if dim in part else size
            if sizes.setdefault(dim, size) != size:
                raise OptionError(
                    f"dim {dim!r} has size {size} in {name!r} and {sizes[dim]} elsewhere: name it differently in dims="
                )
    return sizes


def _labels(sizes: Mapping[str, int], coords: Coords) -> dict[str, np.ndarray]:
    unknown = sorted(set(coords) - set(sizes))
    if unknown:
        raise OptionError(f"coords= names {unknown}, but the dimensions are {sorted(sizes)}")
    labels = {
        dim: np.asarray(coords[dim]) if dim in coords else np.arange(size)
        for dim, size in sizes.items()
    }
    for dim, label in labels.items():
        if label.shape != (sizes[dim],):
            raise OptionError(
                f"coords= has labels of shape {label.shape} for {dim!r}, whose size is {sizes[dim]}"
            )
    return labels
