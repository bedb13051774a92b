"""The handler of leave-one-out gains: row weights, masks, several sites, no statistics."""

import math

import pyro
import pytest
import torch
from pyro.optim import SGD

from pyro_mixtures.distributions import MixtureWeights
from pyro_mixtures.distributions.normal.unit_normals import UnitNormals
from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
from pyro_mixtures.errors import OptionError
from pyro_mixtures.guides.hard import HardPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.poutine import data_plate, read_structure
from pyro_mixtures.poutine.leave_one_out import LeaveOneOutMessenger

pytestmark = pytest.mark.usefixtures("on_one_thread")

N, K, RIDGE = 36, 3, 0.1
HALF_LOG = 0.5 * math.log(2 * math.pi)


def rows_of():
    """Covariates, outcomes, labels, and row weights."""
    draw = torch.Generator().manual_seed(0)
    x, y, w = (torch.randn(*shape, generator=draw).double() for shape in ((N, 2), (N,), (N,)))
    return x, y + x.sum(-1), torch.arange(N) % K, w.exp()


def program(x, y, weight, of_y):
    """Two sites under one z: y counts ``of_y`` times as often as z and x do."""
    start = torch.Generator().manual_seed(1)
    mean, slope = (
        pyro.param(name, torch.randn(K, 2, generator=start).double()) for name in ("mean", "slope")
    )
    bias, one = pyro.param("bias", torch.zeros(K).double()), torch.ones(K).double()
    with pyro.poutine.scale(scale=weight), data_plate(x):
        z = pyro.sample("z", MixtureWeights(one / K))
        pyro.sample("x", UnitNormals(mean)[z], obs=x)
        with pyro.poutine.scale(scale=of_y):
            pyro.sample("y", LinearRegressions(x, slope, bias, one, ridge=RIDGE)[z], obs=y)


def least(x, y, w, of_y) -> float:
    """Minimal loss of a cluster of weighted rows at both sites, by normal equations."""
    u = w * of_y
    mean = (w.unsqueeze(-1) * x).sum(0) / w.sum()
    first = (w * (0.5 * (x - mean).square().sum(-1) + 2 * HALF_LOG)).sum()
    a = torch.cat([x, torch.ones_like(y).unsqueeze(-1)], -1)
    penalty = float(u.sum()) * RIDGE * torch.tensor([1.0, 1.0, 0.0]).double()
    beta = torch.linalg.solve(a.T @ (u.unsqueeze(-1) * a) + penalty.diag(), a.T @ (u * y))
    second = (u * (0.5 * (y - a @ beta).square() + HALF_LOG)).sum() + 0.5 * (
        penalty * beta.square()
    ).sum()
    return float(first + second)


def exact_gains(x, y, labels, w, of_y) -> torch.Tensor:
    gains = []
    for i in range(N):
        cluster = labels == labels[i]
        rest = cluster.clone()
        rest[i] = False
        gains.append(
            least(x[cluster], y[cluster], w[cluster], of_y) - least(x[rest], y[rest], w[rest], of_y)
        )
    return torch.tensor(gains, dtype=torch.float64)


def planted(labels, **options):
    guide = HardPartition(program, components=K, score="leave_one_out")
    guide.set_labels(labels)
    return guide, EM(program, guide, empty="keep", **options)


def collected(args, labels, statistics, alone=False):
    messenger = LeaveOneOutMessenger(
        read_structure(program, "z", args, {}), statistics, labels, alone
    )
    z = labels.clamp_min(0)
    with torch.no_grad(), pyro.poutine.block(), messenger:
        pyro.poutine.condition(program, data={"z": z})(*args)
    return messenger


@pytest.mark.parametrize("of_y", [1.0, 0.4])
def test_gains_are_those_of_weighted_refits_a_unit_of_weight(of_y):
    x, y, labels, w = rows_of()
    args = (x, y, w, of_y)
    guide, em = planted(labels)
    em.step(*args)
    found = collected(args, guide.labels, guide._statistics, alone=True)
    torch.testing.assert_close(
        found.total, exact_gains(x, y, labels, w, of_y) / w, rtol=1e-8, atol=1e-8
    )
    torch.testing.assert_close(
        found.alone, torch.full((K, N), (2 + of_y) * HALF_LOG, dtype=torch.float64)
    )
    unseen = collected(args, guide.labels.index_fill(0, torch.tensor([5]), -1), guide._statistics)
    assert unseen.total.isnan().nonzero()[:, 0].tolist() == [5]


