"""Identification of softmax mixtures: rank and noise, items, and uninformative features."""

import warnings

import pytest
import torch

from pyro_mixtures.errors import DataError, IdentificationWarning, OptionError
from pyro_mixtures.init.identification import identification, second_moment_noise
from pyro_mixtures.init.latent_moments import latent_moments


def generator(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def problem(items, size, components, draws, seed=0, norm=1.2):
    """Normal features (p, L), orthogonal atoms (K, L), counts (p,)."""
    draw = generator(seed)
    features = torch.randn(items, size, generator=draw, dtype=torch.float64, device="cpu")
    theta = norm * torch.eye(size, dtype=torch.float64, device="cpu")[:components]
    probability = torch.softmax(features @ theta.mT, 0).mean(-1)
    return features, theta, torch.poisson(draws * probability, generator=draw)


def test_a_well_posed_problem_is_silent_and_has_rank_k():
    features, _, counts = problem(20_000, 4, 2, 500_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = identification(features, counts, 2)
    assert found.rank == 2
    assert found.problems == found.constant == found.collinear == ()
    assert found.parameters == 2 * 4 + 1
    assert found.draws == float(counts.sum())
    torch.testing.assert_close(
        found.eigenvalues, torch.tensor([0.72, 0.72, 0.0, 0.0]).double(), rtol=0, atol=0.1
    )
    assert "rank 2" in str(found)
    assert len(str(found).splitlines()) == 2


@pytest.mark.parametrize(
    ("items", "size", "draws"),
    [(2000, 5, 20_000), (500, 10, 50_000), (1000, 1, 1000), (4000, 3, 500)],
)
def test_noise_bounds_the_error_of_the_second_moment(items, size, draws):
    """The error exceeds the bound in at most two of twenty problems, and is not far below it."""
    ratios = []
    for seed in range(20):
        features, theta, counts = problem(items, size, 1, draws, seed=seed, norm=1.0)
        found = latent_moments(features, counts, covariance=torch.eye(size), mean=torch.zeros(size))
        error = torch.linalg.matrix_norm(found.second - theta.mT @ theta, 2)
        ratios.append(float(error) / second_moment_noise(found))
    assert sum(ratio > 1 for ratio in ratios) <= 2
    assert sum(ratios) / len(ratios) > 0.2


def test_noise_is_the_matrix_deviation_by_brute_force():
    features, _, counts = problem(30, 3, 2, 200)
    found = latent_moments(features, counts)
    y, share = found.points, found.mass
    outer = torch.einsum("pa,pb->pab", y, y)
    deviation = share.reshape(-1, 1, 1) * (outer - torch.einsum("p,pab->ab", share, outer))
    variance = (deviation @ deviation).sum(0)
    expected = 2 * float(torch.linalg.matrix_norm(variance, 2)) ** 0.5
    assert second_moment_noise(found) == pytest.approx(expected, rel=1e-9)


def test_more_components_than_the_rank_cause_a_warning():
    features, _, counts = problem(20_000, 4, 2, 500_000)
    with pytest.warns(
        IdentificationWarning, match=r"only 2 eigenvalues .* fewer than 3 components"
    ):
        found = identification(features, counts, 3)
    assert "- only 2 eigenvalues" in str(found)


def test_noise_hides_the_rank_when_items_are_few():
    features, _, counts = problem(300, 10, 3, 50_000)
    with pytest.warns(IdentificationWarning, match="fewer than 3 components"):
        assert identification(features, counts, 3).rank < 3


def test_too_few_items_for_the_parameters_cause_a_warning():
    features, _, counts = problem(10, 4, 2, 10_000)
    with pytest.warns(
        IdentificationWarning, match="14 parameters cannot be identified by 9 free probabilities"
    ):
        assert identification(features, counts, 3).parameters == 14


def test_draws_on_few_items_cause_a_warning():
    features, _, counts = problem(5000, 4, 2, 50_000)
    counts = torch.zeros_like(counts)
    counts[:5] = 1000.0
    with pytest.warns(
        IdentificationWarning, match="effectively of 5 items, fewer than the 10 entries"
    ):
        assert identification(features, counts, 2).effective_items == pytest.approx(5, rel=1e-2)


def test_effective_items_are_not_biased_by_noise():
    """For equally likely items drawn once, 1 / sum of squared shares would be half of them."""
    features, _, _ = problem(20_000, 2, 1, 1)
    counts = torch.poisson(torch.ones(20_000), generator=generator())
    with pytest.warns(IdentificationWarning):
        found = identification(features, counts, 2)
    assert found.effective_items == pytest.approx(20_000, rel=0.05)
    with pytest.warns(IdentificationWarning):
        assert (
            identification(features[:50], torch.ones(50), 2).effective_items == 50
        )  # no item drawn twice


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_and_collinear_features_are_named(dtype):
    features, _, counts = problem(20_000, 4, 1, 500_000)
    features = torch.cat(
        [features, features[:, :1] - 2 * features[:, 2:3], torch.full((20_000, 1), 0.1)], -1
    ).to(dtype)
    with pytest.warns(IdentificationWarning) as caught:
        found = identification(features, counts, 1)
    assert len(caught) == 1
    assert found.constant == (5,)
    assert found.collinear == (0, 2, 4)
    assert "[5] are the same" in str(caught[0].message)
    assert "[0, 2, 4] are collinear" in str(caught[0].message)
    assert found.parameters == 4
    assert str(found).count("\n- ") == 2


def test_a_dummy_of_few_items_is_not_constant():
    features, _, counts = problem(20_000, 2, 1, 500_000)
    features[:, 1] = 0.0
    features[:20, 1] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentificationWarning)
        assert identification(features, counts, 1).constant == ()


def test_a_feature_far_from_zero_is_not_constant_if_its_dtype_resolves_it():
    """Such as a time in seconds; its coefficient is that of the same feature about zero."""
    features, _, counts = problem(20_000, 2, 1, 500_000)
    far = torch.stack([1.6e9 + 1000 * features[:, 0], features[:, 1]], -1)
    near, found = identification(features, counts, 1), identification(far, counts, 1)
    assert found.constant == ()
    assert found.parameters == near.parameters == 2
    torch.testing.assert_close(found.eigenvalues, near.eigenvalues, rtol=1e-6, atol=1e-6)
    # Only rounding errors remain of it.
    features[:, 0] = 1.6e9 * (1 + 2**-50 * features[:, 0].sign())
    with pytest.warns(IdentificationWarning, match=r"\[0\] are the same"):
        assert identification(features, counts, 1).constant == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_of_many_equal_numbers_is_exact_enough(dtype):
    features = torch.full((300_000, 4), 0.1, dtype=dtype)
    features[:, 1] = torch.randn(300_000, generator=generator())
    features[:, 2:] = torch.tensor([1e9 / 3, -7e-5])
    with pytest.warns(IdentificationWarning):
        assert identification(features, torch.ones(300_000), 1).constant == (0, 2, 3)


def test_arrays_and_integers_are_converted_as_by_the_softmax_mixture():
    features, _, counts = problem(2000, 2, 1, 100_000)
    whole = (3 * features).round()
    expected = identification(whole.float(), counts, 1)
    for given in (whole.long(), whole.long().numpy(), whole.float().numpy()):
        found = identification(given, counts.numpy(), 1)
        torch.testing.assert_close(found.eigenvalues, expected.eigenvalues)
        assert found.effective_items == expected.effective_items


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_devices_and_dtypes_follow_the_features(dtype):
    features, _, counts = problem(5000, 3, 1, 100_000)
    found = identification(features.to(dtype), counts.long(), 1)
    assert found.eigenvalues.dtype == torch.float64
    assert found.rank == 1


def test_bad_input_is_refused():
    with pytest.raises(OptionError, match="components=0"):
        identification(torch.zeros(5, 2), torch.ones(5), 0)
    with pytest.raises(OptionError, match=r"components=2\.5 must be a whole number"):
        identification(torch.randn(5, 2), torch.ones(5), 2.5)
    with pytest.raises(DataError, match="no variance"):
        identification(torch.zeros(5, 2), torch.ones(5), 1)
