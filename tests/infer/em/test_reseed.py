"""Re-seeding: split components separate, the ELBO recovers, and repeatedly empty ones wait."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pyro_mixtures.distributions.regression.conditional import nudge
from pyro_mixtures.distributions.regression.support_vectors import SupportVectorMachines
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.infer.em.reseed import Pauses, Split
from pyro_mixtures.models import (
    GaussianMixture,
    MixtureOfLogisticRegressions,
    MixtureOfPoissonRegressions,
    MixtureOfSVMs,
)
from pyro_mixtures.models.latent_class_logit import LatentClassLogit
from pyro_mixtures.models.linear_regressions import MixtureOfRegressions

F64 = torch.float64
ROWS, WEIGHT = 400, torch.tensor([[3.0, -1.0], [-3.0, 1.0]], dtype=F64)


def two_sorts() -> tuple[Tensor, Tensor]:
    """Covariates, and predictors of two sorts of rows."""
    x = torch.randn(ROWS, 2, dtype=F64)
    return x, (WEIGHT[torch.arange(ROWS) % 2] * x).sum(-1)


def regressions(outputs=None, **options):
    x, eta = two_sorts()
    y = eta + 0.2 * torch.randn(ROWS, dtype=F64)
    y = y if outputs is None else torch.stack([y, -y], -1)[:, :outputs]
    return (
        MixtureOfRegressions(components=2, features=2, outputs=outputs, **options),
        (x, y),
        WEIGHT,
    )


def logistic():
    """Sorts whose labels depend on one covariate each."""
    x, truth = two_sorts()[0], 8 * torch.eye(2, dtype=F64)
    y = (truth[torch.arange(ROWS) % 2] * x).sum(-1).sigmoid().bernoulli()
    return MixtureOfLogisticRegressions(components=2, features=2, ridge=1e-4), (x, y), truth


def poisson():
    x, eta = two_sorts()
    return (
        MixtureOfPoissonRegressions(components=2, features=2, ridge=1e-4),
        (x, torch.poisson((0.5 * eta).exp())),
        WEIGHT / 2,
    )


def machines():
    x, eta = two_sorts()
    model = MixtureOfSVMs(components=2, features=2, ridge=1e-2, equal_weights=False)
    return model, (x, (eta > 0).long()), WEIGHT


def classes():
    """Choosers of five situations, of three alternatives each."""
    design, available = (
        torch.randn(ROWS, 5, 3, 2, dtype=F64),
        torch.ones(ROWS, 5, 3, dtype=torch.bool),
    )
    utility = torch.einsum("ntjl,nl->ntj", design, WEIGHT[torch.arange(ROWS) % 2])
    chosen = torch.distributions.Categorical(logits=utility).sample()
    return LatentClassLogit(components=2, coefficients=2), (design, available, chosen), WEIGHT


CASES = {
    "one output": regressions,
    "two outputs": lambda: regressions(2),
    "ridge": lambda: regressions(ridge=0.01),
    "logistic": logistic,
    "poisson": poisson,
    "squared hinge": machines,
    "latent classes": classes,
}


def named(model) -> str:
    return "theta" if isinstance(model, LatentClassLogit) else "weight"


def put(model, coefficients: Tensor, weights: list[float]) -> None:
    """The first component's coefficients twice, or both."""
    with torch.no_grad():
        own = getattr(model, named(model))
        own.copy_(coefficients.unsqueeze(1).expand(own.shape) if own.dim() == 3 else coefficients)
        model.weights = torch.tensor(weights, dtype=F64)


def trained(model, rows, steps: int = 30, **options) -> tuple[EM, float]:
    em = EM(model, FullPartition(model, components=2), **options)
    for _ in range(steps):
        em.step(*rows)
    return em, em.evaluate_loss(*rows)


@pytest.mark.parametrize("name", CASES)
def test_reseeded_experts_separate_and_the_elbo_recovers(name):
    """From one component for two kinds of rows to about the ELBO of a fit from the truth."""
    model, rows, truth = CASES[name]()
    model = model.double()
    put(model, truth, [0.5, 0.5])
    if name == "two outputs":
        with torch.no_grad():
            model.weight[:, 1] *= -1
    _, best = trained(model, rows)
    put(model, torch.zeros_like(truth), [1.0, 0.0])
    _, alone = trained(model, rows, empty="keep")
    put(model, torch.zeros_like(truth), [1.0, 0.0])
    em, found = trained(model, rows, 1)
    assert em.last_update is not None
    assert em.last_update.reseeded == 1
    own = getattr(model, named(model)).detach()
    assert not torch.equal(own[0], own[1])
    _, found = trained(model, rows)
    assert best < alone - 10
    assert found <= best + 0.02 * (alone - best)


