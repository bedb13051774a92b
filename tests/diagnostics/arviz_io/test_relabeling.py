"""Relabeling of gates, experts, numbered params and masked rows leaves the model unchanged."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyro_mixtures.diagnostics import to_arviz
from pyro_mixtures.errors import ModelError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import log_evidence
from pyro_mixtures.models.experts import MixtureOfExperts
from pyro_mixtures.models.latent_class_logit import LatentClassLogit
from pyro_mixtures.poutine import data_plate
from tests.diagnostics.arviz_io.three_clusters import CENTERS, ORDERS, three_clusters

pytestmark = [pytest.mark.arviz, pytest.mark.usefixtures("on_one_thread")]


class TestForms:
    """Components whose params are not rows of a tensor."""

    def test_gates_change_their_reference(self):
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
        relabeled = chosen(theta, gate)
        for name in ("theta", "gate_weight", "gate_bias"):
            setattr(relabeled, name, torch.from_numpy(data.posterior[name].values[2, 0]))
        np.testing.assert_allclose(
            log_evidence(relabeled, *rows), data.log_likelihood["y"].values[2, 0], rtol=1e-5
        )

    def test_a_penalty_on_differences_from_the_reference_is_refused(self):
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

    def test_experts_are_renumbered(self):
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
        aligned = np.stack([data.posterior[f"loc_{k}"].values[:, 0, 0] for k in range(3)], 1)
        assert aligned.tolist() == [aligned[0].tolist()] * 3

    def test_the_first_row_may_be_masked(self):
        """Rows of weight zero do not tell shared params of size C from those per component."""

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
