"""Variables of a program that have an entry per component, and their relabeling."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.diagnostics.alignment import relabel
from pyro_mixtures.errors import DataError

# A variable's name up to its first number, the number, and the rest.
_NUMBERED_NAME = re.compile(r"(\D*)(\d+)(.*)", re.DOTALL)

NameList = tuple[str, ...]  # C names of variables, one per component


class ComponentVariables(NamedTuple):
    """Variables with entries for each component, by their form."""

    axes: dict[str, int]  # which dimension counts the components
    contrasts: dict[str, int]  # which dimension counts the differences from the first component
    numbered: tuple[NameList, ...]  # one variable per component

    def __bool__(self) -> bool:
        return any(self)

    def relabel(self, values: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
        """Return those of ``values`` that have entries per component, in the ``order`` (C,)."""
        axes = {name: dim for name, dim in self.axes.items() if name in values}
        contrasts = {name: dim for name, dim in self.contrasts.items() if name in values}
        relabeled = relabel({name: values[name] for name in axes}, order, dim=axes)
        for names in self.numbered:
            if names[0] in values:
                sources = zip(names, order.tolist(), strict=True)
                relabeled |= {name: values[names[component]] for name, component in sources}
        relabeled |= {
            name: _change_reference(name, values[name], dim, order)
            for name, dim in contrasts.items()
        }
        return relabeled


def _change_reference(name: str, value: Tensor, dim: int, order: Tensor) -> Tensor:
    """Differences from the component that is the first in ``order``."""
    expected = len(order) - 1
    if value.shape[dim] != expected:
        raise DataError(
            f"{name!r} {tuple(value.shape)} must have {expected} differences from the first "
            f"component in dimension {dim}"
        )
    reference = torch.zeros_like(value.narrow(dim, 0, 1))
    all_components = torch.cat([reference, value], dim).index_select(dim, order.to(value.device))
    return (all_components - all_components.narrow(dim, 0, 1)).narrow(dim, 1, expected)


def numbered_variables(
    variables: Mapping[str, Tensor], components: int
) -> list[tuple[NameList, ...]]:
    """Find variables whose names differ in a number from 0 to C - 1, as in lists of modules.

    The variables of all numbers must have the same shapes.

    :returns: for each list of modules, the names (C,) of each of its variables.
    """
    lists: dict[str, dict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for name in variables:
        match = _NUMBERED_NAME.fullmatch(name)
        if match:
            prefix, number, suffix = match.groups()
            lists[prefix][int(number)][suffix] = name
    return [
        _names_by_suffix(entries)
        for entries in lists.values()
        if _is_complete(entries, variables, components)
    ]


def _is_complete(
    entries: dict[int, dict[str, str]], variables: Mapping[str, Tensor], components: int
) -> bool:
    shapes = [
        {suffix: variables[name].shape for suffix, name in names.items()}
        for names in entries.values()
    ]
    has_all_numbers = sorted(entries) == list(range(components))
    return has_all_numbers and all(entry == shapes[0] for entry in shapes)


def _names_by_suffix(entries: dict[int, dict[str, str]]) -> tuple[NameList, ...]:
    numbers = sorted(entries)
    return tuple(tuple(entries[number][suffix] for number in numbers) for suffix in entries[0])
