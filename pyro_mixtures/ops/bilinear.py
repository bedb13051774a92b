r"""The bilinear pair kernel: products of rows with the weights of their components, and its moment twin.

For a pair of row n and component c, :math:`\eta = W_c x_n` with :math:`W_c` of M x P: linear
predictors of regressions, SVMs and gates, natural parameters times statistics of exponential
families. Its gradient in W is the sum over a component's pairs of :math:`g\, x^T`: the same sums
that the normal equations of a regression need.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_mixtures.ops.pairs import Pairs
from pyro_mixtures.ops.tiles import Tile, tiles


def pair_products(x: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
    """Products (S, B, M) of rows ``x`` (N, P) with ``weight`` (C, M, P) of their components; zero at padding.

    Differentiable in both. All rows with all components is one matrix product.

    >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])
    >>> pair_products(x, weight, Pairs(torch.tensor([[1], [0], [-1]]), 2)).flatten()
    tensor([6., 1., 0.])
    """
    if pairs.all_pairs and pairs.rows is None:
        return (x @ weight.flatten(0, 1).mT).unflatten(-1, weight.shape[:2]).movedim(1, 0)
    return _PairProducts.apply(x, weight, pairs)


class _PairProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, pairs):
        ctx.save_for_backward(x, weight)
        ctx.pairs = pairs
        out = x.new_zeros(pairs.z.numel(), weight.shape[1])
        for tile in tiles(pairs.sorted, sum(weight.shape[1:])):
            products = x[tile.rows] @ weight[tile.components].mT
            out[tile.slots[tile.valid]] = products[tile.valid]
        return out.reshape(*pairs.z.shape, weight.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad, grad_x = grad.reshape(-1, weight.shape[1]), None
        if ctx.needs_input_grad[0]:
            grad_x = torch.zeros_like(x)
            for tile in tiles(ctx.pairs.sorted, sum(weight.shape[1:])):
                each = (grad[tile.slots] * tile.valid.unsqueeze(-1)) @ weight[tile.components]
                grad_x.index_add_(0, tile.rows.reshape(-1), each.reshape(-1, x.shape[1]))
        return (
            grad_x,
            pair_outer(grad, x, ctx.pairs).to(weight) if ctx.needs_input_grad[1] else None,
            None,
        )


def pair_outer(values: Tensor, x: Tensor, pairs: Pairs) -> Tensor:
    """Sums (C, M, P) in float64 of ``v x^T`` over each component's pairs: ``values`` (S * B, M) by slot, x (N, P)."""
    return _outer(lambda tile: values[tile.slots].double(), values.shape[1], x, pairs)


def pair_moments_of(rows: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
    """Sums (C, R, R) in float64 of ``q r r^T`` over each component's pairs: ``rows`` (N, R), q ``weight`` (S * B,).

    Nothing of size S x B x R is made, and no product is rounded to the rows' dtype.

    >>> pair_moments_of(torch.tensor([[1.0, 2.0]]), torch.tensor([0.5]), Pairs(torch.tensor([[0]]), 1))[0]
    tensor([[0.5000, 1.0000],
            [1.0000, 2.0000]], dtype=torch.float64)
    """
    each = lambda tile: rows[tile.rows].double() * weight[tile.slots].double().unsqueeze(-1)  # noqa: E731
    return _outer(each, rows.shape[1], rows, pairs)


def _outer(values: Callable[[Tile], Tensor], width: int, x: Tensor, pairs: Pairs) -> Tensor:
    """Sums (C, width, P) of the products of ``values`` of a tile (T, rows, width) with the tile's rows of ``x``."""
    out = torch.zeros(pairs.components, width, x.shape[1], dtype=torch.float64, device=x.device)
    # Every tile of rows makes one product, beside what it gathers.
    elements = max(width + x.shape[1], width * x.shape[1] // 16)
    for tile in tiles(pairs.sorted, elements):
        each = values(tile) * tile.valid.unsqueeze(-1)
        out.index_add_(0, tile.components, each.mT @ x[tile.rows].double())
    return out
