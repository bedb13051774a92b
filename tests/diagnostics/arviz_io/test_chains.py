"""Sources of draws - restarts, MCMC, bootstrap - in ArviZ: every draw is its own program's, whatever the labels."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, MCMC, SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.mcmc.util import initialize_model
from torch.distributions import constraints

from pyro_mixtures.diagnostics import to_arviz
from pyro_mixtures.distributions import Categoricals, DiagonalNormals, MixtureWeights
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit, log_evidence
from pyro_mixtures.infer.uncertainty.bootstrap import bootstrap
from pyro_mixtures.models import GaussianMixture
from pyro_mixtures.models.bregman import BregmanMixture
from pyro_mixtures.models.experts import MixtureOfExperts
from pyro_mixtures.models.latent_class_logit import LatentClassLogit
from pyro_mixtures.poutine import data_plate

pytestmark = [pytest.mark.arviz, pytest.mark.usefixtures("on_one_thread")]

CENTERS = torch.tensor([[-4.0], [0.0], [5.0]], device="cpu")
ORDERS = [[0, 1, 2], [2, 0, 1], [1, 0, 2]]


def three_clusters(rows: int = 20) -> torch.Tensor:
    draws = torch.randn(3, rows, 1, generator=torch.Generator("cpu").manual_seed(1), device="cpu")
    return (CENTERS.unsqueeze(1) + draws).reshape(-1, 1)


def module_fit(order, epochs: int = 3, truncated: bool = False):
    """A fit of a model of its own, whose components start in ``order``."""
    pyro.clear_param_store()
    model = GaussianMixture(components=3, features=1)
    with torch.no_grad():
        model.loc = CENTERS[order].clone()
    guide = (
        TruncatedPartition(model, components=3, candidates=2, neighbors=2)
        if truncated
        else FullPartition(model, components=3)
    )
    return fit(EM(model, guide), three_clusters(), epochs=epochs, progress=False)


def function(x, index=None, size=None):
    """Written by hand; what its dimensions mean nobody says."""
    weights = pyro.param("weights", torch.full((3,), 1 / 3), constraint=constraints.simplex)
    loc = pyro.param("loc", CENTERS.clone())
    scale = pyro.param("scale", torch.ones(1), constraint=constraints.positive)
    with data_plate(x, index, size):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale).to_event(1), obs=x)


class MaskedNormals(GaussianMixture):
    def __init__(self):
        super().__init__(components=3, features=1)

    def forward(self, x, seen, index=None, size=None):
        with pyro.poutine.mask(mask=seen > 0):
            return super().forward(x, index=index, size=size)


def function_fit(order):
    with pyro.get_param_store().scope() as state:
        pyro.param("loc", CENTERS[order].clone())
        result = fit(
            EM(function, FullPartition(function, components=3)),
            three_clusters(),
            epochs=3,
            progress=False,
        )
    return result, state


def priors(x, index=None, size=None):
    """Exchangeable components with priors alone, by stock distributions, which are fast for few rows."""
    with pyro.plate("cluster", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with data_plate(x, index, size):
        z = pyro.sample("z", dist.Categorical(torch.full((2,), 0.5, device="cpu")))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def two_groups() -> torch.Tensor:
    draws = torch.randn(2, 8, generator=torch.Generator("cpu").manual_seed(2), device="cpu")
    return (torch.tensor([[-3.0], [3.0]], device="cpu") + draws).reshape(-1)


def sampled(model, *rows, start, draws: int = 8, chains: int = 1, step: float = 0.1) -> MCMC:
    kernel = HMC(model, step_size=step, num_steps=2, adapt_step_size=False, adapt_mass_matrix=False)
    values = {"loc": torch.tensor(start)}
    if chains > 1:
        values = {"loc": torch.tensor([start, start[::-1]])}
    mcmc = MCMC(
        kernel,
        num_samples=draws,
        warmup_steps=1,
        num_chains=chains,
        initial_params=values,
        disable_progbar=True,
    )
    mcmc.run(*rows)
    return mcmc


class TestRestarts:
    def test_chains_have_the_labels_of_the_best(self):
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

    def test_align_false_leaves_each_fit_as_it_is(self):
        fits = [module_fit(order) for order in ORDERS]
        data = to_arviz(fits, three_clusters(), align=False)
        for chain, one in enumerate(fits):
            np.testing.assert_array_equal(
                data.posterior["loc"].values[chain, 0], one.model.loc.detach()
            )

    def test_fits_keep_their_params_whatever_the_store_holds(self):
        """Pyro's store, left as the last fit had it, would give all of them its values."""
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
        """The second fit has all rows in one component, which is that of most of them."""
        guides = []
        for mean in ([[0.0], [9.0]], [[20.0], [0.0]]):
            pyro.clear_param_store()
            model = BregmanMixture(components=2, features=1, equal_weights=True)
            model.mean = torch.tensor(mean)
            guides.append(FullPartition(model, components=2))
        data = to_arviz(guides, torch.tensor([[0.0], [9.0], [9.0], [9.0]]), torch.tensor(weight))
        assert data.posterior["mean"].values[1, 0, :, 0].tolist() == order

    def test_rows_of_weight_zero_may_hold_anything(self):
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

    def test_a_function_without_them_is_refused(self):
        fits = [function_fit(order)[0] for order in ORDERS]
        with pytest.raises(ModelError, match="began anew"):
            to_arviz(fits, three_clusters())
        em = EM(function, FullPartition(function, components=3))
        again = fit(em, three_clusters(), epochs=1, progress=False)
        with pytest.raises(ModelError, match="share param"):
            to_arviz([again, em.guide], three_clusters())

    def test_a_fit_whose_params_have_left_the_store_is_refused(self):
        """Initial values in their place would be another mixture's numbers."""
        alone, state = function_fit(ORDERS[0])
        with pytest.raises(
            ModelError, match=r"params \['loc', 'scale', 'weights'\] of a fit are nowhere"
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

    def test_a_fit_keeps_its_params_whatever_the_store_holds(self):
        first, second = module_fit(ORDERS[0]), module_fit(ORDERS[1])
        for one in (first, second):
            data = to_arviz(one, three_clusters())
            np.testing.assert_array_equal(
                data.posterior["loc"].values[0, 0], one.model.loc.detach()
            )

    def test_a_module_beside_keeps_its_params_too(self):
        x = two_groups()
        global_guide = AutoNormal(pyro.poutine.block(priors, hide=["z"]))
        guide = FullPartition(priors, components=2, global_guide=global_guide)
        svi = SVI(priors, guide, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1))
        result = fit(svi, x, epochs=2, progress=False)
        pyro.clear_param_store()
        assert to_arviz(result, x, draws=3).posterior["loc"].values.shape == (1, 3, 2)

    @pytest.mark.parametrize("entry", [(1, 2, 3), (), ("a", {})])
    def test_entries_that_are_no_fits(self, entry):
        with pytest.raises(OptionError, match="no draws to show"):
            to_arviz([entry], three_clusters())

    def test_shared_entries_are_not_taken_for_components(self):
        """As many features as components: only the model tells which is which."""
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

    def test_components_with_constants_of_their_own_cannot_be_relabelled(self):
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
        """Latent sites and params of a chain are relabelled together."""

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
        loc, found = data.posterior["loc"].values[..., 0], data.constant_data["weights"]
        assert loc.shape == (2, 3, 3)
        assert found.dims == ("chain", "component")
        np.testing.assert_allclose(found.values[0], found.values[1], atol=1e-6)
        np.testing.assert_allclose(loc, np.broadcast_to(loc[0, 0], loc.shape), atol=0.1)

    def test_tied_covariances_with_as_many_features_as_components(self):
        """Rows of a tied factor are no components', and rotated they are not even a Cholesky factor."""
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
            (lambda: [GaussianMixture(components=2, features=1)], OptionError, "no draws to show"),
            (lambda: GaussianMixture, OptionError, "no draws to show"),
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
    def test_what_is_refused(self, fits, error, message):
        with pytest.raises(error, match=message):
            to_arviz(fits(), three_clusters())


