"""Mixtures of torch modules: the params in Pyro's store, and their state."""

import pyro
import pytest
import torch

from pyro_mixtures.diagnostics import to_arviz
from pyro_mixtures.distributions.regression.pseudo_likelihoods import PseudoLikelihoods
from pyro_mixtures.errors import ModelError, SharedParamsWarning
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.guides.hard import HardPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models.experts import MixtureOfExperts
from pyro_mixtures.testing import exact_loss
from tests.models.expert_mixtures import KINDS, C, P, adam, mixture, network, rows

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_params_have_the_names_of_the_parameters_and_are_registered_in_every_run():
    model, (x, y) = mixture(), rows()
    expected = {name.removesuffix("_unconstrained") for name, _ in model.named_parameters()}
    assert "experts.3.2.bias" in expected
    for _ in range(2):
        trace = pyro.poutine.trace(model).get_trace(x, y)
        assert {name for name, node in trace.nodes.items() if node["type"] == "param"} == expected
    stored = dict(pyro.get_param_store().named_parameters())
    assert all(stored[f"experts.{name}"] is leaf for name, leaf in model.experts.named_parameters())


def test_a_second_model_warns_and_goes_on_with_the_first_ones_params():
    (x, y), first, second = rows(), mixture(equal_weights=True), mixture(seed=1, equal_weights=True)
    first(x, y)
    with pytest.warns(SharedParamsWarning, match=r"experts\.0\.0\.bias"):
        second(x, y)
    assert all(
        a is b for a, b in zip(first.experts.parameters(), second.experts.parameters(), strict=True)
    )
    before = first.experts[0][0].weight.detach().clone()
    EM(second, FullPartition(second, components=C), gradient=adam()).step(x, y)
    assert (first.experts[0][0].weight != before).any()


def test_local_params_keep_two_models_apart():
    with pyro.settings.context(module_local_params=True):
        (x, y), first, second = rows(), mixture(), mixture(seed=1)
        first(x, y)
        before = [value.detach().clone() for value in first.parameters()]
        em = EM(second, FullPartition(second, components=C), gradient=adam())
        losses = [em.step(x, y) for _ in range(5)]
        assert losses[-1] < losses[0]
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), before, strict=True))


def test_experts_take_the_values_of_a_loaded_store(tmp_path):
    (x, y), first = rows(), mixture()
    expected = exact_loss(first, x, y)
    pyro.get_param_store().save(tmp_path / "store.pt")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store.pt")
    second = mixture(seed=1)
    with pytest.warns(SharedParamsWarning):
        assert exact_loss(second, x, y) == expected
    start = second.experts[2][2].bias.detach().clone()
    EM(second, FullPartition(second, components=C), gradient=adam()).step(x, y)
    assert (second.experts[2][2].bias != start).any()
    assert pyro.param("experts.2.2.bias") is second.experts[2][2].bias


def test_tied_weights_stay_tied_when_the_store_has_them():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(P, P), torch.nn.Linear(P, P)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x)).sum(-1)

    (x, y), made = rows(), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(
            MixtureOfExperts(Tied, components=2, features=P, loss="squared", equal_weights=True)
        )
    made[0](x, y)
    with pytest.warns(SharedParamsWarning):
        made[1](x, y)
    assert all(expert.second.weight is expert.first.weight for expert in made[1].experts)
    assert made[1].experts[0].first.weight is made[0].experts[0].first.weight


def test_a_handler_that_replaces_a_param_is_refused():
    model, (x, y) = mixture(), rows()
    replaced = pyro.poutine.substitute(model, data={"experts.0.0.bias": torch.zeros(6)})
    with pytest.raises(ModelError, match=r"experts\.0\.0\.bias"):
        replaced(x, y)


def test_saved_and_loaded_state_gives_the_same_loss(tmp_path):
    x, y = rows(size=60)
    model = mixture(equal_weights=True)
    guide = HardPartition(model, components=C)
    em = EM(model, guide, gradient=adam())
    for _ in range(3):
        em.step(x, y)
    before = em.evaluate_loss(x, y)
    torch.save({"model": model.state_dict(), "guide": guide.state_dict()}, tmp_path / "state.pt")
    pyro.clear_param_store()
    model = mixture(seed=5, equal_weights=True)
    guide = HardPartition(model, components=C)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    model.load_state_dict(state["model"])
    guide.load_state_dict(state["guide"])
    assert EM(model, guide).evaluate_loss(x, y) == before
    network().load_state_dict(  # names are those of the expert's parameters
        {
            name.removeprefix("experts.0."): v
            for name, v in model.state_dict().items()
            if name.startswith("experts.0.")
        }
    )


def test_double_widens_model_and_loss():
    model, (x, y) = mixture(), rows()
    single = exact_loss(model, x, y)
    model.double()
    pyro.clear_param_store()
    assert exact_loss(model, x.double(), y.double()) == pytest.approx(single, rel=1e-5)
    assert exact_loss(model, x, y) == pytest.approx(
        single, rel=1e-5
    )  # rows are widened to the parameters


def test_family_needs_no_params():
    family = PseudoLikelihoods(
        torch.ones(4, 2), [torch.nn.Identity(), torch.nn.Identity()], loss=lambda o, y: o.sum(-1)
    )
    found = family[torch.tensor([[0, 1, -1, 0]])].log_prob(torch.zeros(4))
    assert found.tolist() == [[-2.0, -2.0, -torch.inf, -2.0]]


@pytest.mark.cuda
def test_cuda_gives_the_losses_of_the_cpu(kind):
    (x, y), found = rows(kind, torch.float64), []
    for device in ("cpu", "cuda"):
        pyro.clear_param_store()
        model = mixture(kind, torch.float64).to(device)
        em = EM(model, HardPartition(model, components=C), gradient=adam(), gradient_steps=2)
        found.append(torch.tensor([em.step(x.to(device), y.to(device)) for _ in range(4)]))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


def test_fits_are_converted_to_arviz_with_any_names_of_params():
    model, (x, y) = mixture(), rows()
    em = EM(model, FullPartition(model, components=C), gradient=adam())
    found = to_arviz(fit(em, x, y, epochs=2, progress=False), x, y)
    names = {name for name, _ in model.named_parameters() if name.startswith("experts")}
    assert names <= set(found["posterior"].data_vars)
