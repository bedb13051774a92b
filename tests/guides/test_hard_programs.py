"""Hard partitions over other programs and by other strategies."""

import math

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import Adam

from pyro_mixtures.distributions import MixtureWeights
from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
from pyro_mixtures.errors import ClosedFormError, OptionError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.guides.hard import HardPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models import (
    GaussianMixture,
)
from pyro_mixtures.models.linear_regressions import MixtureOfRegressions
from pyro_mixtures.poutine import data_plate
from tests.guides.hard_regressions import (
    CONSTANT,
    K,
    N,
    P,
    least,
    losses,
    objective,
    random_labels,
    rows_of,
    started,
)

pytestmark = pytest.mark.usefixtures("on_one_thread")


def test_sites_without_leave_one_out_gains_are_refused():
    """Stock distributions have no families."""

    def program(x):
        loc = pyro.param("loc", lambda: torch.randn(K))
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(torch.ones(K) / K))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    guide = HardPartition(program, components=K, score="leave_one_out")
    em, x = EM(program, guide, empty="keep"), rows_of(torch.float32)[1]
    em.step(x)
    with pytest.raises(ClosedFormError, match="score='loss'"):
        em.step(x)


# Other programs, other strategies.


@pytest.mark.meta
def test_classification_em_of_a_gaussian_mixture_is_brute_force():
    """Weights are params, and enter the cost of a row."""
    x = rows_of(rows=200)[0] + 3.0 * (torch.arange(200, device="cpu") % K).unsqueeze(-1)
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = GaussianMixture(components=K, features=P).double()
        with torch.no_grad():
            model.loc = 3.0 * torch.randn(K, P, dtype=torch.float64)
    loc, scale, weights = (t.detach().clone() for t in (model.loc, model.scale, model.weights))
    guide = HardPartition(model, components=K)
    em = EM(model, guide, empty="keep", variance_floor=0.0)
    for _ in range(5):
        joint = weights.log() + dist.Normal(loc, scale).log_prob(x.unsqueeze(1)).sum(-1)
        labels = joint.argmax(1)
        assert em.step(x) == pytest.approx(-float(joint.max(1).values.sum()), rel=1e-9)
        assert torch.equal(guide.labels.long(), labels)
        parts = [x[labels == k] for k in range(K)]
        weights = torch.bincount(labels, minlength=K).double() / 200
        loc = torch.stack([part.mean(0) for part in parts])
        scale = torch.stack([part.std(0, correction=0) for part in parts])
        torch.testing.assert_close(model.loc.detach(), loc)
        torch.testing.assert_close(model.scale.detach(), scale)
        torch.testing.assert_close(model.weights.detach(), weights)


def test_stock_svi_descends_on_the_objective():
    x, y, _ = rows_of()
    model, guide, _ = started()
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    cost = losses(model, x, y).min(1).values.sum()
    assert elbo.loss(model, guide, x, y) == pytest.approx(float(cost) + N * CONSTANT)
    loss = elbo.differentiable_loss(model, guide, x, y)
    grad = torch.autograd.grad(loss, model.bias.unconstrained())[0]
    own = torch.nn.functional.one_hot(guide.labels.long(), K)
    error = y.unsqueeze(-1) - x @ model.weight.T - model.bias
    torch.testing.assert_close(grad, -(own * error).sum(0).detach())
    svi = SVI(model, guide, Adam({"lr": 0.2}), elbo)
    found = [svi.step(x, y) for _ in range(40)]
    assert found[-1] - N * CONSTANT < 0.5 * (found[0] - N * CONSTANT)


def test_stock_svi_keeps_labels_that_were_set_until_they_are_released():
    x, y, _ = rows_of()
    model, guide, _ = started(random_labels(4))
    svi = SVI(model, guide, Adam({"lr": 0.3}), TraceEnum_ELBO(max_plate_nesting=1))
    found = [svi.step(x, y) for _ in range(40)]
    assert torch.equal(guide.labels.long(), random_labels(4))
    assert found[-1] - N * CONSTANT == pytest.approx(objective(x, y, random_labels(4)), rel=0.05)
    guide.release()
    svi.step(x, y)
    assert guide.moved > 0