class TestForms:
    """Components whose params are no rows of a tensor."""

    def test_gates_have_another_reference(self):
        def chosen(theta, gate):
            model = LatentClassLogit(components=3, coefficients=2, covariates=2)
            model.theta, model.gate_weight = theta, gate[1:, :2] - gate[:1, :2]
            model.gate_bias = gate[1:, 2] - gate[0, 2]
            return model

        generator = torch.Generator("cpu").manual_seed(0)
        theta, gate = (torch.randn(3, size, generator=generator) for size in (2, 3))
        design, u = (
            torch.randn(40, 2, 3, 2, generator=generator),
            torch.randn(40, 2, generator=generator),
        )
        rows = (
            design,
            torch.ones(40, 2, 3, dtype=torch.bool),
            torch.arange(80).reshape(40, 2) % 3,
            u,
        )
        guides = []
        for order in ORDERS:
            pyro.clear_param_store()
            guides.append(FullPartition(chosen(theta[order], gate[order]), components=3))
        data = to_arviz(guides, *rows)
        assert data.posterior["gate_weight"].dims == (
            "chain",
            "draw",
            "contrast",
            "gate_weight_dim_1",
        )
        assert data.posterior.coords["contrast"].values.tolist() == [1, 2]
        for name in ("theta", "gate_weight", "gate_bias"):
            values = data.posterior[name].values
            np.testing.assert_allclose(values, np.broadcast_to(values[0], values.shape), atol=1e-6)
        pyro.clear_param_store()
        relabelled = chosen(theta, gate)
        for name in ("theta", "gate_weight", "gate_bias"):
            setattr(relabelled, name, torch.from_numpy(data.posterior[name].values[2, 0]))
        np.testing.assert_allclose(
            log_evidence(relabelled, *rows), data.log_likelihood["y"].values[2, 0], rtol=1e-5
        )

    def test_a_penalty_tells_the_reference_apart(self):
        rows = (
            torch.zeros(4, 1, 2, 1),
            torch.ones(4, 1, 2, dtype=torch.bool),
            torch.zeros(4, 1).long(),
        )
        guides = []
        for _ in range(2):
            pyro.clear_param_store()
            model = LatentClassLogit(components=3, coefficients=1, covariates=1, gate_ridge=1.0)
            model.gate_weight = torch.ones(2, 1)
            guides.append(FullPartition(model, components=3))
        with pytest.raises(ModelError, match="penalties"):
            to_arviz(guides, *rows, torch.ones(4, 1))

    def test_experts_change_their_numbers(self):
        x = torch.randn(30, 2, generator=torch.Generator("cpu").manual_seed(0))
        y, guides, order = x.sum(-1).tanh(), [], [2, 0, 1]
        for experts in ([0, 1, 2], order):
            pyro.clear_param_store()
            torch.manual_seed(0)
            made = [
                torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
                for _ in "abc"
            ]
            nets = iter([made[k] for k in experts])
            model = MixtureOfExperts(lambda: next(nets), components=3, features=2, loss="squared")  # noqa: B023
            model.weights = torch.tensor([0.2, 0.3, 0.5])[experts]
            guides.append(FullPartition(model, components=3))
        before = [leaf.clone() for guide in guides for leaf in guide.model.parameters()]
        data, left = (to_arviz(guides, x, y, align=align) for align in (True, False))
        names = [name for name in data.posterior.data_vars if name.startswith("experts.")]
        assert len(names) == 12
        for name in ("weights", *names):
            np.testing.assert_array_equal(
                data.posterior[name].values[0], data.posterior[name].values[1]
            )
        assert (
            left.posterior["experts.0.0.bias"].values[0]
            != left.posterior["experts.0.0.bias"].values[1]
        ).any()
        after = [leaf for guide in guides for leaf in guide.model.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))

    def test_numbered_params_of_a_function(self):
        def model(x, index=None, size=None):
            loc = [pyro.param(f"loc_{k}", CENTERS[k].clone()) for k in range(3)]
            with data_plate(x, index, size):
                z = pyro.sample("z", dist.Categorical(torch.full((3,), 1 / 3)))
                pyro.sample("x", dist.Normal(torch.stack(loc)[z], 1.0).to_event(1), obs=x)

        guides = []
        for order in ORDERS:
            with pyro.get_param_store().scope() as state:
                for k in range(3):
                    pyro.param(f"loc_{k}", CENTERS[order[k]].clone())
                guides.append((FullPartition(model, components=3), state))
        data = to_arviz(guides, three_clusters())
        found = np.stack([data.posterior[f"loc_{k}"].values[:, 0, 0] for k in range(3)], 1)
        assert found.tolist() == [found[0].tolist()] * 3

    def test_the_first_row_may_be_masked(self):
        """Shared variables as long as there are components: rows without weight do not tell them from others."""

        def tied(x, seen, index=None, size=None):
            loc = pyro.param("loc", torch.tensor([[-4.0, 0.0], [4.0, 0.0]]))
            scale = pyro.param("scale", torch.tensor([1.0, 2.0]), constraint=constraints.positive)
            with data_plate(x, index, size), pyro.poutine.mask(mask=seen > 0):
                z = pyro.sample("z", dist.Categorical(torch.full((2,), 0.5)))
                pyro.sample("x", dist.Normal(loc[z], scale).to_event(1), obs=x)

        x, guides = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)), []
        for order in ([0, 1], [1, 0]):
            with pyro.get_param_store().scope() as state:
                pyro.param("loc", torch.tensor([[-4.0, 0.0], [4.0, 0.0]])[order])
                tied(x, torch.ones(30))
                guides.append((FullPartition(tied, components=2), state))
        data = to_arviz(guides, x, torch.arange(30.0).clamp_max(1.0))
        assert data.posterior["scale"].values[:, 0].tolist() == [[1.0, 2.0], [1.0, 2.0]]


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
        # Pyro lets all that a row stands for have one component, ours each its own: far apart it is
        # nearly the same.
        expected = [-float(potential({"loc": one})) for one in mcmc.get_samples()["loc"]]
        np.testing.assert_allclose(data.sample_stats["lp"].values[0], expected, rtol=1e-4)

    @pytest.mark.filterwarnings("ignore:num_chains")
    def test_draws_of_all_chains_have_the_same_labels(self, monkeypatch):
        monkeypatch.setattr(
            "torch.multiprocessing.cpu_count", lambda: 1
        )  # chains one after the other
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

    def test_some_of_the_draws(self):
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

    def test_the_model_is_needed(self):
        with pytest.raises(OptionError, match="its model"):
            to_arviz(sampled(priors, two_groups(), start=[-3.0, 3.0], draws=2), two_groups())

    def test_priors_that_tell_components_apart(self):
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


