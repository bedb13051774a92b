r"""The quadratic pair kernel: log densities of (row, component) pairs, and their weighted moments.

For a pair of row n and component c, with :math:`\delta = x_n - m_c`,

.. math:: \log p = -\tfrac12 \Bigl[ o_c + \sum_d w_{cd} \delta_d^2 + s\, |V_c \delta|^2 \Bigr]

covers isotropic and diagonal covariances (no V), full covariances (w = 0, V the inverse Cholesky
factor, s = 1) and low-rank covariances (s = -1, by the Woodbury identity). The gradient in
(o, w, m, V) needs only the sums of
:math:`q,\ q\delta,\ q\delta^2,\ q (V\delta)\delta^T` over the pairs of each component, which are
also the sums that the M-step needs.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_mixtures.ops.backend import on_numba
from pyro_mixtures.ops.kernels import numba_pairs
from pyro_mixtures.ops.kernels.jit import Arguments, Array
from pyro_mixtures.ops.kernels.simd import VECTOR_BYTES
from pyro_mixtures.ops.kernels.threads import run_tasks, thread_count
from pyro_mixtures.ops.memory import empty
from pyro_mixtures.ops.pairs import Pairs, SortedPairs, chunk_bounds
from pyro_mixtures.ops.tiles import component_tiles

# The numba path processes blocks of rows that fit the second-level cache and have some pairs with
# each component.
_BLOCK_BYTES = 768 << 10
_BLOCK_PAIRS = 16  # pairs per component
_BLOCK_ROWS = 64  # smallest block


class Quadratic(NamedTuple):
    """Parameters of the kernel for C components of D features; see the formula of the module."""

    loc: Tensor  # (C, D)  m
    precision: Tensor  # (C, D)  w
    projection: Tensor  # (C, R, D)  V; R may be 0
    offset: Tensor  # (C,)  o
    sign: float  # s


class Moments(NamedTuple):
    """Weighted sums over the pairs of each component, about ``loc``: d = x - loc."""

    count: Tensor  # type: ignore[assignment]  # (C,)  sum q; shadows tuple.count
    first: Tensor  # (C, D)      sum q d
    second: Tensor  # (C, D)     sum q d^2
    projected: Tensor  # (C, R, D)  sum q (V d) d^T


def pair_log_density(x: Tensor, kernel: Quadratic, pairs: Pairs) -> Tensor:
    """Evaluate the log densities of pairs. Differentiable in the rows and parameters.

    :param x: (N, D) rows, in the dtype of the kernel's parameters or uint8.
    :param kernel: parameters of the components.
    :param pairs: B rows with S components each.
    :returns: (S, B) log densities, -inf at padding.
    :raises PartitionError: when a component number is out of range.

    >>> from pyro_mixtures.ops import Pairs, Quadratic, pair_log_density
    >>> zeros, ones = torch.zeros(2, 1), torch.ones(2, 1)
    >>> kernel = Quadratic(zeros, ones, torch.zeros(2, 0, 1), torch.zeros(2), sign=1.0)
    >>> pairs = Pairs(torch.tensor([[0], [-1]]), components=2)
    >>> pair_log_density(torch.tensor([[2.0]]), kernel, pairs)
    tensor([[-2.],
            [-inf]])
    """
    parameters = (kernel.loc, kernel.precision, kernel.projection, kernel.offset)
    log_density: Tensor = _PairLogDensity.apply(x, *parameters, kernel.sign, pairs)
    return log_density


class _PairLogDensity(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        loc: Tensor,
        precision: Tensor,
        projection: Tensor,
        offset: Tensor,
        sign: float,
        pairs: Pairs,
    ) -> Tensor:
        kernel = Quadratic(loc, precision, projection, offset, sign)
        ctx.save_for_backward(x, loc, precision, projection, offset)
        ctx.sign, ctx.pairs = sign, pairs
        return _log_density(x, kernel, pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, loc, precision, projection, offset = ctx.saved_tensors
        kernel = Quadratic(loc, precision, projection, offset, ctx.sign)
        weight = (-0.5 * grad).reshape(-1)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _row_gradient(x, kernel, ctx.pairs.sorted, weight)
        if not any(ctx.needs_input_grad[1:5]):
            return grad_x, None, None, None, None, None, None
        moments = pair_moments(x, loc, projection, weight, ctx.pairs)
        projected_back = (projection.mT @ (projection @ moments.first.unsqueeze(-1))).squeeze(-1)
        grad_loc = -2 * (precision * moments.first + ctx.sign * projected_back)
        grad_projection = 2 * ctx.sign * moments.projected
        return grad_x, grad_loc, moments.second, grad_projection, moments.count, None, None


def _log_density(x: Tensor, kernel: Quadratic, pairs: Pairs) -> Tensor:
    if on_numba(x, kernel.loc.dtype):
        return _log_density_numba(x, kernel, pairs)
    out = kernel.loc.new_full((pairs.z.numel(),), -torch.inf)
    for tile in component_tiles(pairs.sorted, x.shape[1] + kernel.projection.shape[1]):
        loc = kernel.loc[tile.components].unsqueeze(1)
        diff = (x[tile.rows] - loc) * tile.valid.unsqueeze(-1)
        distance = (diff.square() @ kernel.precision[tile.components].unsqueeze(-1)).squeeze(-1)
        projected = diff @ kernel.projection[tile.components].mT
        distance = distance + kernel.sign * projected.square().sum(-1)
        log_density = -0.5 * (distance + kernel.offset[tile.components].unsqueeze(-1))
        out[tile.slots[tile.valid]] = log_density[tile.valid]
    return out.reshape(pairs.z.shape)


def _log_density_numba(x: Tensor, kernel: Quadratic, pairs: Pairs) -> Tensor:
    slots, columns = pairs.z.shape
    # The slots of a row are adjacent in memory, because the kernels that follow go row by row.
    out = empty((columns, slots), kernel.loc.dtype)
    if not out.numel():
        return out.T
    parameters = [_as_array(t, kernel.loc) for t in kernel[:4]]
    dtype = parameters[0].dtype
    z, slot_stride, row_stride = _flat_with_strides(pairs.z)
    arguments: Arguments = (
        _rows_as_array(x, kernel.loc),
        *parameters,
        dtype.type(kernel.sign),
        z,
        slot_stride,
        row_stride,
        slots,
        _row_numbers(pairs),
        VECTOR_BYTES // dtype.itemsize,
        out.view(-1).numpy(),
    )
    block = _block_rows(x, slots, columns, pairs.components)

    def evaluate_block(i: int) -> bool:
        end = min(columns, (i + 1) * block)
        return numba_pairs.pair_log_density(i * block, end, *arguments)

    if not all(run_tasks(evaluate_block, -(-columns // block))):
        raise pairs.out_of_range()
    return out.T


def _block_rows(x: Tensor, slots: int, columns: int, components: int) -> int:
    """Choose the number of rows per block."""
    rows_in_cache = _BLOCK_BYTES // max(1, x.shape[1] * x.element_size())
    rows = max(_BLOCK_ROWS, rows_in_cache, _BLOCK_PAIRS * components // slots)
    # Every block reads all parameters, so a large model has no more blocks than threads.
    rows_per_thread = max(_BLOCK_ROWS, -(-columns // thread_count()))
    return max(1, min(rows, rows_per_thread, columns))


def _flat_with_strides(z: Tensor) -> tuple[Array, int, int]:
    """Return the memory of ``z`` (S, B) as a flat array, and the strides of its slots and rows."""
    last = sum((size - 1) * stride for size, stride in zip(z.shape, z.stride(), strict=True))
    return z.as_strided((last + 1,), (1,)).numpy(), z.stride(0), z.stride(1)


def _row_numbers(pairs: Pairs) -> Array:
    """Return the row numbers of the columns; empty if they are 0, ..., B - 1."""
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
    """Sum the weighted moments about ``loc`` over the pairs of each component. No gradients.

    :param x: (N, D) rows, in the dtype of ``loc`` or uint8.
    :param loc: (C, D) origin of each component.
    :param projection: (C, R, D) directions V of the projected second moments.
    :param weight: (S * B,) weight q of each slot.
    :param pairs: B rows with S components each.
    :param into: moments to which the sums are added in place.
    :returns: the moments: ``into`` if given.

    >>> from pyro_mixtures.ops import Pairs, pair_moments
    >>> x, loc = torch.tensor([[1.0], [3.0]]), torch.zeros(1, 1)
    >>> pairs = Pairs(torch.tensor([[0, 0]]), components=1)
    >>> pair_moments(x, loc, torch.zeros(1, 0, 1), torch.tensor([1.0, 0.5]), pairs).second
    tensor([[5.5000]])
    """
    if into is None:
        shapes = (loc.shape[:1], loc.shape, loc.shape, projection.shape)
        into = Moments(*(loc.new_zeros(shape) for shape in shapes))
    if on_numba(x, loc.dtype):
        return _moments_numba(x, loc, projection, weight, pairs.sorted, into)
    for tile in component_tiles(pairs.sorted, x.shape[1] + projection.shape[1]):
        diff = x[tile.rows] - loc[tile.components].unsqueeze(1)
        q = weight[tile.slots] * tile.valid
        weighted = q.unsqueeze(-1) * diff
        projected = diff @ projection[tile.components].mT
        into.count.index_add_(0, tile.components, q.sum(1))
        into.first.index_add_(0, tile.components, weighted.sum(1))
        into.second.index_add_(0, tile.components, (weighted * diff).sum(1))
        into.projected.index_add_(0, tile.components, projected.mT @ weighted)
    return into


def _moments_numba(
    x: Tensor, loc: Tensor, projection: Tensor, weight: Tensor, pairs: SortedPairs, into: Moments
) -> Moments:
    parameters = [_as_array(t, loc) for t in (loc, projection, weight)]
    arguments: Arguments = (
        _rows_as_array(x, loc),
        *parameters,
        *(t.numpy() for t in pairs),
        VECTOR_BYTES // parameters[0].itemsize,
    )
    outputs: Arguments = tuple(moment.numpy() for moment in into)
    bounds = chunk_bounds(pairs.starts, 8 * thread_count()).tolist()

    def add_components(i: int) -> None:
        numba_pairs.pair_moments(bounds[i], bounds[i + 1], *arguments, *outputs)

    run_tasks(add_components, len(bounds) - 1)
    return into


def _row_gradient(x: Tensor, kernel: Quadratic, pairs: SortedPairs, weight: Tensor) -> Tensor:
    """Compute the gradient of the weighted pair densities in the rows (N, D)."""
    grad = torch.zeros_like(x)
    for tile in component_tiles(pairs, x.shape[1] + kernel.projection.shape[1]):
        diff = x[tile.rows] - kernel.loc[tile.components].unsqueeze(1)
        projection = kernel.projection[tile.components]
        slope = kernel.precision[tile.components].unsqueeze(1) * diff
        slope = slope + kernel.sign * (diff @ projection.mT) @ projection
        q = (weight[tile.slots] * tile.valid).unsqueeze(-1)
        grad.index_add_(0, tile.rows.reshape(-1), (2 * q * slope).reshape(-1, x.shape[1]))
    return grad


def _as_array(tensor: Tensor, like: Tensor) -> Array:
    """Return ``tensor`` as a contiguous array in the dtype of ``like``."""
    return tensor.detach().to(like.dtype).contiguous().numpy()


def _rows_as_array(x: Tensor, like: Tensor) -> Array:
    """Return rows as the kernels read them: bytes unchanged, all else in the parameters' dtype."""
    return x.detach().contiguous().numpy() if x.dtype == torch.uint8 else _as_array(x, like)
