"""Comparisons find what was planted, and every score is that of its own fit."""

import io
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from matplotlib.figure import Figure
from pyro.distributions import constraints
from scipy import stats

from pyro_mixtures.diagnostics.model_choice.compare import compare_fits
from pyro_mixtures.diagnostics.model_choice.loo import psis
from pyro_mixtures.diagnostics.model_choice.plots import plot_comparison
from pyro_mixtures.diagnostics.model_choice.predictive import Predictive
from pyro_mixtures.diagnostics.model_choice.score import Comparison, Score
from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import DataError, NumericalError, OptionError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, log_evidence
from pyro_mixtures.infer.restarts.pruning import pruning_losses
from pyro_mixtures.infer.uncertainty.criteria import Criteria
from pyro_mixtures.init import seed_rows
from pyro_mixtures.models import GaussianMixture, MixtureOfRegressions
from pyro_mixtures.poutine import data_plate
from pyro_mixtures.testing import one_thread

pytestmark = pytest.mark.usefixtures("on_one_thread")


def generator(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed), device="cpu", dtype=dtype)


def clusters(components, each=40, seed=0):
    centres = 9.0 * torch.arange(components, device="cpu")
    return (centres[:, None, None] + normal(components, each, 2, seed=seed)).flatten(0, 1)


def gaussians(covariance="diagonal", dtype=torch.float32, guide=FullPartition):
    def build(components):
        with torch.device("cpu"):
            model = GaussianMixture(components=components, features=2, covariance=covariance).to(
                dtype
            )
            return EM(model, guide(model, components=components))

    return build


def few_candidates(model, components):
    few = min(components, 2)
    return TruncatedPartition(
        model, components=components, candidates=few, neighbors=few, explore=0, seed=0
    )


def seeded(model, x):
    model.start_at(seed_rows(x, model.components, generator=generator()))


def compare(builds, *rows, **options):
    builds = builds if isinstance(builds, dict) else {"diagonal": builds}
    return compare_fits(builds, *rows, **({"generator": generator(), "progress": False} | options))


def normal_log_prob(x, others):
    """The rows' log densities under the normal distribution most likely for ``others``."""
    return stats.norm.logpdf(x, others.mean(0), others.std(0)).sum(-1)


@pytest.fixture(scope="module")
def planted():
    """Three clusters, scored by everything."""
    with one_thread():
        options = {"folds": 2, "draws": 30, "start": seeded, "patience": 1}
        return compare(gaussians(), clusters(3, 30), components=[2, 3, 4], **options)


@pytest.fixture(scope="module")
def families():
    """Two families on long clusters."""
    with one_thread():
        builds = {"isotropic": gaussians("isotropic"), "diagonal": gaussians()}
        x = clusters(2, 30) * torch.tensor([1.0, 3.0], device="cpu")
        return compare(builds, x, components=[1, 2, 3], start=seeded, patience=1)


@pytest.mark.parametrize("criterion", ["bic", "icl", "heldout", "loo"])
def test_the_planted_number_is_found(planted, criterion):
    assert planted.best_by(criterion).components == 3


def test_the_planted_family_is_found(families):
    assert (families.best.family, families.best.components) == ("diagonal", 2)


@pytest.mark.meta
def test_the_planted_number_is_found_wherever_tensors_are_made():
    assert (
        compare(gaussians(), clusters(3), components=[2, 3, 4], start=seeded).best.components == 3
    )


@pytest.mark.slow
@pytest.mark.parametrize("components", [3, 8, 20])
def test_the_planted_number_is_found_in_ten_data_sets(components):
    """As tests/benchmarks/model_choice.py does, by BIC."""
    for seed in range(10):
        x, sizes = clusters(components, 60, seed), range(components - 2, components + 3)
        assert (
            compare(gaussians(), x, components=sizes, starts=3, start=seeded).best.components
            == components
        )


