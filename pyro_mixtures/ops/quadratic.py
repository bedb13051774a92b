r"""The quadratic pair kernel: log densities of (row, component) pairs, and the weighted moments that are its gradient.

For a pair of row n and component c, with :math:`\delta = x_n - m_c`,

.. math:: \log p = -\tfrac12 \Bigl[ o_c + \sum_d w_{cd} \delta_d^2 + s\, |V_c \delta|^2 \Bigr]

covers isotropic and diagonal (no V), full (w = 0, V the inverse Cholesky factor, s = 1) and low-rank covariances
(s = -1, Woodbury). Its gradient in (o, w, m, V) needs only the sums over a component's pairs of
:math:`q,\ q\delta,\ q\delta^2,\ q (V\delta)\delta^T`: the same sums that the M-step needs.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_mixtures.ops import numba_backend
from pyro_mixtures.ops.backend import on_numba
from pyro_mixtures.ops.pairs import Pairs

# Rows of one tile of the torch path, and how many elements of a gathered tile array may be alive at once.
_TILE_ROWS = 32
_TILE_ELEMENTS = 1 << 23


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


def pair_log_density(x: Tensor, kernel: Quadratic, pairs: Pairs, slots: int) -> Tensor:
    """Log densities (slots,) of the pairs of rows ``x`` (N, D); slots without a pair hold -inf. Differentiable."""
    args = (x, kernel.loc, kernel.precision, kernel.projection, kernel.offset)
    return _PairLogDensity.apply(*args, kernel.sign, pairs, slots)


class _PairLogDensity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, loc, precision, projection, offset, sign, pairs, slots):
        kernel = Quadratic(loc, precision, projection, offset, sign)
        ctx.save_for_backward(x, loc, precision, projection, offset)
        ctx.sign, ctx.pairs = sign, pairs
        return _density(x, kernel, pairs, slots)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, loc, precision, projection, offset = ctx.saved_tensors
        kernel = Quadratic(loc, precision, projection, offset, ctx.sign)
        weight = -0.5 * grad
        grad_x = _row_gradient(x, kernel, ctx.pairs, weight) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:5]):
            return grad_x, None, None, None, None, None, None, None
        m = pair_moments(x, loc, projection, weight, ctx.pairs)
        back = (projection.mT @ (projection @ m.first.unsqueeze(-1))).squeeze(-1)
        grad_loc = -2 * (precision * m.first + ctx.sign * back)
        return grad_x, grad_loc, m.second, 2 * ctx.sign * m.projected, m.count, None, None, None


def _density(x: Tensor, kernel: Quadratic, pairs: Pairs, slots: int) -> Tensor:
    out = x.new_full((slots,), -torch.inf)
    if on_numba(x, x.dtype):
        arrays = [_array(t, x) for t in kernel[:4]]
        sign = arrays[0].dtype.type(kernel.sign)
        numba_backend.pair_log_density(_array(x, x), *arrays, sign, *_indices(pairs), out.numpy())  # type: ignore[call-arg]
        return out
    for tile in _tiles(pairs, x.shape[1] + kernel.projection.shape[1]):
        diff = (x[tile.rows] - kernel.loc[tile.components].unsqueeze(1)) * tile.valid.unsqueeze(-1)
        total = (diff.square() @ kernel.precision[tile.components].unsqueeze(-1)).squeeze(-1)
        total = total + kernel.sign * (diff @ kernel.projection[tile.components].mT).square().sum(-1)
        density = -0.5 * (total + kernel.offset[tile.components].unsqueeze(-1))
        out[tile.slots[tile.valid]] = density[tile.valid]
    return out


def pair_moments(x: Tensor, loc: Tensor, projection: Tensor, weight: Tensor, pairs: Pairs) -> Moments:
    """Weighted moments about ``loc`` (C, D) of each component's pairs, projected by ``projection`` (C, R, D).

    ``x`` (N, D) holds the rows and ``weight`` (slots,) each slot's weight q. No gradient flows through the result.
    """
    count, first = loc.new_zeros(loc.shape[0]), loc.new_zeros(loc.shape)
    second, projected = loc.new_zeros(loc.shape), loc.new_zeros(projection.shape)
    moments = Moments(count, first, second, projected)
    if on_numba(x, x.dtype):
        arrays = [_array(t, x) for t in (x, loc, projection, weight)]
        numba_backend.pair_moments(*arrays, *_indices(pairs), *(m.numpy() for m in moments))
        return moments
    for tile in _tiles(pairs, x.shape[1] + projection.shape[1]):
        diff = x[tile.rows] - loc[tile.components].unsqueeze(1)
        q = (weight[tile.slots] * tile.valid).unsqueeze(1)
        weighted = q.mT * diff
        count.index_add_(0, tile.components, q.sum((1, 2)))
        first.index_add_(0, tile.components, weighted.sum(1))
        second.index_add_(0, tile.components, (weighted * diff).sum(1))
        projected.index_add_(0, tile.components, (diff @ projection[tile.components].mT).mT @ weighted)
    return moments


def _row_gradient(x: Tensor, kernel: Quadratic, pairs: Pairs, weight: Tensor) -> Tensor:
    """Gradient of the weighted pair densities in the rows (N, D)."""
    out = torch.zeros_like(x)
    for tile in _tiles(pairs, x.shape[1] + kernel.projection.shape[1]):
        diff = x[tile.rows] - kernel.loc[tile.components].unsqueeze(1)
        projection = kernel.projection[tile.components]
        slope = kernel.precision[tile.components].unsqueeze(1) * diff
        slope = slope + kernel.sign * (diff @ projection.mT) @ projection
        q = (weight[tile.slots] * tile.valid).unsqueeze(-1)
        out.index_add_(0, tile.rows.reshape(-1), (2 * q * slope).reshape(-1, x.shape[1]))
    return out


class _Tile(NamedTuple):
    """Up to ``_TILE_ROWS`` pairs of one component in each of T tiles."""

    components: Tensor  # (T,)
    rows: Tensor  # (T, rows)
    slots: Tensor  # (T, rows)
    valid: Tensor  # (T, rows)


def _tiles(pairs: Pairs, width: int):
    """Cut the sorted pairs into tiles of one component each, in batches of bounded memory."""
    counts = pairs.starts.diff()
    tiles_of = (counts + _TILE_ROWS - 1) // _TILE_ROWS
    total = int(tiles_of.sum())
    components = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), tiles_of, output_size=total)
    within = torch.arange(total, device=counts.device) - (tiles_of.cumsum(0) - tiles_of)[components]
    begin = pairs.starts[components] + within * _TILE_ROWS
    lane = torch.arange(_TILE_ROWS, device=counts.device)
    batch = max(1, _TILE_ELEMENTS // (_TILE_ROWS * max(1, width)))
    for at in range(0, total, batch):
        c = components[at : at + batch]
        position = begin[at : at + batch].unsqueeze(-1) + lane
        valid = position < pairs.starts[c + 1].unsqueeze(-1)
        position = torch.where(valid, position, pairs.starts[c].unsqueeze(-1))
        yield _Tile(c, pairs.rows[position], pairs.order[position], valid)


def _array(tensor: Tensor, like: Tensor):
    return tensor.detach().to(like.dtype).contiguous().numpy()


def _indices(pairs: Pairs):
    return pairs.rows.numpy(), pairs.order.numpy(), pairs.starts.numpy()
