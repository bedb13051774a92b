"""The fit loop: what an epoch of each strategy does, and the warm-up."""

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import SVI, TraceEnum_ELBO
from torch.distributions import constraints

from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.init import Seeds
from pyro_mixtures.models import GaussianMixture
from pyro_mixtures.poutine import data_plate
from tests.infer.em.strategies import (
    F64,
    STRATEGIES,
    C,
    D,
    N,
    assert_same,
    exact,
    mixture,
    params,
    quiet,
    svi,
    truncated,
)

pytestmark = pytest.mark.usefixtures("on_one_thread")


# What an epoch is.


@pytest.mark.parametrize("batch_size", [None, 40])
def test_every_strategy_gains(x, strategy, batch_size):
    found = quiet(strategy(x), x, batch_size=batch_size, epochs=6)
    assert found.history["elbo"][-1] > found.history["elbo"][0]
    assert not found.converged
    assert not found.interrupted


def test_epochs_of_exact_em_are_em_steps(x):
    em = exact(x)
    losses = [em.step(x) for _ in range(5)]
    expected = params(em.model)
    found = quiet(exact(x), x, epochs=5)
    np.testing.assert_allclose(found.history["elbo"], -np.array(losses) / N, rtol=1e-12)
    assert_same(params(found.model), expected)


@pytest.mark.parametrize("batch_size", [5, 17, N - 1, N, N + 5])
def test_minibatches_of_exact_em_give_the_full_batch_fit(x, batch_size):
    whole = quiet(exact(x), x, epochs=4)
    expected = params(whole.model)
    parts = quiet(exact(x), x, epochs=4, batch_size=batch_size)
    np.testing.assert_allclose(parts.history["elbo"], whole.history["elbo"], rtol=1e-11)
    assert_same(params(parts.model), expected, rtol=1e-9, atol=1e-10)


def test_stepwise_em_updates_after_every_minibatch(x):
    rates = []

    def step_size(t):
        rates.append(t)
        return (t + 1) ** -0.6

    em = exact(x, step_size=step_size)
    quiet(em, x, epochs=3, batch_size=40)
    assert rates == list(range(1, 10))  # three minibatches an epoch
    assert em.steps == 9


def test_stepwise_em_of_rate_one_on_all_rows_is_exact_em(x):
    expected = params(quiet(exact(x), x, epochs=4).model)
    assert_same(params(quiet(exact(x, step_size=lambda t: 1.0), x, epochs=4).model), expected)


def test_epochs_of_svi_are_stock_steps(x):
    stock = svi(x)
    losses = [stock.step(x) for _ in range(4)]
    expected = params(stock.model)
    found = quiet(svi(x), x, epochs=4)
    np.testing.assert_allclose(found.history["elbo"], -np.array(losses) / N, rtol=1e-12)
    assert_same(params(found.model), expected)


def test_minibatches_reach_the_model_with_their_row_numbers_and_every_row_once(x):
    seen = []

    def model(x, index=None, size=None):
        with data_plate(x, index, size):
            z = pyro.sample("z", MixtureWeights(torch.ones(C, dtype=F64) / C))
            loc = pyro.param("loc", lambda: rows[:C].clone())
            pyro.sample("x", DiagonalNormals(loc, torch.ones(D, dtype=F64))[z], obs=x)
        seen.append((x, index, size))

    rows = x
    guide = FullPartition(model, components=C)
    guide.read(x)
    inference = SVI(
        model, guide, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1)
    )
    seen.clear()
    quiet(inference, x, epochs=1, batch_size=40)
    assert all(size == N and torch.equal(part, x[index]) for part, index, size in seen)
    distinct = {tuple(index.tolist()) for _, index, _ in seen}
    assert sorted(len(part) for part in distinct) == [10, 40, 40]
    assert sorted(number for part in distinct for number in part) == list(range(N))
    assert max(distinct, key=len) != tuple(sorted(max(distinct, key=len)))  # shuffled


