"""Starts of softmax mixtures: from latent moments, from random points, from clusters of drawn items."""

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.errors import DataError, MomentWarning, OptionError
from pyro_mixtures.init.identification import second_moment_noise
from pyro_mixtures.init.latent_moments import LatentMoments, as_items, latent_moments, untilt
from pyro_mixtures.init.moment_atoms import moment_atoms
from pyro_mixtures.init.seeding import seed_rows
from pyro_mixtures.options import check_whole

METHODS = ("subspace", "moments", "moments_diagonal", "random", "kmeans", "planted")
_DRAWS, _ROUNDS, _CHAIN = 1 << 14, 25, 50  # of k-means
_MOMENTS = ("moments", "moments_diagonal")
_WEIGHTED = (*_MOMENTS, "kmeans")  # those whose weights come from the draws

Generator = torch.Generator | None


class SoftmaxStart(NamedTuple):
    """Parameters that EM of a softmax mixture starts from, like the features in device and dtype.

    Called with a model it starts that there, as ``best_of(starts=...)`` does.
    """

    theta: Tensor  # (K, L)
    weights: Tensor  # (K,)
    method: str
    doubts: tuple[
        str, ...
    ] = ()  # why a start from moments is not to be trusted; empty when it may be

    def __call__(self, model: Any) -> None:
        """Start ``model``, a module with ``start_at(theta, weights)``, here; weights that are constant stay equal."""
        constant = "weights" in dict(model.named_buffers())
        model.start_at(self.theta, None if constant else self.weights)


def start_softmax(
    features: Any,
    counts: Any,
    components: int,
    *,
    method: str = "subspace",
    norm: float | None = None,
    covariance: Tensor | None = None,
    mean: Tensor | None = None,
    log_density_ratio: Tensor | None = None,
    planted: tuple[Tensor, Tensor] | None = None,
    generator: Generator = None,
) -> SoftmaxStart:
    """Atoms (K, L) and weights (K,) to start a softmax mixture over items with ``features`` (p, L) from.

    :param counts: (p,) how often each item was drawn.
    :param method: ``"subspace"``: random points of the span of the K leading eigenvectors of E
        theta theta', with equal weights; made for several starts of which the likeliest is kept
        (:func:`starts_softmax`). ``"moments"``: third moment, whitened by the second, decomposed by
        :func:`tensor_power`; ``"moments_diagonal"``: by
        :func:`simultaneous_diagonalization`. ``"random"``: random points of R^L. ``"kmeans"``:
        k-means of the standardised features of at most 16,384 draws. ``"planted"``: the parameters
        ``planted=(theta, weights)``.
    :param norm: length sqrt(theta' Sigma theta), the standard deviation of utilities over items, of
        random points; by default the root mean square that the second moment tells. From moments
        the greatest length of an atom, beyond which it is clipped; by default sqrt(2 log p), at
        which a softmax of p normal utilities comes to lie on few.
    :param covariance: of the features; with ``mean`` and ``log_density_ratio`` as in
        :func:`latent_moments`.
    :param generator: source of randomness, on the CPU; torch's global one by default.
    :raises OptionError: for an unknown method, components that are no positive int, a norm that is
        not positive, ``planted`` without its method or the other way round, or moments of more
        components than features.
    :raises DataError: as :func:`latent_moments` does, or when planted parameters do not fit.
    :warns MomentWarning: when a start from moments is not to be trusted: fewer eigenvalues of E
        theta theta' than components above 1.5 times their noise, tensor eigenvalues with a standard
        error of more than a fifth, weights that the first moment makes negative, or atoms that had
        to be clipped; ``doubts`` says which.

    Bing, Bunea, Niles-Weed, Wegkamp, "Learning large softmax mixtures with warm start EM", arXiv
    2409.09903.

    >>> draw = torch.Generator().manual_seed(0)
    >>> features = torch.randn(50_000, 3, generator=draw)
    >>> theta = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> shares = torch.softmax(features @ theta.T, 0).mean(-1)
    >>> start = start_softmax(features, 1e7 * shares, 2, method="moments", generator=draw)
    >>> start.theta.shape, start.doubts
    (torch.Size([2, 3]), ())
    """
    _check(components, 1, method, norm, planted)
    features = as_items(features)
    moments = latent_moments(
        features, counts, covariance=covariance, mean=mean, log_density_ratio=log_density_ratio
    )
    start = _start(_Task(moments, components, norm, generator), method, planted)
    return _finished([start], features, log_density_ratio)[0]


def starts_softmax(
    features: Any,
    counts: Any,
    components: int,
    *,
    count: int,
    method: str = "subspace",
    norm: float | None = None,
    covariance: Tensor | None = None,
    mean: Tensor | None = None,
    log_density_ratio: Tensor | None = None,
    planted: tuple[Tensor, Tensor] | None = None,
    generator: Generator = None,
) -> list[SoftmaxStart]:
    """``count`` starts as :func:`start_softmax` makes them, of moments that are taken once.

    >>> features = torch.randn(100, 2)
    >>> [start.theta.shape for start in starts_softmax(features, torch.ones(100), 3, count=2, method="random")]
    [torch.Size([3, 2]), torch.Size([3, 2])]
    """
    _check(components, count, method, norm, planted)
    features = as_items(features)
    moments = latent_moments(
        features, counts, covariance=covariance, mean=mean, log_density_ratio=log_density_ratio
    )
    task = _Task(moments, components, norm, generator)
    return _finished(
        [_start(task, method, planted) for _ in range(count)], features, log_density_ratio
    )


