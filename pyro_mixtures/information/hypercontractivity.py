"""Hypercontractivity coefficient of samples: finds dependence that holds for a few rows only."""

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

MIN_ROWS = 4  # of an estimate
_WEIGHT_FLOOR = 1e-8  # keeps the logarithms of weights finite
_STEP_LENGTH = 0.1  # of gradient ascent, relative to the largest weight sqrt(n)
_START_SCALE = 0.1  # standard deviation of the starting weights about 1
_PERMUTATION_BLOCK = 10  # number of permutations evaluated together; a test can stop after each
_MAX_ENTRIES = 1 << 24  # of the matrices of one block of permutations


class _Batch(NamedTuple):
    """Rows of one batch and the starting weights of its ascents.

    The kernel matrices are computed when a batch is evaluated: those of all batches together would
    not fit into memory.
    """

    x: Tensor  # (n, d)
    y: Tensor  # (n, e)
    weights: Tensor  # (n, S), one column per start


class Hypercontractivity(NamedTuple):
    """An estimate of s(x; y) in [0, 1] and, if requested, the p-value of independence."""

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
    """Estimate the hypercontractivity coefficient s(x; y), also called "potential correlation".

    s(x; y) is the supremum over r != p_x of D(r_y || p_y) / D(r || p_x). It is 0 only under
    independence, 1 if y is a function of a continuous x, and the squared correlation for a Gaussian
    pair. A strong dependence that holds for rare values of x raises it, whereas a correlation
    averages such a dependence away. It is not symmetric in x and y.

    Row i gets a weight w_i of mean 1, the ratio r / p_x at x_i. With Gaussian kernels of widths
    ``bandwidth * std * n^(-1 / (d + 4))``, normalized by row, the matrix W_y W_x^T, corrected to
    row and column sums of 1, maps w to r_y / p_y, and D(w) = sum_i w_i log w_i. The ratio is
    maximized by gradient ascent from random weights near 1 in steps of length 0.1 sqrt(n). The
    estimate is the largest final value, clipped to [0, 1]. Smoothing biases the estimate: compare
    coefficients of the same number of rows and the same bandwidth, or use the p-value.

    The run time is of order n^3 + starts * steps * n^2 per batch of n rows, and again for each
    permutation. Batches are evaluated one after another, so the peak memory does not grow with
    their number: 4 to 9 matrices of n x n numbers were measured, and 13 to 27 with permutations, of
    which up to ten are evaluated together.

    :param x, y: (n,) or (n, d) numbers: tensors on one device, arrays or lists. The wider of the
        two dtypes is used.
    :param bandwidth: factor of the kernel widths.
    :param steps: number of ascent steps per start.
    :param starts: number of random starts per batch.
    :param rows: maximum number of rows per batch; they are drawn at random if there are more.
    :param batches: number of disjoint batches, whose estimates are averaged.
    :param permutations: maximum number of permutations of the rows of y (199, for example) for a
        p-value of independence; 0 for no test.
    :param generator: source of randomness, on the CPU; torch's global one by default. It draws
        batches, starts and permutations.
    :returns: the coefficient, and the p-value or None.
    :raises DataError: for NaN, infinity, a constant column, mismatched shapes or devices, or fewer
        than 4 rows.
    :raises OptionError: for numbers that are out of range or not whole.

    Kim, Gao, Kannan, Oh & Viswanath, "Discovering potential correlations via hypercontractivity",
    NeurIPS 2017 (https://arxiv.org/abs/1709.04024). For the exact value of a table see
    :func:`hypercontractivity_of_table`.

    >>> _ = torch.manual_seed(0)
    >>> x = torch.rand(400, device="cpu")
    >>> noise = torch.rand(400, device="cpu")
    >>> y = torch.where(x > 0.9, 2 * x, noise)  # depends on x for one row in ten
    >>> shuffled = y[torch.randperm(400, device="cpu")]
    >>> hypercontractivity(x, y).coefficient > 10 * hypercontractivity(x, shuffled).coefficient
    True
    """
    check_number(positive=True, bandwidth=bandwidth)
    check_whole(steps=steps, starts=starts, batches=batches)
    check_whole(minimum=MIN_ROWS, rows=rows)
    check_whole(minimum=0, permutations=permutations)
    x_rows, y_rows = _check_pair(as_columns(x, "x"), as_columns(y, "y"))
    row_blocks = _draw_row_blocks(len(x_rows), rows, batches, generator)
    drawn_batches = [
        _draw_batch(x_rows[row_block], y_rows[row_block], starts, generator)
        for row_block in row_blocks
    ]
    identity = torch.arange(len(row_blocks[0]), device="cpu").unsqueeze(0)
    observed = float(_coefficients(drawn_batches, identity, bandwidth, steps))
    if not permutations:
        return Hypercontractivity(observed)
    permuted = _permuted(drawn_batches, bandwidth, steps, permutations, generator)
    return Hypercontractivity(observed, p_value(observed, permuted))


