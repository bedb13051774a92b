r"""Softmax distributions over p items with shared features: normalizers and tilted moments.

Component c gives item j the probability :math:`A_c(j) = \exp(x_j \cdot \theta_c) / \sum_l \exp(x_l
\cdot \theta_c)`. Its log normalizer has the gradient :math:`E_{A_c} x` and the Hessian
:math:`\mathrm{Cov}_{A_c} x`. All sums over items are computed in chunks: memory is bounded for any
p and C, and features are read once for many components.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Components, and elements of the logits of a chunk of items, that are processed at once. The logits
# stay in the second-level cache.
_COMPONENTS, _NUMBERS = 1024, 1 << 18
# Columns of the matrix products for covariances, and elements of their scaled factors.
_COLUMNS, _SCALED = 2048, 1 << 19
# Smallest chunk of items.
_ITEMS = 64
# Variances below this number of roundings of second moments are indistinguishable from zero.
_SINGULAR = 30


class LogTable(NamedTuple):
    """All log probabilities, for small p times C."""

    log_prob: Tensor  # (C, p)
    log_total: Tensor  # (C,) float64


def log_totals(theta: Tensor, features: Tensor) -> Tensor:
    """Compute the log normalizers. Differentiable in ``theta``.

    :param theta: (C, L).
    :param features: (p, L).
    :returns: (C,), in the dtype of ``theta``.

    >>> log_totals(torch.zeros(1, 2), torch.ones(4, 2)).exp()
    tensor([4.])
    """
    totals: Tensor = _LogTotals.apply(theta, features)
    return totals


class _LogTotals(torch.autograd.Function):
    """Log normalizers whose gradient takes a second pass over the items.

    Nothing of size p x C is stored.
    """

    @staticmethod
    def forward(ctx: Any, theta: Tensor, features: Tensor) -> Tensor:
        totals = running_log_totals(theta, features)
        ctx.save_for_backward(theta, features, totals)
        return totals.to(theta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad.unsqueeze(-1) * tilted_means(*ctx.saved_tensors)).to(grad), None


def running_log_totals(theta: Tensor, features: Tensor) -> Tensor:
    """Compute the log normalizers (C,) of ``theta`` (C, L) in float64.

    Sums over chunks lose no precision for float32 arguments.
    """
    if len(theta) > _COMPONENTS:
        blocks = theta.split(_COMPONENTS)
        return torch.cat([running_log_totals(block, features) for block in blocks])
    total = theta.new_full((len(theta),), -torch.inf, dtype=torch.float64)
    for _, logits in _chunks(theta, features):
        total = torch.logaddexp(total, _log_sum_exp(logits))
    return total


def log_table(theta: Tensor, features: Tensor) -> LogTable:
    """Compute the log probabilities of all items, for small p times C."""
    table = theta @ features.T
    chunks = _item_slices(len(features), len(theta))
    totals = [_log_sum_exp(table[:, chunk].clone()) for chunk in chunks]
    total = torch.stack(totals).logsumexp(0)
    return LogTable(table.sub_(total.to(table).unsqueeze(-1)), total)


def _log_sum_exp(logits: Tensor) -> Tensor:
    """Reduce ``logits`` (C, n), which are overwritten, to (C,) in float64."""
    largest = logits.amax(1, keepdim=True)
    return largest.squeeze(1).double() + logits.sub_(largest).exp_().sum(1).double().log()


def tilted_means(
    theta: Tensor, features: Tensor, total: Tensor, table: Tensor | None = None
) -> Tensor:
    """Compute the mean features under each component.

    :param total: (C,) log normalizers.
    :param table: (C, p) log probabilities, if they are known.
    :returns: (C, L) in float64.
    """
    if len(theta) > _COMPONENTS and table is None:
        blocks = zip(theta.split(_COMPONENTS), total.split(_COMPONENTS), strict=True)
        return torch.cat(
            [tilted_means(block, features, block_total) for block, block_total in blocks]
        )
    mean = torch.zeros_like(theta, dtype=torch.float64)
    for x, prob in _probabilities(theta, features, total, table):
        mean += prob @ x
    return mean


def variances_along(
    step: Tensor,
    theta: Tensor,
    features: Tensor,
    total: Tensor,
    mean: Tensor,
    table: Tensor | None = None,
) -> Tensor:
    """Compute the variance of the features' products with a step under each component.

    :param step: (C, L).
    :param total: (C,) log normalizers.
    :param mean: (C, L) mean features.
    :param table: (C, p) log probabilities, if they are known.
    :returns: (C,) in float64.
    """
    if len(theta) > _COMPONENTS and table is None:
        blocks = zip(*(t.split(_COMPONENTS) for t in (step, theta, total, mean)), strict=True)
        return torch.cat(
            [
                variances_along(block_step, block, features, block_total, block_mean)
                for block_step, block, block_total, block_mean in blocks
            ]
        )
    variance = torch.zeros_like(total)
    mean_product = (mean * step).sum(-1, keepdim=True).to(theta)
    for x, prob in _probabilities(theta, features, total, table):
        variance += torch.addmm(-mean_product, step.to(x), x.T).square_().mul_(prob).sum(1)
    return variance


class Curvature(NamedTuple):
    """Covariances of features, and the variances that rounding alone would cause; in float64."""

    covariance: Tensor  # (C, L, L)
    noise: Tensor  # (C, L)

    def inverse(self, ridge: float = 0.0) -> Tensor:
        """Invert the covariances plus 2 ``ridge`` (C, L, L).

        The inverse is zero in directions whose variance may be a rounding error.
        """
        variance = self.covariance.diagonal(dim1=-1, dim2=-2) + 2 * ridge
        scale = torch.where(variance > self.noise, variance.clamp_min(0).rsqrt(), 0.0)
        outer = scale.unsqueeze(-1) * scale.unsqueeze(-2)
        # The diagonal is one, also for features that are left out.
        ones = torch.ones_like(variance)
        unit = (self.covariance * outer).diagonal_scatter(ones, dim1=-1, dim2=-2)
        threshold = unit.shape[-1] * (self.noise * scale.square()).amax(-1)
        factor, failed = torch.linalg.cholesky_ex(unit)
        smallest_pivot = factor.diagonal(dim1=-1, dim2=-2).square().amin(-1)
        singular = (failed > 0) | (smallest_pivot < threshold)
        diagonal = unit.diagonal(dim1=-1, dim2=-2).diag_embed()
        inverse = torch.cholesky_inverse(torch.where(singular[:, None, None], diagonal, factor))
        if bool(singular.any()):
            value, vector = torch.linalg.eigh(unit[singular])
            regular = value > threshold[singular].unsqueeze(-1)
            value = torch.where(regular, value.reciprocal(), 0.0)
            inverse[singular] = (vector * value.unsqueeze(-2)) @ vector.mT
        return inverse * outer


def tilted_covariances(theta: Tensor, features: Tensor, total: Tensor, mean: Tensor) -> Curvature:
    """Compute the covariances of the features under each component.

    :param total: (C,) log normalizers.
    :param mean: (C, L) mean features.
    """
    size = max(1, _COLUMNS // theta.shape[1])
    if len(theta) > size:
        blocks = zip(*(t.split(size) for t in (theta, total, mean)), strict=True)
        curvatures = [
            tilted_covariances(block, features, block_total, block_mean)
            for block, block_total, block_mean in blocks
        ]
        return Curvature(*(torch.cat(tensors) for tensors in zip(*curvatures, strict=True)))
    origin = mean.mean(0)
    second = mean.new_zeros(*mean.shape, mean.shape[1])
    for x, prob in _probabilities(theta, features, total, None, limit=_SCALED // theta.numel()):
        centered = x - origin.to(x)
        scaled = centered.unsqueeze(1) * prob.T.contiguous().unsqueeze(-1)
        second += (centered.T @ scaled.flatten(1)).unflatten(1, mean.shape).movedim(1, 0)
    shift = mean - origin
    covariance = second - shift.unsqueeze(-1) * shift.unsqueeze(-2)
    rounding = _SINGULAR * torch.finfo(theta.dtype).eps
    noise = rounding * second.diagonal(dim1=-1, dim2=-2) + (rounding * origin).square()
    return Curvature(0.5 * (covariance + covariance.mT), noise)


def item_covariance(features: Tensor) -> Curvature:
    """Compute the covariance (1, L, L) of the features over equally likely items."""
    theta = torch.zeros_like(features[:1])
    total = torch.full_like(theta[:, 0], len(features), dtype=torch.float64).log()
    return tilted_covariances(theta, features, total, tilted_means(theta, features, total))


def _chunks(
    theta: Tensor, features: Tensor, limit: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over features (n, L) and freshly computed logits (C, n) of chunks of items."""
    for chunk in _item_slices(len(features), len(theta), limit):
        yield features[chunk], theta @ features[chunk].T


def _item_slices(items: int, components: int, limit: int | None = None) -> list[slice]:
    size = max(_ITEMS, _NUMBERS // components if limit is None else limit)
    return [slice(start, start + size) for start in range(0, items, size)]


def _probabilities(
    theta: Tensor, features: Tensor, total: Tensor, table: Tensor | None, limit: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over features (n, L) and probabilities (C, n) of chunks of items."""
    if table is not None:
        for chunk in _item_slices(len(features), len(theta), limit):
            yield features[chunk], table[:, chunk].exp()
        return
    shift = total.to(theta).unsqueeze(-1)
    for x, logits in _chunks(theta, features, limit):
        yield x, logits.sub_(shift).exp_()
