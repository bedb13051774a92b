"""Integers that the params' dtype cannot hold are refused; the remedies work when followed."""

import pyro
import pytest
import torch
from pyro import distributions as dist

from pyro_mixtures.distributions import GatedWeights
from pyro_mixtures.errors import DataError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, assign, fit, log_evidence
from pyro_mixtures.init import seed_rows, start_labels
from pyro_mixtures.models import GaussianMixture, KMeans, MixtureOfFactorAnalyzers
from pyro_mixtures.models.bregman import BregmanMixture
from pyro_mixtures.models.generalized_regressions import MixtureOfPoissonRegressions
from pyro_mixtures.models.linear_regressions import MixtureOfRegressions
from pyro_mixtures.models.softmax import SoftmaxMixture
from pyro_mixtures.poutine import data_plate

SECONDS = 1_700_000_001
REFUSED = r"hold the integer \d+, which torch\.float32 cannot hold exactly: use float64 params, "


def seconds(rows=30, features=2):
    """Whole seconds in two clusters, 1,000 seconds apart."""
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randint(0, 30, (rows, features), generator=generator, device="cpu")
    x[: rows // 2] += 1000
    return x + SECONDS


def bregman(divergence):
    return BregmanMixture(components=2, features=2, divergence=divergence)


MIXTURES = {
    "isotropic": lambda: GaussianMixture(components=2, features=2, covariance="isotropic"),
    "diagonal": lambda: GaussianMixture(components=2, features=2),
    "full": lambda: GaussianMixture(components=2, features=2, covariance="full"),
    "factors": lambda: MixtureOfFactorAnalyzers(components=2, features=2, factors=1),
    "k-means": lambda: KMeans(components=2, features=2),
    "spherical": lambda: KMeans(components=2, features=2, spherical=True),
    **{name: lambda name=name: bregman(name) for name in ("kl", "itakura_saito")},
}


@pytest.mark.parametrize("family", MIXTURES)
def test_families_refuse_rows_that_float32_rounds_and_take_them_in_float64(family):
    x, model = seconds(), MIXTURES[family]()
    em = EM(model, FullPartition(model, components=2))
    for use in (em.step, em.accumulate, em.evaluate_loss, lambda x: log_evidence(model, x)):
        with pytest.raises(DataError, match=REFUSED + r"model\.double\(\)"):
            use(x)
    pyro.clear_param_store()
    wide = model.double()
    torch.testing.assert_close(log_evidence(wide, x), log_evidence(wide, x.double()))


@pytest.mark.parametrize("family", ["isotropic", "diagonal", "full", "factors", "k-means"])
def test_smaller_integers_work_as_the_message_says(family):
    model, x = MIXTURES[family](), seconds()
    x = x - x.min()
    torch.testing.assert_close(log_evidence(model, x), log_evidence(model, x.float()))


@pytest.mark.parametrize("strategy", [FullPartition, TruncatedPartition, HardPartition])
def test_every_guide_refuses_rows_that_float32_rounds(strategy):
    model = MIXTURES["diagonal"]()
    options = {"candidates": 2, "neighbors": 2} if strategy is TruncatedPartition else {}
    em = EM(model, strategy(model, components=2, **options))
    with pytest.raises(DataError, match=REFUSED):
        em.step(seconds())


@pytest.mark.parametrize("model", [MixtureOfRegressions, MixtureOfPoissonRegressions])
def test_regressions_refuse_covariates_and_outcomes_that_float32_rounds(model):
    experts = model(components=2, features=2)
    em = EM(experts, FullPartition(experts, components=2))
    x, y = torch.randn(30, 2), torch.arange(30)
    with pytest.raises(DataError, match=REFUSED):
        em.step(seconds(), y)
    with pytest.raises(DataError, match=REFUSED):
        em.step(x, seconds()[:, 0])


def test_gates_refuse_covariates_that_float32_rounds():
    with pytest.raises(DataError, match=REFUSED):
        GatedWeights(seconds(), torch.zeros(1, 2), torch.zeros(1)).log_prob(torch.zeros(30).long())


@pytest.mark.parametrize("fn", [dist.Normal, dist.Poisson])
def test_stock_distributions_refuse_rows_that_float32_rounds(fn):
    def model(x):
        rate = pyro.param("rate", torch.tensor([1.0, 2.0]))
        options = (1.0,) if fn is dist.Normal else ()
        with data_plate(x):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", fn(rate[z], *options), obs=x)

    x = seconds(features=1)[:, 0]
    em = EM(model, FullPartition(model, components=2))
    for use in (em.step, lambda x: log_evidence(model, x)):
        with pytest.raises(DataError, match=rf"rows of site 'x' {REFUSED}"):
            use(x)
    assert bool(log_evidence(model, x - x.min()).isfinite().all())


def test_row_weights_that_float32_rounds_are_refused():
    model, weight = MIXTURES["diagonal"](), torch.ones(30, dtype=torch.int64)
    weight[3] = (1 << 24) + 1
    em = EM(model, FullPartition(model, components=2))
    with pytest.raises(DataError, match="row weights hold the integer 16777217"):
        em.step(torch.randn(30, 2), weight)


def test_features_of_items_become_float64_where_float32_rounds():
    model = SoftmaxMixture(components=2, features=seconds())
    assert model.theta.dtype == torch.float64
    expected = seconds().double()
    torch.testing.assert_close(model.item_features, expected - expected.mean(0))


def test_seeds_and_start_labels_are_those_of_float64_rows():
    x = seconds()
    seeds = [
        seed_rows(rows, 2, generator=torch.Generator("cpu").manual_seed(0))
        for rows in (x, x.double())
    ]
    for actual, expected in zip(*seeds, strict=True):
        assert torch.equal(actual, expected)
    for method in ("kmeans++", "balanced", "agglomerative", "gaussian"):
        labels = [
            start_labels(rows, 2, method=method, generator=torch.Generator("cpu").manual_seed(0))
            for rows in (x, x.double())
        ]
        assert torch.equal(*labels)


def test_a_fit_of_whole_seconds_finds_their_clusters():
    x, model = seconds(300), MIXTURES["diagonal"]().double()
    model.start_at(seed_rows(x, 2, generator=torch.Generator("cpu").manual_seed(0)))
    fit(EM(model, FullPartition(model, components=2)), x, progress=False)
    labels = assign(model, x)
    for half in (slice(0, 150), slice(150, 300)):
        mean = x[half].double().mean(0)
        torch.testing.assert_close(model.loc[labels[half][0]].detach(), mean, rtol=0, atol=1e-3)
