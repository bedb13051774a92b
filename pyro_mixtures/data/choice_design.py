"""Lines of a long table of choices, put in their places: choosers, situations, alternatives, and a design's columns."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyro_mixtures.errors import DataError, OptionError


def pandas() -> Any:
    """The package, imported where a table is read and nowhere else."""
    try:
        return importlib.import_module("pandas")
    except ImportError as error:
        raise DataError("tables of choices are read with pandas: pip install pandas") from error


def frame_of(table: Any, names: Sequence[str | None]) -> Any:
    """``table`` as a DataFrame that has the columns ``names``, numbered lines."""
    frame = pandas().DataFrame(table).reset_index(drop=True)
    missing = [name for name in names if name is not None and name not in frame]
    if missing:
        raise DataError(f"the table has no columns {missing}; it has {list(frame)}")
    twice = [name for name in names if name is not None and list(frame).count(name) > 1]
    if twice:
        raise DataError(
            f"the table has several columns {twice[0]!r}: rename them, or leave them out"
        )
    if not len(frame):
        raise DataError("the table has no lines")
    return frame


def available_lines(frame: Any, available: str, taken: np.ndarray) -> Any:
    """Lines of ``frame`` where the column ``available`` is 1; none that is ``taken`` (n,) may be left out."""
    open_ = flags(frame, available)
    wrong = taken & ~open_
    if wrong.any():
        raise DataError(
            f"line {frame.index[wrong][0]} is chosen, but not available: column {available!r} is 0"
        )
    return frame[open_]


def keys(frame: Any, name: str) -> np.ndarray:
    """Labels in a column, none of them missing."""
    column = frame[name]
    if column.isna().any():
        raise DataError(f"column {name!r} holds nothing in line {frame.index[column.isna()][0]}")
    return column.to_numpy()


def flags(frame: Any, name: str) -> np.ndarray:
    """A column of 0 and 1 as booleans."""
    values = keys(frame, name)
    wrong = ~np.isin(values, (0, 1))
    if wrong.any():
        raise DataError(
            f"column {name!r} holds {values[wrong][0]!r} in line {frame.index[wrong][0]}: give 0 or 1"
        )
    return values.astype(bool)


class Lines(NamedTuple):
    """n lines of a long table, one an alternative of a situation of a chooser."""

    chooser: np.ndarray  # (n,)  in [0, N)
    situation: np.ndarray  # (n,)  in [0, T), within the chooser
    alternative: np.ndarray  # (n,)  in [0, J)
    choosers: np.ndarray  # (N,) labels, in the order of their first lines
    situations: np.ndarray  # (n,) labels
    alternatives: list[Any]  # J labels

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, T, J."""
        return len(self.choosers), int(self.situation.max()) + 1, len(self.alternatives)

    @property
    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each line belongs in an array (N, T, J)."""
        return self.chooser, self.situation, self.alternative

    def name(self, line: int) -> str:
        """The situation of a line, for people."""
        return f"chooser {_plain(self.choosers[self.chooser[line]])!r}, situation {_plain(self.situations[line])!r}"

    def numbers(self, frame: Any, name: str) -> np.ndarray:
        """A column (n,) of finite numbers."""
        try:
            values = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise DataError(f"column {name!r} does not hold numbers: {error}") from error
        if not np.isfinite(values).all():
            line = int((~np.isfinite(values)).argmax())
            which = _plain(self.alternatives[self.alternative[line]])
            raise DataError(
                f"column {name!r} is {values[line]} for {self.name(line)}, alternative {which!r}: fill it in, or "
                "leave the alternative out there"
            )
        return values

    def of_choosers(self, frame: Any, name: str) -> np.ndarray:
        """A column with one number a chooser, (N,)."""
        values = self.numbers(frame, name)
        own = np.zeros(len(self.choosers))
        own[self.chooser] = values
        differ = own[self.chooser] != values
        if differ.any():
            label = _plain(self.choosers[self.chooser[int(differ.argmax())]])
            raise DataError(
                f"column {name!r} has several values for chooser {label!r}: it must have one a chooser"
            )
        return own

    def chosen(self, flag: np.ndarray) -> np.ndarray:
        """Numbers (N, T) of the chosen alternatives, -1 where there is no situation."""
        count = np.zeros(self.shape[:2], dtype=np.int64)
        np.add.at(count, self.places[:2], flag)
        wrong = count[self.places[:2]] != 1
        if wrong.any():
            line = int(wrong.argmax())
            found = int(count[self.chooser[line], self.situation[line]])
            raise DataError(
                f"{self.name(line)}: {found} available alternatives are chosen, not exactly one"
            )
        out = np.full(self.shape[:2], -1)
        out[self.chooser[flag], self.situation[flag]] = self.alternative[flag]
        return out


def lines_of(
    who: np.ndarray, when: np.ndarray, which: np.ndarray, alternatives: Sequence[Any] | None
) -> Lines:
    """Lines from their labels (n,); each alternative once in a situation."""
    pd = pandas()
    labels = _sorted(which) if alternatives is None else list(alternatives)
    if len(pd.Index(labels, dtype=object).unique()) < len(labels):
        raise OptionError(f"alternatives={labels}: give each of them once")
    alternative = pd.Index(labels, dtype=object).get_indexer(which.astype(object))
    if (alternative < 0).any():
        unknown = _plain(which[(alternative < 0).argmax()])
        raise DataError(f"{unknown!r} is none of the alternatives {labels}")
    chooser, choosers = pd.factorize(who)
    moment, moments = pd.factorize(when)
    situation, firsts = pd.factorize(chooser.astype(np.int64) * len(moments) + moment)
    within = pd.Series(firsts // len(moments)).groupby(firsts // len(moments)).cumcount().to_numpy()
    lines = Lines(chooser, within[situation], alternative, np.asarray(choosers), when, labels)
    twice = (
        pd.Series(situation.astype(np.int64) * len(labels) + alternative).duplicated().to_numpy()
    )
    if twice.any():
        line = int(twice.argmax())
        raise DataError(f"{lines.name(line)} lists alternative {_plain(which[line])!r} twice")
    return lines


def _sorted(which: np.ndarray) -> list[Any]:
    try:
        return sorted({_plain(label): None for label in which})
    except TypeError as error:
        raise DataError(
            "the alternatives' labels cannot be sorted: give alternatives=, in order"
        ) from error


def _plain(label: Any) -> Any:
    """numpy's numbers as Python's, which errors and names show better."""
    return label.item() if isinstance(label, np.generic) else label


class Columns(NamedTuple):
    """Columns of a design (N, T, J, L) and their names."""

    values: np.ndarray
    names: tuple[str, ...]


def design_of(
    lines: Lines,
    attributes: Mapping[str, np.ndarray],
    *,
    generic: Sequence[str],
    specific: Sequence[str],
    constants: bool,
    reference: Any,
) -> Columns:
    """The columns of the ``attributes`` (n,): generic ones, specific ones, constants."""
    labels, own = lines.alternatives, np.eye(len(lines.alternatives))
    if reference is not None and reference not in labels:
        raise OptionError(f"reference={reference!r} is none of the alternatives {labels}")
    base = 0 if reference is None else labels.index(reference)
    others = [j for j in range(len(labels)) if j != base]
    parts, names = [], []
    for name in generic:
        if not _varies(lines, attributes[name]):
            raise DataError(
                f"column {name!r} is the same for all alternatives of every situation: one coefficient for all of them "
                "changes no choice; list it under specific=, or covariates="
            )
        parts.append(attributes[name][:, None])
        names.append(name)
    for name in specific:
        mine = list(range(len(labels))) if _varies(lines, attributes[name]) else others
        parts.append(attributes[name][:, None] * own[lines.alternative][:, mine])
        names += [f"{name}:{labels[j]}" for j in mine]
    if constants:
        parts.append(own[lines.alternative][:, others])
        names += [f"constant:{labels[j]}" for j in others]
    if not names:
        raise OptionError("the design has no columns: give generic=, specific=, or constants=True")
    values = np.zeros((*lines.shape, len(names)))
    values[lines.places] = np.concatenate(parts, 1)
    return Columns(values, tuple(names))


def _varies(lines: Lines, values: np.ndarray) -> bool:
    """Whether alternatives of some situation differ in the attribute."""
    one = np.zeros(lines.shape[:2])
    one[lines.places[:2]] = values
    return bool((one[lines.places[:2]] != values).any())
