r"""Moments of the atoms of a softmax mixture, from counts of the drawn items.

An item of class k is drawn with probability exp(x_j.theta_k) / sum_l exp(x_l.theta_k). If the p
features are a sample of N(mu, Sigma), then for large p the features of drawn items follow the
normal density tilted by exp(x.theta_k), which is N(mu + Sigma theta_k, Sigma). So with u = Sigma^-1
(x - mu) and theta an atom drawn by its weight,

    E[u] = E theta,    E[u u'] = E theta theta' + Sigma^-1,    E[u x u x u] = E theta^3 + sym(E
    theta x Sigma^-1),

where sym sums over the three places of E theta. Means over draws have an error of order N^-1/2. The
finite sample of items causes an error of order p^-1/2 with a factor exp(theta' Sigma theta / 2): a
class draws as if there were only p exp(-theta' Sigma theta) items.

**Other densities f of the features.** The tilt then gives exp(x.theta) f(x) instead of exp(x.theta)
phi(x) for the normal density phi. Each *draw* of an item gets the weight w(x) = phi(x) / f(x): for
every function h

    E[w(x_J) h(x_J)] = sum_k alpha_k int h exp(x.theta_k) phi / int exp(x.theta_k) f = sum_k alpha_k
    rho_k E_k[h],

with E_k the mean under N(mu + Sigma theta_k, Sigma) and rho_k = int exp(x.theta_k) phi / int
exp(x.theta_k) f. Divided by the mean weight of the draws, this is a mixture of the *same atoms*
with weights proportional to alpha_k rho_k. So the moments find the atoms, and their weights must be
divided by rho_k, which the items estimate once the atoms are known (:func:`untilt`). The weights w
belong to draws, not to items: counts c_j become c_j w(x_j).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.data.exact import as_floating, floating_dtype
from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError, OptionError

_NUMBERS = 1 << 20  # elements of a block of outer products
# Features are constant if their standard deviation over their mean is below this number of
# roundings of their dtype, or below this limit if that is less.
_ROUNDINGS, _CONSTANT = 30, 1e-6
_RANK = 1e-10  # variance of collinear directions, relative to the largest


@dataclass(frozen=True, eq=False)
class LatentMoments:
    """E theta, E theta theta' and E theta^3, in float64.

    They are stored as standardized features y = factor' (x - mean) of the drawn items, which have
    unit variance over all items. Standardized atoms s belong to theta = factor @ s.
    """

    mean: Tensor  # (L,) of the features
    covariance: Tensor  # (L, L)
    factor: Tensor  # (L, R) with factor factor' = covariance^+; R is its rank
    points: Tensor  # (n, R) standardized features of the items that were drawn
    mass: Tensor  # (n,) their shares of the draws, which sum to one
    items: int  # p
    draws: float  # N

    @property
    def first(self) -> Tensor:
        """E theta (L,)."""
        return self.factor @ (self.mass @ self.points)

    @property
    def second(self) -> Tensor:
        """E theta theta' (L, L); its estimate may have negative eigenvalues."""
        return self.factor @ self.standard_second @ self.factor.mT

    @cached_property
    def third(self) -> Tensor:
        """E theta^3 (L, L, L)."""
        identity = torch.eye(len(self.mean), dtype=self.factor.dtype, device=self.factor.device)
        return self.project(identity)

    @cached_property
    def standard_second(self) -> Tensor:
        """Second moment (R, R) of standardized atoms."""
        second = self.gram(self.mass)
        return second - torch.eye(len(second), dtype=second.dtype, device=second.device)

    def gram(self, mass: Tensor) -> Tensor:
        """Sum ``mass`` (n,) times y y' (R, R) over the drawn items."""
        total = self.factor.new_zeros(self.factor.shape[1], self.factor.shape[1])
        for points, block_mass in self._blocks(mass, len(total)):
            total += (points * block_mass.unsqueeze(-1)).mT @ points
        return total

    def project(self, basis: Tensor) -> Tensor:
        """Compute T(W, W, W) (K, K, K) of the third moment T and the columns W of ``basis`` (L, K).

        T itself is not formed.
        """
        return self.project_standard(self.factor.mT @ basis.to(self.factor))

    def contract(self, v: Tensor) -> Tensor:
        """Compute T(I, v, v) (L,) of the third moment T and a vector ``v`` (L,)."""
        v = self.factor.mT @ v.to(self.factor)
        along = self.points @ v
        first = self.mass @ self.points
        third = (self.mass * along.square()) @ self.points
        return self.factor @ (third - first * v.square().sum() - 2 * v * (first @ v))

    def project_standard(self, basis: Tensor) -> Tensor:
        """Compute :meth:`project` for standardized atoms; ``basis`` is (R, K)."""
        size = basis.shape[1]
        total = basis.new_zeros(size, size * size)
        for points, mass in self._blocks(self.mass, size * size):
            points = points @ basis
            pairs = (points.unsqueeze(-1) * points.unsqueeze(-2)).flatten(1)
            total += (points * mass.unsqueeze(-1)).mT @ pairs
        mean, gram = self.mass @ self.points @ basis, basis.mT @ basis
        gaussian = mean.reshape(-1, 1, 1) * gram
        symmetrized = gaussian + gaussian.permute(1, 0, 2) + gaussian.permute(1, 2, 0)
        return total.reshape(size, size, size) - symmetrized

    def _blocks(self, mass: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.points.split(_step(width)), mass.split(_step(width)), strict=True)


