"""Restarts as chains: own params, common labels, padded histories."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch.distributions import constraints

from pyro_mixtures.diagnostics import to_arviz
from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models import GaussianMixture
from pyro_mixtures.models.bregman import BregmanMixture
from pyro_mixtures.poutine import data_plate
from tests.diagnostics.arviz_io.three_clusters import (
    CENTERS,
    ORDERS,
    MaskedNormals,
    function,
    function_fit,
    module_fit,
    priors,
    three_clusters,
    two_groups,
)

pytestmark = [pytest.mark.arviz, pytest.mark.usefixtures("on_one_thread")]


class TestRestarts:
    def test_chains_have_the_labels_of_the_best_fit(self):
        fits = [module_fit(order) for order in ORDERS]
        pyro.clear_param_store()
        data = to_arviz(fits, three_clusters())
        best = fits[int(data.sample_stats["lp"].values[:, 0].argmax())]
        for name in ("weights", "loc", "scale"):
            values = data.posterior[name].values
            assert values.shape[:2] == (3, 1)
            np.testing.assert_allclose(
                values, np.broadcast_to(getattr(best.model, name).detach(), values.shape), atol=1e-3
            )

    def test_align_false_keeps_the_labels_of_each_fit(self):
        fits = [module_fit(order) for order in ORDERS]
        data = to_arviz(fits, three_clusters(), align=False)
        for chain, one in enumerate(fits):
            np.testing.assert_array_equal(
                data.posterior["loc"].values[chain, 0], one.model.loc.detach()
            )

    def test_fits_keep_their_params_regardless_of_the_store(self):
        """Pyro's store holds the values of the last fit, under the names of all fits."""
        fits = [module_fit(order) for order in ORDERS]
        before = [one.model.loc.detach().clone() for one in fits]
        to_arviz(fits, three_clusters())
        assert pyro.param("loc") is not None
        for one, loc in zip(fits, before, strict=True):
            assert torch.equal(one.model.loc, loc)
        assert torch.equal(pyro.param("loc"), before[-1])

    def test_log_likelihood_does_not_depend_on_labels(self):
        fits = [module_fit(order) for order in ORDERS]
        one_by_one = []
        for each in fits:
            pyro.clear_param_store()
            one_by_one.append(to_arviz(each, three_clusters()).log_likelihood["x"].values[0])
        data = to_arviz(fits, three_clusters())
        np.testing.assert_allclose(data.log_likelihood["x"].values, np.stack(one_by_one), rtol=1e-6)

    def test_truncated(self):
        fits = [module_fit(order, truncated=True) for order in ORDERS[:2]]
        data = to_arviz(fits, three_clusters(), truncated=True)
        np.testing.assert_allclose(
            data.posterior["loc"].values[0], data.posterior["loc"].values[1], atol=0.05
        )

    @pytest.mark.parametrize(
        ("weight", "order"), [([1.0] * 4, [20.0, 0.0]), ([9.0, 1.0, 1.0, 1.0], [0.0, 20.0])]
    )
    def test_rows_count_by_their_weights(self, weight, order):
        """The second fit has all rows in one component; it is matched with the one of most rows."""
        guides = []
        for mean in ([[0.0], [9.0]], [[20.0], [0.0]]):
            pyro.clear_param_store()
            model = BregmanMixture(components=2, features=1, equal_weights=True)
            model.mean = torch.tensor(mean)
            guides.append(FullPartition(model, components=2))
        data = to_arviz(guides, torch.tensor([[0.0], [9.0], [9.0], [9.0]]), torch.tensor(weight))
        assert data.posterior["mean"].values[1, 0, :, 0].tolist() == order

    def test_rows_of_weight_zero_may_be_nan(self):
        x, weight = three_clusters(), torch.ones(60)
        x[7], weight[7] = torch.nan, 0.0
        guides = []
        for order in ORDERS[:2]:
            pyro.clear_param_store()
            model = MaskedNormals()
            model.loc = CENTERS[order]
            guides.append(FullPartition(model, components=3))
        loc = to_arviz(guides, x, weight).posterior["loc"].values
        np.testing.assert_array_equal(loc[0], loc[1])

    def test_histories_are_padded(self):
        data = to_arviz(
            [module_fit([0, 1, 2], epochs=epochs) for epochs in (2, 4)], three_clusters()
        )
        assert data.fit_history["elbo"].dims == ("chain", "epoch")
        assert np.isnan(data.fit_history["elbo"].values).tolist() == [
            [False, False, True, True],
            [False] * 4,
        ]
        assert data.fit_history["phase"].values[0].tolist() == ["EM", "EM", "", ""]

    def test_a_function_with_the_stores_of_its_fits(self):
        data = to_arviz([function_fit(order) for order in ORDERS], three_clusters())
        loc = data.posterior["loc"].values[:, 0, :, 0]
        np.testing.assert_allclose(loc, np.broadcast_to(loc[0], loc.shape), atol=1e-4)
        assert data.posterior["scale"].values.shape == (3, 1, 1)

    def test_a_function_without_the_stores_is_refused(self):
        fits = [function_fit(order)[0] for order in ORDERS]
        with pytest.raises(ModelError, match="initialized anew"):
            to_arviz(fits, three_clusters())
        em = EM(function, FullPartition(function, components=3))
        again = fit(em, three_clusters(), epochs=1, progress=False)
        with pytest.raises(ModelError, match="share param"):
            to_arviz([again, em.guide], three_clusters())

    def test_a_fit_whose_params_are_no_longer_in_the_store_is_refused(self):
        """Initial values would be those of another mixture."""
        alone, state = function_fit(ORDERS[0])
        with pytest.raises(
            ModelError, match=r"params \['loc', 'scale', 'weights'\] of a fit were not found"
        ):
            to_arviz(alone, three_clusters())
        assert not dict(pyro.get_param_store().named_parameters())
        data = to_arviz((alone, state), three_clusters())
        np.testing.assert_array_equal(
            data.posterior["loc"].values[0, 0], state["params"]["loc"].detach()
        )
        np.testing.assert_allclose(
            data.sample_stats["lp"].values[0, 0],
            to_arviz([(alone, state)], three_clusters()).sample_stats["lp"].item(),
        )

    def test_a_fit_keeps_its_params_regardless_of_the_store(self):
        first, second = module_fit(ORDERS[0]), module_fit(ORDERS[1])
        for one in (first, second):
            data = to_arviz(one, three_clusters())
            np.testing.assert_array_equal(
                data.posterior["loc"].values[0, 0], one.model.loc.detach()
            )

    def test_a_global_guide_keeps_its_params_too(self):
        x = two_groups()
        global_guide = AutoNormal(pyro.poutine.block(priors, hide=["z"]))
        guide = FullPartition(priors, components=2, global_guide=global_guide)
        svi = SVI(priors, guide, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1))
        result = fit(svi, x, epochs=2, progress=False)
        pyro.clear_param_store()
        assert to_arviz(result, x, draws=3).posterior["loc"].values.shape == (1, 3, 2)

    @pytest.mark.parametrize("entry", [(1, 2, 3), (), ("a", {})])
    def test_entries_that_are_not_fits(self, entry):
        with pytest.raises(OptionError, match="not a source of draws"):
            to_arviz([entry], three_clusters())

    def test_shared_params_are_not_relabeled(self):
        """With as many features as components only the model tells them apart."""
        x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor(
            [[4.0, 0.0]]
        )
        x[:15] -= torch.tensor([[8.0, 0.0]])

        def tied(x, index=None, size=None):
            loc = pyro.param("loc", torch.tensor([[-4.0, 0.0], [4.0, 0.0]]))
            scale = pyro.param("scale", torch.tensor([1.0, 2.0]), constraint=constraints.positive)
            with data_plate(x, index, size):
                z = pyro.sample("z", dist.Categorical(torch.full((2,), 0.5)))
                pyro.sample("x", dist.Normal(loc[z], scale).to_event(1), obs=x)

        fits = []
        for order in ([0, 1], [1, 0]):
            with pyro.get_param_store().scope() as state:
                pyro.param("loc", torch.tensor([[-4.0, 0.0], [4.0, 0.0]])[order])
                fits.append(
                    (
                        fit(
                            EM(tied, FullPartition(tied, components=2)), x, epochs=2, progress=False
                        ),
                        state,
                    )
                )
        data = to_arviz(fits, x)
        loc, scale = data.posterior["loc"].values[:, 0], data.posterior["scale"].values[:, 0]
        np.testing.assert_allclose(loc[0], loc[1], atol=1e-3)
        np.testing.assert_allclose(scale[0], scale[1], atol=1e-3)

    def test_components_with_different_constants_cannot_be_relabeled(self):
        def constant(x, index=None, size=None):
            loc = pyro.param("loc", CENTERS.clone())
            with data_plate(x, index, size):
                z = pyro.sample("z", MixtureWeights(torch.tensor([0.2, 0.3, 0.5])))
                pyro.sample("x", DiagonalNormals(loc, torch.ones(3, 1))[z], obs=x)

        fits = []
        for _ in range(2):
            with pyro.get_param_store().scope() as state:
                em = EM(constant, FullPartition(constant, components=3))
                fits.append((fit(em, three_clusters(), epochs=1, progress=False), state))
        with pytest.raises(ModelError, match="align=False"):
            to_arviz(fits, three_clusters())
        assert to_arviz(fits, three_clusters(), align=False).posterior["loc"].values.shape == (
            2,
            1,
            3,
            1,
        )

    def test_draws_of_several_guides(self):
        """Latent sites and params of a chain are relabeled together."""

        def half(x, index=None, size=None):
            weights = pyro.param("weights", torch.full((3,), 1 / 3), constraint=constraints.simplex)
            with pyro.plate("components", 3):
                loc = pyro.sample("loc", dist.Normal(0.0, 10.0).expand([1]).to_event(1))
            with data_plate(x, index, size):
                z = pyro.sample("z", MixtureWeights(weights))
                pyro.sample("x", DiagonalNormals(loc, torch.ones(3, 1))[z], obs=x)

        weights, chains = torch.tensor([0.2, 0.3, 0.5]), []
        for order in ORDERS[:2]:
            with pyro.get_param_store().scope() as state:
                start = init_to_value(values={"loc": CENTERS[order].clone()})
                global_guide = AutoNormal(
                    pyro.poutine.block(half, hide=["z"]), init_loc_fn=start, init_scale=0.01
                )
                pyro.param("weights", weights[order].clone(), constraint=constraints.simplex)
                guide = FullPartition(half, components=3, global_guide=global_guide)
                guide.latent_values(three_clusters())
                chains.append((guide, state))
        data = to_arviz(chains, three_clusters(), draws=3)
        loc, aligned_weights = data.posterior["loc"].values[..., 0], data.constant_data["weights"]
        assert loc.shape == (2, 3, 3)
        assert aligned_weights.dims == ("chain", "component")
        np.testing.assert_allclose(aligned_weights.values[0], aligned_weights.values[1], atol=1e-6)
        np.testing.assert_allclose(loc, np.broadcast_to(loc[0, 0], loc.shape), atol=0.1)

    def test_tied_covariances_with_as_many_features_as_components(self):
        """The rows of a tied factor are not components; rotated, they are no Cholesky factor."""
        x = torch.cat(
            [
                torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) + c
                for c in (-3.0, 3.0)
            ]
        )
        fits = []
        for order in ([0, 1], [1, 0]):
            pyro.clear_param_store()
            model = GaussianMixture(components=2, features=2, covariance="full", tied=True)
            with torch.no_grad():
                model.loc = torch.tensor([[-3.0, -3.0], [3.0, 3.0]])[order]
            fits.append(
                fit(EM(model, FullPartition(model, components=2)), x, epochs=2, progress=False)
            )
        data = to_arviz(fits, x)
        assert data.posterior["scale_tril"].dims == ("chain", "draw", "feature", "feature_bis")
        for name in ("loc", "scale_tril"):
            values = data.posterior[name].values
            np.testing.assert_allclose(values[0], values[1], atol=1e-3)

    @pytest.mark.parametrize(
        ("fits", "error", "message"),
        [
            (lambda: [], OptionError, "no fits"),
            (lambda: [module_fit([0, 1, 2])] * 2, ModelError, "share param"),
            (
                lambda: [GaussianMixture(components=2, features=1)],
                OptionError,
                "not a source of draws",
            ),
            (lambda: GaussianMixture, OptionError, "not a source of draws"),
            (
                lambda: [
                    module_fit([0, 1, 2]),
                    FullPartition(GaussianMixture(components=2, features=1), components=2),
                ],
                ModelError,
                "different mixtures",
            ),
        ],
    )
    def test_invalid_lists_are_refused(self, fits, error, message):
        with pytest.raises(error, match=message):
            to_arviz(fits(), three_clusters())
