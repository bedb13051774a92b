"""ArviZ containers hold what the model says, and ArviZ can work with them."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.nn import PyroModule
from torch.distributions import constraints

from pyro_mixtures.diagnostics import to_arviz
from pyro_mixtures.distributions import (
    Categoricals,
    DiagonalNormals,
    FactorAnalyzers,
    MixtureWeights,
)
from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
from pyro_mixtures.errors import DataError, ModelError, OptionError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.infer.uncertainty.criteria import criteria
from pyro_mixtures.models import GaussianMixture, MixtureOfFactorAnalyzers
from pyro_mixtures.models.bregman import BregmanMixture
from pyro_mixtures.models.kmeans import KMeans
from pyro_mixtures.models.latent_class_logit import LatentClassLogit
from pyro_mixtures.poutine import data_plate

pytestmark = pytest.mark.arviz

POINTWISE = "loo_i" if az.__version__.startswith("0.") else "elpd_i"
CENTERS = torch.tensor([[-3.0, 0.0], [3.0, 1.0]], device="cpu")


def two_clusters(rows: int = 40) -> torch.Tensor:
    draws = torch.randn(2, rows, 2, generator=torch.Generator("cpu").manual_seed(1), device="cpu")
    return (CENTERS.unsqueeze(1) + draws).reshape(-1, 2)


def normal_mixture(x, weights, loc, scale) -> torch.Tensor:
    """Log density (N,) by torch alone; loc and scale (..., C, D) give (..., N)."""
    x, weights, loc, scale = (
        torch.as_tensor(np.asarray(t), device="cpu").double() for t in (x, weights, loc, scale)
    )
    per_component = (
        torch.distributions.Normal(loc.unsqueeze(-3), scale.unsqueeze(-3))
        .log_prob(x.unsqueeze(-2))
        .sum(-1)
    )
    return (weights.log() + per_component).logsumexp(-1)


def prior_on_loc(x, index=None, size=None):
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    scale = pyro.param("scale", torch.ones(2, 2), constraint=constraints.positive)
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    with data_plate(x, index, size):
        z = pyro.sample("z", MixtureWeights(weights))
        pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)


def stock_mixture(x, index=None, size=None):
    """Written by hand with Pyro's own distributions."""
    weights = pyro.param(
        "weights", torch.tensor([0.3, 0.7], device="cpu"), constraint=constraints.simplex
    )
    loc = pyro.param("loc", CENTERS.clone())
    with data_plate(x, index, size):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], 1.0).to_event(1), obs=x)


def mean_field(model) -> AutoNormal:
    """Starts at the clusters' means, about as wide as their posterior."""
    start = init_to_value(values={"loc": CENTERS.clone()})
    return AutoNormal(pyro.poutine.block(model, hide=["z"]), init_loc_fn=start, init_scale=0.15)


def fitted_by_svi(rows):
    guide = TruncatedPartition(
        prior_on_loc, components=2, candidates=2, neighbors=2, global_guide=mean_field(prior_on_loc)
    )
    svi = SVI(
        prior_on_loc, guide, pyro.optim.Adam({"lr": 0.02}), TraceEnum_ELBO(max_plate_nesting=1)
    )
    return fit(svi, rows, epochs=5, progress=False)


def fitted_by_em(rows, model=None):
    model = GaussianMixture(components=2, features=2) if model is None else model
    return fit(EM(model, FullPartition(model, components=2)), rows, epochs=4, progress=False)


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

    def test_groups_can_be_left_out(self):
        model = GaussianMixture(components=2, features=2)
        guide = FullPartition(model, components=2)
        data = to_arviz(guide, two_clusters(), log_likelihood=False, observed_data=False)
        assert "posterior" in data
        for group in ("log_likelihood", "sample_stats", "observed_data", "fit_history"):
            assert group not in data

    def test_rows_need_not_be_those_of_the_fit(self):
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

    def test_guide_and_random_numbers_stay_as_they_are(self):
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
    """100 draws of ``loc``, and the params beside them."""
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
        # Draws, not copies: as wide as the mean-field guide.
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

    # The verdict on these few draws is noisy; that there is one is what matters here.
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