def test_a_step_with_weights_is_that_of_brute_force():
    x, y, labels, w = rows_of()
    args = (x, y, w, 0.7)
    guide, em = planted(labels)
    em.step(*args)
    mean, slope, bias = (pyro.param(name).detach() for name in ("mean", "slope", "bias"))
    cost = 0.5 * (x.unsqueeze(1) - mean).square().sum(-1) + 2 * HALF_LOG
    squares = (
        0.5 * (y.unsqueeze(-1) - x @ slope.T - bias).square()
        + 0.5 * RIDGE * slope.square().sum(-1)
        + HALF_LOG
    )
    cost = cost + 0.7 * squares
    cost[torch.arange(N), labels] = exact_gains(x, y, labels, w, 0.7) / w
    em.step(*args)
    assert torch.equal(guide.labels.long(), cost.argmin(1))
    assert (guide.labels != labels).sum() > 3


def test_weights_that_all_rows_share_change_nothing():
    x, y, labels, _ = rows_of()
    guide, em = planted(labels)
    em.step(x, y, 1.0, 1.0)
    plain = collected((x, y, 1.0, 1.0), guide.labels, guide._statistics).total
    torch.testing.assert_close(
        collected((x, y, torch.ones(N), 1.0), guide.labels, guide._statistics).total, plain
    )
    pyro.clear_param_store()
    guide, em = planted(labels)
    em.step(x, y, 2.5, 1.0)
    assert plain.isfinite().all()
    torch.testing.assert_close(
        collected((x, y, 2.5, 1.0), guide.labels, guide._statistics).total, plain
    )


def test_sites_trained_by_gradients_take_the_clusters_of_the_run():
    """Statistics of such sites are computed from the rows of the run, which are all rows."""
    x, y, labels, w = rows_of()
    args = (x, y, w, 0.4)
    guide, em = planted(labels)
    em.step(*args)
    known = collected(args, guide.labels, guide._statistics).total
    fresh = collected(args, guide.labels, {}).total
    torch.testing.assert_close(fresh, known, equal_nan=True)


def test_some_rows_without_statistics_are_refused():
    x, y, labels, _ = rows_of()

    def some_rows(x, y, index):
        mean = pyro.param("mean", torch.zeros(K, 2).double())
        with data_plate(x, index, N):
            z = pyro.sample("z", MixtureWeights(torch.ones(K) / K))
            pyro.sample("x", UnitNormals(mean)[z], obs=x)

    args = (x[:9], y[:9], torch.arange(9))
    messenger = LeaveOneOutMessenger(read_structure(some_rows, "z", args, {}), {}, labels, False)
    with (
        pytest.raises(OptionError, match=r"all 36 rows in one call, not 9.*batch_size="),
        messenger,
    ):
        pyro.poutine.condition(some_rows, data={"z": labels[:9]})(*args)


def test_frozen_sites_with_gradients_run():
    """The family of a site that EM leaves to gradients still has closed-form gains."""
    x, y, labels, w = rows_of()

    def halved(x, y, weight):
        mean = 0.5 * pyro.param(
            "twice", torch.randn(K, 2).double()
        )  # computed from a param: no closed form
        with pyro.poutine.scale(scale=weight), data_plate(x):
            z = pyro.sample("z", MixtureWeights(torch.ones(K).double() / K))
            pyro.sample("x", UnitNormals(mean)[z], obs=x)

    guide = HardPartition(halved, components=K, score="leave_one_out")
    guide.set_labels(labels)
    em = EM(halved, guide, empty="keep", gradient=SGD({"lr": 1e-3}), gradient_steps=3)
    losses = [em.step(x, y, w) for _ in range(4)]
    assert torch.tensor(losses).isfinite().all()
