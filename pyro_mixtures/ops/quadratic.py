r"""The quadratic pair kernel: log densities of (row, component) pairs, and the weighted moments that are its gradient.

For a pair of row n and component c, with :math:`\delta = x_n - m_c`,

.. math:: \log p = -\tfrac12 \Bigl[ o_c + \sum_d w_{cd} \delta_d^2 + s\, |V_c \delta|^2 \Bigr]

covers isotropic and diagonal (no V), full (w = 0, V the inverse Cholesky factor, s = 1) and
low-rank covariances (s = -1, Woodbury). Its gradient in (o, w, m, V) needs only the sums over a
component's pairs of
:math:`q,\ q\delta,\ q\delta^2,\ q (V\delta)\delta^T`: the same sums that the M-step needs.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_mixtures.ops.backend import on_numba
from pyro_mixtures.ops.kernels import numba_pairs
from pyro_mixtures.ops.kernels.simd import VECTOR_BYTES
from pyro_mixtures.ops.kernels.threads import for_each, threads
from pyro_mixtures.ops.memory import empty
from pyro_mixtures.ops.pairs import Pairs, SortedPairs, chunk_bounds
from pyro_mixtures.ops.tiles import tiles

# The numba path works through blocks of rows that fit the second-level cache, with some pairs for
# each component.
_BLOCK_BYTES = 768 << 10
_BLOCK_PAIRS = 16


class Quadratic(NamedTuple):
    """Arguments of the kernel for C components of D features: see the module's formula."""

    loc: Tensor  # (C, D)
    precision: Tensor  # (C, D)
    projection: Tensor  # (C, R, D), R may be 0
    offset: Tensor  # (C,)
    sign: float


class Moments(NamedTuple):
    """Weighted sums over the pairs of each component, about ``loc``: d = x - loc."""

    count: Tensor  # type: ignore[assignment]  # (C,)  sum q; shadows tuple.count
    first: Tensor  # (C, D)      sum q d
    second: Tensor  # (C, D)     sum q d^2
    projected: Tensor  # (C, R, D)  sum q (P d) d^T


def pair_log_density(x: Tensor, kernel: Quadratic, pairs: Pairs) -> Tensor:
    """Log densities (S, B) of the pairs of rows ``x`` (N, D), -inf at padding. Differentiable.

    ``x`` has the kernel's dtype, or is uint8.
    """
    args = (x, kernel.loc, kernel.precision, kernel.projection, kernel.offset)
    return _PairLogDensity.apply(*args, kernel.sign, pairs)


