"""P-values are valid and lazy; Benjamini and Hochberg's adjustment against its definition."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from pyro_mixtures.errors import DataError
from pyro_mixtures.information.permutation import benjamini_hochberg, p_value


def test_adjustment_is_scipys():
    p = np.random.default_rng(0).random(50) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p))


def test_tests_that_were_not_made_do_not_count():
    p = np.array([0.01, np.nan, 0.04, np.nan])
    np.testing.assert_allclose(benjamini_hochberg(p), [0.02, np.nan, 0.04, np.nan])
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()


@pytest.mark.parametrize("wrong", [np.array([0.5, 1.5]), np.array([-0.1]), np.ones((2, 2))])
def test_adjustment_of_what_is_no_p_value(wrong):
    with pytest.raises(DataError, match="p-values"):
        benjamini_hochberg(wrong)


@pytest.mark.parametrize("permutations", [19, 199])
def test_rank_among_exchangeable_statistics_is_valid(permutations):
    """All ranks of the observed statistic are equally likely, so the p-values' distribution is known exactly."""
    statistics = np.arange(permutations + 1)
    rng = np.random.default_rng(0)
    for level in (0.05, 0.2, 0.5):
        rejected = [
            p_value(observed, rng.permutation(np.delete(statistics, observed))) <= level
            for observed in statistics
        ]
        assert (
            np.mean(rejected) <= level + 0.07
        )  # 0.07: of the random stopping above 10 / permutations
    below = [p_value(observed, np.delete(statistics, observed)) <= 0.05 for observed in statistics]
    assert sum(below) == round(0.05 * (permutations + 1))


def test_stops_when_enough_are_as_large():
    def statistics():
        yield from [1.0] * 10
        raise AssertionError("drew more than it needed")

    assert p_value(0.0, statistics()) == 1.0
