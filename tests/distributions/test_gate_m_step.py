"""The M-step of GatedWeights: multinomial logistic regression with soft labels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from pyro_mixtures.distributions import MixtureWeights, gated_weights
from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.ops.optimize import softmax_regression
from pyro_mixtures.ops.optimize.softmax_regression import SoftmaxRows, minimize
from tests.distributions.gated_mixtures import C, N, Q, draw

pytestmark = pytest.mark.usefixtures("on_one_thread")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), classes=st.integers(2, 5), features=st.integers(1, 4))
def test_soft_labels_are_weighted_duplicates_in_scikit_learn(seed, classes, features):
    g = torch.Generator().manual_seed(seed)
    u = torch.randn(40, features, generator=g, dtype=torch.float64)
    q = torch.rand(classes, 40, generator=g, dtype=torch.float64)
    ridge = 0.02
    gate = GatedWeights(
        u,
        torch.zeros(classes, features).double(),
        torch.zeros(classes).double(),
        ridge=ridge,
        reference=False,
    )
    statistics = gate.statistics(torch.arange(classes).unsqueeze(-1), q)
    found = gate.maximize(statistics, frozenset({"weight", "bias"}))
    total = float(q.sum())
    # For two classes scikit-learn has one coefficient vector, the difference: half of the squares
    # of two.
    strength = 1 / (2 * ridge * total) * (2 if classes == 2 else 1)
    peer = LogisticRegression(C=strength, tol=1e-10, max_iter=5000)
    peer.fit(
        u.repeat(classes, 1).numpy(),
        torch.arange(classes).repeat_interleave(40).numpy(),
        q.reshape(-1).numpy(),
    )
    mine = GatedWeights(u, **found, reference=False).table().exp()
    torch.testing.assert_close(
        mine, torch.from_numpy(peer.predict_proba(u.numpy())), rtol=0, atol=1e-5
    )


def labeled(rows=80, classes=4, seed=0):
    """A problem with a finite minimum."""
    g = torch.Generator().manual_seed(seed)
    x = torch.cat(
        [torch.randn(rows, 3, generator=g, dtype=torch.float64), torch.ones(rows, 1).double()], -1
    )
    q = torch.rand(rows, classes, generator=g, dtype=torch.float64).pow(3)
    return SoftmaxRows(x, q.sum(-1), q.T @ x), q


def loss_of(rows, q, at):
    return -float((q * (rows.design @ at.T).log_softmax(-1)).sum())


@pytest.mark.parametrize("fixed", [0, 1])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_conjugate_gradients_for_many_coefficients_lead_where_newton_does(
    fixed, ridge, monkeypatch
):
    rows, _q = labeled()
    start, penalty = torch.zeros(4, 4).double(), torch.tensor([ridge] * 3 + [0.0]).double()
    exact = minimize(rows, start, penalty, fixed=fixed)
    monkeypatch.setattr(softmax_regression, "_DENSE", 0)
    iterated = minimize(rows, start, penalty, fixed=fixed)
    mine, theirs = ((rows.design @ at.T).log_softmax(-1) for at in (iterated, exact))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    if fixed:
        assert exact[0].tolist() == [0.0] * 4
    shares = (rows.design @ exact.T).softmax(-1)
    slope = (shares * rows.weight.unsqueeze(-1)).T @ rows.design - rows.sums
    slope += 2 * rows.weight.sum() * penalty * exact
    assert float(slope[fixed:].abs().max()) < 1e-5


def test_units_of_covariates_and_repeated_ones_do_not_matter():
    rows, _q = labeled()
    penalty = torch.zeros(4).double()
    exact = rows.design @ minimize(rows, torch.zeros(4, 4).double(), penalty, fixed=1).T
    units = torch.tensor([1e-6, 1.0, 1e6, 1.0]).double()
    other = rows._replace(design=rows.design * units, sums=rows.sums * units)
    found = other.design @ minimize(other, torch.zeros(4, 4).double(), penalty, fixed=1).T
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)
    twice = SoftmaxRows(rows.design[:, [0, 0, 1, 2, 3]], rows.weight, rows.sums[:, [0, 0, 1, 2, 3]])
    found = (
        twice.design
        @ minimize(twice, torch.zeros(4, 5).double(), torch.zeros(5).double(), fixed=1).T
    )
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dense", [0, 512])
def test_no_step_is_ever_worse_wherever_it_starts(dense, monkeypatch):
    monkeypatch.setattr(softmax_regression, "_DENSE", dense)
    monkeypatch.setattr(softmax_regression, "_STEPS", 1)
    rows, q = labeled()
    g = torch.Generator().manual_seed(5)
    for size in (0.1, 3.0, 30.0):
        at = size * torch.randn(4, 4, generator=g, dtype=torch.float64)
        for _ in range(10):
            new = minimize(rows, at, torch.zeros(4).double(), fixed=1)
            assert loss_of(rows, q, new) <= loss_of(rows, q, at) + 1e-9
            at = new


def test_separable_classes_stop_where_nothing_is_left_to_gain():
    u = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]).double()
    gate = GatedWeights(u, torch.zeros(1, 1).double(), torch.zeros(1).double())
    q = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).double()
    found = gate.maximize(
        gate.statistics(torch.arange(2).unsqueeze(-1), q), frozenset({"weight", "bias"})
    )
    best = GatedWeights(u, **found)
    assert all(bool(value.isfinite().all()) for value in found.values())
    assert float((best.log_prob(torch.tensor([0, 0, 1, 1]))).sum()) > -1e-8


def test_without_covariates_that_matter_the_gate_is_the_weights():
    q = torch.rand(C, N).double()
    u = torch.zeros(N, 1).double()
    gate = GatedWeights(u, torch.zeros(C - 1, 1).double(), torch.zeros(C - 1).double())
    every = torch.arange(C).unsqueeze(-1)
    found = GatedWeights(
        u, **gate.maximize(gate.statistics(every, q), frozenset({"weight", "bias"}))
    )
    weights = MixtureWeights(torch.ones(C).double() / C)
    shares = weights.maximize(weights.statistics(every.expand(C, N), q), frozenset({"probs"}))[
        "probs"
    ]
    torch.testing.assert_close(found.table().exp(), shares.expand(N, C))


@pytest.mark.parametrize("numbers", [1 << 22, 3 * C])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_stay_out_of_gradients(value, numbers, monkeypatch):
    """With the table kept, and with the table recomputed."""
    monkeypatch.setattr(gated_weights, "_NUMBERS", numbers)
    u, _x = draw(7)
    z = torch.arange(7) % C
    found = []
    for first in (value, 0.0):
        weight = torch.full((C - 1, Q), 0.3, dtype=torch.float64, requires_grad=True)
        bias = torch.full((C - 1,), -0.2, dtype=torch.float64, requires_grad=True)
        u[0] = first
        log_prob = GatedWeights(u, weight, bias).log_prob(z)
        assert log_prob[0].isfinite() == (first == 0)
        found.append(
            torch.autograd.grad(
                torch.where(torch.arange(7) > 0, log_prob, 0.0).sum(), [weight, bias]
            )
        )
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference)
    u[0] = value
    assert GatedWeights(u, weight, bias).sample().shape == (7,)