def test_frozen_params_of_a_component_stay_where_it_is_reseeded():
    model, rows, _ = regressions()
    model = model.double()
    put(model, torch.zeros(2, 2, dtype=F64), [1.0, 0.0])
    with torch.no_grad():
        model.scale = torch.tensor([3.0, 0.7], dtype=F64)
    em, _ = trained(model, rows, 1, freeze=["scale"])
    assert em.last_update is not None
    assert em.last_update.reseeded == 1
    assert model.scale.tolist() == pytest.approx([3.0, 0.7])


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("loss", ["hinge", "squared_hinge"])
def test_half_a_machine_moves_by_less_than_a_margin(loss, dtype):
    """The hinge has no curvature to go by."""
    x = torch.randn(50, 3, dtype=dtype, device="cpu")
    y = (x[:, 0] > 0).long()
    machine = SupportVectorMachines(
        x,
        torch.zeros(2, 3, dtype=dtype, device="cpu"),
        torch.zeros(2, dtype=dtype, device="cpu"),
        ridge=1e-3,
        loss=loss,
    )
    z = torch.zeros(50, dtype=torch.long, device="cpu")
    new = machine.split(
        0, None, machine.statistics_at(z, y, torch.ones(50, dtype=dtype, device="cpu"))
    )
    moved = (x @ new["weight"] + new["bias"]).square().mean().sqrt()
    assert new["weight"].dtype == dtype
    assert float(moved) == pytest.approx(1.0 if loss == "hinge" else 3**-0.5, rel=0.01)


@pytest.mark.meta
@pytest.mark.parametrize("collinear", [False, True])
def test_a_nudge_changes_predictors_by_as_much_as_asked(collinear):
    x = torch.randn(50, 3, dtype=F64, device="cpu") * torch.tensor(
        [1.0, 1e-4, 1e5], dtype=F64, device="cpu"
    )
    if collinear:
        x[:, 2] = 3 * x[:, 0]
    deviation = torch.tensor([0.5, 2.0], dtype=F64, device="cpu")
    change = nudge(x.mT @ x / len(x), deviation)
    torch.testing.assert_close((x @ change.mT).square().mean(0).sqrt(), deviation)


def test_a_nudge_of_rows_without_covariates_is_none():
    assert nudge(torch.zeros(2, 2, dtype=F64), torch.ones(1, dtype=F64)).tolist() == [[0.0, 0.0]]


def split_steps(empty_at, steps: int) -> list[int]:
    """Steps at which component 0 is re-seeded, if ``empty_at(step, last split)`` says when."""
    pauses, found = Pauses(), []
    for step in range(1, steps + 1):
        empty = [0] if empty_at(step, found[-1] if found else None) else []
        splits = [Split(c, 1, 0) for c in pauses.ready(empty, step)]
        pauses.record(splits)
        found += [step] * len(splits)
    return found


def test_components_that_become_empty_at_once_wait_twice_as_long_each_time():
    found = split_steps(lambda step, last: True, 1000)
    gaps = [b - a for a, b in pairwise(found)]
    assert gaps == [3, 5, 9, 17, 33, 65, 129, 257]


def test_components_that_live_wait_little():
    found = split_steps(lambda step, last: last is None or step - last >= 50, 200)
    assert found == [1, 53, 107, 165]


def test_components_that_become_empty_in_turn_share_a_pause_and_do_not_wait_the_first_time():
    pauses = Pauses()
    pauses.record([Split(0, 2, 0), Split(1, 2, 0)])
    assert pauses.ready([0], 5) == []
    assert pauses.ready([0, 1], 6) == []
    assert pauses.ready([0, 1, 3], 9) == [3]
    assert pauses.ready([0, 1, 3], 10) == [0, 1, 3]


def test_a_component_is_not_split_off_without_end():
    """More components than their rows are enough for: most splits come early."""
    x = torch.randn(40, 2, dtype=F64)
    model = GaussianMixture(components=30, features=2).double()
    em, splits = EM(model, FullPartition(model, components=30)), []
    for _ in range(80):
        em.step(x)
        assert em.last_update is not None
        splits.append(em.last_update.reseeded)
    assert sum(splits[:40]) > 2 * sum(splits[40:]) > 0
