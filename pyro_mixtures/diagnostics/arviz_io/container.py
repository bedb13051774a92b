"""Named arrays as xarray data sets, in the container of the installed version of ArviZ."""

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
Masks = Mapping[str, np.ndarray]  # by dimension


class Variable(NamedTuple):
    """An array with one name for each of its dimensions."""

    values: np.ndarray
    dims: tuple[str, ...]


Groups = Mapping[str, Mapping[str, Variable]]


def to_container(
    groups: Groups,
    *,
    coords: Coords | None = None,
    sample_coords: Mapping[str, Coords] | None = None,
    masks: Mapping[str, Masks] | None = None,
) -> Any:
    """Return the groups as ``arviz.InferenceData`` (ArviZ 0.x) or ``xarray.DataTree`` (ArviZ 1.x).

    :param groups: variables by name, by group; empty groups are left out. A dimension has the same
        size in all groups, except for chains and draws, whose numbers may differ between groups.
    :param coords: labels of dimensions; other dimensions are numbered from 0. Labels of chains and
        draws apply to the first group that has them and to other groups of its size.
    :param sample_coords: labels of chains and draws, by group.
    :param masks: by dimension, by group: which entries of a dimension the group has.
    :returns: the container.
    :raises OptionError: if sizes of dimensions or labels conflict, or labels name an unknown
        dimension.
    """
    groups = {name: variables for name, variables in groups.items() if variables}
    for variables in groups.values():
        _check_names(variables)
    sample_coords, masks = sample_coords or {}, masks or {}
    labels = _labels(_sizes(groups, masks), coords or {})
    datasets = {}
    for name, variables in groups.items():
        sample_labels = _sample_labels(variables, labels, sample_coords.get(name, {}))
        masked_labels = {dim: labels[dim][mask] for dim, mask in masks.get(name, {}).items()}
        datasets[name] = _dataset(variables, labels | sample_labels | masked_labels)
    return _container(datasets)


def _sample_labels(
    variables: Mapping[str, Variable], labels: Mapping[str, np.ndarray], group_coords: Coords
) -> dict[str, np.ndarray]:
    """Labels of a group's chains and draws: its own, those of all groups, or numbers."""
    sample_labels = {}
    for dim, size in _group_sizes(variables, {}, {}).items():
        if dim not in SAMPLE_DIMS:
            continue
        if dim in group_coords:
            sample_labels[dim] = np.asarray(group_coords[dim])
        else:
            sample_labels[dim] = labels[dim] if len(labels[dim]) == size else np.arange(size)
    return sample_labels


def _container(datasets: Mapping[str, xarray.Dataset]) -> Any:
    """The only difference between the versions of ArviZ."""
    import arviz  # slow to import

    if int(arviz.__version__.partition(".")[0]) >= 1:
        return xarray.DataTree.from_dict(dict(datasets))
    container: Any = arviz.InferenceData
    return container(**datasets)


def _dataset(variables: Mapping[str, Variable], labels: Mapping[str, np.ndarray]) -> xarray.Dataset:
    dims = {dim for variable in variables.values() for dim in variable.dims}
    attributes = {
        "created_at": datetime.now(UTC).isoformat(),
        "inference_library": "pyro_mixtures",
        "inference_library_version": importlib.metadata.version("pyro-mixtures"),
    }
    data = {name: (variable.dims, variable.values) for name, variable in variables.items()}
    return xarray.Dataset(data, {dim: labels[dim] for dim in labels if dim in dims}, attributes)


def _check_names(variables: Mapping[str, Variable]) -> None:
    """Refuse variables that are named like a dimension: xarray keeps its labels under that name."""
    for name in SAMPLE_DIMS:
        if name in variables:
            raise OptionError(
                f"{name!r} is the name of a variable, and of a dimension of all draws: rename it "
                "in the model"
            )
    for name, variable in variables.items():
        conflicts = [dim for dim in variable.dims if dim in variables]
        if conflicts:
            raise OptionError(
                f"dims {conflicts} of variable {name!r} are names of variables too: pass "
                f"dims={{{name!r}: ...}} with other names"
            )


def _sizes(groups: Groups, masks: Mapping[str, Masks]) -> dict[str, int]:
    """Sizes of all dimensions; of chains and draws those of the first group that has them."""
    sizes: dict[str, int] = {}
    for name, variables in groups.items():
        shared = {dim: size for dim, size in sizes.items() if dim not in SAMPLE_DIMS}
        sizes = _group_sizes(variables, shared, masks.get(name, {})) | sizes
    return sizes


def _group_sizes(
    variables: Mapping[str, Variable], known: Mapping[str, int], masks: Masks
) -> dict[str, int]:
    """The ``known`` sizes and those of a group's dimensions, each with its masked entries."""
    sizes = dict(known)
    for name, variable in variables.items():
        if len(set(variable.dims)) != len(variable.dims):
            raise OptionError(
                f"variable {name!r} has dims {variable.dims}: pass different names in dims="
            )
        for dim, length in zip(variable.dims, variable.values.shape, strict=True):
            size = len(masks[dim]) if dim in masks else length
            if sizes.setdefault(dim, size) != size:
                raise OptionError(
                    f"dim {dim!r} has size {size} in {name!r} and {sizes[dim]} elsewhere: "
                    "pass different names in dims="
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