class TestBootstrapDraws:
    def test_refits_are_draws_with_the_labels_of_the_fit(self):
        whole = module_fit([1, 2, 0])
        found = bootstrap(whole, three_clusters(), draws=4, progress=False, epochs=3)
        data = to_arviz(found, three_clusters())
        assert data.posterior["loc"].values.shape == (1, 4, 3, 1)
        np.testing.assert_allclose(
            data.posterior["loc"].values[0],
            np.broadcast_to(whole.model.loc.detach(), (4, 3, 1)),
            atol=1.0,
        )
        assert len(np.unique(data.posterior["loc"].values[0, :, 0, 0])) == 4
        np.testing.assert_array_equal(data.sample_stats["elbo"].values[0], found.elbos)
        with pytest.raises(OptionError, match="bootstrap has 4"):
            to_arviz(found, three_clusters(), draws=3)

    def test_the_fit_is_the_reference_whatever_the_store_holds(self):
        whole = module_fit([1, 2, 0])
        found = bootstrap(whole, three_clusters(), draws=2, progress=False, epochs=1)
        module_fit([0, 1, 2])
        loc = to_arviz(found, three_clusters()).posterior["loc"].values[0]
        np.testing.assert_allclose(
            loc, np.broadcast_to(whole.model.loc.detach(), loc.shape), atol=1.0
        )

    def test_switched_labels_are_put_back(self):
        whole = module_fit([0, 1, 2])
        found = bootstrap(whole, three_clusters(), draws=2, progress=False, epochs=1)
        switched = found.refits[1].fit.model
        with torch.no_grad():
            for name in ("weights", "loc", "scale"):
                setattr(switched, name, getattr(switched, name)[[2, 0, 1]].clone())
        found.refits[1].model.state["params"].clear()
        data, left = (to_arviz(found, three_clusters(), align=align) for align in (True, False))
        assert left.posterior["loc"].values[0, 1, :, 0].argsort().tolist() != [0, 1, 2]
        assert data.posterior["loc"].values[0, 1, :, 0].argsort().tolist() == [0, 1, 2]


