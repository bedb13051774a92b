"""What was found about a partition: tables of information and of dependences, as text and as data frames."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyro_mixtures.errors import OptionError

TABLES = ("knowledge", "dependences")


class Knowledge(NamedTuple):
    """What the labels z tell of one variable."""

    name: str
    kind: str  # "feature", "outcome", or "all features" together
    nats: float  # I(z; variable), not clipped: independent variables spread about 0
    p_value: float | None  # of independence
    adjusted: float | None  # for all variables of the table (Benjamini & Hochberg)


class Dependence(NamedTuple):
    """How an outcome depends on a feature in one part, and over all rows: hypercontractivity coefficients."""

    feature: str
    part: int
    rows: int  # of the part
    inside: float  # NaN where feature or outcome is constant in the part
    overall: float
    p_value: float | None  # of independence inside; NaN where inside is
    adjusted: float | None  # for all parts and features (Benjamini & Hochberg)


@dataclass(frozen=True)
class PartitionInformation:
    """Answer of :func:`partition_information`; prints as tables."""

    knowledge: list[Knowledge]  # highest first
    dependences: list[Dependence]  # by feature and part; empty without an outcome
    entropy: float  # of z in nats, which no I(z; .) exceeds
    rows: int  # that the estimates of I(z; .) are from

    def partial(self, level: float = 0.05) -> list[Dependence]:
        """Dependences found in their part, not in all parts examined, and stronger there than over all rows.

        Found is an adjusted p-value of at most ``level``; those that are hidden most over all rows,
        by the difference of the coefficients, come first. Not found is not absent: the test of
        another part may have too little power. A part where feature or outcome is constant was not
        examined.

        >>> found = [Dependence("a", part, 90, 0.5, 0.2, p, p) for part, p in ((0, 0.01), (1, 0.6))]
        >>> [(d.feature, d.part) for d in PartitionInformation([], found, 0.7, 180).partial()]
        [('a', 0)]
        """
        if any(d.adjusted is None for d in self.dependences):
            raise OptionError(
                "no tests were made: pass permutations=199, say, to partition_information"
            )
        # NaN, where no test was possible, is neither.
        found = [d for d in self.dependences if d.adjusted is not None and d.adjusted <= level]
        missed = {
            d.feature for d in self.dependences if d.adjusted is not None and d.adjusted > level
        }
        hidden = [d for d in found if d.feature in missed and d.inside > d.overall]
        return sorted(hidden, key=lambda d: d.overall - d.inside)

    def to_frame(self, table: str = "knowledge") -> Any:
        """A pandas data frame of ``"knowledge"`` or ``"dependences"``, a line each. Needs pandas.

        >>> PartitionInformation([Knowledge("a", "feature", 0.5, None, None)], [], 0.7, 100).to_frame().shape
        (1, 5)
        """
        if table not in TABLES:
            raise OptionError(f"unknown table={table!r}; choose one of {TABLES}")
        pandas = importlib.import_module("pandas")  # slow to import, and needed here only

        lines, columns = {
            "knowledge": (self.knowledge, Knowledge._fields),
            "dependences": (self.dependences, Dependence._fields),
        }[table]
        return pandas.DataFrame(lines, columns=list(columns))

    def __str__(self) -> str:
        title = f"I(z; variable) in nats from {self.rows} rows; H(z) = {self.entropy:.3f}"
        text = [title, *_aligned(Knowledge._fields, self.knowledge)]
        if self.dependences:
            text += [
                "",
                "Dependence of the outcome on features (hypercontractivity), inside a part and overall",
            ]
            text += _aligned(Dependence._fields, self.dependences)
        return "\n".join(text)


def _aligned(header: Sequence[str], lines: Sequence[tuple]) -> list[str]:
    cells = [[*header], *([_text(value) for value in line] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