def latent_moments(
    features: Any,
    counts: Any,
    *,
    covariance: Tensor | None = None,
    mean: Tensor | None = None,
    log_density_ratio: Tensor | None = None,
) -> LatentMoments:
    """Estimate the moments of the atoms theta of a softmax mixture over items.

    The docstring of the module contains the formulas. They hold for features that are approximately
    normal, large p, and short atoms: sqrt(theta' Sigma theta), the standard deviation of the
    utility x.theta over the items, should be well below sqrt(2 log p). Where features are collinear
    or constant, the moments are those of atoms in the range of the covariance of the standardized
    features, since no draw identifies the rest.

    :param features: (p, L) features of the items, a tensor or array. Integers are converted to
        torch's default dtype, as in a softmax mixture.
    :param counts: (p,) how often each item was drawn, a tensor or array.
    :param covariance: (L, L) covariance Sigma of the features, if known; by default that of the
        items.
    :param mean: (L,) mean of the features, if known; by default that of the items.
    :param log_density_ratio: (p,) log N(x_j; mean, covariance) - log f(x_j), up to a constant, for
        items whose density f is known and is not normal. Then ``covariance`` is required, and
        ``mean`` is zero by default. Choose them such that the ratio is bounded: a mean that is
        dominated by a few draws of large weight is inaccurate.
    :returns: the moments, in float64.
    :raises DataError: for wrong shapes, numbers that are not finite, negative counts, no draws, a
        covariance that is not positive semidefinite, or features without any variance.
    :raises OptionError: for a ratio without its covariance.

    Bing, Bunea, Niles-Weed, Wegkamp, "Learning large softmax mixtures with warm start EM", arXiv
    2409.09903.

    >>> features = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    >>> shares = torch.softmax(features @ torch.tensor([1.0, -0.5]), 0)  # one class
    >>> [round(value, 1) for value in latent_moments(features, 1e9 * shares).first.tolist()]
    [1.0, -0.5]
    """
    features, counts = checked_items(features, counts)
    if log_density_ratio is not None and covariance is None:
        raise OptionError(
            "log_density_ratio= refers to a normal density: pass its covariance= (and mean=) as "
            "well"
        )
    if mean is None and log_density_ratio is None:
        mean = _mean(features)
    else:
        mean = _checked_mean(mean, features)
    if covariance is None:
        covariance = _covariance(features, mean)
    else:
        covariance = _checked_covariance(covariance, features)
    factor = _factor(covariance, constant_features(covariance, mean, features.dtype))
    drawn = counts.nonzero()[:, 0]
    mass = counts[drawn]
    if log_density_ratio is not None:
        ratio = checked_ratio(log_density_ratio, features)[drawn]
        mass = mass * (ratio - ratio.max()).exp()
    points = (features[drawn].double() - mean) @ factor
    return LatentMoments(
        mean, covariance, factor, points, mass / mass.sum(), len(features), float(counts.sum())
    )


def constant_features(covariance: Tensor, mean: Tensor, dtype: torch.dtype) -> Tensor:
    """Return whether each feature (L,) is the same for all items, up to rounding in ``dtype``."""
    rounding = min(_CONSTANT, _ROUNDINGS * torch.finfo(dtype).eps)
    return covariance.diagonal().clamp_min(0).sqrt() <= rounding * mean.abs()


def untilt(weights: Tensor, theta: Tensor, features: Any, log_density_ratio: Tensor) -> Tensor:
    """Convert weights of classes in weighted draws to weights of the classes.

    Divides them by rho_k, the mean of the density ratio over the items that class k draws, and
    normalizes them.

    :param weights: (K,) weights of draws that are weighted by the ratio of densities.
    :param theta: (K, L) atoms.
    :returns: (K,).

    >>> x, theta = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    >>> untilt(torch.tensor([0.5, 0.5]), theta, x, torch.zeros(2))
    tensor([0.5000, 0.5000])
    """
    features = as_items(features)
    features, _ = checked_items(features, torch.ones_like(features[:, 0]))
    ratio = checked_ratio(log_density_ratio, features)
    ratio = ratio - ratio.max()
    # log rho_k is the difference of two log normalizers.
    log_total = torch.full((len(theta),), -torch.inf, dtype=torch.float64, device=features.device)
    log_weighted = log_total
    step = _step(len(theta))
    for x, log_ratio in zip(features.split(step), ratio.split(step), strict=True):
        logits = x.double() @ theta.double().mT
        log_total = torch.logaddexp(log_total, logits.logsumexp(0))
        weighted_logits = logits + log_ratio.unsqueeze(-1)
        log_weighted = torch.logaddexp(log_weighted, weighted_logits.logsumexp(0))
    return torch.softmax(weights.double().log() - log_weighted + log_total, 0).to(weights)


