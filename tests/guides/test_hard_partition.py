"""Steps of hard partitions against brute force, descent of the objective, and histories."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_mixtures.diagnostics import to_arviz
from pyro_mixtures.infer import fit
from pyro_mixtures.testing import TOLERANCE
from tests.guides.hard_regressions import (
    CONSTANT,
    K,
    N,
    few,
    least,
    losses,
    objective,
    random_labels,
    rows_of,
    started,
)

pytestmark = pytest.mark.usefixtures("on_one_thread")


# One step.


@pytest.mark.meta
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_one_step_is_the_cheapest_component_and_its_refit(ridge, dtype):
    x, y, _ = rows_of(dtype)
    model, guide, em = started(dtype=dtype, ridge=ridge)
    cost = losses(model, x, y)
    loss = em.step(x, y)
    assert loss == pytest.approx(
        float(cost.min(1).values.sum()) + N * CONSTANT, rel=TOLERANCE[dtype]
    )
    assert torch.equal(guide.labels.long(), cost.argmin(1))
    assert guide.sizes.tolist() == torch.bincount(cost.argmin(1), minlength=K).tolist()
    fitted = losses(model, x, y).gather(1, guide.labels.long().unsqueeze(-1)).sum()
    assert float(fitted) == pytest.approx(
        objective(x, y, guide.labels, ridge), rel=100 * TOLERANCE[dtype]
    )


@pytest.mark.parametrize("alpha", [1.0, 0.7])
@pytest.mark.parametrize("score", ["leave_one_out", "modular_bound"])
def test_a_scored_step_is_that_of_brute_force(score, alpha):
    x, y, _ = rows_of()
    labels = random_labels(1)
    model, guide, em = started(labels, score=score, alpha=alpha, ridge=0.1)
    em.step(x, y)  # fits the clusters that were set
    assert torch.equal(guide.labels.long(), labels)
    prior = math.log(K)
    own = 0.5 * math.log(2 * math.pi)
    cost = losses(model, x, y) + own + prior
    if score == "modular_bound":
        cost = torch.full_like(cost, (own + prior) / alpha)
    for i, k in enumerate(labels.tolist()):
        part = labels == k
        rest = part.clone()
        rest[i] = False
        gain = least(x[part], y[part], 0.1) - least(x[rest], y[rest], 0.1)
        cost[i, k] = alpha * (gain + own + prior)
    em.step(x, y)
    paid = cost.gather(1, guide.labels.long().unsqueeze(-1))[
        :, 0
    ]  # the literal bound does not depend on other clusters
    torch.testing.assert_close(paid, cost.min(1).values, rtol=1e-9, atol=0)
    assert guide.moved == int((guide.labels != labels).sum())


@few
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.05]), st.sampled_from([None, 34]))
def test_the_objective_never_rises(seed, ridge, capacity):
    x, y, _ = rows_of(seed=seed)
    _, guide, em = started(random_labels(seed), ridge=ridge, capacity=capacity)
    before = em.step(x, y) and math.inf
    for _ in range(12):
        loss = em.step(x, y)
        assert loss <= before + 1e-9 * abs(loss)
        before = loss
    assert guide.sizes.sum() == N


def test_the_loss_is_the_objective_of_the_partition():
    x, y, _ = rows_of()
    _, guide, em = started(random_labels(0))
    for _ in range(4):
        em.step(x, y)
        expected = objective(x, y, guide.labels) + N * CONSTANT
        assert em.evaluate_loss(x, y) == pytest.approx(expected, rel=1e-10)


def test_a_fit_from_near_the_truth_finds_it():
    x, y, truth = rows_of(rows=300, noise=0.05)
    start = truth.clone()
    start[::10] = (start[::10] + 1) % K
    _, guide, em = started(start)
    done = fit(em, x, y, progress=False)
    assert done.converged
    assert float((guide.labels == truth).double().mean()) > 0.97
    assert done.history["moved"][0] == 0  # the labels that were set were fitted first
    assert done.history["moved"][1] >= 25
    assert done.history["moved"][-1] == 0


def test_rows_stay_where_nothing_is_better():
    x, y, _ = rows_of()
    model, guide, _ = started(random_labels(3))
    with torch.no_grad():
        model.weight, model.bias = model.weight[[0, 0, 0]], model.bias[[0, 0, 0]]
    guide.release()
    guide.posterior(x, y)
    assert guide.moved == 0
    assert torch.equal(guide.labels.long(), random_labels(3))


def test_history_tells_objective_sizes_and_moves():
    x, y, truth = rows_of(rows=90)
    _, guide, em = started(truth.roll(7))
    done = fit(em, x, y, progress=False)
    objective = done.history["objective"]
    assert bool((objective[1:] <= objective[:-1] + 1e-9).all())
    # Equal, constant weights: the ELBO differs by their logarithm.
    torch.testing.assert_close(
        torch.tensor(-objective / 90 - math.log(3)), torch.tensor(done.history["elbo"])
    )
    assert done.history["sizes"].sum(1).tolist() == [90] * len(done.history)
    assert done.history["sizes"][-1].tolist() == guide.sizes.tolist()
    assert done.history["moved"][0] == 0
    assert done.history["moved"][1] > 0
    stored = to_arviz(done, x, y)["fit_history"]
    assert stored["sizes"].dims == ("epoch", "component")
    assert float(stored["objective"][-1]) == objective[-1]
