"""Latent moments: formulas by brute force, planted moments, other densities, invalid input."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.init.latent_moments import latent_moments, untilt

# The attribute of the package with this name is the function.
module = importlib.import_module("pyro_mixtures.init.latent_moments")

few = settings(max_examples=20, deadline=None, derandomize=True)


def normal(*shape, seed=0):
    return torch.randn(
        *shape,
        generator=torch.Generator("cpu").manual_seed(seed),
        dtype=torch.float64,
        device="cpu",
    )


def spread(size, seed=0):
    """A covariance (L, L)."""
    root = normal(size, size, seed=seed) / size**0.5
    return root @ root.mT + 0.5 * torch.eye(size, dtype=torch.float64, device="cpu")


def counted(items, seed=0):
    """Counts (p,), many of them zero."""
    return torch.poisson(
        normal(items, seed=seed).exp(), generator=torch.Generator("cpu").manual_seed(seed)
    )


def brute_force(features, counts, covariance, mean):
    """The three moments by the formulas of the module, with an array (p, L, L, L)."""
    share = counts / counts.sum()
    inverse = torch.linalg.inv(covariance)
    u = (features - mean) @ inverse
    first = torch.einsum("p,pa->a", share, u)
    second = torch.einsum("p,pa,pb->ab", share, u, u) - inverse
    third = torch.einsum("p,pa,pb,pc->abc", share, u, u, u)
    for places in ("a,bc", "b,ac", "c,ab"):
        third = third - torch.einsum(f"{places}->abc", first, inverse)
    return first, second, third


def shares(features, theta, weights):
    """Probabilities (p,) of the items."""
    return torch.softmax(features @ theta.mT, 0) @ weights


def moments_of(theta, weights):
    """E theta, E theta theta', E theta^3 of the atoms."""
    third = torch.einsum("k,ka,kb,kc->abc", weights, theta, theta, theta)
    return weights @ theta, torch.einsum("k,ka,kb->ab", weights, theta, theta), third


@few
@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 100), st.booleans())
def test_moments_are_the_formulas(items, size, seed, known):
    items = max(items, 4 * size)
    features, counts = (
        normal(items, size, seed=seed) @ spread(size, seed) + 3.0,
        counted(items, seed) + 1,
    )
    mean, covariance = features.mean(0), features.mT.cov(correction=0).reshape(size, size)
    given_ = {}
    if known:
        mean, covariance = normal(size, seed=seed + 1), spread(size, seed + 1)
        given_ = {"mean": mean, "covariance": covariance}
    found = latent_moments(features, counts, **given_)
    expected = brute_force(features, counts, covariance, mean)
    for one, other in zip((found.first, found.second, found.third), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8 * float(other.abs().max() + 1))
    assert found.draws == float(counts.sum())
    assert found.items == items


@few
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 100))
def test_contractions_are_those_of_the_tensor(size, columns, seed):
    found = latent_moments(
        normal(30, size, seed=seed), counted(30, seed) + 1, covariance=spread(size, seed)
    )
    basis, v = normal(size, columns, seed=seed), normal(size, seed=seed + 1)
    expected = torch.einsum("abc,ai,bj,ck->ijk", found.third, basis, basis, basis)
    torch.testing.assert_close(found.project(basis), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        found.contract(v), torch.einsum("abc,b,c->a", found.third, v, v), rtol=1e-8, atol=1e-8
    )


