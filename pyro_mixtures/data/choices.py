"""Long and wide tables of choices as the tensors that a choice model takes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.data.choice_design import (
    Array,
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
from pyro_mixtures.options import check_flag


class ChoiceTable(NamedTuple):
    """Choices of N choosers in up to T situations among J alternatives, and their labels."""

    design: Tensor  # (N, T, J, L)  zero where not available
    available: Tensor  # (N, T, J) bool
    chosen: Tensor  # (N, T)  number of the chosen alternative, -1 for missing situations
    covariates: Tensor  # (N, Q)  Q may be zero
    row_weight: Tensor | None  # (N,)
    coefficients: tuple[str, ...]  # L names of the design's columns
    alternatives: tuple[Any, ...]  # J
    choosers: tuple[Any, ...]  # N
    covariate_names: tuple[str, ...]  # Q

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """Arguments of the program: design, available, chosen, then any covariates and weights."""
        rows = (self.design, self.available, self.chosen)
        if self.row_weight is not None:
            return (*rows, self.covariates, self.row_weight)
        return (*rows, self.covariates) if self.covariates.shape[1] else rows

    def __repr__(self) -> str:
        n, situations = len(self.chosen), int((self.chosen >= 0).sum())
        return (
            f"ChoiceTable({n} choosers, {situations} choices, "
            f"alternatives {list(self.alternatives)}, coefficients {list(self.coefficients)})"
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
    """Read choices from a table with one line per alternative of a situation.

    An alternative without a line is not available. Choosers and their situations keep the order in
    which they first appear. With only one of ``chooser`` and ``situation``, every chooser has one
    situation.

    :param table: a pandas DataFrame, or a mapping from names to columns.
    :param alternative: column of alternatives.
    :param chosen: column of 0 and 1, or of booleans: 1 at exactly one alternative of every
        situation.
    :param situation: column that identifies a chooser's situations.
    :param chooser: column that identifies the choosers.
    :param generic: columns with one coefficient for all alternatives.
    :param specific: columns with one coefficient per alternative. If a column is the same for all
        alternatives of every situation (a chooser's income), its coefficients are relative to the
        reference alternative, which has none.
    :param constants: whether each alternative except the reference has a constant.
    :param reference: an alternative, by default the first one.
    :param alternatives: all alternatives, in the order of their numbers; sorted by default.
    :param available: column of 0 and 1, 0 on the lines of alternatives that are not available.
        Situations without any available or chosen alternative are left out.
    :param covariates: columns with one value per chooser, for class membership.
    :param weight: column with one weight per chooser.
    :param dtype: floating-point dtype of the design, covariates and weights; torch's default dtype
        by default.
    :returns: the tensors, with the labels of choosers, alternatives and coefficients.
    :raises DataError: for missing values, missing columns, an alternative listed twice in a
        situation, a situation without exactly one chosen alternative, a chosen alternative that is
        not available, or covariates that differ within a chooser. The message names the chooser and
        situation, or the line.
    :raises OptionError: for options that contradict each other, or name unknown alternatives.

    >>> lines = {"id": [7, 7, 8, 8], "mode": ["bus", "car"] * 2, "cost": [1.0, 3.0, 2.0, 3.0]}
    >>> lines["choice"] = [1, 0, 0, 1]
    >>> table = choices_from_long(
    ...     lines, chooser="id", alternative="mode", chosen="choice", generic=["cost"]
    ... )
    >>> table.coefficients, table.design.shape
    (('cost', 'constant:car'), torch.Size([2, 1, 2, 2]))
    """
    check_flag(constants=constants)
    if chooser is None and situation is None:
        raise OptionError(
            "pass chooser=, the column that identifies the choosers, or situation=, or both"
        )
    kind = dtype or torch.get_default_dtype()
    if not kind.is_floating_point:
        raise OptionError(f"dtype={kind}: pass a floating-point dtype")
    names = (
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
    frame = frame_of(table, names)
    _check_distinct(generic, specific)
    if available is not None:
        frame = available_lines(frame, available, frame[chosen].isin([1]).to_numpy())
        if not len(frame):
            raise DataError(f"column {available!r} is 0 in all lines: nothing is available")
    if situation is None:
        situation_labels = np.zeros(len(frame), dtype=np.int64)
    else:
        situation_labels = keys(frame, situation)
    lines = lines_of(
        keys(frame, chooser or situation or ""),
        situation_labels,
        keys(frame, alternative),
        alternatives,
    )
    design = design_of(
        lines,
        {name: lines.numbers(frame, name) for name in (*generic, *specific)},
        generic=generic,
        specific=specific,
        constants=constants,
        reference=reference,
    )
    has_line = np.zeros(lines.shape, dtype=bool)
    has_line[lines.places] = True
    return ChoiceTable(
        design=_tensor(design.values, kind),
        available=_tensor(has_line, torch.bool),
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
    """Read choices from a table with one line per situation.

    :param table: a pandas DataFrame, or a mapping from names to columns.
    :param chosen: column of the chosen alternatives, with the keys of ``alternatives``.
    :param alternatives: the attributes of each alternative by name; each is a column, or a number
        for all lines.
    :param available: columns of 0 and 1, for the alternatives that are not always available.
    :param chooser: column that identifies the choosers; by default every line is another chooser.
    :param generic: attributes with one coefficient for all alternatives; by default all that are
        not ``specific``.
    :param specific: attributes, or columns of the table, with one coefficient per alternative.

    All other parameters are those of :func:`choices_from_long`.

    :returns: the choices, as from :func:`choices_from_long`.
    :raises DataError: for tables that do not describe choices, as :func:`choices_from_long`.
    :raises OptionError: for options that contradict each other or the table.

    >>> lines = {"choice": ["bus", "car"], "bus_cost": [1.0, 2.0], "car_cost": [3.0, 3.0]}
    >>> modes = {"bus": {"cost": "bus_cost"}, "car": {"cost": "car_cost"}}
    >>> choices_from_wide(lines, chosen="choice", alternatives=modes).design[0, 0]
    tensor([[1., 0.],
            [3., 1.]])
    """
    check_flag(constants=constants)
    available = dict(available or {})
    attributes = _attribute_names(alternatives)
    shared = [name for name in specific if name not in attributes]
    if generic is None:
        generic = [name for name in attributes if name not in specific]
    chooser_columns = [*covariates, *([weight] if weight else [])]
    _check_wide(alternatives, available, [*generic, *specific], shared, chooser_columns)
    columns = [
        column
        for values in alternatives.values()
        for column in values.values()
        if isinstance(column, str)
    ]
    frame = frame_of(
        table, (chosen, chooser, weight, *columns, *available.values(), *covariates, *shared)
    )
    choice = keys(frame, chosen)
    unknown = [value for value in choice if value not in alternatives]
    if unknown:
        raise DataError(
            f"column {chosen!r} contains {unknown[0]!r}, which is not one of the alternatives "
            f"{[*alternatives]}"
        )
    copied_columns = [*dict.fromkeys([*shared, *chooser_columns])]
    alternative_frames = []
    for label, values in alternatives.items():
        lines = frame[copied_columns].copy()
        for name in (*generic, *(name for name in specific if name not in shared)):
            value = values[name]
            lines[name] = frame[value] if isinstance(value, str) else value
        lines[_LINE] = np.arange(len(frame))
        lines[_ALTERNATIVE] = label
        lines[_CHOSEN] = choice == label
        lines[_CHOOSER] = lines[_LINE] if chooser is None else keys(frame, chooser)
        if label in available:
            lines = lines.loc[available_lines(frame, available[label], choice == label).index]
        alternative_frames.append(lines)
    return choices_from_long(
        pandas().concat(alternative_frames).sort_values(_LINE, kind="stable"),
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


# Columns of the long table into which a wide one is converted.
_CHOOSER, _LINE, _ALTERNATIVE, _CHOSEN = "(chooser)", "(line)", "(alternative)", "(chosen)"


def _check_distinct(generic: Sequence[str], specific: Sequence[str]) -> None:
    """Check that no column is given twice: the coefficients of equal columns are undetermined."""
    names = [*generic, *specific]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise OptionError(
            f"{repeated[0]!r} is given twice under generic= and specific=: give every name once"
        )


def _attribute_names(alternatives: Mapping[Any, Mapping[str, Any]]) -> list[str]:
    """Return the names of all attributes, in the order in which they first appear."""
    return list(dict.fromkeys(name for values in alternatives.values() for name in values))


def _check_wide(
    alternatives: Mapping[Any, Mapping[str, Any]],
    available: Mapping[Any, str],
    attributes: Sequence[str],
    shared: Sequence[str],
    chooser_columns: Sequence[str],
) -> None:
    """Check that alternatives have all attributes that are not ``shared``, and names are unique."""
    if len(alternatives) < 2:
        raise OptionError(f"alternatives= must have at least two keys, not {list(alternatives)}")
    unknown = [label for label in available if label not in alternatives]
    if unknown:
        raise OptionError(
            f"available= names {unknown}, but the alternatives are {list(alternatives)}"
        )
    for label, values in alternatives.items():
        missing = [name for name in attributes if name not in values and name not in shared]
        if missing:
            raise OptionError(
                f"alternative {label!r} has no {missing}: pass a column, or a number such as 0, "
                "for each of them"
            )
    ambiguous = [name for name in chooser_columns if name in attributes and name not in shared]
    if ambiguous:
        raise OptionError(
            f"{ambiguous} are attributes of alternatives and columns of choosers: rename the "
            "attributes"
        )


def _tensor(values: Array, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)


def _of_choosers(lines: Lines, frame: Any, names: Sequence[str]) -> Array:
    """Return columns with one number per chooser, as (N, Q)."""
    columns = [lines.of_choosers(frame, name) for name in names]
    return np.stack(columns, 1) if columns else np.zeros((len(lines.choosers), 0))


def _weights(lines: Lines, frame: Any, name: str) -> Array:
    """Return the weights (N,) of the choosers."""
    weights = lines.of_choosers(frame, name)
    if (weights < 0).any():
        label = lines.choosers.tolist()[int((weights < 0).argmax())]
        raise DataError(
            f"column {name!r} is negative for chooser {label!r}: weights must be zero or positive"
        )
    return weights
