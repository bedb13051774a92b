r"""The bilinear pair kernel: products of rows with the weights of their components, and outer sums.

For a pair of row n and component c, :math:`\eta = W_c x_n` with :math:`W_c` (M, P). These are the
linear predictors of regressions, SVMs and gates, and the products of natural parameters with
statistics of exponential families. The gradient in W is the sum of :math:`g\, x^T` over the pairs
of a component, the same sums that the normal equations of a regression need.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_mixtures.ops.pairs import Pairs
from pyro_mixtures.ops.tiles import Tile, component_tiles


def pair_products(x: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
    """Multiply rows by the weights of their components. Differentiable in both.

    All rows with all components take one matrix product.

    :param x: (N, P) rows.
    :param weight: (C, M, P).
    :returns: (S, B, M) products, zero at padding.

    >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])
    >>> pair_products(x, weight, Pairs(torch.tensor([[1], [0], [-1]]), 2)).flatten()
    tensor([6., 1., 0.])
    """
    if pairs.all_pairs and pairs.rows is None:
        return (x @ weight.flatten(0, 1).mT).unflatten(-1, weight.shape[:2]).movedim(1, 0)
    products: Tensor = _PairProducts.apply(x, weight, pairs)
    return products


class _PairProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.pairs = pairs
        out = x.new_zeros(pairs.z.numel(), weight.shape[1])
        for tile in component_tiles(pairs.sorted, sum(weight.shape[1:])):
            products = x[tile.rows] @ weight[tile.components].mT
            out[tile.slots[tile.valid]] = products[tile.valid]
        return out.reshape(*pairs.z.shape, weight.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.reshape(-1, weight.shape[1])
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.zeros_like(x)
            for tile in component_tiles(ctx.pairs.sorted, sum(weight.shape[1:])):
                tile_grad = grad[tile.slots] * tile.valid.unsqueeze(-1)
                tile_grad_x = tile_grad @ weight[tile.components]
                grad_x.index_add_(0, tile.rows.reshape(-1), tile_grad_x.reshape(-1, x.shape[1]))
        if ctx.needs_input_grad[1]:
            grad_weight = pair_outer(grad, x, ctx.pairs).to(weight)
        return grad_x, grad_weight, None


def pair_outer(values: Tensor, x: Tensor, pairs: Pairs) -> Tensor:
    """Sum the outer products ``v x^T`` over the pairs of each component.

    :param values: (S * B, M) v of each slot.
    :param x: (N, P) rows.
    :returns: (C, M, P) in float64.
    """
    return _outer(lambda tile: values[tile.slots].double(), values.shape[1], x, pairs)


class CenteredMoments(NamedTuple):
    """Weighted moments of the rows r of each component about their mean, in float64."""

    count: Tensor  # type: ignore[assignment]  # (C,)  sum q; shadows tuple.count
    mean: Tensor  # (C, R)
    outer: Tensor  # (C, R, R)  sum q (r - mean) (r - mean)^T


def centered_moments_of(rows: Tensor, weight: Tensor, pairs: Pairs) -> CenteredMoments:
    """Compute the moments of each component's rows about their weighted mean.

    The means are subtracted before products are formed, so features far from zero keep their
    digits. The means themselves are those of differences from one row of the component: a feature
    that is constant in a component has moments of exactly zero there. Nothing of size S x B x R is
    built, and nothing is rounded to the rows' dtype.

    :param rows: (N, R) rows r.
    :param weight: (S * B,) weight q of each slot.
    :returns: moments; the mean of a component without rows is arbitrary.

    >>> pairs = Pairs(torch.tensor([[0, 0]]), 1)
    >>> moments = centered_moments_of(torch.tensor([[1.0], [3.0]]), torch.ones(2), pairs)
    >>> moments.mean.tolist(), moments.outer.tolist()
    ([[2.0]], [[[2.0]]])
    """
    order, features = pairs.sorted, rows.shape[1]
    if not len(order.rows):
        zeros = torch.zeros(pairs.components, features, dtype=torch.float64, device=rows.device)
        return CenteredMoments(zeros.sum(-1), zeros, zeros.unsqueeze(-1) * zeros.unsqueeze(-2))
    first = order.starts[:-1].clamp_max(len(order.rows) - 1)
    reference = rows[order.rows[first]].double()
    sums = torch.zeros_like(reference)
    count = torch.zeros_like(reference[:, 0])
    for tile in component_tiles(order, 2 * features):
        tile_weight = weight[tile.slots].double() * tile.valid
        difference = rows[tile.rows].double() - reference[tile.components].unsqueeze(1)
        sums.index_add_(0, tile.components, (tile_weight.unsqueeze(1) @ difference).squeeze(1))
        count.index_add_(0, tile.components, tile_weight.sum(1))
    mean = reference + sums / torch.where(count == 0, 1.0, count).unsqueeze(-1)
    outer = torch.zeros(*mean.shape, features, dtype=mean.dtype, device=mean.device)
    for tile in component_tiles(order, max(2 * features, features * features // 16)):
        tile_weight = weight[tile.slots].double() * tile.valid
        difference = rows[tile.rows].double() - mean[tile.components].unsqueeze(1)
        weighted = difference * tile_weight.unsqueeze(-1)
        outer.index_add_(0, tile.components, weighted.mT @ difference)
    return CenteredMoments(count, mean, outer)


def _outer(values: Callable[[Tile], Tensor], width: int, x: Tensor, pairs: Pairs) -> Tensor:
    """Sum the products of ``values`` (T, rows, width) of each tile with its rows of ``x``.

    :returns: (C, width, P) in float64.
    """
    out = torch.zeros(pairs.components, width, x.shape[1], dtype=torch.float64, device=x.device)
    # Each tile gathers its rows, and makes one product.
    elements = max(width + x.shape[1], width * x.shape[1] // 16)
    for tile in component_tiles(pairs.sorted, elements):
        tile_values = values(tile) * tile.valid.unsqueeze(-1)
        out.index_add_(0, tile.components, tile_values.mT @ x[tile.rows].double())
    return out