def test_scores_are_those_of_their_own_params(planted):
    """Pyro's store is empty here, and no fit reads that of another."""
    for score in planted.scores:
        found = log_evidence(score.model, clusters(3, 30)).double().sum()
        assert float(found) == pytest.approx(score.criteria.log_likelihood)
        assert score.loo.predictive.total < score.criteria.log_likelihood
    assert not pyro.get_param_store().keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_component_in_closed_form(dtype):
    """Log likelihood, criteria, held-out rows; and leaving out one row a fold."""
    x, new = normal(8, 2, dtype=dtype), normal(7, 2, seed=1, dtype=dtype)
    data, unseen = x.double().numpy(), new.double().numpy()
    (score,) = compare(gaussians(dtype=dtype), x, components=[1], heldout=new).scores
    exact = normal_log_prob(data, data).sum()
    assert score.criteria.log_likelihood == pytest.approx(exact, rel=1e-5)
    assert score.value("bic") == pytest.approx(4 * np.log(8) - 2 * exact, rel=1e-5)
    assert score.value("aic") == pytest.approx(8 - 2 * exact, rel=1e-5)
    np.testing.assert_allclose(score.heldout.values, normal_log_prob(unseen, data), rtol=1e-4)
    (score,) = compare(gaussians(dtype=dtype), x, components=[1], folds=8).scores
    left_out = [normal_log_prob(data[i], np.delete(data, i, 0)) for i in range(8)]
    np.testing.assert_allclose(score.heldout.values, left_out, rtol=1e-4)


def test_leave_one_out_agrees_with_a_fit_for_each_row():
    """Of the posterior's predictive density and of the point fits' plugged in: alike up to their parameters' spread."""
    x = clusters(2, 15)
    options = {"components": [2], "start": seeded, "patience": 1}
    (score,) = compare(gaussians(), x, folds=len(x), draws=80, **options).scores
    exact, found = score.heldout, score.loo.predictive
    seen = log_evidence(score.model, x).double().numpy()
    assert exact.total < seen.sum() - 5
    assert abs(found.total - exact.total) < 2 < 0.5 * exact.standard_error
    # The rows' own shares, too: PSIS alone is far off where few rows make a component.
    assert np.abs(found.values - exact.values).max() < 0.5 * np.abs(seen - exact.values).max()
    assert score.loo.unreliable > 0.1


