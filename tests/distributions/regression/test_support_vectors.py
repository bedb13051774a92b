"""Support vector machines: densities by brute force, M-steps against scikit-learn, hard EM."""

import builtins

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC

from pyro_mixtures.distributions.leave_one_out import refits
from pyro_mixtures.distributions.regression.support_vectors import (
    LOSSES,
    SOLVERS,
    SupportVectorMachines,
)
from pyro_mixtures.errors import DataError, ModelError, OptionError
from pyro_mixtures.guides import HardPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.models import MixtureOfSVMs
from pyro_mixtures.testing import TOLERANCE, assert_near

pytestmark = pytest.mark.usefixtures("on_one_thread")

P, ROWS, C = 3, 60, 4
BOTH = frozenset({"weight", "bias"})


@pytest.fixture(params=sorted(LOSSES))
def loss(request):
    return request.param


@pytest.fixture(params=SOLVERS)
def solver(request):
    return request.param


def problem(classes=2, rows=ROWS, components=C, dtype=torch.float64, seed=0):
    """Covariates, noisy labels, and coefficients to start from."""
    torch.manual_seed(seed)
    with torch.device("cpu"):
        x = torch.randn(rows, P, dtype=torch.float64)
        y = (x @ torch.randn(P, classes).double() + 0.5 * torch.randn(rows, classes)).argmax(-1)
        shape = (components,) if classes == 2 else (components, classes)
        weight, bias = torch.randn(*shape, P).double(), torch.randn(shape).double()
    return x.to(dtype), y, weight.to(dtype), bias.to(dtype)


def row_losses(x, y, weight, bias, ridge, loss):
    """Losses of rows (B, P) under one component, by the definition; outputs are summed."""
    weight, bias = weight.reshape(-1, P), bias.reshape(-1)
    total = ridge * (weight.square().sum() + bias.square().sum())
    for k in range(len(weight)):
        sign = torch.where(y == (k if len(weight) > 1 else 1), 1.0, -1.0).to(x)
        total = total + (1 - sign * (x @ weight[k] + bias[k])).clamp_min(0) ** (
            1 if loss == "hinge" else 2
        )
    return total


def fitted(family, index, y, q=None):
    q = torch.ones(index.shape, dtype=family.weight.dtype) if q is None else q
    statistics = family.statistics_at(index, y, q)
    return family.with_arguments(family.maximize(statistics, BOTH, floor=None)), statistics


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3])
def test_log_prob_and_gradients_equal_the_definition(loss, dtype, classes):
    x, y, *given = problem(classes, dtype=dtype)
    mine = [value.clone().requires_grad_() for value in given]
    theirs = [value.double().requires_grad_() for value in given]
    z = torch.randint(C, (3, ROWS), generator=torch.Generator("cpu").manual_seed(2), device="cpu")
    z[1, ::3], z[2] = -1, -1
    table = torch.stack(
        [-row_losses(x.double(), y, theirs[0][c], theirs[1][c], 0.1, loss) for c in range(C)]
    )
    expected = torch.where(z < 0, -torch.inf, table.gather(0, z.clamp_min(0)))
    family = SupportVectorMachines(x, *mine, ridge=0.1, loss=loss)
    actual = family[z].log_prob(y)
    assert actual.dtype == dtype
    assert_near(actual, expected, TOLERANCE[dtype])
    assert_near(
        family[torch.arange(C, device="cpu").unsqueeze(-1)].log_prob(y), table, TOLERANCE[dtype]
    )

    expected[z >= 0].sum().backward()
    actual[z >= 0].sum().backward()
    for ours, reference in zip(mine, theirs, strict=True):
        assert_near(ours.grad, reference.grad, TOLERANCE[dtype])


