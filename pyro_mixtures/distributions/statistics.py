"""Sufficient statistics: NamedTuples of tensors that add up over disjoint sets of rows."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from pyro_mixtures.errors import ClosedFormError

Statistics = TypeVar("Statistics", bound=tuple[Any, ...])


class KeptRows(ABC):
    """Statistics that consist of the rows themselves and their responsibilities.

    They are joined rather than added up, and cannot be blended.
    """

    fitted: str  # what is fitted to the rows, with its verb

    @abstractmethod
    def __add__(self, other: Any) -> Any:
        """Return the rows of both."""

    @property
    def _fields(self) -> tuple[str, ...]:
        # Stepwise EM asks for the fields of the statistics that it is about to scale and blend.
        raise ClosedFormError(
            f"stepwise EM blends sums over rows, but {self.fitted} fitted to the rows themselves: "
            "use exact steps (step_size=None), or SVI"
        )


class ComponentCounts(NamedTuple):
    """Expected numbers of rows of the components."""

    counts: Tensor  # (C,) float64


class LabelCounts(NamedTuple):
    """Responsibility-weighted counts of labels."""

    counts: Tensor  # (C, L) float64


class NormalStatistics(NamedTuple):
    """Weighted moments of the rows about each component's ``center``; d = x - center."""

    center: Tensor  # (C, D)
    count: Tensor  # type: ignore[assignment]  # (C,)  sum q; shadows tuple.count
    first: Tensor  # (C, D)    sum q d
    second: Tensor  # (C, D)   sum q d^2
    outer: Tensor  # (C, D, D)  sum q d d^T, or (C, 0, D) where the family does not need it

    def recentered(self, center: Tensor) -> "NormalStatistics":
        """Return the same statistics about another center."""
        shift = self.center - center
        count, first, second = _shifted(self.count, self.first, self.second, shift)
        outer = self.outer
        if outer.shape[1]:
            cross = shift.unsqueeze(-1) * self.first.unsqueeze(-2)
            square = shift.unsqueeze(-1) * shift.unsqueeze(-2)
            outer = outer + cross + cross.mT + self.count.view(-1, 1, 1) * square
        return NormalStatistics(center, count, first, second, outer)


class FactorStatistics(NamedTuple):
    """Moments of the rows, and expected moments of their factors f given x; d = x - center."""

    center: Tensor  # (C, D)
    count: Tensor  # type: ignore[assignment]  # (C,)  sum q; shadows tuple.count
    first: Tensor  # (C, D)     sum q d
    second: Tensor  # (C, D)    sum q d^2
    factor_mean: Tensor  # (C, H)      sum q E f
    factor_outer: Tensor  # (C, H, H)   sum q E f f^T
    cross: Tensor  # (C, H, D)   sum q E f d^T

    def recentered(self, center: Tensor) -> "FactorStatistics":
        """Return the same statistics about another center; the moments of the factors stay."""
        shift = self.center - center
        count, first, second = _shifted(self.count, self.first, self.second, shift)
        cross = self.cross + self.factor_mean.unsqueeze(-1) * shift.unsqueeze(-2)
        return FactorStatistics(
            center, count, first, second, self.factor_mean, self.factor_outer, cross
        )


def _shifted(
    count: Tensor, first: Tensor, second: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    n = count.unsqueeze(-1)
    return count, first + n * shift, second + 2 * shift * first + n * shift.square()


def add(mine: Statistics, theirs: Statistics) -> Statistics:
    """Return the statistics of the union of two disjoint sets of rows about one center.

    ``mine`` is overwritten, except for :class:`KeptRows`, which are joined.
    """
    if isinstance(mine, KeptRows):
        return mine + theirs
    for name, tensor, other in zip(_fields(mine), mine, theirs, strict=True):
        if name != "center":
            tensor += other
    return mine


def subset(statistics: Statistics, block: slice) -> Statistics:
    """Return the statistics of the components ``block`` alone, as views."""
    return type(statistics)(*(tensor[block] for tensor in statistics))


def blend(old: Statistics, new: Statistics, rate: float) -> Statistics:
    """Return ``(1 - rate) old + rate new`` about the center of ``new``, in new tensors."""
    if "center" in _fields(old):
        old = old.recentered(new.center)  # type: ignore[attr-defined]
    fields = zip(_fields(old), old, new, strict=True)
    return type(old)(
        *(n.clone() if name == "center" else (1 - rate) * o + rate * n for name, o, n in fields)
    )


def scaled(statistics: Statistics, factor: float) -> Statistics:
    """Return the statistics of ``factor`` times as many equal rows, in new tensors."""
    fields = zip(_fields(statistics), statistics, strict=True)
    return type(statistics)(*(t.clone() if name == "center" else factor * t for name, t in fields))


def _fields(statistics: Any) -> tuple[str, ...]:
    fields: tuple[str, ...] = statistics._fields
    return fields