@pytest.mark.arviz
def test_psis_of_a_conjugate_posterior():
    """y_n ~ N(mu, 1), flat prior: row n given the others is N(their mean, 1 + 1 / (N - 1))."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=25)
    draws = y.mean() + rng.normal(size=(4000, 1)) / 5
    found = psis(stats.norm.logpdf(y, draws, 1))
    exact = [
        stats.norm.logpdf(y[i], np.delete(y, i).mean(), np.sqrt(1 + 1 / 24)) for i in range(25)
    ]
    np.testing.assert_allclose(found.predictive.values, exact, atol=0.02)
    assert found.unreliable == 0
    assert found.predictive.standard_error == pytest.approx(5 * np.std(exact, ddof=1), rel=0.02)


@pytest.mark.arviz
@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame")  # ArviZ 0.23 with pandas 3.1
def test_arviz_compares_the_same_estimates(planted):
    import arviz

    table = arviz.compare({str(score.components): score.loo.elpd for score in planted.scores})
    assert sorted(table.index) == ["2", "3", "4"]
    assert table.index[-1] == "2"


def test_rows_whose_weights_cannot_be_trusted_are_counted():
    draws = 0.01 * stats.norm.rvs(size=(400, 4), random_state=0)
    draws[:, 3] = -np.abs(stats.t.rvs(1, size=400, random_state=1))
    found = psis(draws)
    assert found.unreliable == 0.25
    # Three draws have not seen the last row: their mean density takes the place.
    without = np.zeros_like(draws, dtype=bool)
    without[:3] = True
    mended = psis(draws, without)
    np.testing.assert_array_equal(mended.predictive.values[:3], found.predictive.values[:3])
    assert mended.predictive.values[3] == pytest.approx(np.log(np.exp(draws[:3, 3]).mean()))
    # Where there are none, PSIS stays.
    without[:, 3] = False
    np.testing.assert_array_equal(psis(draws, without).predictive.values, found.predictive.values)


@pytest.mark.arviz
def test_a_tail_of_one_draw_is_not_to_be_trusted():
    """One resample in forty finds the row unlikely: it has all weight, and is no tail that has a shape."""
    densities = np.full((40, 2), -1.0)
    densities[:, 1] += 0.1 * stats.norm.rvs(size=40, random_state=2)
    densities[0, 0] = -30
    without = np.random.default_rng(0).random((40, 2)) < 0.37
    assert not without[0, 0]
    found = psis(densities, without)
    assert found.pareto_k[0] > found.good_k
    assert found.unreliable == 0.5
    assert found.predictive.values[0] == pytest.approx(-1.0)


@pytest.mark.arviz
def test_draws_that_agree_have_no_tail():
    """Densities that are all the same are exact; where only those of the largest weights are, nothing has a shape."""
    densities = -np.abs(stats.norm.rvs(size=(40, 3), random_state=3))
    densities[:, 1] = -1e7
    densities[:, 2] = np.where(np.arange(40) < 15, -16.0, -3.0)
    without = np.zeros_like(densities, dtype=bool)
    without[:15, 2] = without[:, 1] = True
    found = psis(densities, without)
    assert found.predictive.values[1] == -1e7
    assert found.predictive.values[2] == pytest.approx(-16.0)
    np.testing.assert_array_equal(found.pareto_k[1:], [-np.inf, np.inf])
    assert found.unreliable == pytest.approx(1 / 3 + (found.pareto_k[0] > found.good_k) / 3)
    # By the harmonic mean, where no draw has not seen the row; ArviZ's own estimate is the same.
    harmonic = np.log(40) - np.log(15 * np.exp(16) + 25 * np.exp(3))
    assert psis(densities).predictive.values[2] == pytest.approx(harmonic)


@pytest.mark.arviz
@pytest.mark.filterwarnings("ignore:The point-wise LOO is the same")
def test_rows_of_which_all_resamples_are_the_same():
    (score,) = compare(
        gaussians(), torch.ones(30, 2, device="cpu"), components=[1], draws=30, epochs=2
    ).scores
    assert score.loo.unreliable == 0.0
    np.testing.assert_allclose(
        score.loo.predictive.values, log_evidence(score.model, torch.ones(30, 2)).double(), 1e-6
    )


class TestChoice:
    """By scores that are made up: fits of 1, 2, 3 components whose rows differ as said."""

    @staticmethod
    def comparison(*values, criterion="heldout"):
        scores = [
            Score(
                "one",
                c,
                Criteria(-1.0, 5 * c, 4, 0.0, float(-c), 0.0, 0.0, torch.ones(1)),
                Predictive(v),
                None,
                None,
            )
            for c, v in enumerate(map(np.asarray, values), 1)
        ]
        return Comparison(scores, criterion)

    def test_the_simplest_of_those_that_are_as_good(self):
        row = np.array([-1.0, -8.0, -3.0, -4.0])
        up, down = row + np.array([1.0, 0.9, 1.1, 1.0]), row + np.array([1.0, 0.8, 1.3, 1.1])
        result = self.comparison(row, up, down)
        assert (
            result.best_by("heldout", errors=0).components == 3
        )  # 4.2 against 4.0, with an error of 0.35
        assert result.best.components == 2  # though each sum has an error of 6

    def test_a_difference_without_error_counts(self):
        row = np.zeros(4)
        assert self.comparison(row, row + 0.1, row).best.components == 2

    def test_information_criteria_are_small_where_they_are_good(self):
        assert self.comparison(*np.zeros((3, 4)), criterion="bic").best.components == 3

    @pytest.mark.parametrize("errors", ["a", -1, float("nan"), None])
    def test_errors_are_numbers(self, errors):
        with pytest.raises(OptionError, match="errors="):
            self.comparison(np.zeros(4)).best_by("heldout", errors=errors)

    @pytest.mark.parametrize(
        ("criterion", "message"), [("loo", "draws=100"), ("waic", "choose one of")]
    )
    def test_what_was_not_computed_is_refused(self, criterion, message):
        with pytest.raises(OptionError, match=message):
            self.comparison(np.zeros(4)).best_by(criterion)


@pytest.mark.parametrize(
    ("options", "started"),
    [
        ({}, [1]),  # the rest has grown
        ({"starts": 2}, [1, 1, 2, 2, 3, 3]),
        ({"warm_start": False}, [1, 2, 3]),
    ],
)
def test_what_starts_afresh(options, started):
    seen = []

    def start(model, x):
        seen.append(model.components)
        seeded(model, x)

    compare(gaussians(), clusters(2, 20), components=[1, 2, 3], start=start, epochs=2, **options)
    assert seen == started


def test_fresh_starts_compete_with_growth():
    x, options = clusters(5, 20), {"components": [3, 5], "start": seeded, "epochs": 3, "starts": 2}
    fresh, both = (compare(gaussians(), x, warm_start=warm, **options) for warm in (False, True))
    for score, other in zip(both.scores, fresh.scores, strict=True):
        assert score.fit.elbo >= other.fit.elbo


def test_what_a_component_is_missed_by_its_rows():
    """Against the evidence without it; of two in one place either goes first."""
    x = clusters(3, 20).double()
    model = gaussians(dtype=torch.float64)(4).model
    with torch.no_grad():
        model.loc = torch.tensor(
            [[0.0, 0.0], [9.0, 9.0], [17.0, 18.0], [19.0, 18.0]], dtype=torch.float64
        )
        model.weights = torch.tensor([0.2, 0.3, 0.4, 0.1], dtype=torch.float64)
        model.scale = torch.full((4, 2), 2.0, dtype=torch.float64)
    found = pruning_losses(model, (x,), model.weights.detach(), site="z", chunk=7)
    log_prob = (
        torch.distributions.Normal(model.loc, model.scale).log_prob(x.unsqueeze(1)).sum(-1).detach()
    )
    for c in range(4):
        kept = [k for k in range(4) if k != c]
        others = model.weights[kept].detach() / model.weights[kept].detach().sum()
        exact = (log_prob + model.weights.detach().log()).logsumexp(-1) - (
            log_prob[:, kept] + others.log()
        ).logsumexp(-1)
        assert float(found[c]) == pytest.approx(float(exact.sum()), rel=1e-9)
    assert int(found.argmin()) == 3


@pytest.mark.parametrize("weights", [[1.0, 0.0, 0.0], [1.0, 1e-9, 0.0]])
def test_what_a_component_is_missed_that_has_all_rows(weights):
    """What it leaves is the sum of the others: one minus its own rounds to zero."""
    x, weights = clusters(1, 20), torch.tensor(weights, device="cpu")
    model = gaussians()(3).model
    with torch.no_grad():
        model.loc, model.weights = torch.tensor([[0.0, 0.0], [5.0, 5.0], [6.0, 6.0]]), weights
    found = pruning_losses(model, (x,), weights, site="z", chunk=None)
    assert found[2] == 0
    assert float(found[1]) == pytest.approx(0.0, abs=1e-5)
    if weights[1] == 0:
        assert found[0] == torch.inf
    else:
        normal = torch.distributions.Normal(model.loc[:2].detach(), model.scale[:2].detach())
        log_prob = normal.log_prob(x.unsqueeze(1)).sum(-1)
        assert float(found[0]) == pytest.approx(
            float((log_prob[:, 0] - log_prob[:, 1]).sum()), rel=1e-4
        )


def test_hard_partitions_with_weights_of_their_own():
    """Their parts may die, and leave a weight of one and zeros."""
    x = clusters(2, 20)
    result = compare(gaussians(guide=HardPartition), x, components=[1, 2, 3], start=seeded)
    assert result.best.components == 2
    for score in result.scores:
        assert np.isfinite(score.criteria.log_likelihood)


def test_larger_fits_that_shrink_mend_smaller_ones():
    """Three components that start in one place cannot part; four that start apart show where they belong."""
    x = clusters(3, 20)

    def start(model, x):
        places = torch.tensor([0.0, 9.0, 18.0, 18.5]) if model.components == 4 else torch.zeros(3)
        with torch.no_grad():
            model.loc = places.unsqueeze(-1).expand(-1, 2).clone()

    options = {"components": [3, 4], "start": start, "starts": 1, "patience": 1}
    alone = compare(gaussians(), x, warm_start=False, **options).scores[0]
    mended = compare(gaussians(), x, **options).scores[0]
    assert mended.components == alone.components == 3
    assert mended.criteria.log_likelihood > alone.criteria.log_likelihood + 50
    np.testing.assert_allclose(mended.criteria.shares, torch.full((3,), 1 / 3), atol=1e-3)
    assert mended.fit.model.loc.shape == (3, 2)


def test_programs_whose_params_live_in_the_store():
    x = clusters(2, 20)

    def build(components):
        def model(x=None, index=None, size=None):
            weights = pyro.param(
                "weights", torch.full((components,), 1 / components), constraint=constraints.simplex
            )
            loc = pyro.param("loc", lambda: torch.randn(components, 2))
            scale = pyro.param("scale", torch.ones(components, 2), constraint=constraints.positive)
            with data_plate(x, index, size):
                z = pyro.sample("z", MixtureWeights(weights))
                pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)

        return model, EM(model, FullPartition(model, components=components))

    with pyro.get_param_store().scope():
        pyro.param("loc", torch.zeros(3))
        pyro.param("other", torch.ones(1))
        before = torch.get_rng_state()
        options = {"components": [1, 2], "draws": 30, "epochs": 8, "patience": 1}
        result = compare({"plain": build}, x, start=lambda model, x: model(x), **options)
        assert torch.equal(torch.get_rng_state(), before)
        assert result.best.components == result.best_by("loo").components == 2
        assert pyro.param("loc").shape == (2, 2)
        assert pyro.param("other").item() == 1
        one = result.scores[0]
        np.testing.assert_allclose(
            one.model.state["params"]["loc"].detach(), x.mean(0, keepdim=True), rtol=1e-5
        )
        assert one.use() is one.fit
        assert pyro.param("loc").shape == (1, 2)


def test_truncated_scores_are_lower_bounds():
    x = clusters(4, 15) + 6 * normal(60, 2, seed=2)  # every row is of several
    given = {"components": [4], "warm_start": False, "heldout": x[::2] + 0.1, "draws": 30}
    options = {"start": seeded, "epochs": 2, "warmup": 1, "patience": 1}
    build = gaussians(guide=few_candidates)
    ((exact,), (bound,)) = (
        compare(build, x, truncated=truncated, **given, **options).scores
        for truncated in (False, True)
    )
    assert bound.criteria.log_likelihood < exact.criteria.log_likelihood - 1e-3
    assert (bound.heldout.values <= exact.heldout.values + 1e-4).all()
    assert bound.heldout.total < exact.heldout.total - 1e-3
    assert bound.loo.predictive.total < exact.loo.predictive.total - 1e-3


def test_outcomes_given_covariates():
    x, noise = normal(60, 1), normal(60, seed=1)
    y = torch.where(torch.arange(60) % 2 == 0, 5.0, -5.0) * x[:, 0] + 0.1 * noise

    def build(components):
        model = MixtureOfRegressions(components=components, features=1)
        return EM(model, FullPartition(model, components=components))

    new = (2 * x[:10], 2 * y[:10])
    result = compare(
        {"lines": build}, x, y, components=[1, 2], heldout=new, warm_start=False, starts=3
    )
    assert result.best.components == result.best_by("heldout").components == 2
    for score in result.scores:
        assert float(log_evidence(score.model, *new).double().sum()) == pytest.approx(
            score.heldout.total, rel=1e-5
        )


def test_the_same_generator_gives_the_same_scores():
    options = {"components": [1, 2], "folds": 2, "epochs": 1, "start": seeded}
    one, same, other = (
        compare(gaussians(), clusters(2, 20), generator=generator(seed), **options)
        for seed in (0, 0, 1)
    )
    assert str(one) == str(same)
    assert one.scores[1].heldout.total != other.scores[1].heldout.total


def test_interruption_keeps_the_families_that_are_complete():
    def interrupted(components):
        raise KeyboardInterrupt

    options = {"components": [1, 2], "start": seeded, "epochs": 2}
    with pytest.raises(KeyboardInterrupt):
        compare({"never": interrupted, "diagonal": gaussians()}, clusters(2, 20), **options)
    result = compare({"diagonal": gaussians(), "never": interrupted}, clusters(2, 20), **options)
    assert result.interrupted
    assert [(score.family, score.components) for score in result.scores] == [
        ("diagonal", 1),
        ("diagonal", 2),
    ]
    assert "interrupted" in str(result)


def test_an_interrupted_fit_is_not_scored():
    def stop(found):
        if found.model.covariance == "isotropic" and found.model.components == 2:
            raise KeyboardInterrupt

    builds = {"diagonal": gaussians(), "isotropic": gaussians("isotropic")}
    result = compare(builds, clusters(2, 20), components=[1, 2], callbacks=[stop], epochs=2)
    assert result.interrupted
    assert {score.family for score in result.scores} == {"diagonal"}


def test_a_failing_fit_is_named():
    def build(components):
        if components == 3:
            raise NumericalError("no density is finite")
        return gaussians()(components)

    with pytest.raises(NumericalError, match="3 components failed: no density"):
        compare(build, clusters(2, 20), components=[2, 3], epochs=2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"components": []}, OptionError, "increasing"),
        ({"components": [2, 2]}, OptionError, "increasing"),
        ({"components": [0]}, OptionError, "components=0"),
        ({"criterion": "waic"}, OptionError, "choose one of"),
        ({"criterion": "heldout"}, OptionError, "heldout=rows"),
        ({"criterion": "loo"}, OptionError, "draws=100"),
        ({"draws": 5}, OptionError, "at least 30"),
        ({"folds": 1}, OptionError, "at least 2"),
        ({"folds": 41}, OptionError, "no more than rows"),
        ({"folds": 2, "heldout": torch.zeros(3, 2)}, OptionError, "not both"),
        ({"heldout": torch.zeros(3, 4)}, DataError, "rows of heldout="),
        ({"heldout": (torch.zeros(3, 2), torch.zeros(3))}, DataError, "one tensor for each"),
        ({"warm_start": "no"}, OptionError, "True or False"),
        ({"starts": -1}, OptionError, "starts=-1"),
        ({"components": 3}, OptionError, "components=3"),
        ({"components": None}, OptionError, "components=None"),
        ({"start": 3}, OptionError, "start=3"),
        ({"generator": 0}, OptionError, "generator=0"),
        ({"epochs": 0}, OptionError, "epochs=0"),
        ({"chunk": 0}, OptionError, "chunk=0"),
    ],
)
def test_refusals(options, error, message):
    with pytest.raises(error, match=message):
        compare(gaussians(), clusters(2, 20), **({"components": [1]} | options))


@pytest.mark.parametrize("builds", [{}, gaussians(), {"diagonal": 3}])
def test_families_have_names(builds):
    with pytest.raises(OptionError, match="families by name"):
        compare_fits(builds, clusters(2, 20), components=[1])


class TestReport:
    def test_frame(self, planted, families):
        pytest.importorskip("pandas")
        frame = planted.to_frame()
        assert frame.shape == (3, 13)
        assert frame["components"].tolist() == [2, 3, 4]
        assert frame["bic"].idxmin() == 1
        np.testing.assert_allclose(frame["loo"], [score.value("loo") for score in planted.scores])
        assert families.to_frame()["family"].tolist() == ["isotropic"] * 3 + ["diagonal"] * 3

    def test_text(self, planted):
        lines = str(planted).split("\n")
        assert len(lines) == 5
        assert len(set(map(len, lines[:4]))) == 1
        assert lines[2].split()[:2] == ["diagonal", "3"]
        assert lines[2].count("*") >= 4
        assert lines[-1].endswith("by bic: diagonal with 3 components")

    @pytest.mark.parametrize(("which", "criterion"), [("families", "bic"), ("planted", "loo")])
    def test_picture(self, request, which, criterion):
        result = request.getfixturevalue(which)
        ax = plot_comparison(result, criterion=criterion)
        for lines, scores in zip(ax.containers, result.families().values(), strict=True):
            x = lines[0].get_xdata().astype(float)
            np.testing.assert_array_equal(x.round(), [score.components for score in scores])
            np.testing.assert_allclose(
                lines[0].get_ydata().astype(float), [score.value(criterion) for score in scores]
            )
            assert lines.has_yerr == (criterion == "loo")
        best = result.best_by(criterion)
        place = ax.collections[-1].get_offsets()[0]
        assert place[1] == pytest.approx(best.value(criterion))
        own = ax.containers[list(result.families()).index(best.family)]
        assert (
            place[0] == own[0].get_xdata()[[1, 2, 3].index(best.components) - (which == "planted")]
        )
        ax.figure.savefig(io.BytesIO(), format="png", dpi=40)

    def test_picture_of_families_with_the_same_scores(self, families):
        twins = [
            replace(score, family="twin") for score in families.scores if score.family == "diagonal"
        ]
        ax = plot_comparison(Comparison([*families.scores, *twins], "bic"))
        x = [lines[0].get_xdata().astype(float) for lines in ax.containers]
        assert len(np.unique(np.concatenate(x))) == 9
        ax = plot_comparison(Comparison(twins, "bic"))
        np.testing.assert_array_equal(ax.containers[0][0].get_xdata().astype(float), [1, 2, 3])

    def test_picture_in_axes_of_others(self, planted):
        ax = Figure().subplots()
        assert plot_comparison(planted, ax=ax) is ax
        assert "BIC" in ax.get_ylabel()