def test_mean_is_the_decision_value():
    x, _, weight, bias = problem(3)
    z = torch.arange(ROWS) % C
    expected = (weight[z] @ x.unsqueeze(-1)).squeeze(-1) + bias[z]
    torch.testing.assert_close(SupportVectorMachines(x, weight, bias, ridge=0.1)[z].mean, expected)
    x, _, weight, bias = problem(2)
    expected = (weight[z] * x).sum(-1) + bias[z]
    torch.testing.assert_close(SupportVectorMachines(x, weight, bias, ridge=0.1)[z].mean, expected)


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_maximum_of_each_component_is_that_of_sklearn(loss, solver, ridge):
    x, y, weight, bias = problem(2, 120)
    index, q = torch.arange(120) % C, torch.rand(120).double() + 0.1
    new, _ = fitted(
        SupportVectorMachines(x, weight, bias, ridge=ridge, loss=loss, solver=solver), index, y, q
    )
    for c in range(C):
        own = index == c
        peer = LinearSVC(
            C=1 / (2 * float(q[own].sum()) * ridge), loss=loss, dual=True, tol=1e-8, max_iter=10**6
        )
        peer.fit(x[own].numpy(), y[own].numpy(), sample_weight=q[own].numpy())
        theirs = torch.tensor(peer.coef_[0]), torch.tensor(peer.intercept_)
        mine, least = (
            (q[own] * row_losses(x[own], y[own], *at, ridge, loss)).sum()
            for at in ((new.weight[c], new.bias[c]), theirs)
        )
        assert least * (1 - 1e-6) <= mine <= least + 2.5e-5 * q[own].sum()
        if loss == "squared_hinge":
            assert_near(torch.cat([new.weight[c], new.bias[c : c + 1]]), torch.cat(theirs), 1e-5)


def test_classes_one_against_the_rest_are_those_of_sklearn(solver):
    x, y, weight, bias = problem(3, 90, 1)
    family = SupportVectorMachines(x, weight, bias, ridge=0.01, solver=solver)
    new, _ = fitted(family, torch.zeros(90).long(), y)
    peer = LinearSVC(
        C=1 / (2 * 90 * 0.01), loss="squared_hinge", dual=True, tol=1e-8, max_iter=10**6
    )
    peer.fit(x.numpy(), y.numpy())
    assert_near(new.weight[0], torch.tensor(peer.coef_), 1e-5)
    assert_near(new.bias[0], torch.tensor(peer.intercept_), 1e-5)
    decisions = torch.tensor(peer.decision_function(x.numpy()))
    assert_near(new[torch.zeros(90).long()].mean, decisions, 1e-5)


# The loss must not rise where liblinear stops early, either.
@pytest.mark.filterwarnings("ignore:Liblinear failed to converge")
@settings(max_examples=3, deadline=None)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 25), ridge=st.sampled_from([1e-4, 1e-2, 1.0])
)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_maximum_never_raises_a_loss(loss, solver, seed, rows, ridge):
    """Clusters without rows, of one row, and of one class."""
    x, y, weight, bias = problem(3, rows, seed=seed)
    family = SupportVectorMachines(x, weight, bias, ridge=ridge, loss=loss, solver=solver)
    index = torch.randint(C, (rows,))
    new, _ = fitted(family, index, y)
    before, after = (
        torch.zeros(C).double().index_add(0, index, -f[index].log_prob(y)) for f in (family, new)
    )
    assert (after <= before * (1 + 1e-12)).all()
    empty = torch.bincount(index, minlength=C) == 0
    assert torch.equal(new.weight[empty], weight[empty])


def test_cluster_of_one_class_is_the_minimum_by_both_solvers(loss):
    """One class has a unique minimum as well, which LinearSVC itself refuses to find."""
    x, _, weight, bias = problem(2, 20, 1)
    index, y = torch.zeros(20).long(), torch.ones(20).long()
    losses = []
    for solver in SOLVERS:
        new, _ = fitted(
            SupportVectorMachines(x, weight, bias, ridge=0.05, loss=loss, solver=solver), index, y
        )
        losses.append(-float(new[index].log_prob(y).sum()))
    # The loss of a cluster that is fitted by its bias alone.
    flat = min(
        20 * (max(0.0, 1 - b) ** (1 if loss == "hinge" else 2) + 0.05 * b**2)
        for b in (i / 100 for i in range(200))
    )
    assert max(losses) <= flat + 1e-3
    assert losses[0] == pytest.approx(losses[1], abs=20 * 2.5e-5)