def test_results_do_not_depend_on_chunks(monkeypatch):
    features, counts = normal(50, 3), counted(50)
    whole = latent_moments(features, counts)
    expected = whole.first, whole.second, whole.third
    monkeypatch.setattr(module, "_NUMBERS", 7)
    chunked = latent_moments(features, counts)
    for one, other in zip((chunked.first, chunked.second, chunked.third), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_planted_moments_are_recovered():
    """Correlated features with a mean; the error is of order p^-1/2, with p = 200,000."""
    size, covariance, shift = 3, spread(3), torch.tensor([2.0, -1.0, 5.0], dtype=torch.float64)
    features = normal(200_000, size) @ torch.linalg.cholesky(covariance).mT + shift
    theta = 0.8 * torch.nn.functional.normalize(normal(2, size, seed=1), dim=-1)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    counts = 1e9 * shares(features, theta, weights)
    for given_ in ({}, {"covariance": covariance, "mean": shift}):
        found = latent_moments(features, counts, **given_)
        for one, true in zip(
            (found.first, found.second, found.third), moments_of(theta, weights), strict=True
        ):
            assert (one - true).abs().max() < 0.05
    # They are not if the mean is not removed, or with another covariance.
    wrong = latent_moments(features, counts, covariance=covariance, mean=0 * shift)
    assert (wrong.first - weights @ theta).abs().max() > 0.5
    wrong = latent_moments(features, counts, covariance=2 * covariance, mean=shift)
    assert (wrong.second - moments_of(theta, weights)[1]).abs().max() > 0.2


def test_other_units_of_the_features_are_those_of_the_atoms():
    """x -> A x + b and theta -> A^-T theta do not change differences of utilities."""
    features, counts, turn = normal(60, 3), counted(60), normal(3, 3, seed=5)
    found, turned = (
        latent_moments(features, counts),
        latent_moments(features @ turn.mT + 7.0, counts),
    )
    torch.testing.assert_close(turned.first @ turn, found.first, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(turned.project(turn), found.third, rtol=1e-7, atol=1e-7)


def test_items_without_draws_affect_the_covariance_only():
    features, counts = normal(60, 3), counted(60)
    covariance, mean, drawn = spread(3), normal(3, seed=1), counts > 0
    assert 0 < int(drawn.sum()) < 60
    whole = latent_moments(features, counts, covariance=covariance, mean=mean)
    some = latent_moments(features[drawn], counts[drawn], covariance=covariance, mean=mean)
    torch.testing.assert_close(whole.third, some.third)
    assert len(whole.points) == int(drawn.sum())


def uniform_features(items=200_000, half=4.0):
    """Features uniform on a square, and the log ratio of N(0, I) to that density."""
    draw = torch.Generator("cpu").manual_seed(0)
    features = half * (
        2 * torch.rand(items, 2, generator=draw, dtype=torch.float64, device="cpu") - 1
    )
    return features, -0.5 * features.square().sum(-1)


def test_draws_weighted_by_the_ratio_of_densities_give_the_atoms_and_untilted_weights():
    """The mixture has weights alpha_k rho_k, with the rho_k of the module's docstring."""
    features, ratio = uniform_features()
    theta = torch.tensor([[1.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
    weights = torch.tensor([0.6, 0.4], dtype=torch.float64)
    counts = 1e9 * shares(features, theta, weights)
    eye = torch.eye(2, dtype=torch.float64)
    tilted = weights * (theta.square().sum(-1) / 2).exp()
    tilted = tilted / (torch.sinh(4 * theta) / (4 * theta)).nan_to_num(1.0).prod(
        -1
    )  # of the uniform density
    tilted = tilted / tilted.sum()
    assert (tilted - weights).abs().max() > 0.1
    found = latent_moments(features, counts, covariance=eye, log_density_ratio=ratio + 3.0)
    for one, true in zip(
        (found.first, found.second, found.third), moments_of(theta, tilted), strict=True
    ):
        assert (one - true).abs().max() < 0.05
    torch.testing.assert_close(untilt(tilted, theta, features, ratio), weights, rtol=0, atol=0.01)
    plain = latent_moments(features, counts, covariance=eye, mean=torch.zeros(2))
    assert (plain.second - moments_of(theta, weights)[1]).abs().max() > 0.5


def test_untilt_is_the_ratio_of_sums_over_items(monkeypatch):
    features, ratio, theta = normal(40, 3), normal(40, seed=1), normal(4, 3, seed=2)
    weights = torch.softmax(normal(4, seed=3), 0)
    tilt = (features @ theta.mT).exp()
    expected = weights * tilt.sum(0) / (tilt * ratio.exp().unsqueeze(-1)).sum(0)
    for chunk in (1 << 20, 9):
        monkeypatch.setattr(module, "_NUMBERS", chunk)
        torch.testing.assert_close(
            untilt(weights, theta, features, ratio), expected / expected.sum()
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_and_repeated_features_have_no_effect(dtype):
    """Copies share theta, and it is zero for a constant."""
    base, counts = normal(80, 2).to(dtype), counted(80)
    features = torch.cat([base, torch.full((80, 1), 0.1, dtype=dtype), base[:, :1]], -1)
    plain, found = latent_moments(base, counts), latent_moments(features, counts)
    assert found.factor.shape == (4, 2)
    assert float(found.first[2]) == 0
    torch.testing.assert_close(found.first[0], found.first[3], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        found.first[0] + found.first[3], plain.first[0], rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(found.first[1], plain.first[1], rtol=1e-6, atol=1e-6)


def test_features_in_very_different_units_all_count():
    features, counts, units = (
        normal(80, 3),
        counted(80),
        torch.tensor([1e-6, 1.0, 1e6], dtype=torch.float64),
    )
    found = latent_moments(features * units, counts)
    torch.testing.assert_close(
        found.first * units, latent_moments(features, counts).first, rtol=1e-8, atol=1e-8
    )


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_are_in_float64_for_features_of_any_dtype(dtype):
    features, counts = normal(200, 3).to(dtype), counted(200).long()
    found, exact = latent_moments(features, counts), latent_moments(features.double(), counts)
    assert {found.first.dtype, found.second.dtype, found.third.dtype} == {torch.float64}
    torch.testing.assert_close(found.third, exact.third)
    eye = torch.eye(3, device="cpu")
    ratio = latent_moments(
        features, counts, covariance=eye, log_density_ratio=torch.zeros(200, device="cpu")
    )
    torch.testing.assert_close(ratio.contract(exact.first), ratio.third @ exact.first @ exact.first)
    theta, equal = exact.first.expand(2, 3), torch.full((2,), 0.5, device="cpu")
    torch.testing.assert_close(
        untilt(equal, theta, features, torch.zeros(200, device="cpu")), equal
    )


def test_arrays_and_integers_are_converted():
    features, counts = (5 * normal(200, 3)).round(), counted(200)
    exact = latent_moments(features, counts)
    for given_ in (features.numpy(), features.long(), features.int().numpy()):
        found = latent_moments(given_, counts.numpy())
        torch.testing.assert_close(found.third, exact.third)
    theta, equal = normal(2, 3) / 50, torch.full((2,), 0.5, dtype=torch.float64)
    ratio = normal(200, seed=2)
    torch.testing.assert_close(
        untilt(equal, theta, features.long(), ratio), untilt(equal, theta, features, ratio)
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"features": torch.zeros(10)}, "must be"),
        ({"features": torch.zeros(10, 2, dtype=torch.complex64)}, "must be real numbers"),
        ({"features": torch.zeros(10, 2, dtype=torch.int64)}, "no variance"),
        ({"features": torch.full((10, 2), torch.nan)}, "item 0 has NaN"),
        ({"features": torch.ones(10, 2)}, "no variance"),
        ({"counts": torch.ones(9)}, "one per item"),
        ({"counts": -torch.ones(10)}, "not negative"),
        ({"counts": torch.zeros(10)}, "at least one positive"),
        ({"counts": torch.full((10,), torch.inf)}, "finite"),
        ({"covariance": torch.eye(3)}, "covariance must be"),
        ({"covariance": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}, "not symmetric"),
        ({"covariance": torch.diag(torch.tensor([1.0, -1.0]))}, "positive semidefinite"),
        ({"covariance": torch.tensor([[1.0, 2.0], [2.0, 1.0]])}, "positive semidefinite"),
        ({"mean": torch.zeros(3)}, "mean must contain 2"),
        ({"log_density_ratio": torch.zeros(9), "covariance": torch.eye(2)}, "must contain 10"),
        ({"log_density_ratio": torch.full((10,), torch.nan), "covariance": torch.eye(2)}, "finite"),
    ],
)
def test_unusable_data_are_refused(change, says):
    arguments = {"features": normal(10, 2), "counts": torch.ones(10), **change}
    with pytest.raises(DataError, match=says):
        latent_moments(**arguments)


def test_a_ratio_needs_its_covariance():
    with pytest.raises(OptionError, match="pass its covariance="):
        latent_moments(normal(10, 2), torch.ones(10), log_density_ratio=torch.zeros(10))
