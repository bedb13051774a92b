"""Tables of choices, long or wide, as the tensors that a choice model takes. Knows nothing of Pyro."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.data.choice_design import (
    Lines,
    available_lines,
    design_of,
    flags,
    frame_of,
    keys,
    lines_of,
    pandas,
)
from pyro_mixtures.errors import DataError, OptionError


class ChoiceTable(NamedTuple):
    """Choices of N choosers in up to T situations among J alternatives with L attributes, and what they are called."""

    design: Tensor  # (N, T, J, L)  zero where not available
    available: Tensor  # (N, T, J) bool
    chosen: Tensor  # (N, T)  number of the chosen alternative, -1 in situations that a chooser does not have
    covariates: Tensor  # (N, Q)  Q may be zero
    row_weight: Tensor | None  # (N,)
    coefficients: tuple[str, ...]  # L names of the design's columns
    alternatives: tuple[Any, ...]  # J
    choosers: tuple[Any, ...]  # N
    covariate_names: tuple[str, ...]  # Q

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """The program's arguments: design, available, chosen, and covariates and weights as far as there are any."""
        rows = (self.design, self.available, self.chosen)
        if self.row_weight is not None:
            return (*rows, self.covariates, self.row_weight)
        return (*rows, self.covariates) if self.covariates.shape[1] else rows

    def __repr__(self) -> str:
        n, situations = len(self.chosen), int((self.chosen >= 0).sum())
        return (
            f"ChoiceTable({n} choosers, {situations} choices, alternatives {list(self.alternatives)}, "
            f"coefficients {list(self.coefficients)})"
        )


def choices_from_long(
    table: Any,
    *,
    alternative: str,
    chosen: str,
    situation: str | None = None,
    chooser: str | None = None,
    generic: Sequence[str] = (),
    specific: Sequence[str] = (),
    constants: bool = True,
    reference: Any = None,
    alternatives: Sequence[Any] | None = None,
    available: str | None = None,
    covariates: Sequence[str] = (),
    weight: str | None = None,
    dtype: torch.dtype | None = None,
) -> ChoiceTable:
    """Choices from a table (a pandas DataFrame, or columns by name) with one line for each alternative of a situation.

    An alternative without a line is not available. ``chooser`` and ``situation`` name the columns
    that tell choosers, and one chooser's situations, apart; with one of them alone every chooser
    has one situation. Choosers and their situations keep the order in which they first appear.

    :param chosen: column of 0 and 1, or of booleans: 1 at exactly one alternative of every
        situation.
    :param generic: columns with one coefficient for all alternatives.
    :param specific: columns with a coefficient for each alternative. Those of a column that is the
        same for all alternatives of every situation (a chooser's income) are relative to the
        reference alternative, which has none.
    :param constants: a constant for each alternative but the reference.
    :param reference: an alternative; the first one by default.
    :param alternatives: all of them, in the order of their numbers; sorted by default.
    :param available: column of 0 and 1: lines of alternatives that are not available hold 0.
        Situations where none is, and none chosen, are left out.
    :param covariates: columns with one value a chooser, for class membership.
    :param weight: column with one weight a chooser.
    :param dtype: of the design, covariates and weights, floating; torch's default.
    :raises DataError: for missing values, columns that do not exist, an alternative listed twice in
        a situation, not exactly one chosen, one chosen that is not available, or covariates that
        differ within a chooser; it names the chooser and situation, or the line.

    >>> lines = {"id": [7, 7, 8, 8], "mode": ["bus", "car"] * 2, "cost": [1.0, 3.0, 2.0, 3.0], "choice": [1, 0, 0, 1]}
    >>> choices_from_long(lines, chooser="id", alternative="mode", chosen="choice", generic=["cost"])
    ChoiceTable(2 choosers, 2 choices, alternatives ['bus', 'car'], coefficients ['cost', 'constant:car'])
    """
    if chooser is None and situation is None:
        raise OptionError(
            "give chooser=, the column that tells choosers apart, or situation=, or both"
        )
    kind = dtype or torch.get_default_dtype()
    if not kind.is_floating_point:
        raise OptionError(f"dtype={kind}: give a floating-point dtype")
    given = (
        chooser,
        situation,
        alternative,
        chosen,
        available,
        weight,
        *generic,
        *specific,
        *covariates,
    )
    frame = frame_of(table, given)
    _check_distinct(generic, specific)
    if available is not None:
        frame = available_lines(frame, available, frame[chosen].isin([1]).to_numpy())
        if not len(frame):
            raise DataError(f"column {available!r} is 0 in all lines: nothing is available")
    who, which = keys(frame, chooser or situation or ""), keys(frame, alternative)
    when = keys(frame, situation) if situation is not None else np.zeros(len(frame), dtype=np.int64)
    lines = lines_of(who, when, which, alternatives)
    design = design_of(
        lines,
        {name: lines.numbers(frame, name) for name in (*generic, *specific)},
        generic=generic,
        specific=specific,
        constants=constants,
        reference=reference,
    )
    seen = np.zeros(lines.shape, dtype=bool)
    seen[lines.places] = True
    return ChoiceTable(
        design=_tensor(design.values, kind),
        available=_tensor(seen, torch.bool),
        chosen=_tensor(lines.chosen(flags(frame, chosen)), torch.int64),
        covariates=_tensor(_of_choosers(lines, frame, covariates), kind),
        row_weight=None if weight is None else _tensor(_weights(lines, frame, weight), kind),
        coefficients=design.names,
        alternatives=tuple(lines.alternatives),
        choosers=tuple(lines.choosers.tolist()),
        covariate_names=tuple(covariates),
    )


