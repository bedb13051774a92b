"""What of a program belongs to its components, and how it reads when they change their numbers."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.diagnostics.alignment import relabel
from pyro_mixtures.errors import DataError

# A variable's name up to its first number, the number, and the rest.
_NUMBERED = re.compile(r"(\D*)(\d+)(.*)", re.DOTALL)


class Owned(NamedTuple):
    """Variables of components, by the form they have."""

    axes: dict[str, int]  # a dimension counts the components
    contrasts: dict[
        str, int
    ]  # a dimension counts all but the first: differences from it, the reference
    numbered: tuple[tuple[str, ...], ...]  # C names each: one variable a component

    def __bool__(self) -> bool:
        return any(self)

    def relabel(self, values: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
        """Those of ``values`` that components own, in the ``order`` (C,)."""
        axes, contrasts = (
            {name: dim for name, dim in own.items() if name in values} for own in self[:2]
        )
        moved = relabel({name: values[name] for name in axes}, order, dim=axes)
        for names in self.numbered:
            if names[0] in values:
                moved |= {
                    name: values[names[k]] for name, k in zip(names, order.tolist(), strict=True)
                }
        return moved | {
            name: _contrasts(name, values[name], dim, order) for name, dim in contrasts.items()
        }


def _contrasts(name: str, value: Tensor, dim: int, order: Tensor) -> Tensor:
    """Differences from another reference."""
    if value.shape[dim] != len(order) - 1:
        found, wanted = tuple(value.shape), len(order) - 1
        raise DataError(
            f"{name!r} {found} has no {wanted} differences from a first component in dimension {dim}"
        )
    first = torch.zeros_like(value.narrow(dim, 0, 1))
    full = torch.cat([first, value], dim).index_select(dim, order.to(value.device))
    return (full - full.narrow(dim, 0, 1)).narrow(dim, 1, value.shape[dim])


def numbered(variables: Mapping[str, Tensor], components: int) -> list[tuple[tuple[str, ...], ...]]:
    """Names that differ in a number from 0 to C - 1, with variables of the same shapes for each: lists of modules.

    Each entry has all variables of one list, the names (C,) of each in a tuple.
    """
    lists: dict[str, dict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for name in variables:
        found = _NUMBERED.fullmatch(name)
        if found:
            before, number, rest = found.groups()
            lists[before][int(number)][rest] = name
    return [
        _in_columns(entries)
        for entries in lists.values()
        if _is_complete(entries, variables, components)
    ]


def _is_complete(
    entries: dict[int, dict[str, str]], variables: Mapping[str, Tensor], components: int
) -> bool:
    shapes = [
        {rest: variables[name].shape for rest, name in one.items()} for one in entries.values()
    ]
    return sorted(entries) == list(range(components)) and all(one == shapes[0] for one in shapes)


def _in_columns(entries: dict[int, dict[str, str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(entries[k][rest] for k in sorted(entries)) for rest in entries[0])
