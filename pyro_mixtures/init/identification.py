"""What items and draws can tell of a softmax mixture: the rank of its second moment, and features that say nothing."""

import warnings
from dataclasses import dataclass
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

_COLLINEAR = 1e-6  # variance of a direction, in units of the features' own


@dataclass(frozen=True, eq=False)
class Identification:
    """Eigenvalues of the second moment beside their noise, and all that stands against identification."""

    components: int  # K
    rank: int  # eigenvalues above the noise
    eigenvalues: (
        Tensor  # (R,) of E theta theta' in units where the features' covariance is one; descending
    )
    noise: float  # largest eigenvalue that sampling alone makes
    items: int  # p
    effective_items: float  # 1 / sum of squared probabilities: how many items the draws spread over
    draws: float  # N
    parameters: int  # free ones: K L + K - 1, constant and collinear features left out
    constant: tuple[int, ...]  # features that are the same for all items
    collinear: tuple[int, ...]  # features that take part in a linear dependence
    problems: tuple[str, ...]  # in words; empty when there are none

    def __str__(self) -> str:
        values = ", ".join(
            f"{value:.3g}" for value in self.eigenvalues[: self.components + 2].tolist()
        )
        more = ", ..." if len(self.eigenvalues) > self.components + 2 else ""
        lines = [
            f"{self.components} components, {self.parameters} free parameters; {self.draws:g} draws of {self.items} "
            f"items, as if of {self.effective_items:.0f} equally likely ones",
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
    """Whether ``counts`` (p,) of items with ``features`` (p, L) can tell ``components`` classes apart.

    Other arguments are those of :func:`latent_moments`. A rank below K does not mean that EM must
    fail, which uses the whole likelihood; it means that second moments do not show K linearly
    independent atoms.

    :raises DataError: as :func:`latent_moments` does; OptionError when ``components`` is no
        positive int.
    :warns IdentificationWarning: once, with all ``problems``, if there are any.

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
    found = Identification(
        components=components,
        rank=int((values > noise).sum()),
        eigenvalues=values,
        noise=noise,
        items=len(features),
        effective_items=_effective_items(counts),
        draws=moments.draws,
        parameters=components * (len(values) + 1) - 1,
        constant=_numbers(constant),
        collinear=_numbers(_collinear(moments.covariance, constant)),
        problems=(),
    )
    found = Identification(**{**vars(found), "problems": tuple(_problems(found))})
    if found.problems:
        warnings.warn("; ".join(found.problems), IdentificationWarning, stacklevel=2)
    return found


def second_moment_noise(moments: LatentMoments) -> float:
    r"""Bound that sampling noise of the standardised second moment seldom passes, in the operator norm.

    The moment is a sum over items of :math:`A_j = m_j (y_j y_j' - M)`, m_j the shares of draws and
    M the mean of y y', and items are independent. The bound is twice the matrix standard deviation
    :math:`|\sum_j A_j^2|^{1/2}`: two standard deviations for L = 1, the edge of the spectrum of a
    Gaussian matrix of equal variances for large L (Tropp, "An introduction to matrix concentration
    inequalities", 2015, chapter 4). As m_j^2 estimates pi_j^2 + pi_j / N it holds the noise of p
    items as well as that of N draws.
    """
    y, square = moments.points, moments.mass.square()
    mean = moments.standard_second + torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
    once, twice = moments.gram(square), moments.gram(square * torch.linalg.vecdot(y, y))
    variance = twice - once @ mean - mean @ once + mean @ mean * square.sum()
    return 2 * float(torch.linalg.eigvalsh(variance)[-1].clamp_min(0).sqrt())


def _effective_items(counts: Tensor) -> float:
    """1 / sum of pi_j^2, from counts without the bias that their own noise makes."""
    counts = counts.double()
    draws, pairs = float(counts.sum()), float((counts * (counts - 1)).clamp_min(0).sum())
    return (
        min(float(len(counts)), draws * max(draws - 1, 0.0) / pairs)
        if pairs > 0
        else float(len(counts))
    )


def _collinear(covariance: Tensor, constant: Tensor) -> Tensor:
    """Whether each feature (L,) has a part in a combination that hardly varies."""
    unit = covariance.diagonal().clamp_min(0).rsqrt().masked_fill(constant, 0.0)
    correlation = covariance * unit * unit.unsqueeze(-1) + torch.diag(constant.to(unit))
    values, vectors = torch.linalg.eigh(correlation)
    flat = vectors[:, values < _COLLINEAR].abs()
    return (flat > 0.1 * flat.amax(0)).any(-1) if flat.numel() else torch.zeros_like(constant)


def _numbers(which: Tensor) -> tuple[int, ...]:
    return tuple(which.nonzero()[:, 0].tolist())


def _problems(found: Identification) -> list[str]:
    size = len(found.eigenvalues)
    entries = size * (size + 1) // 2
    constant = (
        f"features {list(found.constant)} are the same for all items, no draw tells their coefficients: drop them",
        bool(found.constant),
    )
    collinear = (
        f"features {list(found.collinear)} are collinear, only combinations of their coefficients are told: drop some",
        bool(found.collinear),
    )
    counting = (
        f"{found.parameters} parameters cannot be told from {found.items - 1} free probabilities of items: take fewer "
        "components or features",
        found.parameters > found.items - 1,
    )
    few = (
        f"draws are as if of {found.effective_items:.0f} items, fewer than the {entries} entries of the second moment: "
        "trust no moments",
        found.effective_items < entries,
    )
    rank = (
        f"only {found.rank} eigenvalues of the second moment exceed their noise {found.noise:.3g}, fewer than "
        f"{found.components} components: start EM several times, give more draws or items, or take fewer components",
        found.rank < found.components,
    )
    return [problem for problem, holds in (constant, collinear, counting, few, rank) if holds]