def test_a_program_with_two_observations_adds_up_their_losses_and_gains():
    """Rows with a hidden second outcome are scored by the first alone."""
    x, y, _ = rows_of()
    second, seen = y.roll(1), torch.arange(N) % 4 != 0
    given = [torch.nn.Parameter(torch.randn(K, P, dtype=torch.float64)) for _ in range(2)]

    def program(x, y, second, seen):
        weights = [
            pyro.param(f"weight{i}", lambda i=i: given[i].detach().clone()) for i in range(2)
        ]
        biases = [
            pyro.param(f"bias{i}", lambda: torch.zeros(K, dtype=torch.float64)) for i in range(2)
        ]
        one = torch.ones(K, dtype=torch.float64)
        first, other = (
            LinearRegressions(x, w, b, one) for w, b in zip(weights, biases, strict=True)
        )
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(one / K))
            pyro.sample("y", first[z], obs=y)
            with pyro.poutine.mask(mask=seen):
                pyro.sample("second", other[z], obs=second)

    guide = HardPartition(program, components=K, score="leave_one_out")
    labels = random_labels(6)
    guide.set_labels(labels)
    em = EM(program, guide, empty="keep")
    em.step(x, y, torch.where(seen, second, 1e6), seen)
    own = 0.5 * math.log(2 * math.pi)
    cost = torch.full((N, K), math.log(K), dtype=torch.float64)
    for i, outcome, known in ((0, y, torch.ones_like(seen)), (1, second, seen)):
        weight, bias = (pyro.param(f"{name}{i}").detach() for name in ("weight", "bias"))
        each = 0.5 * (outcome.unsqueeze(-1) - x @ weight.T - bias).square() + own
        for n, k in enumerate(labels.tolist()):
            part = (labels == k) & known
            rest = part.clone()
            rest[n] = False
            each[n, k] = least(x[part], outcome[part]) - least(x[rest], outcome[rest]) + own
        cost += torch.where(known.unsqueeze(-1), each, 0.0)
    em.step(x, y, torch.where(seen, second, 1e6), seen)
    assert torch.equal(guide.labels.long(), cost.argmin(1))


# Experts with positions.


def test_input_density_is_the_cost_of_the_distance_of_a_row():
    x, y, _ = rows_of(rows=40)
    torch.manual_seed(0)
    near = MixtureOfRegressions(
        components=3, features=x.shape[1], equal_weights=True, input_density=0.7
    ).to(x.dtype)
    free = MixtureOfRegressions(components=3, features=x.shape[1], equal_weights=True).to(x.dtype)
    with torch.no_grad():
        free.weight, free.bias = near.weight.clone(), near.bias.clone()
    log_joint = []
    for model in (near, free):
        pyro.clear_param_store()
        posterior = FullPartition(model, components=3).posterior(x, y)
        log_joint.append(posterior.log_prob + posterior.log_evidence)
    paid = log_joint[1] - log_joint[0]
    expected = 0.7 * (x - near.loc.detach().unsqueeze(1)).square().mean(-1)
    torch.testing.assert_close(paid - paid[:1], expected - expected[:1])


def test_positions_separate_experts_that_outcomes_do_not():
    """Two regions with the same line: only positions tell them apart."""
    x = torch.cat([torch.randn(60, 2) - 4, torch.randn(60, 2) + 4])
    y = x.sum(-1) + 0.1 * torch.randn(120)
    model = MixtureOfRegressions(
        components=2, features=2, scale=1.0, equal_weights=True, input_density=1.0
    )
    guide = HardPartition(model, components=2)
    guide.set_labels(torch.arange(120) % 10 // 9)
    fit(EM(model, guide), x, y, progress=False)
    found = guide.labels[:60].float().mean(), guide.labels[60:].float().mean()
    assert sorted(map(float, found)) == [0.0, 1.0]


def test_input_density_must_be_positive():
    with pytest.raises(OptionError, match=r"input_density=0\.0 must be positive"):
        MixtureOfRegressions(components=2, features=2, input_density=0.0)
