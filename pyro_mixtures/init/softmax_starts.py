"""Starts of softmax mixtures: latent moments, random points, clusters of the drawn items."""

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
_DRAWS, _ITERATIONS, _CHAIN = 1 << 14, 25, 50  # of k-means
_MOMENTS = ("moments", "moments_diagonal")
_WEIGHTED = (*_MOMENTS, "kmeans")  # methods whose weights are estimated from the draws

Generator = torch.Generator | None


class SoftmaxStart(NamedTuple):
    """Parameters from which EM of a softmax mixture starts, in the features' device and dtype.

    A call with a model initializes that model, as ``best_of(starts=...)`` does.
    """

    theta: Tensor  # (K, L)
    weights: Tensor  # (K,)
    method: str
    doubts: tuple[str, ...] = ()  # reasons not to trust a start from moments

    def __call__(self, model: Any) -> None:
        """Initialize ``model``, a module with ``start_at(theta, weights)``.

        Weights that are constant in the model stay equal.
        """
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
    """Compute atoms and weights from which EM of a softmax mixture over items starts.

    :param features: (p, L) features of the items.
    :param counts: (p,) how often each item was drawn.
    :param components: number of atoms, K.
    :param method: ``"subspace"``: random points of the span of the K leading eigenvectors of E
        theta theta', with equal weights, for several starts of which the best is kept
        (:func:`starts_softmax`). ``"moments"``: the third moment, whitened by the second one and
        decomposed by :func:`tensor_power`. ``"moments_diagonal"``: the same with
        :func:`simultaneous_diagonalization`. ``"random"``: random points of R^L. ``"kmeans"``:
        k-means of the standardized features of at most 16,384 draws. ``"planted"``: the parameters
        ``planted=(theta, weights)``.
    :param norm: length sqrt(theta' Sigma theta), the standard deviation of utilities over items.
        For random points it is their length, by default the root mean square that the second moment
        implies. For moments it is the maximum length, to which longer atoms are clipped, by default
        sqrt(2 log p): there a softmax of p normal utilities concentrates on few items.
    :param covariance: of the features, with ``mean`` and ``log_density_ratio`` as in
        :func:`latent_moments`.
    :param planted: atoms (K, L) and weights (K,) for ``method="planted"``.
    :param generator: source of randomness, on the CPU; torch's global one by default.
    :returns: the start.
    :raises OptionError: for an unknown method, components that are not a positive integer, a norm
        that is not positive, ``planted`` without its method or the reverse, or moments of more
        components than features.
    :raises DataError: as :func:`latent_moments`, or when planted parameters do not fit.
    :warns MomentWarning: when a start from moments is unreliable: fewer eigenvalues of E theta
        theta' than components exceed 1.5 times their noise, a tensor eigenvalue has a relative
        standard error above 0.2, the first moment makes a weight negative, or an atom was clipped.
        ``doubts`` lists the reasons.

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
    start = _start(_Problem(moments, components, norm, generator), method, planted)
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
    """Compute several starts as :func:`start_softmax`, from moments that are estimated once.

    :param count: number of starts. All other parameters, errors and warnings are those of
        :func:`start_softmax`.
    :returns: the starts.

    >>> features = torch.randn(100, 2)
    >>> starts = starts_softmax(features, torch.ones(100), 3, count=2, method="random")
    >>> [start.theta.shape for start in starts]
    [torch.Size([3, 2]), torch.Size([3, 2])]
    """
    _check(components, count, method, norm, planted)
    features = as_items(features)
    moments = latent_moments(
        features, counts, covariance=covariance, mean=mean, log_density_ratio=log_density_ratio
    )
    problem = _Problem(moments, components, norm, generator)
    starts = [_start(problem, method, planted) for _ in range(count)]
    return _finished(starts, features, log_density_ratio)


def _finished(
    starts: list[SoftmaxStart], features: Tensor, log_density_ratio: Tensor | None
) -> list[SoftmaxStart]:
    """Convert the starts to the features' dtype and the weights of the classes.

    Issues one warning with all doubts.
    """
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
            f"a start from moments is unreliable: {'; '.join(doubts)}",
            MomentWarning,
            stacklevel=3,
        )
    return [
        start._replace(theta=start.theta.to(features), weights=start.weights.to(features))
        for start in starts
    ]


class _Problem(NamedTuple):
    """Moments, and the options of a start."""

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
        """Return the K leading eigenvalues and eigenvectors (R, K) of the standardized moment."""
        values, vectors = torch.linalg.eigh(self.moments.standard_second)
        return values[-self.components :], vectors[:, -self.components :]

    def freezing_norm(self) -> float:
        """Return the length at which a softmax of p normal utilities concentrates on few items.

        This is the freezing transition of Derrida's random energy model.
        """
        return math.sqrt(2 * math.log(self.moments.items))

    def random_norm(self) -> float:
        """Return the length of random atoms, which noise must not hide."""
        second_moment = float(self.leading()[0].clamp_min(0).sum())
        square = max(second_moment, second_moment_noise(self.moments))
        return self.norm or min(math.sqrt(square), self.freezing_norm()) or 1.0


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
            "method='planted' and planted=(theta, weights) belong together: pass both or neither"
        )


def _start(problem: _Problem, method: str, planted: tuple[Tensor, Tensor] | None) -> SoftmaxStart:
    if planted is not None:
        return SoftmaxStart(*_checked_planted(problem, *planted), method)
    if method in _MOMENTS:
        atoms = moment_atoms(
            problem.moments,
            problem.components,
            max_norm=problem.norm or problem.freezing_norm(),
            diagonalize=method == "moments_diagonal",
            generator=problem.generator,
        )
        return SoftmaxStart(atoms.theta, atoms.weights, method, atoms.doubts)
    starts = {"subspace": _subspace, "random": _random, "kmeans": _kmeans}
    standard_atoms, weights = starts[method](problem)
    return SoftmaxStart(standard_atoms @ problem.moments.factor.mT, weights, method)


def _checked_planted(problem: _Problem, theta: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    shape = (problem.components, len(problem.moments.mean))
    if theta.shape != shape or weights.shape != shape[:1]:
        raise DataError(
            f"planted theta {tuple(theta.shape)} and weights {tuple(weights.shape)} must be "
            f"{shape} and {shape[:1]}"
        )
    are_weights = bool((weights > 0).all()) and abs(float(weights.sum()) - 1) <= 1e-4
    if not are_weights or not bool(theta.isfinite().all()):
        raise DataError(
            "planted theta must be finite, and planted weights must be positive and sum to one"
        )
    return theta.detach().clone(), weights.detach().clone()


def _random(problem: _Problem) -> tuple[Tensor, Tensor]:
    atoms = problem.normal(problem.components, problem.moments.points.shape[1])
    return problem.random_norm() * torch.nn.functional.normalize(atoms, dim=-1), _equal_weights(
        problem
    )


def _subspace(problem: _Problem) -> tuple[Tensor, Tensor]:
    _, vectors = problem.leading()
    atoms = torch.nn.functional.normalize(
        problem.normal(problem.components, vectors.shape[1]), dim=-1
    )
    return problem.random_norm() * atoms @ vectors.mT, _equal_weights(problem)


def _equal_weights(problem: _Problem) -> Tensor:
    return problem.moments.mass.new_full((problem.components,), 1 / problem.components)


def _kmeans(problem: _Problem) -> tuple[Tensor, Tensor]:
    """Run Lloyd's algorithm on standardized features of draws.

    Those of class k are distributed about its standardized atom, with variance one.
    """
    points = _draws(problem)
    centers = seed_rows(points, problem.components, chain=_CHAIN, generator=problem.generator).loc
    for _ in range(_ITERATIONS):
        labels = torch.cdist(points, centers).argmin(-1)
        sizes = torch.bincount(labels, minlength=problem.components).unsqueeze(-1)
        sums = torch.zeros_like(centers).index_add_(0, labels, points)
        means = torch.where(sizes > 0, sums / sizes.clamp_min(1), centers)
        previous, centers = centers, means
        if torch.equal(previous, centers):
            break
    # An empty cluster keeps a positive weight.
    return centers, (sizes[:, 0] + 1) / (sizes + 1).sum()


def _draws(problem: _Problem) -> Tensor:
    """Draw standardized features (n, R) of items, at least as many as components."""
    size = max(problem.components, min(_DRAWS, int(problem.moments.draws)))
    uniform = torch.rand(size, generator=problem.generator, dtype=torch.float64, device="cpu")
    cumulative = problem.moments.mass.cumsum(0).cpu()
    index = torch.searchsorted(cumulative, uniform * cumulative[-1]).clamp_max(len(cumulative) - 1)
    return problem.moments.points[index.to(problem.moments.points.device)]
