"""Mixtures of torch modules: training by all strategies."""

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import SGD

from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.guides.hard import HardPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models.experts import MixtureOfExperts
from pyro_mixtures.poutine import truncate
from pyro_mixtures.testing import TOLERANCE, exact_loss
from tests.models.expert_mixtures import KINDS, C, N, adam, brute, brute_evidence, mixture, rows

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.meta
def test_full_loss_is_minus_the_log_evidence_by_stock_enumeration(dtype, kind):
    model, (x, y) = mixture(kind, dtype), rows(kind, dtype)
    expected = -float(brute_evidence(model, kind, x, y).sum())
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    all_components = TruncatedPartition(
        model, components=C, candidates=C, neighbors=C, explore=0, seed=0
    )
    for loss in (
        exact_loss(model, x, y),
        elbo.loss(model, FullPartition(model, components=C), x, y),
        elbo.loss(model, all_components, x, y),
        EM(model, FullPartition(model, components=C)).evaluate_loss(x, y),
    ):
        assert loss == pytest.approx(expected, rel=TOLERANCE[dtype])


@pytest.mark.meta
def test_candidates_truncate_the_log_evidence_and_padding_adds_nothing(dtype):
    model, (x, y) = mixture(dtype=dtype), rows(dtype=dtype)
    candidates = torch.tensor([[0, 2], [3, -1]], device="cpu")[torch.arange(N, device="cpu") % 2]
    joint = (
        brute(model, "squared", x, y)[0].detach()
        + model.weights.detach().double().log().unsqueeze(-1)
    ).T
    expected = torch.where(
        candidates < 0, -torch.inf, joint.gather(1, candidates.clamp_min(0))
    ).logsumexp(1)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(
        truncate(model, "z", candidates), lambda *_: None, x, y
    )
    assert loss == pytest.approx(-float(expected.sum()), rel=TOLERANCE[dtype])


@pytest.mark.parametrize("guided", ["full", "truncated", "hard"])
def test_svi_trains_every_param(guided, kind):
    model, (x, y) = mixture(kind), rows(kind)
    guide = {
        "full": FullPartition(model, components=C),
        "truncated": TruncatedPartition(model, components=C, candidates=2, neighbors=3, seed=0),
        "hard": HardPartition(model, components=C),
    }[guided]
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    svi = SVI(model, guide, adam(0.03), TraceEnum_ELBO(max_plate_nesting=1))
    losses = [svi.step(x, y) for _ in range(9)]
    assert losses[-1] < losses[0] - 2
    moved = {name for name, value in model.named_parameters() if (value != before[name]).any()}
    used = range(C) if guided != "hard" else guide.sizes.nonzero()[:, 0].tolist()
    assert moved >= {
        name for name in before if name.startswith(tuple(f"experts.{c}." for c in used))
    }
    assert "weights_unconstrained" in moved


@pytest.mark.parametrize("guided", ["full", "truncated", "hard"])
def test_em_sets_weights_in_closed_form_and_trains_experts_by_gradients(guided):
    model, (x, y) = mixture(dtype=torch.float64), rows(dtype=torch.float64, size=60)
    guide = {
        "full": FullPartition(model, components=C),
        "truncated": TruncatedPartition(model, components=C, candidates=C, neighbors=C, seed=0),
        "hard": HardPartition(model, components=C),
    }[guided]
    joint = brute(model, "squared", x, y)[0].detach() + model.weights.detach().log().unsqueeze(-1)
    q = joint.softmax(0)
    if guided == "hard":
        q = torch.nn.functional.one_hot(joint.argmax(0), C).T.double()
    start = [value.detach().clone() for value in model.experts.parameters()]
    table, experts = brute(model, "squared", x, y)
    (q * table).sum().backward()
    EM(model, guide, gradient=SGD({"lr": 1e-3})).step(x, y)
    torch.testing.assert_close(model.weights.detach(), q.mean(1))
    slopes = [value.grad for expert in experts for value in expert.parameters()]
    for value, before, slope in zip(model.experts.parameters(), start, slopes, strict=True):
        torch.testing.assert_close(value.detach(), before + 1e-3 * slope)