class _PairLogDensity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, loc, precision, projection, offset, sign, pairs):
        kernel = Quadratic(loc, precision, projection, offset, sign)
        ctx.save_for_backward(x, loc, precision, projection, offset)
        ctx.sign, ctx.pairs = sign, pairs
        return _density(x, kernel, pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, loc, precision, projection, offset = ctx.saved_tensors
        kernel = Quadratic(loc, precision, projection, offset, ctx.sign)
        weight = (-0.5 * grad).reshape(-1)
        grad_x = (
            _row_gradient(x, kernel, ctx.pairs.sorted, weight) if ctx.needs_input_grad[0] else None
        )
        if not any(ctx.needs_input_grad[1:5]):
            return grad_x, None, None, None, None, None, None
        m = pair_moments(x, loc, projection, weight, ctx.pairs)
        back = (projection.mT @ (projection @ m.first.unsqueeze(-1))).squeeze(-1)
        grad_loc = -2 * (precision * m.first + ctx.sign * back)
        return grad_x, grad_loc, m.second, 2 * ctx.sign * m.projected, m.count, None, None


def _density(x: Tensor, kernel: Quadratic, pairs: Pairs) -> Tensor:
    if on_numba(x, kernel.loc.dtype):
        return _density_numba(x, kernel, pairs)
    out = kernel.loc.new_full((pairs.z.numel(),), -torch.inf)
    for tile in tiles(pairs.sorted, x.shape[1] + kernel.projection.shape[1]):
        diff = (x[tile.rows] - kernel.loc[tile.components].unsqueeze(1)) * tile.valid.unsqueeze(-1)
        total = (diff.square() @ kernel.precision[tile.components].unsqueeze(-1)).squeeze(-1)
        total = total + kernel.sign * (diff @ kernel.projection[tile.components].mT).square().sum(
            -1
        )
        density = -0.5 * (total + kernel.offset[tile.components].unsqueeze(-1))
        out[tile.slots[tile.valid]] = density[tile.valid]
    return out.reshape(pairs.z.shape)


def _density_numba(x: Tensor, kernel: Quadratic, pairs: Pairs) -> Tensor:
    slots, columns = pairs.z.shape
    # One row's slots lie side by side: it is by rows that everything after this reads them.
    out = empty((columns, slots), kernel.loc.dtype)
    if not out.numel():
        return out.T
    arrays = [_array(t, kernel.loc) for t in kernel[:4]]
    block, lanes = (
        _block_rows(x, slots, columns, pairs.components),
        VECTOR_BYTES // arrays[0].itemsize,
    )
    given = [_rows(x, kernel.loc), *arrays, arrays[0].dtype.type(kernel.sign)]
    given += [*_flat_with_strides(pairs.z), slots, _row_numbers(pairs), lanes]
    found, valid = out.view(-1).numpy(), [False] * -(-columns // block)

    def some(i: int) -> None:
        end = min(columns, (i + 1) * block)
        valid[i] = numba_pairs.pair_log_density(*given, i * block, end, found)

    for_each(some, len(valid))
    if not all(valid):
        raise pairs.out_of_range()
    return out.T


def _block_rows(x: Tensor, slots: int, columns: int, components: int) -> int:
    cached = _BLOCK_BYTES // max(1, x.shape[1] * x.element_size())
    wanted = max(64, cached, _BLOCK_PAIRS * components // slots)
    # Every block passes over all parameters, so large models get no more blocks than there are
    # threads.
    return max(1, min(wanted, max(64, -(-columns // threads())), columns))


def _flat_with_strides(z: Tensor):
    """The memory of ``z`` (S, B) as one flat array, and the strides of its slots and rows."""
    reach = sum((size - 1) * stride for size, stride in zip(z.shape, z.stride(), strict=True)) + 1
    return z.as_strided((reach,), (1,)).numpy(), *z.stride()


def _row_numbers(pairs: Pairs):
    rows = pairs.rows if pairs.rows is not None else pairs.z.new_empty(0)
    return rows.contiguous().numpy()


def pair_moments(
    x: Tensor,
    loc: Tensor,
    projection: Tensor,
    weight: Tensor,
    pairs: Pairs,
    into: Moments | None = None,
) -> Moments:
    """Weighted moments about ``loc`` (C, D) of each component's pairs, projected by ``projection`` (C, R, D).

    ``x`` (N, D) holds the rows (in the dtype of ``loc``, or uint8) and ``weight`` (S * B,) each
    slot's weight q. Adds to ``into`` in place if given. No gradient flows through the result.
    """
    if into is None:
        into = Moments(
            loc.new_zeros(len(loc)),
            loc.new_zeros(loc.shape),
            loc.new_zeros(loc.shape),
            loc.new_zeros(projection.shape),
        )
    if on_numba(x, loc.dtype):
        return _moments_numba(x, loc, projection, weight, pairs.sorted, into)
    for tile in tiles(pairs.sorted, x.shape[1] + projection.shape[1]):
        diff = x[tile.rows] - loc[tile.components].unsqueeze(1)
        q = (weight[tile.slots] * tile.valid).unsqueeze(1)
        weighted = q.mT * diff
        into.count.index_add_(0, tile.components, q.sum((1, 2)))
        into.first.index_add_(0, tile.components, weighted.sum(1))
        into.second.index_add_(0, tile.components, (weighted * diff).sum(1))
        into.projected.index_add_(
            0, tile.components, (diff @ projection[tile.components].mT).mT @ weighted
        )
    return into


def _moments_numba(
    x: Tensor, loc: Tensor, projection: Tensor, weight: Tensor, pairs: SortedPairs, into: Moments
) -> Moments:
    arrays = [_array(t, loc) for t in (loc, projection, weight)]
    given = [
        _rows(x, loc),
        *arrays,
        *(t.numpy() for t in pairs),
        VECTOR_BYTES // arrays[0].itemsize,
    ]
    bounds, found = chunk_bounds(pairs.starts, 8 * threads()).tolist(), [m.numpy() for m in into]

    def some(i: int) -> None:
        numba_pairs.pair_moments(*given, bounds[i], bounds[i + 1], *found)

    for_each(some, len(bounds) - 1)
    return into


def _row_gradient(x: Tensor, kernel: Quadratic, pairs: SortedPairs, weight: Tensor) -> Tensor:
    """Gradient of the weighted pair densities in the rows (N, D)."""
    out = torch.zeros_like(x)
    for tile in tiles(pairs, x.shape[1] + kernel.projection.shape[1]):
        diff = x[tile.rows] - kernel.loc[tile.components].unsqueeze(1)
        projection = kernel.projection[tile.components]
        slope = kernel.precision[tile.components].unsqueeze(1) * diff
        slope = slope + kernel.sign * (diff @ projection.mT) @ projection
        q = (weight[tile.slots] * tile.valid).unsqueeze(-1)
        out.index_add_(0, tile.rows.reshape(-1), (2 * q * slope).reshape(-1, x.shape[1]))
    return out


def _array(tensor: Tensor, like: Tensor):
    return tensor.detach().to(like.dtype).contiguous().numpy()


def _rows(x: Tensor, like: Tensor):
    """Rows as the kernels read them: bytes as they are, everything else in the parameters' dtype."""
    return x.detach().contiguous().numpy() if x.dtype == torch.uint8 else _array(x, like)