def test_minimum_of_a_row_by_itself(loss):
    x, y, weight, bias = problem(2, 5, 5)
    x = x * torch.tensor([0.01, 0.1, 1.0, 3.0, 10.0]).unsqueeze(-1)
    for ridge in (0.01, 5.0):
        family = SupportVectorMachines(x, weight, bias, ridge=ridge, loss=loss)
        new, _ = fitted(family, torch.arange(5), y)
        torch.testing.assert_close(
            family.alone_at(torch.arange(5), y),
            -new[torch.arange(5)].log_prob(y),
            rtol=1e-4,
            atol=5e-5,
        )


@pytest.mark.parametrize("ridge", [1e-3, 0.05])
def test_leave_one_out_gains_are_near_those_of_refits(ridge):
    x, y, weight, bias = problem(2, ROWS, 2)
    index = (torch.arange(ROWS) >= 24).long()
    family, statistics = fitted(SupportVectorMachines(x, weight, bias, ridge=ridge), index, y)
    gains = family.leave_one_out_at(statistics, index, y)

    def least(rows):
        cluster = SupportVectorMachines(x[rows], weight, bias, ridge=ridge)
        return -float(fitted(cluster, index[rows], y[rows])[0][index[rows]].log_prob(y[rows]).sum())

    clusters = [(index == c).nonzero()[:, 0] for c in (0, 1)]
    whole = [least(cluster) for cluster in clusters]
    some = range(0, ROWS, 3)
    exact = torch.tensor(
        [whole[index[i]] - least(clusters[index[i]][clusters[index[i]] != i]) for i in some]
    )
    gains, own = gains[::3], -family[index].log_prob(y)[::3]
    assert ((gains - exact).abs() / exact).median() < 0.01
    assert (gains - exact).abs().sum() < 0.25 * (own - exact).abs().sum()


def separated(rows=160):
    """Exclusive or: no line separates the classes, but two lines do."""
    torch.manual_seed(1)
    x = torch.randn(rows, 2).double()
    return x, (x[:, 0] * x[:, 1] > 0).long()


@pytest.mark.parametrize("score", ["loss", "leave_one_out"])
def test_hard_em_lowers_the_objective(solver, score):
    x, y = separated()
    model = MixtureOfSVMs(components=3, features=2, ridge=1e-2, solver=solver).double()
    guide = HardPartition(model, components=3, score=score)
    em = EM(model, guide, empty="keep")
    losses = torch.tensor([em.step(x, y) for _ in range(8)])
    if score == "loss":
        assert (losses.diff() <= 1e-6).all()
    prior = -len(x) * model.weights[0].log().item()
    objective = sum(
        row_losses_of(model, x[own], y[own], c)
        for c, own in ((c, guide.labels == c) for c in range(3))
    )
    assert em.evaluate_loss(x, y) - prior == pytest.approx(objective)
    assert objective < 0.5 * least_of_one(x, y)


def row_losses_of(model, x, y, c):
    weight, bias = model.weight[c].detach().reshape(1, -1), model.bias[c].detach()
    sign = torch.where(y == 1, 1.0, -1.0)
    margin = (1 - sign * ((x * weight).sum(-1) + bias)).clamp_min(0)
    return float((margin.square() + model.ridge * (weight.square().sum() + bias.square())).sum())


def least_of_one(x, y):
    family = SupportVectorMachines(
        x, torch.zeros(1, 2).double(), torch.zeros(1).double(), ridge=1e-2
    )
    index = torch.zeros(len(x)).long()
    return -float(fitted(family, index, y)[0][index].log_prob(y).sum())


def test_partitions_of_hinges_take_leave_one_out_scores(solver):
    x, y = separated(60)
    model = MixtureOfSVMs(
        components=3, features=2, ridge=1e-2, loss="hinge", solver=solver
    ).double()
    guide = HardPartition(model, components=3, score="leave_one_out")
    em = EM(model, guide, empty="keep")
    losses = [em.step(x, y) for _ in range(5)]
    labels = guide.labels.long()
    family = model.component_distributions(x)
    statistics = family.statistics_at(labels, y, torch.ones(60).double())
    own = family.leave_one_out_at(statistics, labels, y)
    cost = (
        (-family[torch.arange(3).unsqueeze(-1)].log_prob(y))
        .detach()
        .scatter(0, labels.unsqueeze(0), own.unsqueeze(0))
    )
    em.step(x, y)
    paid = cost.gather(0, guide.labels.long().unsqueeze(0))[0]
    torch.testing.assert_close(paid, cost.amin(0))
    assert losses[-1] < losses[0]