def test_equal_weights_stay_and_leave_the_loss_alone():
    model, (x, y) = mixture(dtype=torch.float64, equal_weights=True), rows(dtype=torch.float64)
    guide = HardPartition(model, components=C)
    em = EM(model, guide, gradient=adam())
    best = -brute(model, "squared", x, y)[0].detach().amax(0).sum()
    loss = em.step(x, y)
    assert loss == pytest.approx(float(best) + N * torch.tensor(float(C)).log().item(), rel=1e-6)
    torch.testing.assert_close(model.weights, torch.full((C,), 1 / C, dtype=torch.float64))


@pytest.mark.parametrize("guided", ["full", "hard"])
def test_minibatches_add_up_to_all_rows(guided):
    found = []
    for batch_size in (None, 12):
        pyro.clear_param_store()
        model, (x, y) = mixture(dtype=torch.float64), rows(dtype=torch.float64, size=36)
        guide = {"full": FullPartition, "hard": HardPartition}[guided](model, components=C)
        em = EM(model, guide, gradient=SGD({"lr": 1e-3}), gradient_steps=3)
        result = fit(
            em, x, y, batch_size=batch_size, epochs=3, tolerance=0.0, patience=99, progress=False
        )
        found.append(
            (torch.tensor(result.history["elbo"]), *(p.detach() for p in model.parameters()))
        )
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-8, atol=1e-10)


class Wave(torch.nn.Module):
    """``height * sin(x + phase)``, so simple that two waves have only one good fit."""

    def __init__(self):
        super().__init__()
        self.height, self.phase = (
            torch.nn.Parameter(torch.randn(())),
            torch.nn.Parameter(torch.randn(())),
        )

    def forward(self, x):
        return self.height * (x[:, 0] + self.phase).sin()


def test_hard_training_recovers_the_split_between_a_sine_and_its_mirror_image():
    x = 6 * torch.rand(120, 1) - 3
    truth = torch.arange(120) % 2
    y = (1 - 2 * truth) * x[:, 0].sin() + 0.02 * torch.randn(120)

    model = MixtureOfExperts(Wave, components=2, features=1, loss="squared", equal_weights=True)
    guide = HardPartition(model, components=2)
    em = EM(model, guide, gradient=adam(0.1), gradient_steps=5)
    losses = [em.step(x, y) / 120 - torch.tensor(2.0).log().item() for _ in range(20)]
    assert losses[-1] < 2e-3 < 0.1 < losses[0]
    apart = x[:, 0].sin().abs() > 0.15  # rows where the waves meet may belong to either
    agree = (guide.labels == truth)[apart].float().mean()
    assert max(agree, 1 - agree) == 1


def test_more_gradient_steps_go_lower_in_as_many_epochs():
    found = {}
    for steps in (1, 10):
        pyro.clear_param_store()
        model, (x, y) = mixture(), rows()
        em = EM(
            model, FullPartition(model, components=C), gradient=adam(0.01), gradient_steps=steps
        )
        for _ in range(8):
            em.step(x, y)
        found[steps] = em.evaluate_loss(x, y)
    assert found[10] < found[1] - 2


@pytest.mark.parametrize("by", ["freeze", "requires_grad"])
def test_frozen_params_stay(by):
    model, (x, y) = mixture(), rows()
    frozen = "experts.1.0.weight"
    options = {"freeze": [frozen]} if by == "freeze" else {}
    if by == "requires_grad":
        model.experts[1][0].weight.requires_grad_(False)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    em = EM(model, FullPartition(model, components=C), gradient=adam(), gradient_steps=3, **options)
    em.step(x, y)
    moved = {
        name for name, value in model.named_parameters() if not torch.equal(value, before[name])
    }
    assert moved == before.keys() - {frozen}
    assert by == "freeze" or frozen not in pyro.get_param_store()