def _check_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both variables in their common dtype."""
    if len(x) != len(y) or x.device != y.device:
        raise DataError(
            f"x has {len(x)} rows on {x.device}, but y has {len(y)} on {y.device}: "
            "pass the same rows of both, on one device"
        )
    if len(x) < MIN_ROWS:
        raise DataError(f"{len(x)} rows are too few: pass at least {MIN_ROWS}")
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def _draw_row_blocks(n: int, rows: int, batches: int, generator: Generator) -> list[Tensor]:
    """Disjoint sets of row numbers, each in ascending order."""
    size = min(rows, n // batches)
    if size < MIN_ROWS:
        raise OptionError(
            f"batches={batches} of {n} rows would hold fewer than {MIN_ROWS} rows each: "
            "use fewer batches"
        )
    if size == n:
        return [torch.arange(n, device="cpu")]
    order = torch.randperm(n, generator=generator, device="cpu")
    return [order[i * size : (i + 1) * size].sort().values for i in range(batches)]


def _draw_batch(x: Tensor, y: Tensor, starts: int, generator: Generator) -> _Batch:
    noise = torch.randn(len(x), starts, generator=generator, device="cpu", dtype=torch.float64)
    return _Batch(
        as_columns(x, "x in a batch"),
        as_columns(y, "y in a batch"),
        _normalize(1 + _START_SCALE * noise.to(x)),
    )


def _coefficients(batches: list[_Batch], orders: Tensor, bandwidth: float, steps: int) -> Tensor:
    """Coefficients (P,) for permutations ``orders`` (P, n) of the rows of y, from the same starts.

    All batches write into one tensor: a small tensor that each batch left behind would fragment
    the memory that its matrices free.
    """
    coefficients = batches[0].weights.new_empty(len(batches), len(orders))
    for batch_coefficients, batch in zip(coefficients, batches, strict=True):
        ratios = _maximize(_channels(batch, orders, bandwidth), batch.weights, steps)
        batch_coefficients.copy_(ratios)
    return coefficients.mean(0)


def _permuted(
    batches: list[_Batch], bandwidth: float, steps: int, permutations: int, generator: Generator
) -> Iterator[float]:
    """Coefficients for random permutations, computed block by block."""
    n = len(batches[0].weights)
    orders = permutations_of(n, permutations, generator)
    block_size = max(1, min(_PERMUTATION_BLOCK, _MAX_ENTRIES // n**2))
    while block := list(islice(orders, block_size)):
        block_orders = torch.from_numpy(np.stack(block))
        yield from _coefficients(batches, block_orders, bandwidth, steps).tolist()


def _channels(batch: _Batch, orders: Tensor, bandwidth: float) -> Tensor:
    """Channel matrices (P, n, n), one per permutation of the rows of y."""
    order = orders.to(batch.y.device)
    w_y = _kernel(batch.y, bandwidth)[order.unsqueeze(-1), order.unsqueeze(-2)]
    return _channel(_kernel(batch.x, bandwidth), w_y)


def _kernel(z: Tensor, bandwidth: float) -> Tensor:
    """Gaussian weights (n, n) of all rows around each row; each row of the matrix sums to 1."""
    n, d = z.shape
    z = near_one(z)
    scaled = (z - z.mean(0)) / (z.std(0, correction=0) * bandwidth * n ** (-1 / (d + 4)))
    distance = torch.cdist(scaled, scaled, compute_mode="donot_use_mm_for_euclid_dist")
    weights = torch.softmax(distance.square_().div_(-2), -1)
    # The tails are full of subnormal numbers, which make the matrix products many times slower.
    return torch.threshold_(weights, torch.finfo(z.dtype).eps ** 2, 0.0)


def _channel(w_x: Tensor, w_y: Tensor) -> Tensor:
    """The map (P, n, n) of r / p_x to r_y / p_y, corrected to row and column sums of 1."""
    product = w_y @ w_x.mT
    n = product.shape[-1]
    row_sums, column_sums = product.sum(-1, keepdim=True), product.sum(-2, keepdim=True)
    offset = 1 / n + row_sums.sum(-2, keepdim=True) / n**2
    return product.add_(offset).sub_(row_sums / n).sub_(column_sums / n)


def _maximize(channel: Tensor, weights: Tensor, steps: int) -> Tensor:
    """Largest final ratio (P,) over the starts (n, S)."""
    w = weights.expand(len(channel), *weights.shape)
    length = _STEP_LENGTH * len(weights) ** 0.5
    for _ in range(steps):
        w = _normalize(w + length * _ascent_direction(channel, w))
    output_divergence = _divergence((channel @ w).clamp_min(_WEIGHT_FLOOR))
    return (output_divergence / _divergence(w)).amax(-1).clamp(0, 1)


def _ascent_direction(channel: Tensor, w: Tensor) -> Tensor:
    """Unit gradient of the ratio, without its mean, which the normalization would undo."""
    image = (channel @ w).clamp_min_(_WEIGHT_FLOOR)
    ratio = _divergence(image) / _divergence(w)
    gradient = channel.mT @ image.log() - ratio.unsqueeze(-2) * w.log()
    gradient -= gradient.mean(-2, keepdim=True)
    norm = gradient.norm(dim=-2, keepdim=True)
    return gradient / norm.clamp_min(torch.finfo(w.dtype).tiny)


def _divergence(w: Tensor) -> Tensor:
    """sum_i w_i log w_i over rows, as a sum of non-negative terms for weights of mean 1."""
    return (w * w.log() - w + 1).sum(-2)


def _normalize(w: Tensor) -> Tensor:
    """Weights between the floor and sqrt(n), divided by their mean."""
    w = w.clamp(_WEIGHT_FLOOR, w.shape[-2] ** 0.5)
    return w / w.mean(-2, keepdim=True)