def test_refits_without_rows_are_cut_into_groups(monkeypatch):
    x, y, weight, bias = problem(3, 30, 2)
    index = (torch.arange(30) >= 12).long()
    family, statistics = fitted(
        SupportVectorMachines(x, weight, bias, ridge=0.05, loss="hinge"), index, y
    )
    whole = family.leave_one_out_at(statistics, index, y)
    monkeypatch.setattr(refits, "_NUMBERS", 500)
    torch.testing.assert_close(
        family.leave_one_out_at(statistics, index, y), whole, rtol=1e-9, atol=1e-9
    )


def test_hinge_gain_of_a_row_by_itself_is_its_part():
    x, y, weight, bias = problem(2, 9, 2)
    index = torch.tensor([1] + [0] * 8)
    family, statistics = fitted(
        SupportVectorMachines(x, weight, bias, ridge=0.1, loss="hinge"), index, y
    )
    gain = family.leave_one_out_at(statistics, index, y)[0]
    torch.testing.assert_close(gain, -family[index].log_prob(y)[0])


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_covariates_that_are_not_finite_are_refused(loss, solver, bad):
    """An infinite margin has no hinge loss, so the error comes from the M-step."""
    x, y = separated(30)
    x[7, 1] = x[20, 1] = bad
    model = MixtureOfSVMs(components=2, features=2, loss=loss, solver=solver).double()
    guide = HardPartition(model, components=2)
    guide.set_labels(torch.arange(30) % 2)
    with torch.no_grad():
        model.weight = torch.zeros_like(model.weight).index_fill(1, torch.tensor([1]), 1.0)
    y[7] = y[20] = int(bad > 0)
    with pytest.raises(DataError, match="row 7 "):
        EM(model, guide, empty="keep").step(x, y)


def test_several_classes_are_learned():
    """One-against-the-rest machines separate three collinear classes only in two clusters."""
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 150).unsqueeze(-1).double()
    y = (x[:, 0] + 3).div(2).floor().clamp(0, 2).long()
    model = MixtureOfSVMs(components=2, features=1, classes=3, ridge=1e-3).double()
    guide = HardPartition(model, components=2)
    guide.set_labels((x[:, 0] > 0).long())
    em = EM(model, guide, empty="keep")
    for _ in range(5):
        em.step(x, y)
    decided = model.component_distributions(x)[guide.labels.long()].mean.argmax(-1)
    assert (decided == y).double().mean() > 0.95


def test_labels_cannot_be_drawn():
    x, _, weight, bias = problem()
    with pytest.raises(ModelError, match="cannot be sampled"):
        SupportVectorMachines(x, weight, bias, ridge=0.1)[torch.zeros(ROWS).long()].sample()
    with pytest.raises(ModelError, match="cannot be sampled"):
        MixtureOfSVMs(components=2, features=P)(x.float())


@pytest.mark.parametrize("wrong", [-1, 2, 0.5])
def test_labels_out_of_range_are_refused(wrong):
    x, y, weight, bias = problem()
    y = torch.where(torch.arange(ROWS) == 3, wrong, y)
    with pytest.raises(DataError, match="labels"):
        SupportVectorMachines(x, weight, bias, ridge=0.1)[torch.zeros(ROWS).long()].log_prob(y)


@pytest.mark.parametrize(
    "given", [{"ridge": 0.0}, {"loss": "logistic"}, {"solver": "adam"}, {"classes": 1}]
)
def test_impossible_options_are_refused(given):
    with pytest.raises(OptionError, match=next(iter(given))):
        MixtureOfSVMs(components=2, features=P, **given)


def test_liblinear_without_sklearn_is_refused(monkeypatch):
    x, y, weight, bias = problem()
    family = SupportVectorMachines(x, weight, bias, ridge=0.1, solver="liblinear")
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OptionError, match="scikit-learn"):
        fitted(family, torch.zeros(ROWS).long(), y)
