r"""Moments of the atoms of a softmax mixture, from how often items were drawn.

An item of class k is drawn with probability exp(x_j.theta_k) / sum_l exp(x_l.theta_k). If the p
features are a sample of N(mu, Sigma), then for large p the features of drawn items follow the
normal density tilted by exp(x.theta_k), which is N(mu + Sigma theta_k, Sigma). So with u = Sigma^-1
(x - mu) and theta an atom drawn by its weight,

    E[u] = E theta,    E[u u'] = E theta theta' + Sigma^-1,    E[u x u x u] = E theta^3 + sym(E
    theta x Sigma^-1),

where sym sums over the three places of E theta. Means over draws have an error of order N^-1/2, and
the finite sample of items one of order p^-1/2 with a factor exp(theta' Sigma theta / 2): a class
draws as if there were but p exp(-theta' Sigma theta) items.

**Other densities f of the features.** The tilt then gives exp(x.theta) f(x) instead of exp(x.theta)
phi(x) for the normal density phi. Each *draw* of an item gets the weight w(x) = phi(x) / f(x): for
every function h

    E[w(x_J) h(x_J)] = sum_k alpha_k int h exp(x.theta_k) phi / int exp(x.theta_k) f = sum_k alpha_k
    rho_k E_k[h],

with E_k the mean under N(mu + Sigma theta_k, Sigma) and rho_k = int exp(x.theta_k) phi / int
exp(x.theta_k) f. Divided by the mean weight of the draws this is a mixture of the *same atoms* with
weights proportional to alpha_k rho_k. So the moments find the atoms, and their weights have to be
divided by rho_k, which the items estimate once the atoms are known (:func:`untilt`). The weights w
belong to draws, not to items: counts c_j become c_j w(x_j).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError, OptionError

_NUMBERS = 1 << 20  # of a block of outer products
# Standard deviation over mean: in roundings of the features' dtype, but no more than this.
_ROUNDINGS, _CONSTANT = 30, 1e-6
_RANK = 1e-10  # of a direction's variance in that of the largest: below it features are collinear


@dataclass(frozen=True, eq=False)
class LatentMoments:
    """E theta, E theta theta', E theta^3, kept as standardised features of the drawn items; all in float64.

    Standardised are y = factor' (x - mean), of unit variance over the items, and atoms with theta =
    factor @ standard.
    """

    mean: Tensor  # (L,) of the features
    covariance: Tensor  # (L, L)
    factor: Tensor  # (L, R) with factor factor' = covariance^+; R is its rank
    points: Tensor  # (n, R) standardised features of the items that were drawn
    mass: Tensor  # (n,) their shares, which sum to one
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
        return self.project(
            torch.eye(len(self.mean), dtype=self.factor.dtype, device=self.factor.device)
        )

    @cached_property
    def standard_second(self) -> Tensor:
        """The second moment (R, R) of standardised atoms."""
        second = self.gram(self.mass)
        return second - torch.eye(len(second), dtype=second.dtype, device=second.device)

    def gram(self, mass: Tensor) -> Tensor:
        """Sum of ``mass`` (n,) times y y' (R, R) over the drawn items."""
        total = self.factor.new_zeros(self.factor.shape[1], self.factor.shape[1])
        for points, part in self._blocks(mass, len(total)):
            total += (points * part.unsqueeze(-1)).mT @ points
        return total

    def project(self, basis: Tensor) -> Tensor:
        """T(W, W, W) (K, K, K) of the third moment with the columns of ``basis`` (L, K); T itself is not formed."""
        return self.project_standard(self.factor.mT @ basis.to(self.factor))

    def contract(self, v: Tensor) -> Tensor:
        """T(I, v, v) (L,) of the third moment with ``v`` (L,)."""
        v = self.factor.mT @ v.to(self.factor)
        along = self.points @ v
        first = self.mass @ self.points
        third = (self.mass * along.square()) @ self.points
        return self.factor @ (third - first * v.square().sum() - 2 * v * (first @ v))

    def project_standard(self, basis: Tensor) -> Tensor:
        """:meth:`project` for standardised atoms; ``basis`` (R, K)."""
        size = basis.shape[1]
        total = basis.new_zeros(size, size * size)
        for points, mass in self._blocks(self.mass, size * size):
            points = points @ basis
            pairs = (points.unsqueeze(-1) * points.unsqueeze(-2)).flatten(1)
            total += (points * mass.unsqueeze(-1)).mT @ pairs
        mean, gram = self.mass @ self.points @ basis, basis.mT @ basis
        noise = mean.reshape(-1, 1, 1) * gram
        return (
            total.reshape(size, size, size)
            - noise
            - noise.permute(1, 0, 2)
            - noise.permute(1, 2, 0)
        )

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
    """Moments of the atoms theta of a softmax mixture over items with ``features`` (p, L), drawn ``counts`` (p,) times.

    See the head of this module for the formulas. They need features that are about normal, p large,
    and atoms that are short: sqrt(theta' Sigma theta), the standard deviation of the utility
    x.theta over the items, well below sqrt(2 log p). Where features are collinear or constant,
    theta has no part that no draw tells: the moments are those of atoms in the range of the
    covariance of the features, each in units of its standard deviation.

    Features and counts may be arrays. Integer features are taken in torch's default dtype, as by a
    softmax mixture.

    :param covariance: Sigma (L, L) of the features, if known; ``mean`` (L,) as well. By default
        those of the items.
    :param log_density_ratio: (p,) log N(x_j; mean, covariance) - log f(x_j), up to a constant, for
        items whose density f is known and is not normal. Then ``covariance`` must be given, and
        ``mean`` is zero by default. Choose them such that the ratio is bounded: a few draws of
        large weight make a poor mean.
    :raises DataError: for wrong shapes, numbers that are not finite, negative counts, no draws at
        all, a covariance that is not positive semidefinite, or features without any variance.
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
            "log_density_ratio= is that of a normal density: give its covariance= (and mean=) as well"
        )
    given = mean is not None or log_density_ratio is not None
    mean = _vector(mean, features) if given else _mean(features)
    covariance = (
        _covariance(features, mean) if covariance is None else _symmetric(covariance, features)
    )
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
    """Whether each feature (L,), given in ``dtype``, is the same for all items, up to rounding."""
    rounding = min(_CONSTANT, _ROUNDINGS * torch.finfo(dtype).eps)
    return covariance.diagonal().clamp_min(0).sqrt() <= rounding * mean.abs()


def untilt(weights: Tensor, theta: Tensor, features: Any, log_density_ratio: Tensor) -> Tensor:
    """The classes' own weights (K,), of those that draws weighted by the ratio of densities have.

    Divides by rho_k, the mean of the ratio over items that class k draws, and makes the sum one.

    >>> x, theta = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    >>> untilt(torch.tensor([0.5, 0.5]), theta, x, torch.zeros(2))
    tensor([0.5000, 0.5000])
    """
    features = as_items(features)
    features, _ = checked_items(features, torch.ones_like(features[:, 0]))
    ratio = checked_ratio(log_density_ratio, features)
    ratio = ratio - ratio.max()
    below = torch.full((len(theta),), -torch.inf, dtype=torch.float64, device=features.device)
    above = below
    for part, log_ratio in zip(
        features.split(_step(len(theta))), ratio.split(_step(len(theta))), strict=True
    ):
        logits = part.double() @ theta.double().mT
        below = torch.logaddexp(below, logits.logsumexp(0))
        above = torch.logaddexp(above, (logits + log_ratio.unsqueeze(-1)).logsumexp(0))
    return torch.softmax(weights.double().log() - above + below, 0).to(weights)


def as_items(features: Any) -> Tensor:
    """Features as a tensor; integers in the default dtype, where a softmax mixture has them too."""
    features = as_rows(features)
    inexact = features.is_floating_point() or features.is_complex()
    return features if inexact else features.to(torch.get_default_dtype())


def checked_items(features: Any, counts: Any) -> tuple[Tensor, Tensor]:
    """Features as :func:`as_items` has them, counts in float64; both fit, are finite, and there are draws."""
    features, counts = as_items(features), as_rows(counts)
    if (
        features.dim() != 2
        or len(features) < 2
        or not features.shape[1]
        or not features.is_floating_point()
    ):
        raise DataError(
            f"features must be (p, L) of at least two items, in floats, not {_described(features)}"
        )
    if counts.shape != features.shape[:1]:
        raise DataError(
            f"counts must be ({len(features)},), one of each item, not {_described(counts)}"
        )
    if not bool(features.isfinite().all()):
        item = int((~features.isfinite()).any(-1).nonzero()[0])
        raise DataError(
            f"item {item} has NaN or infinity among its features: remove such items first"
        )
    counts = counts.to(features.device).double()
    if not bool((counts.isfinite() & (counts >= 0)).all()) or not bool(counts.sum() > 0):
        raise DataError("counts must be finite, not negative, and positive somewhere")
    return features.detach(), counts


def checked_ratio(log_density_ratio: Tensor, features: Tensor) -> Tensor:
    """One finite number of each item, in float64."""
    if log_density_ratio.shape != features.shape[:1] or not bool(
        log_density_ratio.isfinite().all()
    ):
        shape = tuple(log_density_ratio.shape)
        raise DataError(
            f"log_density_ratio must hold {len(features)} finite numbers, one of each item; it is {shape}"
        )
    return log_density_ratio.detach().to(features.device).double()


def _described(x: Tensor) -> str:
    return f"{tuple(x.shape)} of {x.dtype}"


def _step(width: int) -> int:
    return max(1, _NUMBERS // max(1, width))


def _mean(features: Tensor) -> Tensor:
    total = features.new_zeros(features.shape[1], dtype=torch.float64)
    return sum((part.double().sum(0) for part in features.split(_step(len(total)))), total) / len(
        features
    )


def _covariance(features: Tensor, mean: Tensor) -> Tensor:
    total = mean.new_zeros(len(mean), len(mean))
    for part in features.split(_step(len(mean))):
        centred = part.double() - mean
        total += centred.mT @ centred
    return total / len(features)


def _vector(mean: Tensor | None, features: Tensor) -> Tensor:
    if mean is None:
        return features.new_zeros(features.shape[1], dtype=torch.float64)
    if mean.shape != features.shape[1:] or not bool(mean.isfinite().all()):
        raise DataError(
            f"mean must hold {features.shape[1]} finite numbers, one of each feature; it is {mean}"
        )
    return mean.detach().to(features.device).double()


def _symmetric(covariance: Tensor, features: Tensor) -> Tensor:
    size = features.shape[1]
    if covariance.shape != (size, size) or not bool(covariance.isfinite().all()):
        raise DataError(
            f"covariance must be finite and ({size}, {size}), not {tuple(covariance.shape)}"
        )
    covariance = covariance.detach().to(features.device).double()
    if not torch.allclose(
        covariance, covariance.mT, rtol=1e-4, atol=1e-6 * float(covariance.abs().max())
    ):
        raise DataError("covariance is not symmetric")
    return (covariance + covariance.mT) / 2


def _factor(covariance: Tensor, constant: Tensor) -> Tensor:
    """(L, R) whose product with its transpose is the pseudo-inverse, but for the unit of each feature."""
    # Features in different units are compared by their correlations.
    unit = covariance.diagonal().clamp_min(0).rsqrt().masked_fill(constant, 0.0)
    values, vectors = torch.linalg.eigh(covariance * unit * unit.unsqueeze(-1))
    if not bool(values[-1] > 0):
        raise DataError("features have no variance: the items cannot be told apart")
    if bool(values[0] < -1e-6 * values[-1]) or bool(covariance.diagonal().min() < 0):
        raise DataError("covariance must be positive semidefinite")
    kept = values > _RANK * values[-1]
    return unit.unsqueeze(-1) * vectors[:, kept] / values[kept].sqrt()
