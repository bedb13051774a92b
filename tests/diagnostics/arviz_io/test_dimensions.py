"""Names of dimensions and variables in ArviZ."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
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
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.models import GaussianMixture, MixtureOfFactorAnalyzers
from pyro_mixtures.models.bregman import BregmanMixture
from pyro_mixtures.models.kmeans import KMeans
from pyro_mixtures.models.latent_class_logit import LatentClassLogit
from pyro_mixtures.poutine import data_plate
from tests.diagnostics.arviz_io.two_clusters import (
    CENTERS,
    normal_mixture,
    stock_mixture,
    two_clusters,
)

pytestmark = pytest.mark.arviz


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
    def test_dims_of_our_families(self, model, name, dims):
        data = to_arviz(FullPartition(model, components=model.components), two_clusters())
        assert data.posterior[name].dims == ("chain", "draw", *dims)
        location = "loc" if "loc" in data.posterior else "mean"
        assert data.posterior[location].dims == ("chain", "draw", "component", "feature")
        assert data.observed_data["x"].dims == ("row", "feature")

    def test_situations_and_outcomes_are_not_features(self):
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

    def test_a_shared_dimension_of_size_one_has_its_own_name(self):
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
    def test_dims_of_a_stock_program(self):
        x = two_clusters()
        data = to_arviz(FullPartition(stock_mixture, components=2), x)
        assert data.posterior["loc"].dims == ("chain", "draw", "loc_dim_0", "loc_dim_1")
        assert data.observed_data["x"].dims == ("row", "x_dim_1")
        expected = normal_mixture(x, [0.3, 0.7], CENTERS, torch.ones(2, 2, device="cpu"))
        np.testing.assert_allclose(data.log_likelihood["x"].values[0, 0], expected, rtol=1e-5)

    def test_dims_chosen_by_the_user(self):
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

    def test_params_of_modules_lose_their_prefix_if_names_stay_unique(self):
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

    def test_several_observed_sites_have_one_log_evidence(self):
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

    def test_a_likelihood_that_is_a_factor(self):
        def model(x):
            with data_plate(x):
                z = pyro.sample("z", MixtureWeights(torch.tensor([0.3, 0.7])))
                pyro.factor("x", dist.Normal(CENTERS[z], 1.0).to_event(1).log_prob(x))

        data = to_arviz(FullPartition(model, components=2), two_clusters())
        expected = normal_mixture(two_clusters(), [0.3, 0.7], CENTERS, torch.ones(2, 2))
        np.testing.assert_allclose(
            data.log_likelihood["log_evidence"].values[0, 0], expected, rtol=1e-5
        )
        assert "posterior" not in data  # there are no params
