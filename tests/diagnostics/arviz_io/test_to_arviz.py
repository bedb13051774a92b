"""Point estimates and draws of a guide in ArviZ equal what the model says."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_mixtures.diagnostics import to_arviz
from pyro_mixtures.distributions import (
    DiagonalNormals,
    MixtureWeights,
)
from pyro_mixtures.errors import DataError, ModelError, OptionError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models import GaussianMixture
from pyro_mixtures.poutine import data_plate
from tests.diagnostics.arviz_io.two_clusters import (
    CENTERS,
    fitted_by_em,
    fitted_by_svi,
    mean_field,
    normal_mixture,
    prior_on_loc,
    stock_mixture,
    two_clusters,
)

pytestmark = pytest.mark.arviz

POINTWISE = "loo_i" if az.__version__.startswith("0.") else "elpd_i"


@pytest.fixture
def close_figures():
    """ArviZ 0.x draws with pyplot."""
    yield
    from matplotlib import pyplot

    pyplot.close("all")


class TestPointEstimate:
    def test_params_are_the_one_draw(self):
        result = fitted_by_em(two_clusters())
        data = to_arviz(result, two_clusters())
        for name in ("weights", "loc", "scale"):
            values = data.posterior[name].values
            np.testing.assert_array_equal(
                values[0, 0], getattr(result.model, name).detach().numpy()
            )
        assert data.posterior["loc"].dims == ("chain", "draw", "component", "feature")
        assert "constant_data" not in data

    def test_log_likelihood_is_the_mixture_density(self):
        x = two_clusters()
        data = to_arviz(fitted_by_em(x), x)
        p = data.posterior
        expected = normal_mixture(
            x, *(p[name].values[0, 0] for name in ("weights", "loc", "scale"))
        )
        assert data.log_likelihood["x"].dims == ("chain", "draw", "row")
        np.testing.assert_allclose(data.log_likelihood["x"].values[0, 0], expected, rtol=1e-4)
        np.testing.assert_allclose(data.sample_stats["lp"].values, [[expected.sum()]], rtol=1e-5)

    def test_observed_rows_and_history(self):
        x = two_clusters()
        result = fitted_by_em(x)
        data = to_arviz(result, x)
        np.testing.assert_array_equal(data.observed_data["x"].values, x.numpy())
        assert data.observed_data["x"].dims == ("row", "feature")
        assert data.fit_history["elbo"].dims == ("epoch",)
        np.testing.assert_array_equal(data.fit_history["elbo"].values, result.history["elbo"])
        assert data.fit_history["phase"].values.tolist() == ["EM"] * len(result.history)

    def test_history_of_a_hard_partition(self):
        x, model = two_clusters(), GaussianMixture(components=2, features=2)
        result = fit(EM(model, HardPartition(model, components=2)), x, epochs=3, progress=False)
        sizes = to_arviz(result, x).fit_history["sizes"]
        assert sizes.dims == ("epoch", "component")
        np.testing.assert_array_equal(sizes.values, result.history["sizes"])

    def test_groups_can_be_left_out(self):
        model = GaussianMixture(components=2, features=2)
        guide = FullPartition(model, components=2)
        data = to_arviz(guide, two_clusters(), log_likelihood=False, observed_data=False)
        assert "posterior" in data
        for group in ("log_likelihood", "sample_stats", "observed_data", "fit_history"):
            assert group not in data

    def test_rows_may_differ_from_those_of_the_fit(self):
        x = two_clusters()
        result = fitted_by_em(x)
        data = to_arviz(result, x[:3].numpy(), chunk=2)
        whole = to_arviz(result, x)
        np.testing.assert_allclose(
            data.log_likelihood["x"].values, whole.log_likelihood["x"].values[..., :3], rtol=1e-5
        )

    def test_survives_a_netcdf_file(self, tmp_path):
        data = to_arviz(fitted_by_em(two_clusters()), two_clusters())
        data.to_netcdf(str(tmp_path / "fit.nc"))
        again = az.from_netcdf(str(tmp_path / "fit.nc"))
        for group, name in (("posterior", "loc"), ("log_likelihood", "x"), ("fit_history", "elbo")):
            assert again[group][name].dims == data[group][name].dims
            np.testing.assert_array_equal(again[group][name].values, data[group][name].values)
        assert (
            again["fit_history"]["phase"].values.tolist()
            == data["fit_history"]["phase"].values.tolist()
        )
        again.close()

    def test_guide_and_random_numbers_do_not_change(self):
        x, model = two_clusters(), GaussianMixture(components=4, features=2)
        guide = TruncatedPartition(model, components=4, candidates=2, neighbors=2)
        guide.posterior(x)
        table, evaluations = guide.sets.table.clone(), guide.evaluations
        exact, lower = to_arviz(guide, x), to_arviz(guide, x, truncated=True)
        assert torch.equal(guide.sets.table, table)
        assert guide.evaluations == evaluations
        assert (lower.log_likelihood["x"].values <= exact.log_likelihood["x"].values + 1e-5).all()
        assert (lower.log_likelihood["x"].values < exact.log_likelihood["x"].values - 1e-5).any()


@pytest.fixture(scope="module")
def draws():
    """100 draws of ``loc``, and the params."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    x = two_clusters()
    data = to_arviz(fitted_by_svi(x), x, draws=100)
    return data, {name: pyro.param(name).detach().numpy().copy() for name in ("weights", "scale")}