def as_items(features: Any) -> Tensor:
    """Convert features to a tensor, integers to floating point, as a softmax mixture does."""
    tensor = as_rows(features)
    return tensor.to(floating_dtype(tensor, "features"))


def checked_items(features: Any, counts: Any) -> tuple[Tensor, Tensor]:
    """Convert features as :func:`as_items` and counts to float64, and check both.

    :raises DataError: when they do not fit each other or are not finite, or there are no draws.
    """
    features, counts = as_items(features), as_rows(counts)
    if features.dim() != 2 or len(features) < 2 or not features.shape[1]:
        raise DataError(
            "features must be floating-point numbers (p, L) of at least two items, not "
            f"{_described(features)}"
        )
    if counts.shape != features.shape[:1]:
        raise DataError(
            f"counts must be ({len(features)},), one per item, not {_described(counts)}"
        )
    if not bool(features.isfinite().all()):
        item = int((~features.isfinite()).any(-1).nonzero()[0])
        raise DataError(
            f"item {item} has NaN or infinity among its features: remove such items first"
        )
    counts = as_floating(counts.to(features.device), torch.float64, "counts")
    if not bool((counts.isfinite() & (counts >= 0)).all()) or not bool(counts.sum() > 0):
        raise DataError("counts must be finite and not negative, and at least one positive")
    return features.detach(), counts


def checked_ratio(log_density_ratio: Tensor, features: Tensor) -> Tensor:
    """Return the ratios (p,) in float64.

    :raises DataError: unless there is one finite number per item.
    """
    is_finite = bool(log_density_ratio.isfinite().all())
    if log_density_ratio.shape != features.shape[:1] or not is_finite:
        raise DataError(
            f"log_density_ratio must contain {len(features)} finite numbers, one per item; its "
            f"shape is {tuple(log_density_ratio.shape)}"
        )
    return log_density_ratio.detach().to(features.device).double()


def _described(x: Tensor) -> str:
    return f"{tuple(x.shape)} of {x.dtype}"


def _step(width: int) -> int:
    return max(1, _NUMBERS // max(1, width))


def _mean(features: Tensor) -> Tensor:
    total = features.new_zeros(features.shape[1], dtype=torch.float64)
    for chunk in features.split(_step(len(total))):
        total += chunk.double().sum(0)
    return total / len(features)


def _covariance(features: Tensor, mean: Tensor) -> Tensor:
    total = mean.new_zeros(len(mean), len(mean))
    for chunk in features.split(_step(len(mean))):
        centered = chunk.double() - mean
        total += centered.mT @ centered
    return total / len(features)


def _checked_mean(mean: Tensor | None, features: Tensor) -> Tensor:
    if mean is None:
        return features.new_zeros(features.shape[1], dtype=torch.float64)
    if mean.shape != features.shape[1:] or not bool(mean.isfinite().all()):
        raise DataError(
            f"mean must contain {features.shape[1]} finite numbers, one per feature; it is {mean}"
        )
    return mean.detach().to(features.device).double()


def _checked_covariance(covariance: Tensor, features: Tensor) -> Tensor:
    size = features.shape[1]
    if covariance.shape != (size, size) or not bool(covariance.isfinite().all()):
        raise DataError(
            f"covariance must be finite and ({size}, {size}), not {tuple(covariance.shape)}"
        )
    covariance = covariance.detach().to(features.device).double()
    tolerance = 1e-6 * float(covariance.abs().max())
    if not torch.allclose(covariance, covariance.mT, rtol=1e-4, atol=tolerance):
        raise DataError("covariance is not symmetric: pass (covariance + covariance.T) / 2")
    return (covariance + covariance.mT) / 2


def _factor(covariance: Tensor, constant: Tensor) -> Tensor:
    """Return (L, R) whose product with its transpose is the pseudo-inverse of the covariance.

    It is that of the correlations, scaled back to the units of the features.
    """
    # The correlations make features in different units comparable.
    unit = covariance.diagonal().clamp_min(0).rsqrt().masked_fill(constant, 0.0)
    values, vectors = torch.linalg.eigh(covariance * unit * unit.unsqueeze(-1))
    if not bool(values[-1] > 0):
        raise DataError("features have no variance: the items cannot be distinguished")
    if bool(values[0] < -1e-6 * values[-1]) or bool(covariance.diagonal().min() < 0):
        raise DataError("covariance must be positive semidefinite")
    positive = values > _RANK * values[-1]
    return unit.unsqueeze(-1) * vectors[:, positive] / values[positive].sqrt()
