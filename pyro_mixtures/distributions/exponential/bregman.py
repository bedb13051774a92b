r"""Exponential families by their means: what their Bregman divergences, statistics and gains have in common."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.distributions.components import Components, check_floating, match_dtype
from pyro_mixtures.distributions.leave_one_out.leaving_out import leaving
from pyro_mixtures.distributions.normal.closed_form import empty_to_one
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.ops import Pairs
from pyro_mixtures.ops.bilinear import pair_outer, pair_products
from pyro_mixtures.ops.lookup import count_weights, take

# Numbers of a block of rows and responsibilities that are widened to float64 at once.
_NUMBERS = 1 << 20
# Products with all components cost less than gathered ones with every so-many-th.
_DENSE = 16
# A seed is moved by this share of the way to the average seed: a row's own zeros would repel all
# rows without them.
_SMOOTHING = 0.1


class MeanStatistics(NamedTuple):
    """Weighted sums over each component's rows, in float64."""

    count: Tensor  # type: ignore[assignment]  # (C,)  sum q; shadows tuple.count
    first: Tensor  # (C, D)  sum q x


class BregmanComponents(Components):
    r"""C members of an exponential family by their ``mean`` (..., C, D).

    The log density is minus a Bregman divergence of the row from the mean, up to a base measure of
    the row alone:

    .. math:: \log p(x; m) = -D_\phi(x, m) + b'(x) = \eta(m) \cdot x - \psi(m) + b(x),

    so the best mean of a part is the mean of its rows, whatever the divergence, and all rows meet
    all components in one matrix product. A family states ``natural``, ``log_partition``, ``base``,
    ``loss``, ``gap`` and ``inside``.

    What row i of weight w adds to its part of weight n and mean m, of mean m' without it, is
    :math:`-w \log p(x_i; m) + (n - w) D_\phi(m', m)`, with :math:`m' - m = w (m - x_i) / (n - w)`:
    no large numbers cancel.

    Banerjee, Merugu, Dhillon, Ghosh, "Clustering with Bregman divergences", JMLR 6 (2005). The
    gains are derived here.
    """

    argument_names: tuple[str, ...] = ("mean",)
    location = "mean"
    pads = True  # take() does
    leaves_one_out = True

    def __init__(self, mean: Tensor, *, validate_args: bool | None = None):
        check_floating(type(self).__name__, mean)
        if mean.dim() < 2:
            raise OptionError(f"mean {tuple(mean.shape)}: give (C, D), a row for each component")
        self._mean = mean
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The argument itself."""
        return self._mean

    def split_loc(self, component: int, row: Tensor) -> Tensor:
        """Part of the way to the row, which leaves the mean where means may be."""
        mean = self.flat(self.mean, 1)[component]
        return mean + 0.5 / len(row) ** 0.5 * (row - mean)

    # What a family states. Rows and means end in their features (..., D), which are summed over
    # where D is left out.

    @staticmethod
    @abstractmethod
    def natural(mean: Tensor) -> Tensor:
        """Natural parameters (..., D)."""

    @staticmethod
    @abstractmethod
    def log_partition(mean: Tensor) -> Tensor:
        """psi (...)."""

    @staticmethod
    @abstractmethod
    def base(x: Tensor) -> Tensor:
        """The part b (...) of the log density that the row alone decides."""

    @staticmethod
    @abstractmethod
    def loss(x: Tensor, mean: Tensor) -> Tensor:
        """psi - eta x (...), also at means on the boundary of their domain."""

    @staticmethod
    @abstractmethod
    def gap(mean: Tensor, shift: Tensor) -> Tensor:
        """Divergence (...) of ``mean + shift`` from ``mean``, precise for small shifts."""

    @staticmethod
    @abstractmethod
    def inside(mean: Tensor, floor: Tensor) -> Tensor:
        """The nearest means (C, D) that keep a distance ``floor`` (D,) from the boundary of their domain."""

    @staticmethod
    def distance_to_boundary(mean: Tensor) -> Tensor:
        """How far (..., D) a mean is from the boundary of its domain."""
        return mean

    @staticmethod
    def row_size(x: Tensor) -> Tensor:
        """How many rows (..., 1) a row counts for, as its mean is of one."""
        return torch.ones_like(x[..., :1])

    @staticmethod
    def part_size(statistics: MeanStatistics) -> Tensor:
        """How many rows (C,) a part counts for."""
        return statistics.count

    # What follows from it.

    @property
    def min_rows(self) -> int:
        return 1

    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        if torch.jit.is_tracing():  # pairs are sorted outside torch, which a trace cannot see
            return self._gathered_log_prob(index, value)
        x, pairs = self._pairs(value, index)
        mean, base = self.flat(self.mean, 1), self.base(x)
        products = pair_products(x, self.natural(mean).unsqueeze(1), pairs).squeeze(-1)
        # Where all rows have the same components, so is their offset.
        z = pairs.z[:, :1] if pairs.all_pairs else pairs.z
        offset = take(-self.log_partition(mean), z)
        return (products + offset + (base if pairs.rows is None else base[pairs.rows])).reshape(
            index.shape
        )

    def _gathered_log_prob(self, index: Tensor, value: Tensor) -> Tensor:
        """The same by plain torch indexing: slower, and traceable."""
        x, mean = match_dtype(value, self.mean), self.mean_at(index.clamp_min(0))
        total = (self.natural(mean) * x).sum(-1) - self.log_partition(mean) + self.base(x)
        return torch.where(index < 0, -torch.inf, total)

    def mean_at(self, index: Tensor) -> Tensor:
        return self.flat(self.mean, 1)[index]

    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> MeanStatistics:
        x, pairs = self._pairs(value, index)
        return _weighted_sums(x, weight.reshape(pairs.z.shape), pairs)

    def floor(self, sums: MeanStatistics, fraction: float) -> Tensor:
        """Smallest distance (D,) of means from their boundary: ``fraction`` of that of the mean of all rows.

        Where that is zero (a feature that is constant at its boundary) the typical feature's stands
        in.
        """
        return self._floor(sums.first.sum(0) / empty_to_one(self.part_size(sums).sum()), fraction)

    @classmethod
    def _floor(cls, average: Tensor, fraction: float) -> Tensor:
        away = cls.distance_to_boundary(average)
        typical = empty_to_one(away.mean().clamp_min(0))
        return fraction * torch.where(away > 0, away, typical)

    def maximizers(
        self, statistics: MeanStatistics, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        """Return each component's mean row, kept inside its domain by ``floor``; empty components keep theirs."""
        assert floor is not None
        size = self.part_size(statistics).unsqueeze(-1)
        best = self.inside(statistics.first / empty_to_one(size), floor)
        known = self.mean.reshape(best.shape)
        new = torch.where(size > 0, best, known.to(best.dtype)).to(known.dtype)
        # What is inside in float64 may be rounded to the boundary.
        return {"mean": self.inside(new, _rounding(new)).reshape(self.mean.shape)}

    def alone_at(self, index: Tensor, value: Tensor) -> Tensor:
        """Minimal loss of a part of one row (*index.shape): the row is its mean."""
        x = self._rows(value)
        own = x / self.row_size(x).clamp_min(torch.finfo(x.dtype).tiny)
        return (self.loss(x, own) - self.base(x)).expand(index.shape)

    def leave_one_out_at(
        self, statistics: MeanStatistics, index: Tensor, value: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        x = self._rows(value).double()
        count, size = self.part_size(statistics), self.row_size(x)
        mean = (statistics.first / empty_to_one(count).unsqueeze(-1))[index]
        # The last row of a part leaves nothing behind that could be fitted better.
        row = leaving(count, index, weight, size.squeeze(-1))
        shift = row.ratio.unsqueeze(-1) * (size * mean - x)
        gain = row.weight * (self.loss(x, mean) - self.base(x)) + row.rest * self.gap(mean, shift)
        return gain.to(self.mean.dtype)

    @classmethod
    def start(cls, rows: Tensor) -> Tensor:
        """Means inside their domain, a little towards their average, to start from at ``rows`` (C, D)."""
        means = rows / cls.row_size(rows).clamp_min(torch.finfo(rows.dtype).tiny)
        average = means.mean(0)
        return cls.inside(
            means.lerp(average.expand_as(means), _SMOOTHING), cls._floor(average, 1e-3)
        )

    def _rows(self, value: Tensor) -> Tensor:
        """Rows in the dtype of the means, checked; NaN may stand in for what a mask hides."""
        x = match_dtype(value, self.mean)
        if bool((self.distance_to_boundary(x) < 0).any()):
            raise DataError(
                f"rows in [{float(x.min())}, {float(x.max())}] leave the support of {type(self).__name__}"
            )
        return x

    def _pairs(self, value: Tensor, index: Tensor) -> tuple[Tensor, Pairs]:
        """Distinct rows (N, D), and the pairs of them with the components ``index``."""
        shape, components = value.shape[:-1], self.batch_shape.numel()
        x = self._rows(value).reshape(shape.numel(), value.shape[-1])
        lead = index.dim() - len(shape)
        if index.shape[lead:] == shape:
            return x, Pairs(index.reshape(index.shape[:lead].numel(), len(x)), components)
        rows = torch.arange(len(x), device=x.device).reshape(shape).expand(index.shape)
        return x, Pairs(index.reshape(1, -1), components, rows.reshape(-1))


def _weighted_sums(x: Tensor, weight: Tensor, pairs: Pairs) -> MeanStatistics:
    """Sums of the ``weight`` (S, B) and of the weighted rows ``x`` (N, D)."""
    if pairs.rows is None and _DENSE * len(pairs.z) >= pairs.components:
        return _dense_sums(x, weight, pairs)
    count = count_weights(pairs.z.reshape(-1), weight.reshape(-1), pairs.components)
    return MeanStatistics(count, pair_outer(weight.reshape(-1, 1), x, pairs).squeeze(1))


def _dense_sums(x: Tensor, weight: Tensor, pairs: Pairs) -> MeanStatistics:
    """The same by matrix products, some rows at a time, as if all rows met all components."""
    count, first = (
        torch.zeros(pairs.components, w, dtype=torch.float64, device=x.device)
        for w in (1, x.shape[1])
    )
    step = max(1, _NUMBERS // (pairs.components + x.shape[1]))
    for at in range(0, len(x), step):
        some = slice(at, at + step)
        # -1 falls into the place before the first, which is cut off.
        table = torch.zeros(
            pairs.components + 1, len(x[some]), dtype=torch.float64, device=x.device
        )
        table = table.scatter_add_(0, pairs.z[:, some] + 1, weight[:, some].double())[1:]
        count += table.sum(-1, keepdim=True)
        # What no component has may hold anything, NaN included.
        first += table @ torch.where((table > 0).any(0).unsqueeze(-1), x[some].double(), 0.0)
    return MeanStatistics(count.squeeze(-1), first)


def _rounding(mean: Tensor) -> Tensor:
    """The least distance from zero that stays one after some arithmetic; exponential maps reach it."""
    return torch.full_like(mean[0], torch.finfo(mean.dtype).tiny ** 0.5)
