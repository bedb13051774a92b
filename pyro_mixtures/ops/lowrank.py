r"""Low-rank covariances :math:`\Sigma = A A^T + \mathrm{diag}(\psi)` through the Woodbury identity.

With :math:`M = I + A^T \psi^{-1} A = L L^T` (H x H): :math:`\Sigma^{-1} = \psi^{-1} - V^T V`,
:math:`V = L^{-1} A^T \psi^{-1}`, and :math:`\log|\Sigma| = \sum_d \log\psi_d + 2 \sum_h \log
L_{hh}`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.ops.kernels.threads import run_tasks
from pyro_mixtures.ops.small import inner, mix, scaled_transpose

# Elements of the loadings that are factorized at once where no gradient is recorded. This limits
# the temporary memory of large models.
_ELEMENTS = 1 << 18


class LowRank(NamedTuple):
    """Factorized inverse of C low-rank covariances."""

    precision: Tensor  # (C, D)        1 / psi
    projection: Tensor  # (C, H, D)     V
    inverse_chol: Tensor  # (C, H, H)  L^-1
    logdet: Tensor  # (C,)              log |Sigma|

    def select(self, components: slice) -> "LowRank":
        """Return a range of components, as views."""
        return LowRank(*(tensor[components] for tensor in self))


def factorize(factor: Tensor, noise: Tensor) -> LowRank:
    """Factorize ``factor @ factor.T + diag(noise)`` of C components.

    :param factor: (C, D, H) loadings.
    :param noise: (C, D) positive variances.

    >>> low = factorize(torch.ones(1, 2, 1), torch.ones(1, 2))
    >>> torch.allclose(low.logdet, torch.tensor([[2.0, 1.0], [1.0, 2.0]]).logdet())
    True
    """
    step = max(1, _ELEMENTS // max(1, factor[:1].numel()))
    recorded = torch.is_grad_enabled() and (factor.requires_grad or noise.requires_grad)
    if len(factor) <= step or recorded:
        return _factorize(factor, noise)
    components, features, rank = factor.shape
    shapes = (
        (components, features),
        (components, rank, features),
        (components, rank, rank),
        (components,),
    )
    out = LowRank(*(factor.new_empty(shape) for shape in shapes))

    @torch.no_grad()  # a setting of the thread
    def factorize_range(i: int) -> None:
        chunk = slice(i * step, (i + 1) * step)
        for target, value in zip(out, _factorize(factor[chunk], noise[chunk]), strict=True):
            target[chunk] = value

    run_tasks(factorize_range, -(-components // step))
    return out


def _factorize(factor: Tensor, noise: Tensor) -> LowRank:
    precision = noise.reciprocal()
    scaled = scaled_transpose(factor, precision)
    rank = factor.shape[-1]
    # The small matrices are in float64: they determine the precision of everything else, at
    # negligible cost.
    identity = torch.eye(rank, dtype=torch.float64, device=factor.device)
    chol = torch.linalg.cholesky(inner(scaled, scaled * noise.unsqueeze(-2)).double() + identity)
    inverse = torch.linalg.solve_triangular(chol, identity.expand_as(chol), upper=False)
    log_diagonal = chol.diagonal(dim1=-2, dim2=-1).log()
    logdet = noise.log().sum(-1, dtype=torch.float64) + 2 * log_diagonal.sum(-1)
    inverse = inverse.to(factor.dtype).contiguous()
    return LowRank(precision, mix(inverse, scaled), inverse, logdet.to(factor.dtype))


def posterior_mean(low: LowRank, index: Tensor, diff: Tensor) -> Tensor:
    """Compute the posterior mean ``M^-1 A^T psi^-1 diff`` (..., H, 1) of the factors.

    :param index: (...) components.
    :param diff: (..., D, 1) ``x - loc``.
    """
    return low.inverse_chol[index].mT @ (low.projection[index] @ diff)


def posterior_covariance(low: LowRank) -> Tensor:
    """Compute ``M^-1`` (C, H, H), the posterior covariance of the factors (equal for all rows)."""
    return low.inverse_chol.mT @ low.inverse_chol


def solve_small(matrix: Tensor, target: Tensor) -> Tensor:
    """Solve C small systems (C, K, K) with right-hand sides (C, K, D), by inverses in float64."""
    return mix(torch.linalg.inv(matrix.double()).to(target.dtype), target)