def choices_from_wide(
    table: Any,
    *,
    chosen: str,
    alternatives: Mapping[Any, Mapping[str, str | float]],
    available: Mapping[Any, str] | None = None,
    chooser: str | None = None,
    generic: Sequence[str] | None = None,
    specific: Sequence[str] = (),
    constants: bool = True,
    reference: Any = None,
    covariates: Sequence[str] = (),
    weight: str | None = None,
    dtype: torch.dtype | None = None,
) -> ChoiceTable:
    """Choices from a table with one line a situation.

    :param chosen: column that holds the chosen alternative, as ``alternatives`` calls it.
    :param alternatives: for each alternative its attributes by name, each a column or a number for
        all lines.
    :param available: for alternatives that are not always available a column of 0 and 1.
    :param chooser: column that tells choosers apart; every line is a chooser of its own by default.
    :param generic: attributes with one coefficient for all alternatives; by default all that are
        not ``specific``.
    :param specific: attributes, or columns of the table, with a coefficient for each alternative.

    Everything else, errors too, as in :func:`choices_from_long`.

    >>> lines = {"choice": ["bus", "car"], "bus_cost": [1.0, 2.0], "car_cost": [3.0, 3.0]}
    >>> modes = {"bus": {"cost": "bus_cost"}, "car": {"cost": "car_cost"}}
    >>> choices_from_wide(lines, chosen="choice", alternatives=modes).design[0, 0]
    tensor([[1., 0.],
            [3., 1.]])
    """
    available, shared = (
        dict(available or {}),
        [name for name in specific if name not in _attributes(alternatives)],
    )
    generic = (
        [name for name in _attributes(alternatives) if name not in specific]
        if generic is None
        else generic
    )
    _check_wide(
        alternatives,
        available,
        [*generic, *specific],
        shared,
        [*covariates, *([weight] if weight else [])],
    )
    columns = [c for each in alternatives.values() for c in each.values() if isinstance(c, str)]
    frame = frame_of(
        table, (chosen, chooser, weight, *columns, *available.values(), *covariates, *shared)
    )
    choice = keys(frame, chosen)
    unknown = [value for value in choice if value not in alternatives]
    if unknown:
        raise DataError(
            f"column {chosen!r} holds {unknown[0]!r}, which is none of the alternatives {[*alternatives]}"
        )
    kept = [*dict.fromkeys([*shared, *covariates, *([weight] if weight else [])])]
    long = []
    for label, each in alternatives.items():
        part = frame[kept].copy()
        for name in (*generic, *(name for name in specific if name not in shared)):
            part[name] = frame[each[name]] if isinstance(each[name], str) else each[name]
        part[_LINE], part[_ALTERNATIVE], part[_CHOSEN] = (
            np.arange(len(frame)),
            label,
            choice == label,
        )
        part[_CHOOSER] = part[_LINE] if chooser is None else keys(frame, chooser)
        long.append(
            part.loc[available_lines(frame, available[label], choice == label).index]
            if label in available
            else part
        )
    return choices_from_long(
        pandas().concat(long).sort_values(_LINE, kind="stable"),
        chooser=_CHOOSER,
        situation=_LINE,
        alternative=_ALTERNATIVE,
        chosen=_CHOSEN,
        generic=generic,
        specific=specific,
        constants=constants,
        reference=reference,
        alternatives=list(alternatives),
        covariates=covariates,
        weight=weight,
        dtype=dtype,
    )


# Columns of the long table that a wide one is made into.
_CHOOSER, _LINE, _ALTERNATIVE, _CHOSEN = "(chooser)", "(line)", "(alternative)", "(chosen)"


def _check_distinct(generic: Sequence[str], specific: Sequence[str]) -> None:
    """Two columns of the design that are equal leave their coefficients undetermined."""
    names = [*generic, *specific]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise OptionError(
            f"{twice[0]!r} is given twice under generic= and specific=: give every name once"
        )


def _attributes(alternatives: Mapping[Any, Mapping[str, Any]]) -> list[str]:
    """Names of all attributes."""
    return list(dict.fromkeys(name for each in alternatives.values() for name in each))


def _check_wide(
    alternatives: Mapping[Any, Mapping[str, Any]],
    available: Mapping[Any, str],
    wanted: Sequence[str],
    shared: Sequence[str],
    others: Sequence[str],
) -> None:
    """Every alternative states every attribute that is not ``shared``, and names mean one thing."""
    strangers = [label for label in available if label not in alternatives]
    if len(alternatives) < 2 or strangers:
        raise OptionError(
            f"available= names {strangers}; the alternatives, two or more, are {list(alternatives)}"
        )
    for label, each in alternatives.items():
        missing = [name for name in wanted if name not in each and name not in shared]
        if missing:
            raise OptionError(
                f"alternative {label!r} has no {missing}: name their columns, or give a number, 0 say"
            )
    twofold = [name for name in others if name in wanted and name not in shared]
    if twofold:
        raise OptionError(
            f"{twofold} are attributes of alternatives and columns of choosers: rename the attributes"
        )


def _tensor(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)


def _of_choosers(lines: Lines, frame: Any, names: Sequence[str]) -> np.ndarray:
    columns = [lines.of_choosers(frame, name) for name in names]
    return np.stack(columns, 1) if columns else np.zeros((len(lines.choosers), 0))


def _weights(lines: Lines, frame: Any, name: str) -> np.ndarray:
    weights = lines.of_choosers(frame, name)
    if (weights < 0).any():
        label = lines.choosers.tolist()[int((weights < 0).argmax())]
        raise DataError(f"column {name!r} is negative for chooser {label!r}: weights must not be")
    return weights
