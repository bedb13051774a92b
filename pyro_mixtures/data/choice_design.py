"""Long tables of choices: the choosers, situations and alternatives of their lines, and designs."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_mixtures.errors import DataError, OptionError

Array = NDArray[Any]


def pandas() -> Any:
    """Import pandas, which is needed only where a table is read."""
    try:
        return importlib.import_module("pandas")
    except ImportError as error:
        raise DataError("tables of choices are read with pandas: pip install pandas") from error


def frame_of(table: Any, names: Sequence[str | None]) -> Any:
    """Convert ``table`` to a DataFrame with numbered lines.

    :param names: columns that it must have; None is ignored.
    """
    frame = pandas().DataFrame(table).reset_index(drop=True)
    missing = [name for name in names if name is not None and name not in frame]
    if missing:
        raise DataError(f"the table has no columns {missing}; it has {list(frame)}")
    repeated = [name for name in names if name is not None and list(frame).count(name) > 1]
    if repeated:
        raise DataError(
            f"the table has several columns {repeated[0]!r}: rename them, or leave them out"
        )
    if not len(frame):
        raise DataError("the table has no lines")
    return frame


def available_lines(frame: Any, available: str, chosen: Array) -> Any:
    """Select the lines of ``frame`` where the column ``available`` is 1.

    :raises DataError: when a line that is ``chosen`` (n,) is not available.
    """
    is_available = flags(frame, available)
    wrong = chosen & ~is_available
    if wrong.any():
        raise DataError(
            f"line {frame.index[wrong][0]} is chosen, but not available: column {available!r} is 0"
        )
    return frame[is_available]


def keys(frame: Any, name: str) -> Array:
    """Return the labels in a column.

    :raises DataError: when one is missing.
    """
    column = frame[name]
    if column.isna().any():
        raise DataError(f"column {name!r} is empty in line {frame.index[column.isna()][0]}")
    return column.to_numpy()


def flags(frame: Any, name: str) -> Array:
    """Return a column of 0 and 1 as booleans."""
    values = keys(frame, name)
    wrong = ~np.isin(values, (0, 1))
    if wrong.any():
        raise DataError(
            f"column {name!r} is {values[wrong][0]!r} in line {frame.index[wrong][0]}: use 0 or 1"
        )
    return values.astype(bool)


class Lines(NamedTuple):
    """n lines of a long table, one per alternative of a chooser's situation."""

    chooser: Array  # (n,)  in [0, N)
    situation: Array  # (n,)  in [0, T), within the chooser
    alternative: Array  # (n,)  in [0, J)
    choosers: Array  # (N,) labels, in the order of their first lines
    situations: Array  # (n,) label of the situation of each line
    alternatives: list[Any]  # J labels

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, T, J."""
        return len(self.choosers), int(self.situation.max()) + 1, len(self.alternatives)

    @property
    def places(self) -> tuple[Array, Array, Array]:
        """Index (n,) of each line in an array (N, T, J)."""
        return self.chooser, self.situation, self.alternative

    def name(self, line: int) -> str:
        """Describe the situation of a line, for error messages."""
        chooser = _plain(self.choosers[self.chooser[line]])
        return f"chooser {chooser!r}, situation {_plain(self.situations[line])!r}"

    def numbers(self, frame: Any, name: str) -> Array:
        """Return a column (n,) of finite numbers."""
        try:
            values = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise DataError(f"column {name!r} does not contain numbers: {error}") from error
        if not np.isfinite(values).all():
            line = int((~np.isfinite(values)).argmax())
            alternative = _plain(self.alternatives[self.alternative[line]])
            raise DataError(
                f"column {name!r} is {values[line]} for {self.name(line)}, alternative "
                f"{alternative!r}: fill it in, or leave the alternative out there"
            )
        return values

    def of_choosers(self, frame: Any, name: str) -> Array:
        """Return a column that has one number per chooser, as (N,)."""
        values = self.numbers(frame, name)
        chooser_values = np.zeros(len(self.choosers))
        chooser_values[self.chooser] = values
        differ = chooser_values[self.chooser] != values
        if differ.any():
            label = _plain(self.choosers[self.chooser[int(differ.argmax())]])
            raise DataError(
                f"column {name!r} has several values for chooser {label!r}, but must have one per "
                "chooser"
            )
        return chooser_values

    def chosen(self, flag: Array) -> Array:
        """Return the numbers (N, T) of the chosen alternatives, -1 where there is no situation.

        :param flag: (n,) whether the alternative of the line is chosen.
        :raises DataError: unless one alternative is chosen in each situation.
        """
        count = np.zeros(self.shape[:2], dtype=np.int64)
        np.add.at(count, self.places[:2], flag)
        wrong = count[self.places[:2]] != 1
        if wrong.any():
            line = int(wrong.argmax())
            chosen_count = int(count[self.chooser[line], self.situation[line]])
            raise DataError(
                f"{self.name(line)}: {chosen_count} available alternatives are chosen, not exactly "
                "one"
            )
        chosen = np.full(self.shape[:2], -1)
        chosen[self.chooser[flag], self.situation[flag]] = self.alternative[flag]
        return chosen


def lines_of(
    chooser_labels: Array,
    situation_labels: Array,
    alternative_labels: Array,
    alternatives: Sequence[Any] | None,
) -> Lines:
    """Number the choosers, situations and alternatives of n lines.

    :param alternatives: all alternatives in the order of their numbers; sorted by default.
    :raises DataError: when an alternative is unknown, or is listed twice in a situation.
    """
    pd = pandas()
    labels = _sorted(alternative_labels) if alternatives is None else list(alternatives)
    if len(pd.Index(labels, dtype=object).unique()) < len(labels):
        raise OptionError(f"alternatives={labels}: give each of them once")
    alternative = pd.Index(labels, dtype=object).get_indexer(alternative_labels.astype(object))
    if (alternative < 0).any():
        unknown = _plain(alternative_labels[(alternative < 0).argmax()])
        raise DataError(f"{unknown!r} is not one of the alternatives {labels}")
    chooser, choosers = pd.factorize(chooser_labels)
    label_number, distinct_labels = pd.factorize(situation_labels)
    # Situations with the same label may belong to several choosers.
    pair_number = chooser.astype(np.int64) * len(distinct_labels) + label_number
    situation, distinct_pairs = pd.factorize(pair_number)
    pair_chooser = distinct_pairs // len(distinct_labels)
    number_within_chooser = pd.Series(pair_chooser).groupby(pair_chooser).cumcount().to_numpy()
    lines = Lines(
        chooser=chooser,
        situation=number_within_chooser[situation],
        alternative=alternative,
        choosers=np.asarray(choosers),
        situations=situation_labels,
        alternatives=labels,
    )
    place = situation.astype(np.int64) * len(labels) + alternative
    repeated = pd.Series(place).duplicated().to_numpy()
    if repeated.any():
        line = int(repeated.argmax())
        label = _plain(alternative_labels[line])
        raise DataError(f"{lines.name(line)} lists alternative {label!r} twice")
    return lines


def _sorted(labels: Array) -> list[Any]:
    try:
        return sorted({_plain(label): None for label in labels})
    except TypeError as error:
        raise DataError(
            "the alternatives' labels cannot be sorted: pass alternatives=, in order"
        ) from error


def _plain(label: Any) -> Any:
    """Convert NumPy's numbers to Python's, which read better in errors and names."""
    return label.item() if isinstance(label, np.generic) else label


class Columns(NamedTuple):
    """Columns of a design (N, T, J, L) and their names."""

    values: Array
    names: tuple[str, ...]


def design_of(
    lines: Lines,
    attributes: Mapping[str, Array],
    *,
    generic: Sequence[str],
    specific: Sequence[str],
    constants: bool,
    reference: Any,
) -> Columns:
    """Build a design from ``attributes`` (n,): generic columns, specific columns, constants."""
    labels = lines.alternatives
    indicators = np.eye(len(labels))[lines.alternative]  # (n, J)
    if reference is not None and reference not in labels:
        raise OptionError(f"reference={reference!r} is not one of the alternatives {labels}")
    base = 0 if reference is None else labels.index(reference)
    others = [j for j in range(len(labels)) if j != base]
    columns: list[Array] = []
    names: list[str] = []
    for name in generic:
        if not _varies(lines, attributes[name]):
            raise DataError(
                f"column {name!r} is the same for all alternatives of every situation: one "
                "coefficient for all of them changes no choice; list it under specific=, or "
                "covariates="
            )
        columns.append(attributes[name][:, None])
        names.append(name)
    for name in specific:
        numbers = list(range(len(labels))) if _varies(lines, attributes[name]) else others
        columns.append(attributes[name][:, None] * indicators[:, numbers])
        names += [f"{name}:{labels[j]}" for j in numbers]
    if constants:
        columns.append(indicators[:, others])
        names += [f"constant:{labels[j]}" for j in others]
    if not names:
        raise OptionError("the design has no columns: pass generic=, specific=, or constants=True")
    values = np.zeros((*lines.shape, len(names)))
    values[lines.places] = np.concatenate(columns, 1)
    return Columns(values, tuple(names))


def _varies(lines: Lines, values: Array) -> bool:
    """Return whether the alternatives of some situation differ in an attribute (n,)."""
    situation_values = np.zeros(lines.shape[:2])
    situation_values[lines.places[:2]] = values
    return bool((situation_values[lines.places[:2]] != values).any())
