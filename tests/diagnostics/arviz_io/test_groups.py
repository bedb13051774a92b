"""Predictive, prior, likelihood and data groups, and what ArviZ does with them."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value

from pyro_mixtures.diagnostics import to_arviz
from pyro_mixtures.distributions import Categoricals, DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.poutine import data_plate
from tests.diagnostics.arviz_io.three_clusters import (
    CENTERS,
    module_fit,
    priors,
    sampled,
    stock,
    three_clusters,
    two_groups,
)

pytestmark = [pytest.mark.arviz, pytest.mark.usefixtures("on_one_thread")]


class TestOtherGroups:
    def test_new_data_sets_come_from_the_draws(self):
        x = two_groups()
        mcmc = sampled(priors, x, start=[-3.0, 3.0])
        data = to_arviz(mcmc, priors, x, posterior_predictive=8, align=False)
        new, loc = data.posterior_predictive["x"], data.posterior["loc"].values
        assert new.dims == ("chain", "draw", "row")
        # Each row scatters around one of the two means of its draw.
        distance = np.abs(new.values[..., None] - loc[:, :, None, :]).min(-1)
        assert distance.max() < 4.5
        assert distance.mean() == pytest.approx(np.sqrt(2 / np.pi), abs=0.2)

    def test_new_data_sets_of_a_point_estimate(self):
        data = to_arviz(module_fit([0, 1, 2]), three_clusters(), posterior_predictive=5)
        assert data.posterior_predictive["x"].shape == (1, 5, 60, 1)
        assert len(np.unique(data.posterior_predictive["x"].values[0, :, 0, 0])) == 5

    def test_more_data_sets_than_draws_are_refused(self):
        mcmc = sampled(priors, two_groups(), start=[-3.0, 3.0], draws=2)
        with pytest.raises(OptionError, match="has 2 draws"):
            to_arviz(mcmc, priors, two_groups(), posterior_predictive=3)

    def test_prior(self):
        global_guide = AutoNormal(pyro.poutine.block(priors, hide=["z"]))
        guide = FullPartition(priors, components=2, global_guide=global_guide)
        data = to_arviz(guide, two_groups(), draws=2, prior=200)
        assert data.prior["loc"].dims == ("chain", "draw", "cluster")
        assert data.prior["loc"].values.std() == pytest.approx(10.0, rel=0.15)
        assert data.prior_predictive["x"].shape == (1, 200, 16)
        assert data.prior_predictive["x"].values.std() == pytest.approx(np.sqrt(101), rel=0.2)

    def test_params_have_no_prior(self):
        with pytest.raises(OptionError, match="no prior"):
            to_arviz(module_fit([0, 1, 2]), three_clusters(), prior=3)

    def test_factors_cannot_be_sampled(self):
        def model(x):
            with data_plate(x):
                z = pyro.sample("z", MixtureWeights(torch.tensor([0.5, 0.5])))
                pyro.factor("x", dist.Normal(CENTERS[z, 0], 1.0).log_prob(x))

        with pytest.raises(ModelError, match=r"factors \['x'\]"):
            to_arviz(FullPartition(model, components=2), two_groups(), posterior_predictive=1)

    def test_log_evidence_by_site(self):
        x, label = three_clusters(), torch.arange(60) % 2
        table, scale = torch.tensor([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]]), torch.ones(3, 1)
        weights = torch.tensor([0.2, 0.3, 0.5])

        def model(x, label, index=None, size=None):
            with data_plate(x, index, size):
                z = pyro.sample("z", MixtureWeights(weights))
                pyro.sample("x", DiagonalNormals(CENTERS, scale)[z], obs=x)
                pyro.sample("label", Categoricals(table)[z], obs=label)

        converted = to_arviz(FullPartition(model, components=3), x, label, by_site=True)
        density = dist.Normal(CENTERS[:, 0], 1.0).log_prob(x)
        np.testing.assert_allclose(
            converted.log_likelihood["x"].values[0, 0],
            (weights.log() + density).logsumexp(-1),
            rtol=1e-5,
        )
        np.testing.assert_allclose(
            converted.log_likelihood["label"].values[0, 0],
            (weights @ table)[label].log(),
            rtol=1e-5,
        )
        joint = (weights.log() + density + table.log()[:, label].T).logsumexp(-1)
        np.testing.assert_allclose(
            converted.sample_stats["lp"].values[0, 0], joint.double().sum(), rtol=1e-5
        )

    def test_covariates_are_constant_data(self):
        def experts(x, y):
            slope = pyro.param("slope", torch.tensor([1.0, -1.0]))
            with data_plate(x):
                z = pyro.sample("z", MixtureWeights(torch.full((2,), 0.5)))
                pyro.sample("y", dist.Normal(slope[z] * x, 1.0), obs=y)

        x = two_groups()
        data = to_arviz(FullPartition(experts, components=2), x, x.flip(0))
        np.testing.assert_array_equal(data.constant_data["x"].values, x)
        assert data.constant_data["x"].dims == ("row",)
        np.testing.assert_array_equal(data.observed_data["y"].values, x.flip(0))

    @pytest.mark.meta
    def test_meta(self):
        data = to_arviz(FullPartition(stock, components=2), two_groups(), posterior_predictive=2)
        assert data.posterior_predictive["x"].shape == (1, 2, 16)


@pytest.fixture(scope="module")
def data():
    """Draws of the means of two groups, and new data sets."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    start = init_to_value(values={"loc": torch.tensor([-3.0, 3.0])})
    global_guide = AutoNormal(
        pyro.poutine.block(priors, hide=["z"]), init_loc_fn=start, init_scale=0.3
    )
    guide = FullPartition(priors, components=2, global_guide=global_guide)
    return to_arviz(guide, two_groups(), draws=100, posterior_predictive=20)


class TestArviZ:
    """ArviZ compares, summarizes and plots the converted fits."""

    @pytest.fixture(autouse=True)
    def close_figures(self):
        yield
        from matplotlib import pyplot

        pyplot.close("all")

    # Only the existence of a result is tested; with these few draws it is noisy.
    @pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution")
    # ArviZ 0.23 sorts its table in a way that pandas 3.1 deprecates.
    @pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame")
    def test_compare(self, data):
        def one(x, index=None, size=None):
            loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
            with data_plate(x, index, size):
                z = pyro.sample("z", dist.Categorical(torch.ones(1)))
                pyro.sample("x", dist.Normal(loc + 0.0 * z, 1.0), obs=x)

        guide = FullPartition(
            one,
            components=1,
            global_guide=AutoNormal(pyro.poutine.block(one, hide=["z"]), init_scale=0.2),
        )
        table = az.compare({"two": data, "one": to_arviz(guide, two_groups(), draws=100)})
        assert table.index[0] == "two"

    def test_plots_and_summary(self, data):
        assert list(az.summary(data).index) == ["loc[0]", "loc[1]"]
        az.plot_forest(data)
        if az.__version__.startswith("0."):
            az.plot_ppc(data, num_pp_samples=10)
        else:
            az.plot_ppc_dist(data, num_samples=10)
