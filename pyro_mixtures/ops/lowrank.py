r"""Low-rank covariances :math:`\Sigma = A A^T + \mathrm{diag}(\psi)` through the Woodbury identity.

With :math:`M = I + A^T \psi^{-1} A = L L^T` (H x H): :math:`\Sigma^{-1} = \psi^{-1} - V^T V`, :math:`V = L^{-1} A^T
\psi^{-1}`, and :math:`\log|\Sigma| = \sum_d \log\psi_d + 2 \sum_h \log L_{hh}`.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class LowRank(NamedTuple):
    """Factorised inverse of C low-rank covariances."""

    precision: Tensor  # (C, D)     1 / psi
    projection: Tensor  # (C, H, D)  V
    chol: Tensor  # (C, H, H)        L
    logdet: Tensor  # (C,)           log |Sigma|


def factorize(factor: Tensor, noise: Tensor) -> LowRank:
    """Factorise ``factor @ factor.T + diag(noise)``; ``factor`` (..., D, H), ``noise`` (..., D) positive.

    >>> low = factorize(torch.ones(1, 2, 1), torch.ones(1, 2))
    >>> torch.allclose(low.logdet, torch.tensor([[2.0, 1.0], [1.0, 2.0]]).logdet())
    True
    """
    scaled = factor.mT / noise.unsqueeze(-2)
    rank = factor.shape[-1]
    inner = scaled @ factor + torch.eye(rank, dtype=factor.dtype, device=factor.device)
    chol = torch.linalg.cholesky(inner)
    projection = torch.linalg.solve_triangular(chol, scaled, upper=False)
    logdet = noise.log().sum(-1) + 2 * chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return LowRank(noise.reciprocal(), projection, chol, logdet)


def posterior_projection(low: LowRank) -> Tensor:
    """``B = M^-1 A^T psi^-1`` (C, H, D): the posterior mean of the factors given ``x`` is ``B (x - loc)``."""
    return torch.linalg.solve_triangular(low.chol.mT, low.projection, upper=True)


def posterior_covariance(low: LowRank) -> Tensor:
    """``M^-1`` (C, H, H): the posterior covariance of the factors, the same for every row."""
    return torch.cholesky_inverse(low.chol)
