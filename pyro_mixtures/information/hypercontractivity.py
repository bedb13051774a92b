"""Hypercontractivity coefficient from samples: dependence that may hold for a rare part of the rows only."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.information.permutation import Generator, p_value, permutations_of
from pyro_mixtures.information.variables import Array, as_columns, near_one
from pyro_mixtures.options import check_number, check_whole

FEWEST = 4  # rows of an estimate
_FLOOR = 1e-8  # of weights, whose logarithms are taken
_LENGTH = 0.1  # of a step, over the largest weight sqrt(n)
_AT_A_TIME = 10  # permutations, after which a test may stop
_NUMBERS = 1 << 24  # of the matrices that are held at a time


class _Batch(NamedTuple):
    """Some rows and where their ascents start. Kernels are made when their turn comes: those of all would not fit."""

    x: Tensor  # (n, d)
    y: Tensor  # (n, e)
    weights: Tensor  # (n, S) starts


class Hypercontractivity(NamedTuple):
    """An estimate of s(x; y) in [0, 1] and, where it was asked for, the p-value of independence."""

    coefficient: float
    p_value: float | None = None


def hypercontractivity(
    x: Array,
    y: Array,
    *,
    bandwidth: float = 1.06,
    steps: int = 100,
    starts: int = 10,
    rows: int = 2048,
    batches: int = 1,
    permutations: int = 0,
    generator: Generator = None,
) -> Hypercontractivity:
    """Kernel estimate of s(x; y) = sup over r != p_x of D(r_y || p_y) / D(r || p_x): "potential correlation".

    0 only under independence, 1 where y is a function of x (over a continuum), the squared
    correlation of a Gaussian pair; a strong dependence that holds for a rare part of x's range
    raises it, while correlations average it away. Rows i get weights w_i of mean 1, the ratio r /
    p_x at x_i. With Gaussian kernels of widths ``bandwidth std n^(-1 / (d + 4))``, normalised by
    row, W_y W_x^T corrected to row and column sums 1 maps w to r_y / p_y, and D(w) = sum_i w_i log
    w_i. The ratio is ascended from random weights near 1 in steps of length 0.1 sqrt(n); the
    largest final value counts, within [0, 1]. Smoothing biases it: compare coefficients of the same
    number of rows and the same bandwidth, or take the p-value. It is not symmetric in x and y.

    Takes time of order n^3 + starts steps n^2 for each batch of n rows, once more for each
    permutation. Batches take turns, so the peak does not grow with their number: measured, 4 to 9
    matrices of n x n numbers, and 13 to 27 with permutations, of which up to ten are tried at a
    time.

    :param x, y: (n,) or (n, d) numbers: tensors of one device, arrays or lists. The wider of their
    dtypes counts.
    :param rows: at most so many rows a batch, drawn at random where there are more.
    :param batches: the estimate is the mean over so many disjoint batches.
    :param permutations: at most this many orders of y's rows (199, say) give a p-value of
        independence.
    :param generator: source of randomness, on the CPU; torch's global one by default. It draws
        batches, starts, orders.
    :raises DataError: for NaN, infinity, a constant column, or shapes, devices that do not fit, or
        fewer than 4 rows.
    :raises OptionError: for numbers out of range or not whole.

    Kim, Gao, Kannan, Oh & Viswanath, "Discovering potential correlations via hypercontractivity",
    NeurIPS 2017 (https://arxiv.org/abs/1709.04024). The exact value of a table:
    :func:`hypercontractivity_of_table`.

    >>> _ = torch.manual_seed(0)
    >>> x = torch.rand(400, device="cpu")
    >>> y = torch.where(x > 0.9, 20 * x, 18 + 2 * torch.rand(400, device="cpu"))  # depends on x for one row of ten
    >>> hypercontractivity(x, y).coefficient > hypercontractivity(x, y[torch.randperm(400, device="cpu")]).coefficient
    True
    """
    _check(bandwidth, steps, starts, rows, batches, permutations)
    a, b = _paired(as_columns(x, "x"), as_columns(y, "y"))
    parts = [
        _batch(a[some], b[some], starts, generator)
        for some in _rows(len(a), rows, batches, generator)
    ]
    n = len(parts[0].weights)
    observed = float(
        _coefficients(parts, torch.arange(n, device="cpu").unsqueeze(0), bandwidth, steps)
    )
    permuted = _permuted(parts, bandwidth, steps, permutations, generator)
    return Hypercontractivity(observed, p_value(observed, permuted) if permutations else None)


def _check(
    bandwidth: float, steps: int, starts: int, rows: int, batches: int, permutations: int
) -> None:
    check_number(positive=True, bandwidth=bandwidth)
    check_whole(steps=steps, starts=starts, batches=batches)
    check_whole(minimum=FEWEST, rows=rows)
    check_whole(minimum=0, permutations=permutations)


def _paired(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if len(x) != len(y) or x.device != y.device:
        raise DataError(
            f"x has {len(x)} rows on {x.device}, y {len(y)} on {y.device}: give the same rows of both"
        )
    if len(x) < FEWEST:
        raise DataError(f"{len(x)} rows are too few: give {FEWEST} at least")
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def _rows(n: int, rows: int, batches: int, generator: Generator) -> list[Tensor]:
    """Disjoint sets of row numbers, in ascending order."""
    size = min(rows, n // batches)
    if size < FEWEST:
        raise OptionError(f"batches={batches} of {n} rows hold fewer than {FEWEST}: ask for fewer")
    if size == n:
        return [torch.arange(n, device="cpu")]
    order = torch.randperm(n, generator=generator, device="cpu")
    return [order[i * size : (i + 1) * size].sort().values for i in range(batches)]


def _batch(x: Tensor, y: Tensor, starts: int, generator: Generator) -> _Batch:
    noise = torch.randn(len(x), starts, generator=generator, device="cpu", dtype=torch.float64)
    return _Batch(
        as_columns(x, "x in a batch"),
        as_columns(y, "y in a batch"),
        _normalised(1 + 0.1 * noise.to(x)),
    )


def _coefficients(batches: list[_Batch], orders: Tensor, bandwidth: float, steps: int) -> Tensor:
    """Coefficients (P,) for orders (P, n) of the rows of y, all from the same starts."""
    # One tensor for all: a small one left behind by each batch would split the memory that its
    # matrices free.
    found = batches[0].weights.new_empty(len(batches), len(orders))
    for values, batch in zip(found, batches, strict=True):
        values.copy_(_ascended(_channels(batch, orders, bandwidth), batch.weights, steps))
    return found.mean(0)


def _permuted(
    batches: list[_Batch], bandwidth: float, steps: int, permutations: int, generator: Generator
) -> Iterator[float]:
    """Coefficients for random orders, some at a time."""
    n = len(batches[0].weights)
    orders = permutations_of(n, permutations, generator)
    while some := list(islice(orders, max(1, min(_AT_A_TIME, _NUMBERS // n**2)))):
        yield from _coefficients(
            batches, torch.from_numpy(np.stack(some)), bandwidth, steps
        ).tolist()


def _channels(batch: _Batch, orders: Tensor, bandwidth: float) -> Tensor:
    """(P, n, n), for each order of the rows of y."""
    order = orders.to(batch.y.device)
    w_y = _kernel(batch.y, bandwidth)[order.unsqueeze(-1), order.unsqueeze(-2)]
    return _channel(_kernel(batch.x, bandwidth), w_y)


def _kernel(z: Tensor, bandwidth: float) -> Tensor:
    """Gaussian weights (n, n) of the other rows about each row, which add up to 1."""
    n, d = z.shape
    z = near_one(z)
    scaled = (z - z.mean(0)) / (z.std(0, correction=0) * bandwidth * n ** (-1 / (d + 4)))
    distance = torch.cdist(scaled, scaled, compute_mode="donot_use_mm_for_euclid_dist")
    weights = torch.softmax(distance.square_().div_(-2), -1)
    # Subnormal numbers, of which the tails are full, would make the products that follow many times
    # slower.
    return torch.threshold_(weights, torch.finfo(z.dtype).eps ** 2, 0.0)


def _channel(w_x: Tensor, w_y: Tensor) -> Tensor:
    """What maps r / p_x at rows to r_y / p_y: (P, n, n), its rows and columns corrected to add up to 1."""
    a = w_y @ w_x.mT
    n = a.shape[-1]
    by_row, by_column = a.sum(-1, keepdim=True), a.sum(-2, keepdim=True)
    return a.add_(1 / n + by_row.sum(-2, keepdim=True) / n**2).sub_(by_row / n).sub_(by_column / n)


def _ascended(channel: Tensor, weights: Tensor, steps: int) -> Tensor:
    """Largest final ratio (P,) of the starts (n, S)."""
    w = weights.expand(len(channel), *weights.shape)
    length = _LENGTH * len(weights) ** 0.5
    for _ in range(steps):
        w = _normalised(w + length * _direction(channel, w))
    above, below = channel @ w, _divergence(w)
    return (_divergence(above.clamp_min(_FLOOR)) / below).amax(-1).clamp(0, 1)


def _direction(channel: Tensor, w: Tensor) -> Tensor:
    """Unit gradient of the ratio, but for its mean, which normalisation undoes."""
    image = (channel @ w).clamp_min_(_FLOOR)
    ratio = _divergence(image) / _divergence(w)
    slope = channel.mT @ image.log() - ratio.unsqueeze(-2) * w.log()
    slope -= slope.mean(-2, keepdim=True)
    return slope / slope.norm(dim=-2, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)


def _divergence(w: Tensor) -> Tensor:
    """sum_i w_i log w_i over rows, as a sum of non-negative terms for weights of mean 1."""
    return (w * w.log() - w + 1).sum(-2)


def _normalised(w: Tensor) -> Tensor:
    w = w.clamp(_FLOOR, w.shape[-2] ** 0.5)
    return w / w.mean(-2, keepdim=True)
