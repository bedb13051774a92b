"""Products of small matrices with rows of features: one matrix per component, of about rank size.

``torch.bmm`` is made for larger matrices. On the CPU these kernels are several times faster where
no gradient is recorded. They run on the calling thread: callers divide the components among
threads.
"""

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.ops.backend import on_numba
from pyro_mixtures.ops.kernels.jit import Array, fast_kernel


def mix(matrix: Tensor, rows: Tensor) -> Tensor:
    """Compute ``matrix @ rows`` of ``matrix`` (C, K, J) and ``rows`` (C, J, D).

    >>> mix(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0], [4.0]]]))
    tensor([[[11.]]])
    """
    if not _by_kernel(matrix, rows):
        return matrix @ rows
    out = rows.new_empty(len(rows), matrix.shape[1], rows.shape[2])
    _mix(matrix.contiguous().numpy(), rows.contiguous().numpy(), out.numpy())
    return out


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Compute ``a @ b.mT`` of ``a`` (C, K, D) and ``b`` (C, J, D)."""
    if not _by_kernel(a, b):
        return a @ b.mT
    out = a.new_empty(len(a), a.shape[1], b.shape[1])
    _inner(a.contiguous().numpy(), b.contiguous().numpy(), out.numpy())
    return out


def scaled_transpose(columns: Tensor, scale: Tensor) -> Tensor:
    """Compute ``columns.mT * scale[:, None]`` (C, H, D), contiguous.

    ``columns`` is (C, D, H) and ``scale`` (C, D).
    """
    if not _by_kernel(columns, scale):
        return (columns.mT * scale.unsqueeze(-2)).contiguous()
    out = columns.new_empty(len(columns), columns.shape[2], columns.shape[1])
    _scaled_transpose(columns.contiguous().numpy(), scale.contiguous().numpy(), out.numpy())
    return out


def residual(gram: Tensor, coefficients: Tensor, target: Tensor, second: Tensor) -> Tensor:
    """Compute ``second + sum_k ((gram @ W - 2 T) * W)_k`` (C, D), the residual sums of squares.

    ``second`` (C, D) are the sums of squares before the regression, ``gram`` is (C, K, K), W are
    the ``coefficients`` and T the ``target`` (C, K, D). Holds for any coefficients.
    """
    if not _by_kernel(coefficients, target):
        return second + ((gram @ coefficients - 2 * target) * coefficients).sum(-2)
    out = second.clone()
    _residual(
        gram.contiguous().numpy(),
        coefficients.contiguous().numpy(),
        target.contiguous().numpy(),
        out.numpy(),
    )
    return out


def _by_kernel(a: Tensor, b: Tensor) -> bool:
    recorded = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    return not recorded and a.dtype == b.dtype and on_numba(a, a.dtype)


@fast_kernel
def _mix(matrix: Array, rows: Array, out: Array) -> None:
    components, height, width = matrix.shape
    features = rows.shape[2]
    for c in range(components):
        for k in range(height):
            for d in range(features):
                out[c, k, d] = 0.0
            for j in range(width):
                m = matrix[c, k, j]
                for d in range(features):
                    out[c, k, d] += m * rows[c, j, d]


@fast_kernel
def _inner(a: Array, b: Array, out: Array) -> None:
    components, height, features = a.shape
    for c in range(components):
        for k in range(height):
            for j in range(b.shape[1]):
                total = a.dtype.type(0)
                for d in range(features):
                    total += a[c, k, d] * b[c, j, d]
                out[c, k, j] = total


@fast_kernel
def _scaled_transpose(columns: Array, scale: Array, out: Array) -> None:
    components, features, rank = columns.shape
    for c in range(components):
        for h in range(rank):
            for d in range(features):
                out[c, h, d] = columns[c, d, h] * scale[c, d]


@fast_kernel
def _residual(gram: Array, coefficients: Array, target: Array, out: Array) -> None:
    components, height, features = target.shape
    slope = np.empty(features, target.dtype)
    for c in range(components):
        for k in range(height):
            for d in range(features):
                slope[d] = -2 * target[c, k, d]
            for j in range(height):
                m = gram[c, k, j]
                for d in range(features):
                    slope[d] += m * coefficients[c, j, d]
            for d in range(features):
                out[c, d] += slope[d] * coefficients[c, k, d]