def _finished(
    starts: list[SoftmaxStart], features: Tensor, log_density_ratio: Tensor | None
) -> list[SoftmaxStart]:
    """The starts in the features' dtype, their weights those of the classes; warns of all doubts at once."""
    if log_density_ratio is not None:
        starts = [
            start._replace(weights=untilt(start.weights, start.theta, features, log_density_ratio))
            if start.method in _WEIGHTED
            else start
            for start in starts
        ]
    doubts = dict.fromkeys(doubt for start in starts for doubt in start.doubts)
    if doubts:
        warnings.warn(
            f"a start from moments is not to be trusted: {'; '.join(doubts)}",
            MomentWarning,
            stacklevel=3,
        )
    return [
        start._replace(theta=start.theta.to(features), weights=start.weights.to(features))
        for start in starts
    ]


class _Task(NamedTuple):
    moments: LatentMoments
    components: int
    norm: float | None
    generator: Generator

    def normal(self, rows: int, columns: int) -> Tensor:
        numbers = torch.randn(
            rows, columns, generator=self.generator, dtype=torch.float64, device="cpu"
        )
        return numbers.to(self.moments.points.device)

    def leading(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors (R, .) of the standardised second moment, at most K, ascending."""
        values, vectors = torch.linalg.eigh(self.moments.standard_second)
        return values[-self.components :], vectors[:, -self.components :]

    def freezing(self) -> float:
        """Length at which a softmax of p standard normal utilities freezes (Derrida's random energy model)."""
        return math.sqrt(2 * math.log(self.moments.items))

    def length(self) -> float:
        """Of random atoms; never so short that noise would hide them."""
        square = max(float(self.leading()[0].clamp_min(0).sum()), second_moment_noise(self.moments))
        return self.norm or min(math.sqrt(square), self.freezing()) or 1.0


def _check(
    components: int,
    count: int,
    method: str,
    norm: float | None,
    planted: tuple[Tensor, Tensor] | None,
) -> None:
    if method not in METHODS:
        raise OptionError(f"unknown method {method!r}; choose one of {METHODS}")
    check_whole(components=components, count=count)
    if norm is not None and not 0 < norm < math.inf:
        raise OptionError(f"norm={norm} must be positive and finite")
    if (method == "planted") != (planted is not None):
        raise OptionError(
            "method='planted' and planted=(theta, weights) belong together: give both or neither"
        )


def _start(task: _Task, method: str, planted: tuple[Tensor, Tensor] | None) -> SoftmaxStart:
    if planted is not None:
        return SoftmaxStart(*_planted(task, *planted), method)
    if method in _MOMENTS:
        diagonalize, longest = method == "moments_diagonal", task.norm or task.freezing()
        found = moment_atoms(
            task.moments,
            task.components,
            longest=longest,
            diagonalize=diagonalize,
            generator=task.generator,
        )
        return SoftmaxStart(found.theta, found.weights, method, found.doubts)
    atoms, weights = {"subspace": _subspace, "random": _random, "kmeans": _kmeans}[method](task)
    return SoftmaxStart(atoms @ task.moments.factor.mT, weights, method)


def _planted(task: _Task, theta: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    shape = (task.components, len(task.moments.mean))
    if theta.shape != shape or weights.shape != shape[:1]:
        given = f"planted theta {tuple(theta.shape)} and weights {tuple(weights.shape)}"
        raise DataError(f"{given} must be {shape} and {shape[:1]}")
    if (
        not bool(theta.isfinite().all())
        or not bool((weights > 0).all())
        or abs(float(weights.sum()) - 1) > 1e-4
    ):
        raise DataError(
            "planted theta must be finite, and planted weights positive with the sum one"
        )
    return theta.detach().clone(), weights.detach().clone()


def _random(task: _Task) -> tuple[Tensor, Tensor]:
    atoms = task.normal(task.components, task.moments.points.shape[1])
    return task.length() * torch.nn.functional.normalize(atoms, dim=-1), _equal(task)


def _subspace(task: _Task) -> tuple[Tensor, Tensor]:
    _, vectors = task.leading()
    atoms = torch.nn.functional.normalize(task.normal(task.components, vectors.shape[1]), dim=-1)
    return task.length() * atoms @ vectors.mT, _equal(task)


def _equal(task: _Task) -> Tensor:
    return task.moments.mass.new_full((task.components,), 1 / task.components)


def _kmeans(task: _Task) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm: standardised features of class k lie about its standardised atom, with variance one."""
    points = _draws(task)
    centres = seed_rows(points, task.components, chain=_CHAIN, generator=task.generator).loc
    for _ in range(_ROUNDS):
        labels = torch.cdist(points, centres).argmin(-1)
        sizes = torch.bincount(labels, minlength=task.components).unsqueeze(-1)
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        before, centres = centres, torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
        if torch.equal(before, centres):
            break
    return centres, (sizes[:, 0] + 1) / (
        sizes + 1
    ).sum()  # a cluster that lost its points keeps a weight


def _draws(task: _Task) -> Tensor:
    """Standardised features (n, R) of draws, at least as many as components."""
    size = max(task.components, min(_DRAWS, int(task.moments.draws)))
    uniform = torch.rand(size, generator=task.generator, dtype=torch.float64, device="cpu")
    cumulative = task.moments.mass.cumsum(0).cpu()
    index = torch.searchsorted(cumulative, uniform * cumulative[-1]).clamp_max(len(cumulative) - 1)
    return task.moments.points[index.to(task.moments.points.device)]