class TestDraws:
    def test_posterior_and_constant_data(self, draws):
        data, params = draws
        assert data.posterior["loc"].dims == ("chain", "draw", "component", "feature")
        assert list(data.posterior.data_vars) == ["loc"]
        assert data.constant_data["weights"].dims == ("component",)
        assert data.constant_data["scale"].dims == ("component", "feature")
        for name, value in params.items():
            np.testing.assert_array_equal(data.constant_data[name].values, value)
        # The draws spread as the mean-field guide does.
        spread = data.posterior["loc"].std("draw").values
        assert spread.min() > 0.1
        assert spread.max() < 0.25

    def test_log_likelihood_and_prior_are_those_of_each_draw(self, draws):
        data, params = draws
        loc = data.posterior["loc"].values
        expected = normal_mixture(two_clusters(), params["weights"], loc, params["scale"])
        np.testing.assert_allclose(data.log_likelihood["x"].values, expected, rtol=1e-4)
        prior = (
            torch.distributions.Normal(0.0, 10.0)
            .log_prob(torch.from_numpy(loc).double())
            .sum((-1, -2))
        )
        np.testing.assert_allclose(
            data.sample_stats["lp"].values, expected.sum(-1) + prior, rtol=1e-5
        )

    # Only the existence of a result is tested; with these few draws it is noisy.
    @pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution")
    def test_loo(self, draws):
        loo = az.loo(draws[0], pointwise=True)
        assert loo.n_data_points == 80
        expected = np.log(np.exp(draws[0].log_likelihood["x"].values).mean((0, 1)))
        np.testing.assert_allclose(np.asarray(getattr(loo, POINTWISE)), expected, atol=0.5)

    def test_summary_and_trace(self, draws, close_figures):
        summary = az.summary(draws[0])
        assert list(summary.index) == ["loc[0, 0]", "loc[0, 1]", "loc[1, 0]", "loc[1, 1]"]
        means = draws[0].posterior["loc"].mean(("chain", "draw")).values.ravel()
        np.testing.assert_allclose(summary["mean"].astype(float), means, atol=0.05)
        az.plot_trace(draws[0])

    def test_truncated_over_all_components_is_exact(self):
        x = two_clusters()
        result = fitted_by_svi(x)
        pyro.set_rng_seed(5)
        exact = to_arviz(result, x, draws=2)
        pyro.set_rng_seed(5)
        truncated = to_arviz(result, x, draws=2, truncated=True)
        np.testing.assert_array_equal(
            exact.posterior["loc"].values, truncated.posterior["loc"].values
        )
        np.testing.assert_allclose(
            exact.log_likelihood["x"].values, truncated.log_likelihood["x"].values, rtol=1e-5
        )


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"draws": 100}, "only latent site"),
            ({"dims": {"mean": ["component"]}}, r"dims= names \['mean'\]"),
            ({"dims": {"loc": ["component"]}}, "one name"),
            ({"dims": {"x": []}}, "one name"),
            ({"dims": {"loc": ["row", "feature"]}}, "'row' has size"),
            ({"dims": {"loc": ["component", "component"]}}, "different"),
            ({"dims": {"loc": ["weights", "feature"]}}, "names of variables too"),
            ({"coords": {"feature": ["a", "b", "c"]}}, "labels of shape"),
            ({"coords": {"pixel": ["a", "b"]}}, r"coords= names \['pixel'\]"),
            ({"truncated": "x"}, "truncated='x' must be True or False"),
            ({"dims": {"loc": "ab"}}, r"dims= has 'ab' for 'loc'"),
            ({"dims": {"loc": ["component", 3]}}, r"dims= has \['component', 3\]"),
            ({"dims": ["loc"]}, r"dims=\['loc'\] must be a mapping"),
            ({"coords": ["a"]}, r"coords=\['a'\] must be a mapping"),
            ({"coords": {"feature": "ab"}}, "labels of shape"),
        ],
    )
    def test_impossible_options(self, options, message):
        guide = FullPartition(GaussianMixture(components=3, features=2), components=3)
        with pytest.raises(OptionError, match=message):
            to_arviz(guide, two_clusters(), **options)

    @pytest.mark.parametrize("name", ["chain", "draw"])
    def test_sites_named_like_the_dims_of_draws(self, name):
        def model(x):
            loc = pyro.param(name, CENTERS.clone())
            with data_plate(x):
                z = pyro.sample("z", MixtureWeights(torch.ones(2) / 2))
                pyro.sample("x", DiagonalNormals(loc, torch.ones(2, 2))[z], obs=x)

        with pytest.raises(OptionError, match=f"{name!r}.*rename it in the model"):
            to_arviz(FullPartition(model, components=2), two_clusters())

    def test_no_draws(self):
        guide = FullPartition(prior_on_loc, components=2, global_guide=mean_field(prior_on_loc))
        with pytest.raises(OptionError, match="draws=0 must be positive"):
            to_arviz(guide, two_clusters(), draws=0)

    def test_no_rows(self):
        with pytest.raises(DataError, match="no rows"):
            to_arviz(FullPartition(stock_mixture, components=2))

    def test_latent_site_without_a_guide(self):
        with pytest.raises(ModelError, match=r"sites \['loc'\].*global_guide="):
            to_arviz(
                FullPartition(prior_on_loc, components=2), two_clusters(), log_likelihood=False
            )

    def test_site_latent_in_every_row(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", MixtureWeights(torch.ones(2) / 2))
                shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
                pyro.sample(
                    "x", dist.Normal(CENTERS[z] + shift.unsqueeze(-1), 1.0).to_event(1), obs=x
                )

        global_guide = AutoNormal(pyro.poutine.block(model, hide=["z"]))
        with pytest.raises(ModelError, match="'shift' is latent in every row"):
            to_arviz(FullPartition(model, components=2, global_guide=global_guide), two_clusters())
