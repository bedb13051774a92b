r"""The bilinear pair kernel: products of rows with the weights of their components, and its moment twin.

For a pair of row n and component c, :math:`\eta = W_c x_n` with :math:`W_c` of M x P: linear predictors of regressions,
SVMs and gates, natural parameters times statistics of exponential families. Its gradient in W is the sum over a
component's pairs of :math:`g\, x^T`: the same sums that the normal equations of a regression need.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_mixtures.ops.pairs import Pairs
from pyro_mixtures.ops.tiles import tiles


def pair_products(x: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
    """Products (S, B, M) of rows ``x`` (N, P) with ``weight`` (C, M, P) of their components; zero at padding.

    Differentiable in both. All rows with all components is one matrix product.

    >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])
    >>> pair_products(x, weight, Pairs(torch.tensor([[1], [0], [-1]]), 2)).flatten()
    tensor([6., 1., 0.])
    """
    if pairs.everyone and pairs.rows is None:
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
        return out.reshape(*pairs.z.shape, -1)

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
        return grad_x, pair_outer(grad, x, ctx.pairs).to(weight) if ctx.needs_input_grad[1] else None, None


def pair_outer(values: Tensor, x: Tensor, pairs: Pairs) -> Tensor:
    """Sums (C, M, P) in float64 of ``v x^T`` over each component's pairs: ``values`` (S * B, M) by slot, x (N, P)."""
    out = torch.zeros(pairs.components, values.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for tile in tiles(pairs.sorted, values.shape[1] + x.shape[1]):
        each = values[tile.slots].double() * tile.valid.unsqueeze(-1)
        out.index_add_(0, tile.components, each.mT @ x[tile.rows].double())
    return out
