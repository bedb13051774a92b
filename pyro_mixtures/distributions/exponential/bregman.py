"""The base class of exponential families given by their means."""

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

# Rows and responsibilities are widened to float64 in blocks of this many numbers.
_NUMBERS = 1 << 20
# One product with all components costs less than gathered products with one in this many.
_DENSE = 16
# Seeds are moved by this fraction of the way to the average seed: the zeros of one row would give
# all rows without them a density of zero.
_SMOOTHING = 0.1


class MeanStatistics(NamedTuple):
    """Weighted sums over each component's rows, in float64."""

    count: Tensor  # type: ignore[assignment]  # (C,)  sum q; shadows tuple.count
    first: Tensor  # (C, D)  sum q x


class BregmanComponents(Components):
    r"""C members of an exponential family, given by their ``mean`` (..., C, D).

    The log density is minus a Bregman divergence of the row from the mean, plus a term that depends
    on the row alone:

    .. math:: \log p(x; m) = -D_\phi(x, m) + b'(x) = \eta(m) \cdot x - \psi(m) + b(x).

    For every divergence the best mean of a cluster is the mean of its rows, and one matrix product
    evaluates all rows under all components. A family defines ``natural``, ``log_partition``,
    ``base``, ``loss``, ``gap`` and ``inside``.

    Let a cluster have weight n and mean m, and mean m' without row i of weight w. This row adds
    :math:`-w \log p(x_i; m) + (n - w) D_\phi(m', m)` to the minimal loss, with :math:`m' - m = w (m
    - x_i) / (n - w)`: no large numbers cancel (derived here).

    Banerjee, Merugu, Dhillon, Ghosh, "Clustering with Bregman divergences", JMLR 6 (2005).

    :param mean: (..., C, D).
    :raises OptionError: unless ``mean`` has these dimensions.
    """

    argument_names: tuple[str, ...] = ("mean",)
    location = "mean"
    pads = True  # take() returns -inf for padding
    leaves_one_out = True

    def __init__(self, mean: Tensor, *, validate_args: bool | None = None):
        check_floating(type(self).__name__, mean)
        if mean.dim() < 2:
            raise OptionError(f"mean {tuple(mean.shape)}: pass (C, D), a row for each component")
        self._mean = mean
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The means (..., C, D), as given."""
        return self._mean

    def split_loc(self, component: int, row: Tensor) -> Tensor:
        """Return a mean moved a fraction of the way to the row, which keeps it in its domain."""
        mean = self.flat(self.mean, 1)[component]
        return mean + 0.5 / len(row) ** 0.5 * (row - mean)

    # What a family defines, for rows and means (..., D). Results (...) are sums over features.

    @staticmethod
    @abstractmethod
    def natural(mean: Tensor) -> Tensor:
        """Return the natural parameters (..., D)."""

    @staticmethod
    @abstractmethod
    def log_partition(mean: Tensor) -> Tensor:
        """Return psi (...)."""

    @staticmethod
    @abstractmethod
    def base(x: Tensor) -> Tensor:
        """Return the term b (...) of the log density that depends on the row alone."""

    @staticmethod
    @abstractmethod
    def loss(x: Tensor, mean: Tensor) -> Tensor:
        """Return psi - eta x (...), also for means on the boundary of their domain."""

    @staticmethod
    @abstractmethod
    def gap(mean: Tensor, shift: Tensor) -> Tensor:
        """Return the divergence (...) of ``mean + shift`` from ``mean``, precise near zero."""

    @staticmethod
    @abstractmethod
    def inside(mean: Tensor, floor: Tensor) -> Tensor:
        """Return the nearest means (C, D) that are ``floor`` (D,) away from the boundary."""

    @staticmethod
    def distance_to_boundary(mean: Tensor) -> Tensor:
        """Return the distance (..., D) of a mean from the boundary of its domain."""
        return mean

    @staticmethod
    def row_size(x: Tensor) -> Tensor:
        """Return the number (..., 1) by which a row is divided to give its mean."""
        return torch.ones_like(x[..., :1])

    @staticmethod
    def total_size(statistics: MeanStatistics) -> Tensor:
        """Return the number (C,) by which the sum of a component's rows is divided."""
        return statistics.count

    # What follows from these.

    @property
    def min_rows(self) -> int:
        return 1

    def log_prob_at(self, index: Tensor, value: Tensor) -> Tensor:
        # Pairs are sorted outside torch, which a trace cannot record.
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            return self._gathered_log_prob(index, value)
        x, pairs = self._pairs(value, index)
        mean, base = self.flat(self.mean, 1), self.base(x)
        products = pair_products(x, self.natural(mean).unsqueeze(1), pairs).squeeze(-1)
        # Rows that share their components share the offsets, too.
        z = pairs.z[:, :1] if pairs.all_pairs else pairs.z
        offset = take(-self.log_partition(mean), z)
        row_base = base if pairs.rows is None else base[pairs.rows]
        return (products + offset + row_base).reshape(index.shape)

    def _gathered_log_prob(self, index: Tensor, value: Tensor) -> Tensor:
        """The same by plain torch indexing, which is slower and can be traced."""
        x, mean = match_dtype(value, self.mean), self.mean_at(index.clamp_min(0))
        total = (self.natural(mean) * x).sum(-1) - self.log_partition(mean) + self.base(x)
        return torch.where(index < 0, -torch.inf, total)

    def mean_at(self, index: Tensor) -> Tensor:
        return self.flat(self.mean, 1)[index]

    def statistics_at(self, index: Tensor, value: Tensor, weight: Tensor) -> MeanStatistics:
        x, pairs = self._pairs(value, index)
        return _weighted_sums(x, weight.reshape(pairs.z.shape), pairs)

    def floor(self, sums: MeanStatistics, fraction: float) -> Tensor:
        """Return the smallest distance (D,) of means from the boundary of their domain.

        It is ``fraction`` times the distance of the mean of all rows, or times the average distance
        for features that are constant at the boundary.
        """
        average = sums.first.sum(0) / empty_to_one(self.total_size(sums).sum())
        return self._floor(average, fraction)

    @classmethod
    def _floor(cls, average: Tensor, fraction: float) -> Tensor:
        distance = cls.distance_to_boundary(average)
        typical = empty_to_one(distance.mean().clamp_min(0))
        return fraction * torch.where(distance > 0, distance, typical)

    def maximizers(
        self, statistics: MeanStatistics, free: frozenset[str], floor: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the mean rows, ``floor`` away from the boundary; empty components stay."""
        assert floor is not None
        size = self.total_size(statistics).unsqueeze(-1)
        best = self.inside(statistics.first / empty_to_one(size), floor)
        present = self.mean.reshape(best.shape)
        new = torch.where(size > 0, best, present.to(best.dtype)).to(present.dtype)
        # A mean that is inside in float64 may be rounded to the boundary.
        return {"mean": self.inside(new, _rounding(new)).reshape(self.mean.shape)}

    def alone_at(self, index: Tensor, value: Tensor) -> Tensor:
        """Return the loss of a row that is its own mean."""
        x = self._rows(value)
        mean = x / self.row_size(x).clamp_min(torch.finfo(x.dtype).tiny)
        return (self.loss(x, mean) - self.base(x)).expand(index.shape)

    def leave_one_out_at(
        self, statistics: MeanStatistics, index: Tensor, value: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        x = self._rows(value).double()
        count, size = self.total_size(statistics), self.row_size(x)
        mean = (statistics.first / empty_to_one(count).unsqueeze(-1))[index]
        # Without its only row a cluster has no other rows that could fit better.
        row = leaving(count, index, weight, size.squeeze(-1))
        shift = row.ratio.unsqueeze(-1) * (size * mean - x)
        gain = row.weight * (self.loss(x, mean) - self.base(x)) + row.rest * self.gap(mean, shift)
        return gain.to(self.mean.dtype)

    @classmethod
    def start(cls, rows: Tensor) -> Tensor:
        """Return means at the seeds ``rows`` (C, D), moved slightly toward their average."""
        means = rows / cls.row_size(rows).clamp_min(torch.finfo(rows.dtype).tiny)
        average = means.mean(0)
        return cls.inside(
            means.lerp(average.expand_as(means), _SMOOTHING), cls._floor(average, 1e-3)
        )

    def _rows(self, value: Tensor) -> Tensor:
        """Rows in the dtype of the means, checked; masked rows may be NaN."""
        x = match_dtype(value, self.mean)
        if bool((self.distance_to_boundary(x) < 0).any()):
            raise DataError(
                f"rows in [{float(x.min())}, {float(x.max())}] leave the support of "
                f"{type(self).__name__}: see its documentation for what rows may hold"
            )
        return x

    def _pairs(self, value: Tensor, index: Tensor) -> tuple[Tensor, Pairs]:
        """Return distinct rows (N, D), and their pairs with the components ``index``."""
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
    """The same by matrix products of blocks of rows with all components."""
    count, first = (
        torch.zeros(pairs.components, width, dtype=torch.float64, device=x.device)
        for width in (1, x.shape[1])
    )
    step = max(1, _NUMBERS // (pairs.components + x.shape[1]))
    for start in range(0, len(x), step):
        block = slice(start, start + step)
        # Padding, -1, adds to an extra first row of the table, which is dropped.
        shape = (pairs.components + 1, len(x[block]))
        table = torch.zeros(shape, dtype=torch.float64, device=x.device)
        table = table.scatter_add_(0, pairs.z[:, block] + 1, weight[:, block].double())[1:]
        count += table.sum(-1, keepdim=True)
        # Rows without weight may hold anything, NaN included.
        counted = (table > 0).any(0).unsqueeze(-1)
        first += table @ torch.where(counted, x[block].double(), 0.0)
    return MeanStatistics(count.squeeze(-1), first)


def _rounding(mean: Tensor) -> Tensor:
    """The smallest distance from zero that survives arithmetic; exponential maps can reach it."""
    return torch.full_like(mean[0], torch.finfo(mean.dtype).tiny ** 0.5)
