"""Draws of an MCMC in ArviZ: log joints, labels, statistics of the sampler."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model

from pyro_mixtures.diagnostics import to_arviz
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.poutine import data_plate
from tests.diagnostics.arviz_io.three_clusters import priors, sampled, two_groups

pytestmark = [pytest.mark.arviz, pytest.mark.usefixtures("on_one_thread")]


class TestMCMC:
    def test_lp_is_minus_the_potential(self):
        x = two_groups()
        data = to_arviz(sampled(priors, x, start=[-3.0, 3.0]), priors, x, align=False)
        _, potential, _, _ = initialize_model(priors, (x,), max_plate_nesting=1)
        loc = torch.from_numpy(data.posterior["loc"].values[0])
        expected = [-float(potential({"loc": one})) for one in loc]
        np.testing.assert_allclose(data.sample_stats["lp"].values[0], expected, rtol=1e-5)
        assert data.posterior["loc"].dims == ("chain", "draw", "cluster")
        assert not data.sample_stats["diverging"].values.any()
        assert data.sample_stats["mean_acceptance_rate"].dims == ("chain",)

    def test_lp_counts_row_weights(self):
        def model(x, row_weight):
            loc = pyro.sample("loc", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
            with data_plate(x), pyro.poutine.scale(scale=row_weight):
                z = pyro.sample("z", dist.Categorical(torch.full((2,), 0.5)))
                pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

        rows = two_groups(), torch.arange(16) % 3 + 1.0
        mcmc = sampled(model, *rows, start=[-3.0, 3.0])
        data = to_arviz(mcmc, model, *rows)
        _, potential, _, _ = initialize_model(model, rows, max_plate_nesting=1)
        # In Pyro all copies of a weighted row share a component, here each has its own. This is
        # nearly the same for components that are far apart.
        expected = [-float(potential({"loc": one})) for one in mcmc.get_samples()["loc"]]
        np.testing.assert_allclose(data.sample_stats["lp"].values[0], expected, rtol=1e-4)

    @pytest.mark.filterwarnings("ignore:num_chains")
    def test_draws_of_all_chains_have_the_same_labels(self, monkeypatch):
        monkeypatch.setattr("torch.multiprocessing.cpu_count", lambda: 1)  # run chains sequentially
        x = two_groups()
        mcmc = sampled(priors, x, start=[-3.0, 3.0], chains=2)
        left = to_arviz(mcmc, priors, x, align=False)
        assert (
            left.posterior["loc"].values[1, :, 0].min()
            > 0
            > left.posterior["loc"].values[0, :, 0].max()
        )
        data = to_arviz(mcmc, priors, x)
        loc = data.posterior["loc"].values
        assert loc.shape == (2, 8, 2)
        signs = np.sign(loc)
        assert (signs == signs[0, 0]).all()
        np.testing.assert_array_equal(np.sort(loc), np.sort(left.posterior["loc"].values))
        np.testing.assert_array_equal(
            data.log_likelihood["x"].values, left.log_likelihood["x"].values
        )

    def test_divergences(self):
        x = two_groups()
        data = to_arviz(sampled(priors, x, start=[-3.0, 3.0], step=40.0), priors, x)
        assert data.sample_stats["diverging"].values.all()
        assert data.sample_stats["mean_acceptance_rate"].item() == 0.0

    def test_evenly_spaced_draws(self):
        x = two_groups()
        mcmc = sampled(priors, x, start=[-3.0, 3.0])
        data, whole = (
            to_arviz(mcmc, priors, x, draws=4, posterior_predictive=2),
            to_arviz(mcmc, priors, x),
        )
        assert data.posterior.coords["draw"].values.tolist() == [0, 2, 4, 6]
        assert data.posterior_predictive.coords["draw"].values.tolist() == [0, 4]
        np.testing.assert_array_equal(
            data.posterior["loc"].values, whole.posterior["loc"].values[:, ::2]
        )
        np.testing.assert_array_equal(
            data.sample_stats["lp"].values, whole.sample_stats["lp"].values[:, ::2]
        )
        with pytest.raises(OptionError, match="a chain has 8"):
            to_arviz(mcmc, priors, x, draws=9)

    def test_a_missing_model_is_refused(self):
        with pytest.raises(OptionError, match="its model"):
            to_arviz(sampled(priors, two_groups(), start=[-3.0, 3.0], draws=2), two_groups())

    def test_different_priors_of_components_are_refused(self):
        def ordered(x):
            with pyro.plate("cluster", 2):
                loc = pyro.sample("loc", dist.Normal(torch.tensor([-3.0, 3.0]), 1.0))
            with data_plate(x):
                z = pyro.sample("z", dist.Categorical(torch.full((2,), 0.5)))
                pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

        mcmc = sampled(ordered, two_groups(), start=[-3.0, 2.0], draws=2)
        with pytest.raises(ModelError, match="priors of their own"):
            to_arviz(mcmc, ordered, two_groups())
        assert to_arviz(mcmc, ordered, two_groups(), align=False).posterior["loc"].values.shape == (
            1,
            2,
            2,
        )
