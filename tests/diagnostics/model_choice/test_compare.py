"""Comparisons of fits: what is fitted, scored and refused."""

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import constraints

from pyro_mixtures.diagnostics.model_choice.compare import compare_fits
from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import DataError, NumericalError, OptionError
from pyro_mixtures.guides import FullPartition, HardPartition
from pyro_mixtures.infer import EM, log_evidence
from pyro_mixtures.models import MixtureOfRegressions
from pyro_mixtures.poutine import data_plate
from tests.diagnostics.model_choice.samples import (
    clusters,
    compare,
    few_candidates,
    gaussians,
    generator,
    normal,
    normal_log_prob,
    seeded,
)

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.mark.meta
def test_the_planted_number_is_recovered_on_any_default_device():
    assert (
        compare(gaussians(), clusters(3), components=[2, 3, 4], start=seeded).best.components == 3
    )


@pytest.mark.slow
@pytest.mark.parametrize("components", [3, 8, 20])
def test_the_planted_number_is_recovered_in_ten_data_sets(components):
    """As tests/benchmarks/model_choice.py does, by BIC."""
    for seed in range(10):
        x, sizes = clusters(components, 60, seed), range(components - 2, components + 3)
        assert (
            compare(gaussians(), x, components=sizes, starts=3, start=seeded).best.components
            == components
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_component_in_closed_form(dtype):
    """Log likelihood, criteria, held-out rows, and leave-one-out cross-validation."""
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


@pytest.mark.parametrize(
    ("options", "started"),
    [
        ({}, [1]),  # the other fits have grown
        ({"starts": 2}, [1, 1, 2, 2, 3, 3]),
        ({"warm_start": False}, [1, 2, 3]),
    ],
)
def test_which_fits_have_fresh_starts(options, started):
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


def test_hard_partitions_with_estimated_weights():
    """Clusters may become empty, with weights of one and zero."""
    x = clusters(2, 20)
    result = compare(gaussians(guide=HardPartition), x, components=[1, 2, 3], start=seeded)
    assert result.best.components == 2
    for score in result.scores:
        assert np.isfinite(score.criteria.log_likelihood)


def test_pruning_larger_fits_improves_smaller_ones():
    """Identical starts of three components cannot separate; four separate starts can."""
    x = clusters(3, 20)

    def start(model, x):
        places = torch.tensor([0.0, 9.0, 18.0, 18.5]) if model.components == 4 else torch.zeros(3)
        with torch.no_grad():
            model.loc = places.unsqueeze(-1).expand(-1, 2).clone()

    options = {"components": [3, 4], "start": start, "starts": 1, "patience": 1}
    alone = compare(gaussians(), x, warm_start=False, **options).scores[0]
    improved = compare(gaussians(), x, **options).scores[0]
    assert improved.components == alone.components == 3
    assert improved.criteria.log_likelihood > alone.criteria.log_likelihood + 50
    np.testing.assert_allclose(improved.criteria.shares, torch.full((3,), 1 / 3), atol=1e-3)
    assert improved.fit.model.loc.shape == (3, 2)


def test_programs_with_params_in_the_store():
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
    x = clusters(4, 15) + 6 * normal(60, 2, seed=2)  # clusters overlap
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


def test_conditional_mixtures_score_outcomes():
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


def test_interruption_returns_complete_families():
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
    def stop(result):
        if result.model.covariance == "isotropic" and result.model.components == 2:
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
def test_families_need_names(builds):
    with pytest.raises(OptionError, match="families by name"):
        compare_fits(builds, clusters(2, 20), components=[1])