@pytest.mark.parametrize(
    "as_seeds", [lambda x: x[:C], lambda x: x[torch.arange(C)]], ids=["view", "copy"]
)
def test_fits_leave_rows_and_seeds_as_they_were(x, as_seeds):
    """Params are written in place: a model that starts at seeds must not keep their memory."""
    rows = x.clone()
    seeds = Seeds(torch.arange(C), as_seeds(x), x.var(0))
    loc = seeds.loc.clone()
    model = GaussianMixture(components=C, features=D).double()
    model.start_at(seeds)
    quiet(EM(model, FullPartition(model, components=C)), x, epochs=2)
    assert torch.equal(x, rows)
    assert torch.equal(seeds.loc, loc)


# Warm-up.


@pytest.mark.parametrize(
    ("name", "warms"), [("exact", False), ("stepwise", False), ("SVI", False), ("truncated", True)]
)
def test_only_guides_that_search_are_warmed_up(x, name, warms):
    found = quiet(STRATEGIES[name](x), x, epochs=2, warmup=3)
    phase = "SVI" if name == "SVI" else "EM"
    assert found.history["phase"].tolist() == ["warm-up"] * 3 * warms + [phase] * 2


def test_svi_is_not_warmed_up(x):
    assert quiet(svi(x, TruncatedPartition), x, epochs=2).history["phase"].tolist() == ["SVI"] * 2


def test_warm_up_changes_the_guide_only(x):
    em = truncated(x)
    before = params(em.model)
    found = quiet(em, x, epochs=0, warmup=4)
    assert found.history["phase"].tolist() == ["warm-up"] * 4
    assert np.diff(found.history["elbo"]).min() >= 0
    assert_same(params(em.model), before, rtol=0, atol=0)
    assert em.steps == 0


def test_warm_up_ends_when_it_has_converged(x):
    found = fit(truncated(x), x, epochs=0, warmup=200, patience=2, progress=False)
    assert 3 <= len(found.history) < 50
    assert not found.converged  # nothing was fitted


def test_stock_program_with_plain_indexing_is_fitted(x):
    def model(x):
        weights = pyro.param(
            "weights", torch.full((C,), 1 / C, dtype=F64), constraint=dist.constraints.simplex
        )
        loc = pyro.param("loc", start.clone())
        scale = pyro.param(
            "scale", 2 * torch.ones(C, D, dtype=F64), constraint=dist.constraints.positive
        )
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)

    start = x[:C].clone()
    found = fit(EM(model, FullPartition(model, components=C)), x, epochs=300, progress=False)
    assert found.converged
    assert np.diff(found.history["elbo"]).min() >= -1e-12


@pytest.mark.parametrize("rows", [60, 3000])
def test_params_may_start_from_the_rows(rows):
    """As in the README: the first run of the program must see enough rows, in all cases."""
    x = torch.randn(rows, 2) + 6 * (torch.arange(rows) % 3).unsqueeze(-1)

    def program(x, index=None, size=None):
        weights = pyro.param("weights", torch.full((3,), 1 / 3), constraint=constraints.simplex)
        loc = pyro.param("loc", lambda: x[:: len(x) // 3][:3].clone())
        scale = pyro.param("scale", torch.ones(3, 2), constraint=constraints.positive)
        with data_plate(x, index, size):
            z = pyro.sample("z", MixtureWeights(weights))
            pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)

    fit(EM(program, FullPartition(program, components=3)), x, progress=False)
    assert pyro.param("loc").shape == (3, 2)
    fit(
        EM(program, FullPartition(program, components=3)),
        x,
        batch_size=50,
        epochs=2,
        progress=False,
    )


@pytest.mark.parametrize("weight", [1e-4, 1.0, 50.0])
@pytest.mark.parametrize("batch_size", [None, 32])
def test_weights_of_rows_change_neither_when_a_fit_stops_nor_what_it_reports(x, weight, batch_size):
    """The tolerance is in nats per row of weight one, for any unit of the weights."""

    def weighted(x, index=None, size=None):
        with pyro.poutine.scale(scale=weight * torch.ones(len(x))):
            return model(x, index=index, size=size)

    found = []
    for program in ("plain", "weighted"):
        pyro.set_rng_seed(0)
        model = mixture(x)
        one = model if program == "plain" else weighted
        found.append(
            fit(
                EM(one, FullPartition(one, components=C)), x, batch_size=batch_size, progress=False
            ).history
        )
    np.testing.assert_allclose(found[1]["elbo"], found[0]["elbo"], rtol=1e-4)