class TestNames:
    @pytest.mark.parametrize(
        ("model", "name", "dims"),
        [
            (GaussianMixture(components=3, features=2), "scale", ("component", "feature")),
            (GaussianMixture(components=3, features=2, tied=True), "scale", ("feature",)),
            (
                GaussianMixture(components=3, features=2, covariance="isotropic"),
                "scale",
                ("component",),
            ),
            (
                GaussianMixture(components=2, features=2, covariance="isotropic", tied=True),
                "scale",
                (),
            ),
            (
                GaussianMixture(components=3, features=2, covariance="full"),
                "scale_tril",
                ("component", "feature", "feature_bis"),
            ),
            (
                MixtureOfFactorAnalyzers(components=3, features=2, factors=1),
                "factor",
                ("component", "feature", "factor_index"),
            ),
            (
                MixtureOfFactorAnalyzers(components=3, features=2, factors=2, tied=True),
                "noise",
                ("feature",),
            ),
            (
                MixtureOfFactorAnalyzers(components=3, features=2, factors=2),
                "weights",
                ("component",),
            ),
            (BregmanMixture(components=3, features=2), "mean", ("component", "feature")),
            (KMeans(components=3, features=2, spherical=True), "mean", ("component", "feature")),
        ],
    )
    def test_of_our_families(self, model, name, dims):
        data = to_arviz(FullPartition(model, components=model.components), two_clusters())
        assert data.posterior[name].dims == ("chain", "draw", *dims)
        place = "loc" if "loc" in data.posterior else "mean"
        assert data.posterior[place].dims == ("chain", "draw", "component", "feature")
        assert data.observed_data["x"].dims == ("row", "feature")

    def test_situations_and_outcomes_are_no_features(self):
        choices = LatentClassLogit(components=2, coefficients=3)
        rows = (
            torch.zeros(5, 4, 2, 3),
            torch.ones(5, 4, 2, dtype=torch.bool),
            torch.zeros(5, 4).long(),
        )
        data = to_arviz(FullPartition(choices, components=2), *rows)
        assert data.observed_data["y"].dims == ("row", "y_dim_1")
        assert data.posterior["theta"].dims == ("chain", "draw", "component", "theta_dim_1")

        def experts(x, y):
            weight, scale = (
                pyro.param("weight", torch.ones(2, 4, 3)),
                pyro.param("scale", torch.ones(2, 4)),
            )
            with data_plate(x):
                z = pyro.sample("z", MixtureWeights(torch.ones(2) / 2))
                pyro.sample("y", LinearRegressions(x, weight, torch.zeros(2, 4), scale)[z], obs=y)

        data = to_arviz(FullPartition(experts, components=2), torch.zeros(5, 3), torch.zeros(5, 4))
        assert data.observed_data["y"].dims == ("row", "y_dim_1")
        assert data.posterior["scale"].dims == ("chain", "draw", "component", "scale_dim_1")

    def test_shared_dimension_of_size_one_has_a_name_of_its_own(self):
        def model(x, index=None, size=None):
            noise = pyro.param("noise", torch.ones(3, 1), constraint=constraints.positive)
            with data_plate(x, index, size):
                z = pyro.sample("z", MixtureWeights(torch.ones(3) / 3))
                pyro.sample(
                    "x", FactorAnalyzers(torch.zeros(3, 2), torch.zeros(3, 2, 1), noise)[z], obs=x
                )

        data = to_arviz(FullPartition(model, components=3), two_clusters())
        assert data.posterior["noise"].dims == ("chain", "draw", "component", "noise_dim_1")

    @pytest.mark.meta
    def test_of_a_stock_program(self):
        x = two_clusters()
        data = to_arviz(FullPartition(stock_mixture, components=2), x)
        assert data.posterior["loc"].dims == ("chain", "draw", "loc_dim_0", "loc_dim_1")
        assert data.observed_data["x"].dims == ("row", "x_dim_1")
        expected = normal_mixture(x, [0.3, 0.7], CENTERS, torch.ones(2, 2, device="cpu"))
        np.testing.assert_allclose(data.log_likelihood["x"].values[0, 0], expected, rtol=1e-5)

    def test_chosen_by_the_user(self):
        dims = {"loc": ["cluster", "axis"], "weights": ["cluster"], "x": ["sighting", "axis"]}
        coords = {"axis": ["east", "north"]}
        data = to_arviz(
            FullPartition(stock_mixture, components=2), two_clusters(), dims=dims, coords=coords
        )
        assert data.posterior["loc"].dims == ("chain", "draw", "cluster", "axis")
        np.testing.assert_array_equal(
            data.posterior["loc"].sel(axis="north").values[0, 0], CENTERS[:, 1]
        )
        assert data.log_likelihood["x"].dims == ("chain", "draw", "sighting")
        assert data.observed_data["x"].coords["axis"].values.tolist() == ["east", "north"]

    def test_params_of_modules_lose_their_prefix_while_they_stay_different(self):
        class Nested(PyroModule):
            def __init__(self):
                super().__init__()
                self.first = GaussianMixture(components=2, features=2)
                self.loc = PyroModule[torch.nn.Linear](2, 2)

            def forward(self, x):
                self.loc(x)
                return self.first(x)

        data = to_arviz(FullPartition(Nested(), components=2), two_clusters())
        assert set(data.posterior.data_vars) == {"weights", "loc", "scale", "weight", "bias"}

        class Twice(PyroModule):
            def __init__(self):
                super().__init__()
                self.a, self.b = (
                    PyroModule[torch.nn.Linear](2, 2),
                    PyroModule[torch.nn.Linear](2, 2, bias=False),
                )
                self.mixture = GaussianMixture(components=2, features=2)

            def forward(self, x):
                return self.mixture(self.b(self.a(x)))

        data = to_arviz(FullPartition(Twice(), components=2), two_clusters())
        assert set(data.posterior.data_vars) == {
            "weights",
            "loc",
            "scale",
            "a.weight",
            "b.weight",
            "bias",
        }

    def test_several_observed_sites_have_one_evidence(self):
        x, label = two_clusters(), torch.arange(80) % 3
        probs = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])

        def model(x, label, index=None, size=None):
            table = pyro.param("table", probs, constraint=constraints.simplex)
            loc = pyro.param("loc", CENTERS.clone())
            with data_plate(x, index, size):
                z = pyro.sample("z", MixtureWeights(torch.tensor([0.3, 0.7])))
                x = pyro.sample("x", DiagonalNormals(loc, torch.ones(2, 2))[z], obs=x)
                pyro.sample("label", Categoricals(table)[z], obs=label)
                pyro.deterministic("norm", x.norm(dim=-1))

        data = to_arviz(FullPartition(model, components=2), x, label)
        assert data.posterior["loc"].dims == ("chain", "draw", "component", "x_feature")
        assert data.posterior["table"].dims == ("chain", "draw", "component", "label_label")
        assert set(data.observed_data.data_vars) == {"x", "label"}
        weights = torch.tensor([0.3, 0.7]) * probs[:, label].T
        expected = normal_mixture(x, weights, CENTERS, torch.ones(2, 2))
        np.testing.assert_allclose(data.log_likelihood["x_label"].values[0, 0], expected, rtol=1e-5)

    def test_a_likelihood_of_factors(self):
        def model(x):
            with data_plate(x):
                z = pyro.sample("z", MixtureWeights(torch.tensor([0.3, 0.7])))
                pyro.factor("x", dist.Normal(CENTERS[z], 1.0).to_event(1).log_prob(x))

        data = to_arviz(FullPartition(model, components=2), two_clusters())
        expected = normal_mixture(two_clusters(), [0.3, 0.7], CENTERS, torch.ones(2, 2))
        np.testing.assert_allclose(
            data.log_likelihood["evidence"].values[0, 0], expected, rtol=1e-5
        )
        assert "posterior" not in data  # nothing was learnt


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
    def test_sites_named_as_the_dims_of_draws(self, name):
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


