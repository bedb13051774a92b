"""Closed-form M-steps of stock distributions, against autograd of the expected log density."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.distributions import constraints
from torch import Tensor

from pyro_mixtures import data_plate
from pyro_mixtures.distributions import MixtureWeights, Poissons
from pyro_mixtures.errors import ClosedFormError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM

pytestmark = pytest.mark.usefixtures("on_one_thread")

C, D, N = 3, 2, 60
SHAPES = torch.tensor([[0.5, 1.0], [2.0, 3.0], [4.0, 1.5]], dtype=torch.float64, device="cpu")


class Case(NamedTuple):
    """One stock distribution: initial params, the distribution of rows given z, and rows."""

    params: dict[str, tuple[tuple[int, ...], Any]]  # shape and constraint by name
    distribution: Callable[..., Any]  # of params and z
    rows: Callable[[], Tensor]

    def start(self, dtype: torch.dtype) -> dict[str, Tensor]:
        g = torch.Generator("cpu").manual_seed(0)
        return {
            name: _start(shape, constraint, g).to(dtype)
            for name, (shape, constraint) in self.params.items()
        }

    def program(self, dtype: torch.dtype = torch.float64) -> Callable[..., Any]:
        start = self.start(dtype)
        weights = torch.full((C,), 1 / C, dtype=dtype, device="cpu")

        def model(x, index=None, size=None):
            params = {
                name: pyro.param(name, start[name], constraint=constraint)
                for name, (_, constraint) in self.params.items()
            }
            shares = pyro.param("weights", weights, constraint=constraints.simplex)
            with data_plate(x, index, size):
                z = pyro.sample("z", MixtureWeights(shares))
                pyro.sample("x", self.distribution(z, **params), obs=x)

        return model


def _start(shape, constraint, g):
    values = torch.rand(shape, generator=g, dtype=torch.float64, device="cpu")
    if constraint is constraints.simplex:
        return (values + 0.5) / (values + 0.5).sum(-1, keepdim=True)
    if constraint is constraints.real:
        return 4 * values - 2
    return 0.2 + 0.6 * values


def _generator():
    return torch.Generator("cpu").manual_seed(1)


def _uniform(*shape):
    return torch.rand(shape, generator=_generator(), dtype=torch.float64, device="cpu")


def counts(*shape):
    return lambda: torch.poisson(3 * _uniform(*shape), generator=_generator())


def binary(*shape):
    return lambda: (_uniform(*shape) < 0.5).double()


def positive(*shape):
    return lambda: -2 * _uniform(*shape).log()


def one_hot():
    labels = torch.arange(N, device="cpu") % 4
    return torch.nn.functional.one_hot(labels, 4).double()


def histograms():
    cells = (10 * _uniform(N, 4)).long()
    return cells + torch.nn.functional.one_hot(cells.argmax(-1), 4) * (
        40 - cells.sum(-1, keepdim=True)
    )


def labels():
    return torch.arange(N, device="cpu").square() % 4


POSITIVE, UNIT, REAL = constraints.positive, constraints.unit_interval, constraints.real
SIMPLEX = constraints.simplex

CASES = {
    "Poisson": Case({"rate": ((C,), POSITIVE)}, lambda z, rate: dist.Poisson(rate[z]), counts(N)),
    "Poisson, features": Case(
        {"rate": ((C, D), POSITIVE)},
        lambda z, rate: dist.Poisson(rate[z]).to_event(1),
        counts(N, D),
    ),
    "Bernoulli": Case(
        {"probs": ((C,), UNIT)}, lambda z, probs: dist.Bernoulli(probs[z]), binary(N)
    ),
    "Bernoulli, features": Case(
        {"probs": ((C, D), UNIT)},
        lambda z, probs: dist.Bernoulli(probs[z]).to_event(1),
        binary(N, D),
    ),
    "Bernoulli, logits": Case(
        {"logits": ((C, D), REAL)},
        lambda z, logits: dist.Bernoulli(logits=logits[z]).to_event(1),
        binary(N, D),
    ),
    "Exponential": Case(
        {"rate": ((C,), POSITIVE)}, lambda z, rate: dist.Exponential(rate[z]), positive(N)
    ),
    "Exponential, features": Case(
        {"rate": ((C, D), POSITIVE)},
        lambda z, rate: dist.Exponential(rate[z]).to_event(1),
        positive(N, D),
    ),
    "Gamma": Case(
        {"rate": ((C,), POSITIVE)}, lambda z, rate: dist.Gamma(2.5, rate[z]), positive(N)
    ),
    "Gamma, features": Case(
        {"rate": ((C, D), POSITIVE)},
        lambda z, rate: dist.Gamma(SHAPES.to(rate)[z], rate[z]).to_event(1),
        positive(N, D),
    ),
    "Multinomial": Case(
        {"probs": ((C, 4), SIMPLEX)},
        lambda z, probs: dist.Multinomial(40, probs[z]),
        histograms,
    ),
    "Multinomial, logits": Case(
        {"logits": ((C, 4), REAL)},
        lambda z, logits: dist.Multinomial(40, logits=logits[z]),
        histograms,
    ),
    "OneHotCategorical": Case(
        {"probs": ((C, 4), SIMPLEX)},
        lambda z, probs: dist.OneHotCategorical(probs[z]),
        one_hot,
    ),
    "OneHotCategorical, logits": Case(
        {"logits": ((C, 4), REAL)},
        lambda z, logits: dist.OneHotCategorical(logits=logits[z]),
        one_hot,
    ),
    "Categorical": Case(
        {"probs": ((C, 4), SIMPLEX)}, lambda z, probs: dist.Categorical(probs[z]), labels
    ),
    "Categorical, logits": Case(
        {"logits": ((C, 4), REAL)},
        lambda z, logits: dist.Categorical(logits=logits[z]),
        labels,
    ),
}


def rows_of(case, dtype=torch.float64):
    x = case.rows()
    return x.to(dtype) if x.is_floating_point() else x


def expected_log_density(case, q, x):
    """The sum over rows and components of q (C, N) times the log density, by stock Pyro."""
    z = torch.arange(C, device="cpu").unsqueeze(-1)
    params = {name: pyro.param(name) for name in case.params}
    return (q * case.distribution(z, **params).log_prob(x)).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_step_maximizes_the_expected_log_density(case, dtype):
    model, x = case.program(dtype), rows_of(case, dtype)
    guide = FullPartition(model, components=C)
    em = EM(model, guide, empty="keep")
    q = guide.posterior(x).probs.detach()
    before = expected_log_density(case, q, x).item()
    losses = [em.step(x)]
    after = expected_log_density(case, q, x)
    assert after.item() >= before
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    leaves = [pyro.param(name).unconstrained() for name in case.params]
    for slope in torch.autograd.grad(after, leaves):
        assert float(slope.abs().max()) < tolerance * N
    losses += [em.step(x) for _ in range(4)]
    assert all(new <= old + tolerance for old, new in pairwise(losses))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_batches_give_the_step_of_all_rows(case):
    results = []
    for batches in (1, 3):
        pyro.clear_param_store()
        model, x = case.program(), rows_of(case)
        guide = TruncatedPartition(model, components=C, candidates=C, neighbors=C, seed=0)
        em = EM(model, guide, empty="keep")
        for index in torch.arange(N, device="cpu").chunk(batches):
            em.accumulate(x[index], index=index, size=N)
        em.maximize()
        results.append({name: pyro.param(name).detach().clone() for name in case.params})
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_frozen_params_stay_as_they_are(case):
    model, x = case.program(), rows_of(case)
    start = case.start(torch.float64)
    EM(model, FullPartition(model, components=C), freeze=case.params, empty="keep").step(x)
    for name, value in start.items():
        torch.testing.assert_close(pyro.param(name).detach(), value)
    assert not torch.allclose(pyro.param("weights"), pyro.param("weights").new_tensor(1 / C))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_empty_component_is_reseeded(case):
    """The component takes the params of a half that was split off another one."""
    model, x = case.program(), rows_of(case)
    em = EM(model, FullPartition(model, components=C))
    em.evaluate_loss(x)
    with torch.no_grad():
        leaf = pyro.param("weights").unconstrained()
        leaf[-1] -= 1e4 if leaf.shape[-1] == C else 0.0
        leaf[0] -= 1e4 if leaf.shape[-1] < C else 0.0
    assert float(pyro.param("weights").detach().min()) == 0
    em.step(x)
    assert em.last_update is not None
    assert em.last_update.reseeded == 1
    assert all(bool(pyro.param(name).isfinite().all()) for name in case.params)
    assert em.evaluate_loss(x) < float("inf")


def test_stock_step_is_that_of_the_family():
    case = CASES["Poisson, features"]
    x, means = rows_of(case), []
    start = case.start(torch.float64)["rate"]

    def own(x):
        mean = pyro.param("mean", start, constraint=constraints.positive)
        weights = pyro.param("weights", torch.full((C,), 1 / C, dtype=torch.float64, device="cpu"))
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(weights))
            pyro.sample("x", Poissons(mean)[z], obs=x)

    for model, name in ((case.program(), "rate"), (own, "mean")):
        pyro.clear_param_store()
        EM(model, FullPartition(model, components=C), freeze=["weights"]).step(x)
        means.append(pyro.param(name).detach())
    torch.testing.assert_close(*means)


def test_logits_of_labels_that_a_component_has_not_seen_stay_finite():
    case = CASES["Categorical, logits"]
    model, x = case.program(), rows_of(case)
    x = x.clamp_max(2)  # no row has the last label
    EM(model, FullPartition(model, components=C)).step(x)
    logits = pyro.param("logits").detach()
    assert bool(logits.isfinite().all())
    assert float(logits.softmax(-1)[:, 3].max()) < 1e-300


def test_weights_may_be_logits():
    x = rows_of(CASES["Poisson"])

    def model(x):
        logits = pyro.param("logits", torch.tensor([0.3, -0.1, 5.0], device="cpu").double())
        rate = pyro.param("rate", torch.tensor([1.0, 2.0, 3.0], device="cpu").double())
        with data_plate(x):
            z = pyro.sample("z", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Poisson(rate[z]), obs=x)

    guide = FullPartition(model, components=C)
    expected = guide.posterior(x).probs.mean(-1).detach()
    EM(model, guide, empty="keep").step(x)
    torch.testing.assert_close(pyro.param("logits").softmax(-1).detach(), expected)


def _refused(distribution, message, x, freeze=(), **shapes):
    pyro.clear_param_store()
    params = {name: (shape, POSITIVE) for name, shape in shapes.items()}
    case = Case(params, distribution, lambda: x)
    model = case.program()
    with pytest.raises(ClosedFormError, match=message):
        EM(model, FullPartition(model, components=C), freeze=freeze).step(x)


def test_what_has_no_closed_form_is_named_with_the_remedies():
    x = positive(N)()
    _refused(lambda z, rate: dist.Exponential(2 * rate[z]), "computed from params", x, rate=(C,))
    _refused(
        lambda z, rate: dist.Gamma(SHAPES[z, 0], rate.expand(C)[z]),
        r"argument 'rate' .* shared; use SVI",
        x,
        rate=(),
    )
    _refused(
        lambda z, rate, shape: dist.Gamma(shape[z], rate[z]),
        "concentration of Gammas has no closed form",
        x,
        rate=(C,),
        shape=(C,),
    )
    _refused(
        lambda z, rate: dist.Exponential(rate[z].unsqueeze(-1).expand(*z.shape, D)).to_event(1),
        "computed from params|shared",
        positive(N, D)(),
        rate=(C,),
    )
    offset = torch.arange(1.0, N + 1, device="cpu")
    _refused(
        lambda z, rate: dist.Poisson(rate[z] * offset),
        "varies by row|computed from params",
        counts(N)(),
        rate=(C,),
    )
    _refused(
        lambda z, logits: dist.Bernoulli(logits=logits[z] ** 2),
        "computed from params",
        binary(N)(),
        logits=(C,),
    )


def test_frozen_concentration_is_a_constant():
    x = positive(N)()
    case = Case(
        {"rate": ((C,), POSITIVE), "shape": ((C,), POSITIVE)},
        lambda z, rate, shape: dist.Gamma(shape[z], rate[z]),
        positive(N),
    )
    model = case.program()
    guide = FullPartition(model, components=C)
    q = guide.posterior(x).probs.detach()
    EM(model, guide, freeze=["shape"], empty="keep").step(x)
    expected = pyro.param("shape") * q.sum(-1) / (q @ x)
    torch.testing.assert_close(pyro.param("rate").detach(), expected.detach())
