"""Starts of softmax mixtures: accuracy of moments, warnings where they fail, EM from starts."""

import inspect
import math
import warnings

import pytest
import torch

from pyro_mixtures.errors import DataError, MomentWarning, OptionError
from pyro_mixtures.init.latent_moments import latent_moments
from pyro_mixtures.init.moment_atoms import moment_atoms
from pyro_mixtures.init.softmax_starts import METHODS, SoftmaxStart, start_softmax, starts_softmax
from pyro_mixtures.models import SoftmaxMixture
from pyro_mixtures.partition.matching import matched_errors

MOMENTS = ("moments", "moments_diagonal")
DRAWN = tuple(method for method in METHODS if method != "planted")


def generator(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def problem(size, components, items, draws, seed=0, norm=1.5, weights=None):
    """Normal features (p, L), atoms (K, L) in random directions, weights (K,), counts (p,)."""
    draw = generator(seed)
    features = torch.randn(items, size, generator=draw, dtype=torch.float64, device="cpu")
    theta = torch.randn(components, size, generator=draw, dtype=torch.float64, device="cpu")
    theta = norm * torch.nn.functional.normalize(theta, dim=-1)
    weights = (
        torch.full((components,), 1 / components, device="cpu")
        if weights is None
        else torch.tensor(weights)
    )
    probability = torch.softmax(features @ theta.mT, 0) @ weights.double()
    return features, theta, weights.double(), torch.poisson(draws * probability, generator=draw)


def separate(items=50_000, draws=2_000_000, **options):
    """Orthogonal atoms: a regime in which moments work."""
    features, theta, weights, _ = problem(5, 2, items, draws, **options)
    theta = torch.linalg.qr(theta.mT).Q.mT * theta.norm(dim=-1, keepdim=True)
    probability = torch.softmax(features @ theta.mT, 0) @ weights
    return features, theta, weights, torch.poisson(draws * probability, generator=generator(9))


def silent(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MomentWarning)
        return start_softmax(*args, **options)


def em(features, counts, start, steps=50):
    """Run exact EM with Newton steps; return the parameters and the log likelihood per draw."""
    theta, weights, share = start.theta.double(), start.weights.double(), counts / counts.sum()
    for _ in range(steps):
        logits = weights.log() + torch.log_softmax(features @ theta.mT, 0)
        q = torch.softmax(logits, -1) * share.unsqueeze(-1)
        weights, target = q.sum(0), q.mT @ features
        p = torch.softmax(features @ theta.mT, 0).mT
        mean = p @ features
        covariance = (p.unsqueeze(1) * features.mT) @ features - mean.unsqueeze(
            -1
        ) * mean.unsqueeze(-2)
        step = torch.linalg.solve(covariance, target / weights.unsqueeze(-1) - mean)
        theta = theta + step / step.norm(dim=-1, keepdim=True).clamp_min(1.0)
    return (
        theta,
        weights,
        float(share @ (weights.log() + torch.log_softmax(features @ theta.mT, 0)).logsumexp(-1)),
    )


# Moments.


@pytest.mark.parametrize("method", MOMENTS)
def test_moments_of_many_items_find_the_atoms_without_a_warning(method):
    features, theta, weights, counts = separate(weights=[0.35, 0.65])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = start_softmax(features, counts, 2, method=method, generator=generator())
    errors = matched_errors(start.theta, theta, start.weights, weights)
    assert start.doubts == ()
    assert float(errors.worst) < 0.3
    assert float(errors.weights) < 0.2


@pytest.mark.parametrize("method", MOMENTS)
@pytest.mark.parametrize(
    ("size", "components", "items", "draws"),
    [(10, 3, 500, 50_000), (10, 5, 5000, 50_000), (5, 3, 2000, 20_000)],
)
def test_moments_of_few_items_are_doubted_and_bounded(method, size, components, items, draws):
    for seed in range(2):
        features, _, _, counts = problem(size, components, items, draws, seed=seed)
        with pytest.warns(
            MomentWarning,
            match="leading eigenvalues of E theta theta' exceed 1.5 times their noise",
        ) as caught:
            start = start_softmax(
                features, counts, components, method=method, generator=generator()
            )
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert all(doubt in str(caught[0].message) for doubt in start.doubts)
        assert (
            float(
                (start.theta @ latent_moments(features, counts).factor.pinverse().mT)
                .norm(dim=-1)
                .max()
            )
            < 4.5
        )
        assert float(start.weights.sum()) == pytest.approx(1)


def test_opposite_classes_have_no_third_moment():
    """theta and -theta: one eigenvalue for two components."""
    features, theta, _, _ = separate(items=20_000)
    counts = 1e6 * torch.softmax(features @ torch.stack([theta[0], -theta[0]]).mT, 0).mean(-1)
    with pytest.warns(MomentWarning, match="only 1 of the 2 leading"):
        start_softmax(features, counts, 2, method="moments")


def test_long_atoms_are_clipped_with_a_warning():
    features, _, _, counts = separate()
    with pytest.warns(MomentWarning, match=r"2 atoms were clipped to length 1"):
        start = start_softmax(
            features, counts, 2, method="moments", norm=1.0, generator=generator()
        )
    root = torch.linalg.cholesky(latent_moments(features, counts).covariance)
    torch.testing.assert_close((start.theta @ root).norm(dim=-1), torch.ones(2).double())


def test_weights_of_another_density_of_features_are_those_of_the_classes():
    draw = generator()
    features = 4 * (2 * torch.rand(50_000, 2, generator=draw, dtype=torch.float64) - 1)
    theta, weights = (
        torch.tensor([[1.0, 0.0], [0.0, 0.6]]).double(),
        torch.tensor([0.5, 0.5]).double(),
    )
    counts = torch.poisson(5e6 * (torch.softmax(features @ theta.mT, 0) @ weights), generator=draw)
    ratio = -0.5 * features.square().sum(-1)
    start = start_softmax(
        features,
        counts,
        2,
        method="moments",
        covariance=torch.eye(2),
        log_density_ratio=ratio,
        generator=draw,
    )
    errors = matched_errors(start.theta, theta, start.weights, weights)
    assert float(errors.worst) < 0.2
    assert float(errors.weights) < 0.1
    tilted = moment_atoms(
        latent_moments(features, counts, covariance=torch.eye(2), log_density_ratio=ratio),
        2,
        max_norm=4.0,
        generator=draw,
    ).weights
    assert float((tilted - 0.5).abs().sum()) > 0.2
    for method in ("subspace", "random"):
        options = {"method": method, "covariance": torch.eye(2), "log_density_ratio": ratio}
        assert start_softmax(features, counts, 2, **options).weights.tolist() == [0.5, 0.5]


def test_more_components_than_features_have_no_moment_start():
    features, _, _, counts = problem(3, 4, 500, 5000)
    with pytest.raises(
        OptionError, match="at most one component per feature: 4 components, features of rank 3"
    ):
        start_softmax(features, counts, 4, method="moments")
    for method in ("subspace", "random", "kmeans"):
        assert start_softmax(features, counts, 4, method=method).theta.shape == (4, 3)


# Random points.


def test_subspace_points_lie_in_the_leading_eigenvectors_with_the_length_of_the_atoms():
    features, theta, _, counts = separate()
    second = latent_moments(features, counts, covariance=torch.eye(5)).second
    leading = torch.linalg.eigh(second).eigenvectors[:, -2:]
    for start in starts_softmax(
        features, counts, 2, count=5, covariance=torch.eye(5), generator=generator()
    ):
        torch.testing.assert_close(start.theta @ leading @ leading.mT, start.theta)
        assert start.theta.norm(dim=-1).tolist() == pytest.approx([1.5, 1.5], rel=0.1)
        basis = torch.linalg.qr(theta.mT).Q
        assert (start.theta @ basis).norm(dim=-1).min() > 1.4  # near the span of the atoms


def test_random_points_have_the_given_length_in_units_of_the_features():
    features, _, _, counts = problem(3, 2, 1000, 10_000)
    features = features @ torch.diag(torch.tensor([0.1, 1.0, 30.0]).double())
    for method in ("random", "subspace"):
        start = start_softmax(features, counts, 8, method=method, norm=2.5, generator=generator())
        utilities = features @ start.theta.mT
        torch.testing.assert_close(utilities.std(0, correction=0), torch.full((8,), 2.5).double())
        assert start.weights.tolist() == [0.125] * 8


def test_points_without_any_signal_still_differ():
    """If items are drawn equally often, the starts are as long as the second moment's noise."""
    features, _, _, _ = problem(3, 2, 1000, 1)
    for method in ("random", "subspace"):
        start = start_softmax(features, torch.ones(1000), 2, method=method)
        assert start.theta.norm(dim=-1).min() > 0.1


# Clusters and planted parameters.


def test_clusters_of_drawn_items_lie_at_the_atoms_far_apart():
    """Features of the items drawn by an atom have the mean Sigma theta and covariance Sigma."""
    features, _, weights, _ = problem(2, 3, 200_000, 1, weights=[0.2, 0.3, 0.5])
    theta = 3 * torch.tensor([[1.0, 0.0], [-0.6, 0.8], [-0.6, -0.8]]).double()
    scale = torch.tensor([10.0, 0.1]).double()
    counts = torch.poisson(
        50_000 * torch.softmax(features @ theta.mT, 0) @ weights, generator=generator()
    )
    start = start_softmax(features * scale, counts, 3, method="kmeans", generator=generator())
    errors = matched_errors(start.theta * scale, theta, start.weights, weights)
    assert float(errors.worst) < 0.6
    assert float(errors.weights) < 0.1


def test_clusters_of_few_draws_are_finite():
    features, counts = torch.randn(20, 3, generator=generator()), torch.zeros(20)
    counts[3], counts[7] = 1.0, 2.0
    start = start_softmax(features, counts, 4, method="kmeans", generator=generator())
    assert bool(start.theta.isfinite().all())
    assert bool((start.weights > 0).all())


def test_planted_parameters_come_back_as_copies():
    features, theta, weights, counts = problem(3, 2, 100, 1000)
    start = start_softmax(features.float(), counts, 2, method="planted", planted=(theta, weights))
    torch.testing.assert_close(start.theta, theta.float())
    assert (
        start_softmax(features, counts, 2, method="planted", planted=(theta, weights)).theta
        is not theta
    )


# Models that start there.


@pytest.mark.parametrize("equal_weights", [False, True])
def test_a_model_starts_there_and_keeps_weights_that_are_constant(equal_weights):
    features, theta, weights, _ = problem(3, 2, 100, 1000, weights=[0.2, 0.8])
    model = SoftmaxMixture(components=2, features=features, equal_weights=equal_weights)
    SoftmaxStart(theta, weights, "planted")(model)
    torch.testing.assert_close(model.theta.detach(), theta)
    expected = torch.tensor([0.5, 0.5]) if equal_weights else weights
    torch.testing.assert_close(
        model.weights.detach(), expected.to(model.weights), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("method", DRAWN)
def test_integer_and_array_features_start_as_floats_do(method):
    features, _, _, counts = problem(3, 2, 400, 5000)
    whole = (3 * features).round()
    options = {
        "covariance": 9 * torch.eye(3),
        "log_density_ratio": torch.zeros(400),
        "method": method,
    }
    expected = silent(whole.float(), counts, 2, generator=generator(), **options)
    for given in (whole.long(), whole.float().numpy()):
        start = silent(given, counts.numpy(), 2, generator=generator(), **options)
        assert start.theta.dtype == start.weights.dtype == torch.float32
        torch.testing.assert_close(start.theta, expected.theta)
        torch.testing.assert_close(start.weights, expected.weights)


# All methods.


@pytest.mark.meta
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_dtypes_and_seeds_are_right(method, dtype):
    features, theta, weights, counts = problem(4, 3, 600, 5000)
    options = {"planted": (theta, weights)} if method == "planted" else {}
    starts = [
        silent(
            features.to(dtype), counts.long(), 3, method=method, generator=generator(4), **options
        )
        for _ in range(2)
    ]
    for start in starts:
        assert start.theta.shape == (3, 4)
        assert start.weights.shape == (3,)
        assert start.theta.dtype == start.weights.dtype == dtype
        assert start.theta.device == features.device
        assert float(start.weights.sum()) == pytest.approx(1, rel=1e-5)
        assert start.method == method
    torch.testing.assert_close(starts[0].theta, starts[1].theta, rtol=0, atol=0)


def test_several_starts_differ_and_begin_as_one_does():
    features, _, _, counts = problem(4, 3, 600, 5000)
    for method in ("subspace", "random"):
        several = starts_softmax(features, counts, 3, count=3, method=method, generator=generator())
        one = start_softmax(features, counts, 3, method=method, generator=generator())
        torch.testing.assert_close(several[0].theta, one.theta)
        assert (several[0].theta - several[1].theta).abs().max() > 0.1
    with pytest.warns(MomentWarning) as caught:
        starts_softmax(features, counts, 3, count=3, method="moments", generator=generator())
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_both_functions_take_the_same_options():
    one, several = (
        inspect.signature(function).parameters for function in (start_softmax, starts_softmax)
    )
    assert dict(one) == {name: parameter for name, parameter in several.items() if name != "count"}


@pytest.mark.parametrize("method", DRAWN)
def test_collinear_features_start_in_their_span(method):
    features, _, _, counts = problem(3, 2, 2000, 50_000)
    wide = torch.cat([features, features[:, :1], torch.ones(2000, 1)], -1)
    start = silent(wide, counts, 2, method=method, generator=generator())
    torch.testing.assert_close(start.theta[:, 0], start.theta[:, 3], rtol=1e-6, atol=1e-8)
    assert start.theta[:, 4].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("method", DRAWN)
def test_a_single_drawn_item_ends_finite(method):
    features, counts = torch.randn(20, 3, generator=generator()), torch.zeros(20)
    counts[3] = 100.0
    start = silent(features, counts, 2, method=method, generator=generator())
    assert bool(start.theta.isfinite().all())
    assert bool(start.weights.isfinite().all())


def test_em_from_the_starts_reaches_the_optimum_that_the_truth_reaches():
    """Best of two starts, by a plain EM on 400 items."""
    features, theta, weights, counts = separate(400, 20_000, norm=2.0)
    truth = em(features, counts, SoftmaxStart(theta, weights, "planted"))
    for method in ("subspace", "random", "kmeans", "moments"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MomentWarning)
            starts = starts_softmax(
                features, counts, 2, count=2, method=method, generator=generator()
            )
        best = max((em(features, counts, start) for start in starts), key=lambda found: found[2])
        assert best[2] > truth[2] - 1e-5
        assert float(matched_errors(best[0], truth[0], best[1], truth[1]).worst) < 0.05
    assert float(matched_errors(truth[0], theta, truth[1], weights).worst) < 0.3


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"method": "means"}, OptionError, "unknown method 'means'"),
        ({"norm": 0.0}, OptionError, "norm=0.0"),
        ({"norm": math.nan}, OptionError, "norm=nan"),
        ({"components": 0}, OptionError, "components=0"),
        ({"components": 2.0}, OptionError, "components=2.0 must be a whole number"),
        ({"method": "planted"}, OptionError, "belong together"),
        ({"planted": (torch.zeros(2, 3), torch.ones(2) / 2)}, OptionError, "belong together"),
        (
            {"method": "planted", "planted": (torch.zeros(3, 3), torch.ones(2) / 2)},
            DataError,
            "must be",
        ),
        (
            {"method": "planted", "planted": (torch.zeros(2, 3), torch.ones(2))},
            DataError,
            "sum to one",
        ),
        ({"counts": torch.zeros(10)}, DataError, "at least one positive"),
        ({"log_density_ratio": torch.zeros(10)}, OptionError, "pass its covariance="),
    ],
)
def test_bad_input_is_refused(options, error, says):
    arguments = {
        "features": torch.randn(10, 3),
        "counts": torch.ones(10),
        "components": 2,
        **options,
    }
    with pytest.raises(error, match=says):
        start_softmax(**arguments)


def test_the_number_of_starts_is_positive():
    with pytest.raises(OptionError, match="count=0"):
        starts_softmax(torch.randn(10, 3), torch.ones(10), 2, count=0)
