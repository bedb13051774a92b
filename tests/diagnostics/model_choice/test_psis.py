"""Leave-one-out log evidence against closed forms and refits."""

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_mixtures.diagnostics.model_choice.loo import psis
from pyro_mixtures.infer import log_evidence
from tests.diagnostics.model_choice.samples import clusters, compare, gaussians, seeded

pytestmark = pytest.mark.usefixtures("on_one_thread")


def test_leave_one_out_agrees_with_a_fit_for_each_row():
    """The densities of a posterior and of point fits differ by the spread of the params."""
    x = clusters(2, 15)
    options = {"components": [2], "start": seeded, "patience": 1}
    (score,) = compare(gaussians(), x, folds=len(x), draws=80, **options).scores
    exact, result = score.heldout, score.loo.predictive
    seen = log_evidence(score.model, x).double().numpy()
    assert exact.total < seen.sum() - 5
    assert abs(result.total - exact.total) < 2 < 0.5 * exact.standard_error
    # Row by row, too: PSIS alone is inaccurate for components with few rows.
    assert np.abs(result.values - exact.values).max() < 0.5 * np.abs(seen - exact.values).max()
    assert score.loo.unreliable > 0.1


@pytest.mark.arviz
def test_psis_of_a_conjugate_posterior():
    """y_n ~ N(mu, 1), flat prior: row n given the others is N(their mean, 1 + 1 / (N - 1))."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=25)
    draws = y.mean() + rng.normal(size=(4000, 1)) / 5
    result = psis(stats.norm.logpdf(y, draws, 1))
    exact = [
        stats.norm.logpdf(y[i], np.delete(y, i).mean(), np.sqrt(1 + 1 / 24)) for i in range(25)
    ]
    np.testing.assert_allclose(result.predictive.values, exact, atol=0.02)
    assert result.unreliable == 0
    assert result.predictive.standard_error == pytest.approx(5 * np.std(exact, ddof=1), rel=0.02)


def test_rows_with_unreliable_weights_are_counted():
    draws = 0.01 * stats.norm.rvs(size=(400, 4), random_state=0)
    draws[:, 3] = -np.abs(stats.t.rvs(1, size=400, random_state=1))
    result = psis(draws)
    assert result.unreliable == 0.25
    # Three draws were fitted without the last row: their mean density replaces PSIS.
    without = np.zeros_like(draws, dtype=bool)
    without[:3] = True
    replaced = psis(draws, without)
    np.testing.assert_array_equal(replaced.predictive.values[:3], result.predictive.values[:3])
    assert replaced.predictive.values[3] == pytest.approx(np.log(np.exp(draws[:3, 3]).mean()))
    # Without such draws PSIS is kept.
    without[:, 3] = False
    np.testing.assert_array_equal(psis(draws, without).predictive.values, result.predictive.values)


@pytest.mark.arviz
def test_a_tail_of_one_draw_is_unreliable():
    """A single draw has all the weight, which is no tail with a shape."""
    densities = np.full((40, 2), -1.0)
    densities[:, 1] += 0.1 * stats.norm.rvs(size=40, random_state=2)
    densities[0, 0] = -30
    without = np.random.default_rng(0).random((40, 2)) < 0.37
    assert not without[0, 0]
    result = psis(densities, without)
    assert result.pareto_k[0] > result.good_k
    assert result.unreliable == 0.5
    assert result.predictive.values[0] == pytest.approx(-1.0)


@pytest.mark.arviz
def test_draws_that_agree_have_no_tail():
    """Equal densities are exact; if only those in the tail are equal, it has no shape."""
    densities = -np.abs(stats.norm.rvs(size=(40, 3), random_state=3))
    densities[:, 1] = -1e7
    densities[:, 2] = np.where(np.arange(40) < 15, -16.0, -3.0)
    without = np.zeros_like(densities, dtype=bool)
    without[:15, 2] = without[:, 1] = True
    result = psis(densities, without)
    assert result.predictive.values[1] == -1e7
    assert result.predictive.values[2] == pytest.approx(-16.0)
    np.testing.assert_array_equal(result.pareto_k[1:], [-np.inf, np.inf])
    assert result.unreliable == pytest.approx(1 / 3 + (result.pareto_k[0] > result.good_k) / 3)
    # The harmonic mean if every draw contains the row; ArviZ's estimate is the same.
    harmonic = np.log(40) - np.log(15 * np.exp(16) + 25 * np.exp(3))
    assert psis(densities).predictive.values[2] == pytest.approx(harmonic)


@pytest.mark.arviz
@pytest.mark.filterwarnings("ignore:The point-wise LOO is the same")
def test_equal_resamples_are_exact():
    (score,) = compare(
        gaussians(), torch.ones(30, 2, device="cpu"), components=[1], draws=30, epochs=2
    ).scores
    assert score.loo.unreliable == 0.0
    np.testing.assert_allclose(
        score.loo.predictive.values, log_evidence(score.model, torch.ones(30, 2)).double(), 1e-6
    )