class TestRowWeights:
    """A row of weight w stands for w rows, one of weight zero for none."""

    COUNTS = torch.tensor([2.0, 0.0, 1.0, 9.0, 3.0, 0.0, 1.0, 4.0], device="cpu")

    @pytest.fixture
    def weighted(self):
        x = torch.poisson(
            torch.full((8, 2), 5.0, device="cpu"), generator=torch.Generator("cpu").manual_seed(0)
        )
        model = BregmanMixture(components=2, features=2, divergence="kl")
        return fit(
            EM(model, FullPartition(model, components=2)), x, self.COUNTS, epochs=3, progress=False
        ), x

    def test_lp_is_the_log_likelihood_of_the_fit(self, weighted):
        result, x = weighted
        data = to_arviz(result, x, self.COUNTS)
        found = float(data.sample_stats["lp"].values[0, 0])
        expected = criteria(result.model, x, self.COUNTS).log_likelihood
        repeated = to_arviz(result, x.repeat_interleave(self.COUNTS.long(), 0))
        assert found == pytest.approx(expected, rel=1e-6)
        assert found == pytest.approx(float(repeated.sample_stats["lp"].values[0, 0]), rel=1e-6)

    def test_pointwise_values_count_all_that_a_row_stands_for(self, weighted):
        result, x = weighted
        data = to_arviz(result, x, self.COUNTS)
        counted = self.COUNTS > 0
        each = to_arviz(result, x[counted]).log_likelihood["x"].values
        found = data.log_likelihood["x"]
        np.testing.assert_allclose(found.values, each * self.COUNTS[counted].numpy(), rtol=1e-5)
        assert found.coords["row"].values.tolist() == [0, 2, 3, 4, 6, 7]
        assert (
            data.observed_data["x"].sizes["row"]
            == 8
            == data.constant_data["row_weight"].sizes["row"]
        )
        np.testing.assert_array_equal(
            data.observed_data["x"].sel(row=found.coords["row"]).values, x[counted]
        )

    @pytest.mark.parametrize("observed_data", [True, False])
    def test_labels_of_rows_stay_with_them(self, weighted, observed_data):
        names = list("abcdefgh")
        data = to_arviz(
            weighted[0],
            weighted[1],
            self.COUNTS,
            coords={"row": names},
            observed_data=observed_data,
        )
        assert data.log_likelihood.coords["row"].values.tolist() == list("acdegh")
        with pytest.raises(OptionError, match="labels of shape"):
            to_arviz(
                weighted[0],
                weighted[1],
                self.COUNTS,
                coords={"row": names[:6]},
                observed_data=observed_data,
            )

    # The verdict on these few draws is noisy; that there is one is what matters here.
    @pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution")
    def test_loo_counts_rows_with_weight_alone(self):
        def model(x, row_weight, index=None, size=None):
            with pyro.plate("components", 2):
                loc = pyro.sample("loc", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
            with data_plate(x, index, size), pyro.poutine.mask(mask=row_weight > 0):
                z = pyro.sample("z", dist.Categorical(torch.full((2,), 0.5)))
                pyro.sample("x", dist.Normal(loc[z], 1.0).to_event(1), obs=x)

        x, seen = two_clusters(), torch.arange(80, device="cpu") % 4 > 0
        guide = FullPartition(model, components=2, global_guide=mean_field(model))
        loo = az.loo(to_arviz(guide, x, seen.float(), draws=50), pointwise=True)
        assert loo.n_data_points == 60
        assert np.isfinite(np.asarray(loo.pareto_k)).all()