class TestOtherGroups:
    def test_new_data_sets_come_from_the_draws(self):
        x = two_groups()
        mcmc = sampled(priors, x, start=[-3.0, 3.0])
        data = to_arviz(mcmc, priors, x, posterior_predictive=8, align=False)
        new, loc = data.posterior_predictive["x"], data.posterior["loc"].values
        assert new.dims == ("chain", "draw", "row")
        # Each row lies around one of its own draw's two means.
        distance = np.abs(new.values[..., None] - loc[:, :, None, :]).min(-1)
        assert distance.max() < 4.5
        assert distance.mean() == pytest.approx(np.sqrt(2 / np.pi), abs=0.2)

    def test_new_data_sets_of_a_point(self):
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

    def test_factors_cannot_be_drawn(self):
        def model(x):
            with data_plate(x):
                z = pyro.sample("z", MixtureWeights(torch.tensor([0.5, 0.5])))
                pyro.factor("x", dist.Normal(CENTERS[z, 0], 1.0).log_prob(x))

        with pytest.raises(ModelError, match=r"factors \['x'\]"):
            to_arviz(FullPartition(model, components=2), two_groups(), posterior_predictive=1)

    def test_each_sites_own_evidence(self):
        x, label = three_clusters(), torch.arange(60) % 2
        table, scale = torch.tensor([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]]), torch.ones(3, 1)
        weights = torch.tensor([0.2, 0.3, 0.5])

        def model(x, label, index=None, size=None):
            with data_plate(x, index, size):
                z = pyro.sample("z", MixtureWeights(weights))
                pyro.sample("x", DiagonalNormals(CENTERS, scale)[z], obs=x)
                pyro.sample("label", Categoricals(table)[z], obs=label)

        found = to_arviz(FullPartition(model, components=3), x, label, by_site=True)
        density = dist.Normal(CENTERS[:, 0], 1.0).log_prob(x)
        np.testing.assert_allclose(
            found.log_likelihood["x"].values[0, 0],
            (weights.log() + density).logsumexp(-1),
            rtol=1e-5,
        )
        np.testing.assert_allclose(
            found.log_likelihood["label"].values[0, 0], (weights @ table)[label].log(), rtol=1e-5
        )
        joint = (weights.log() + density + table.log()[:, label].T).logsumexp(-1)
        np.testing.assert_allclose(
            found.sample_stats["lp"].values[0, 0], joint.double().sum(), rtol=1e-5
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


def stock(x, index=None, size=None):
    loc = pyro.param("loc", torch.tensor([-3.0, 3.0], device="cpu"))
    with data_plate(x, index, size):
        z = pyro.sample("z", dist.Categorical(torch.full((2,), 0.5, device="cpu")))
        pyro.sample("x", dist.Normal(loc[z], torch.ones((), device="cpu")), obs=x)


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
    """What users do with it."""

    @pytest.fixture(autouse=True)
    def close_figures(self):
        yield
        from matplotlib import pyplot

        pyplot.close("all")

    # The verdict on these few draws is noisy; that there is one is what matters here.
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
