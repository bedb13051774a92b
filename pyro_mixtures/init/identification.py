"""Identification of softmax mixtures: the rank of the second moment, and useless features."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import IdentificationWarning
from pyro_mixtures.init.latent_moments import (
    LatentMoments,
    as_items,
    constant_features,
    latent_moments,
)
from pyro_mixtures.options import check_whole

_COLLINEAR = 1e-6  # variance of a direction, in units of the features' variances
_INVOLVED = 0.1  # coefficient of a feature in a collinear direction, relative to the largest


@dataclass(frozen=True, eq=False)
class Identification:
    """Eigenvalues of the second moment, their noise, and problems with identification."""

    components: int  # K
    rank: int  # eigenvalues above the noise
    # (R,) of E theta theta' in units where the covariance of the features is one; descending.
    eigenvalues: Tensor
    noise: float  # largest eigenvalue that sampling alone causes
    items: int  # p
    effective_items: float  # 1 / sum of squared probabilities
    draws: float  # N
    parameters: int  # free ones: K R + K - 1, without constant and collinear features
    constant: tuple[int, ...]  # features that are the same for all items
    collinear: tuple[int, ...]  # features that are part of a linear dependence
    problems: tuple[str, ...]  # descriptions; empty if there are none

    def __str__(self) -> str:
        shown = self.eigenvalues[: self.components + 2].tolist()
        values = ", ".join(f"{value:.3g}" for value in shown)
        more = ", ..." if len(self.eigenvalues) > len(shown) else ""
        lines = [
            f"{self.components} components, {self.parameters} free parameters; {self.draws:g} "
            f"draws of {self.items} items, effectively {self.effective_items:.0f}",
            f"second moment: rank {self.rank}; eigenvalues {values}{more}, noise {self.noise:.3g}",
            *(f"- {problem}" for problem in self.problems),
        ]
        return "\n".join(lines)


def identification(
    features: Any,
    counts: Any,
    components: int,
    *,
    covariance: Tensor | None = None,
    mean: Tensor | None = None,
    log_density_ratio: Tensor | None = None,
) -> Identification:
    """Check whether counts of items identify the components of a softmax mixture.

    A rank below K does not mean that EM must fail, because EM uses the whole likelihood. It means
    that the second moment does not show K linearly independent atoms.

    :param features: (p, L) features of the items.
    :param counts: (p,) how often each item was drawn.
    :param components: number of components, K.
    :param covariance: of the features, with ``mean`` and ``log_density_ratio`` as in
        :func:`latent_moments`.
    :returns: the eigenvalues of the second moment, their noise, and the problems found.
    :raises DataError: as :func:`latent_moments`.
    :raises OptionError: when ``components`` is not a positive integer.
    :warns IdentificationWarning: one warning with all ``problems``, if there are any.

    >>> draw = torch.Generator().manual_seed(0)
    >>> features = torch.randn(20_000, 3, generator=draw)
    >>> theta = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> shares = torch.softmax(features @ theta.T, 0).mean(-1)
    >>> identification(features, torch.poisson(1e6 * shares, generator=draw), 2).rank
    2
    """
    check_whole(components=components)
    features, counts = as_items(features), as_rows(counts)
    moments = latent_moments(
        features, counts, covariance=covariance, mean=mean, log_density_ratio=log_density_ratio
    )
    values = torch.linalg.eigvalsh(moments.standard_second).flip(0)
    noise = second_moment_noise(moments)
    constant = constant_features(moments.covariance, moments.mean, features.dtype)
    result = Identification(
        components=components,
        rank=int((values > noise).sum()),
        eigenvalues=values,
        noise=noise,
        items=len(features),
        effective_items=_effective_items(counts),
        draws=moments.draws,
        parameters=components * (len(values) + 1) - 1,
        constant=_indices(constant),
        collinear=_indices(_collinear(moments.covariance, constant)),
        problems=(),
    )
    result = replace(result, problems=tuple(_problems(result)))
    if result.problems:
        warnings.warn("; ".join(result.problems), IdentificationWarning, stacklevel=2)
    return result


def second_moment_noise(moments: LatentMoments) -> float:
    r"""Bound the sampling noise of the standardized second moment, in the operator norm.

    The noise rarely exceeds the bound. The error of the moment is a sum over independent items of
    :math:`A_j = m_j (y_j y_j' - M)`, with m_j the shares of draws and M the mean of y y'. The bound
    is twice the matrix standard deviation :math:`|\sum_j A_j^2|^{1/2}`: two standard deviations
    for L = 1, the edge of the spectrum of a Gaussian matrix of equal variances for large L (Tropp,
    "An introduction to matrix concentration inequalities", 2015, chapter 4). As m_j^2 estimates
    pi_j^2 + pi_j / N, the bound covers the noise of p items as well as that of N draws.
    """
    y, square = moments.points, moments.mass.square()
    mean = moments.standard_second + torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
    # Sum of m_j^2 (y_j y_j' - M)^2, expanded; (y y')^2 = |y|^2 y y'.
    linear = moments.gram(square)
    quadratic = moments.gram(square * torch.linalg.vecdot(y, y))
    variance = quadratic - linear @ mean - mean @ linear + mean @ mean * square.sum()
    return 2 * float(torch.linalg.eigvalsh(variance)[-1].clamp_min(0).sqrt())


def _effective_items(counts: Tensor) -> float:
    """Estimate 1 / sum of pi_j^2 without the bias due to the noise of the counts."""
    counts = counts.double()
    items, draws = float(len(counts)), float(counts.sum())
    pairs = float((counts * (counts - 1)).clamp_min(0).sum())
    return min(items, draws * max(draws - 1, 0.0) / pairs) if pairs > 0 else items


def _collinear(covariance: Tensor, constant: Tensor) -> Tensor:
    """Return whether each feature (L,) is part of a linear combination that hardly varies."""
    unit = covariance.diagonal().clamp_min(0).rsqrt().masked_fill(constant, 0.0)
    correlation = covariance * unit * unit.unsqueeze(-1) + torch.diag(constant.to(unit))
    values, vectors = torch.linalg.eigh(correlation)
    flat = vectors[:, values < _COLLINEAR].abs()
    if not flat.numel():
        return torch.zeros_like(constant)
    return (flat > _INVOLVED * flat.amax(0)).any(-1)


def _indices(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero()[:, 0].tolist())


def _problems(result: Identification) -> list[str]:
    problems = []
    if result.constant:
        problems.append(
            f"features {list(result.constant)} are the same for all items, so no draw identifies "
            "their coefficients: drop them"
        )
    if result.collinear:
        problems.append(
            f"features {list(result.collinear)} are collinear, so only combinations of their "
            "coefficients are identified: drop some"
        )
    if result.parameters > result.items - 1:
        problems.append(
            f"{result.parameters} parameters cannot be identified by {result.items - 1} free "
            "probabilities of items: use fewer components or features"
        )
    size = len(result.eigenvalues)
    entries = size * (size + 1) // 2
    if result.effective_items < entries:
        problems.append(
            f"the draws are effectively of {result.effective_items:.0f} items, fewer than the "
            f"{entries} entries of the second moment: do not trust moments"
        )
    if result.rank < result.components:
        problems.append(
            f"only {result.rank} eigenvalues of the second moment exceed their noise "
            f"{result.noise:.3g}, fewer than {result.components} components: start EM several "
            "times, pass more draws or items, or use fewer components"
        )
    return problems
