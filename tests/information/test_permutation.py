"""Permutation p-values are valid and stop early; adjusted p-values skip tests not made."""

import numpy as np
import pytest

from pyro_mixtures.information.permutation import adjust_p_values, p_value


def test_adjusted_p_values_are_those_of_benjamini_and_hochberg():
    p = np.sort(np.random.default_rng(0).random(50) ** 3)
    rank = np.arange(1, 51)
    expected = [min(1.0, (p[i:] * 50 / rank[i:]).min()) for i in range(50)]
    np.testing.assert_allclose(adjust_p_values(p), expected)


def test_tests_that_were_not_made_do_not_count():
    p = [0.01, np.nan, 0.04, np.nan]
    np.testing.assert_allclose(adjust_p_values(p), [0.02, np.nan, 0.04, np.nan])
    assert np.isnan(adjust_p_values([np.nan])).all()


@pytest.mark.parametrize("permutations", [19, 199])
def test_rank_among_exchangeable_statistics_is_valid(permutations):
    """All ranks of the observed statistic are equally likely: the distribution is known exactly."""
    statistics = np.arange(permutations + 1)
    rng = np.random.default_rng(0)
    for level in (0.05, 0.2, 0.5):
        rejected = [
            p_value(observed, rng.permutation(np.delete(statistics, observed))) <= level
            for observed in statistics
        ]
        # 0.07 allows for the random stopping above 10 / permutations.
        assert np.mean(rejected) <= level + 0.07
    below = [p_value(observed, np.delete(statistics, observed)) <= 0.05 for observed in statistics]
    assert sum(below) == round(0.05 * (permutations + 1))


def test_stops_after_ten_statistics_as_large_as_the_observed_one():
    def statistics():
        yield from [1.0] * 10
        raise AssertionError("drew more than it needed")

    assert p_value(0.0, statistics()) == 1.0
