"""Empty components of hard partitions: which rows they are given, and when they stay empty."""

import itertools
import math

import pyro
import pytest
import torch

from pyro_mixtures.guides.hard import HardPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models import (
    BregmanMixture,
    MixtureOfLogisticRegressions,
)
from pyro_mixtures.models.linear_regressions import MixtureOfRegressions
from tests.guides.hard_regressions import CONSTANT, K, N, P, mixture, objective, rows_of, started

pytestmark = pytest.mark.usefixtures("on_one_thread")


def away(model: MixtureOfRegressions, *parts: int) -> None:
    """Put components where they win no rows."""
    with torch.no_grad():
        model.bias[list(parts)] = 1e3


@pytest.mark.parametrize("score", ["loss", "leave_one_out"])
def test_an_empty_component_gets_rows_and_the_fit_continues(score):
    x, y, truth = rows_of(rows=300, noise=0.05)
    model, guide, em = started(truth.clamp_max(1), score=score)
    away(model, 2)
    done = fit(em, x, y, progress=False, tolerance=1e-9)
    assert done.history["reseeded"].tolist()[:3] == [0, 1, 0]
    assert bool((guide.sizes > 50).all())
    assert objective(x, y, guide.labels) < 0.5 * objective(x, y, truth.clamp_max(1))


def test_two_empty_components_get_rows_without_a_rise_of_the_objective():
    x, y, _ = rows_of(rows=300)
    model, guide, em = started(torch.zeros(300, dtype=torch.int64))
    away(model, 1, 2)
    found = [em.step(x, y) for _ in range(10)]
    assert guide.reseeded == 2
    assert bool((guide.sizes > 0).all())
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(found[1:])), found


def test_em_leaves_reseeding_to_the_guide():
    """EM(empty="reseed"), the default, must not copy params to a component that will get rows."""
    x, y, truth = rows_of(rows=300, noise=0.05)
    model = mixture(outputs=1)
    away(model, 0)
    guide = HardPartition(model, components=K)
    guide.set_labels(truth.clamp_min(1))
    done = fit(EM(model, guide), x, y.unsqueeze(-1), progress=False, tolerance=1e-9)
    assert bool((guide.sizes > 50).all())
    assert done.elbo * 300 == pytest.approx(
        -objective(x, y, guide.labels) - 300 * CONSTANT, rel=1e-6
    )


@pytest.mark.parametrize("capacity", [None, 14, 20])
def test_empty_components_get_enough_rows_to_be_fitted(capacity):
    """With fewer rows than parameters a component would keep its params, which fit nothing."""
    for seed in range(6):
        x, y, _ = rows_of(rows=40, seed=seed, noise=1.0)
        pyro.clear_param_store()
        torch.manual_seed(seed)
        with torch.device("cpu"):
            model = MixtureOfRegressions(
                components=5, features=P, scale=1.0, equal_weights=True
            ).double()
        away(model, 3, 4)
        guide = HardPartition(model, components=5, capacity=capacity)
        done = fit(EM(model, guide, empty="keep"), x, y, progress=False, tolerance=0, epochs=25)
        elbo = done.history["elbo"]
        assert bool((elbo[1:] >= elbo[:-1] - 1e-9).all()), elbo.tolist()
        assert int(done.history["reseeded"].sum()) >= 2
        assert bool((done.history["sizes"][-1] > 0).all())


# Bounds.


def test_empty_components_take_at_most_capacity_rows_and_wait_while_others_are_full():
    x, y, _ = rows_of()
    for capacity, filled in ((50, True), (44, False)):
        model, guide, em = started(torch.arange(N) % 2, capacity=capacity)
        away(model, 2)
        found = [em.step(x, y) for _ in range(3)]
        assert guide.reseeded == int(filled)  # two clusters of 44 rows cannot hold 90 rows
        assert 0 < int(guide.sizes[2]) <= capacity
        assert int(guide.sizes.max()) <= capacity
        assert not filled or found[2] <= found[1] + 1e-9


def test_labels_are_those_of_fitted_clusters_while_an_empty_component_waits():
    x, y, truth = rows_of(rows=90)
    model, guide, em = started(truth.clamp_max(1))
    away(model, 2)
    em.step(x, y)
    em.step(x, y)
    assert guide.reseeded == 1
    assert int(guide.sizes[2]) == 0
    assert math.isfinite(em.evaluate_loss(x, y))
    copied = HardPartition(model, components=3)
    copied.load_state_dict(guide.state_dict())
    assert EM(model, copied).evaluate_loss(x, y) == em.evaluate_loss(x, y)
    em.step(x, y)
    assert int(guide.sizes[2]) > 0


@pytest.mark.parametrize("seed", range(8))
def test_with_learned_weights_components_stay_empty_and_the_objective_never_rises(seed):
    torch.manual_seed(seed)
    x = torch.randn(300, 1, dtype=torch.float64)
    y = (x[:, 0].abs() > 0.6).double()
    model = MixtureOfLogisticRegressions(components=3, features=1, ridge=0.1).double()
    done = fit(EM(model, HardPartition(model, components=3)), x, y, progress=False)
    assert done.history["elbo"][-1] >= done.history["elbo"].max() - 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_reseeding_never_raises_the_objective(seed):
    torch.manual_seed(seed)
    x = torch.poisson(torch.rand(60, 2) * 8)
    model = BregmanMixture(components=8, features=2, divergence="kl", equal_weights=True).double()
    with torch.no_grad():
        model.mean[4:] = 300.0
    done = fit(
        EM(model, HardPartition(model, components=8)), x.double(), progress=False, tolerance=0
    )
    objective = done.history["objective"]
    assert bool((objective[1:] <= objective[:-1] + 1e-9).all()), objective.tolist()
