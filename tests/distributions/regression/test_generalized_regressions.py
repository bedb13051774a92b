"""Logistic and Poisson regressions: densities, Newton's M-step, EM, leave-one-out gains."""

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import distributions as dist
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import Adam
from sklearn.linear_model import LogisticRegression, PoissonRegressor

from pyro_mixtures.distributions.regression.generalized_regressions import (
    LogisticRegressions,
    PoissonRegressions,
)
from pyro_mixtures.errors import ClosedFormError, DataError, OptionError
from pyro_mixtures.guides import FullPartition, HardPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.models import (
    MixtureOfLogisticRegressions,
    MixtureOfPoissonRegressions,
)
from pyro_mixtures.testing import TOLERANCE, assert_near

pytestmark = pytest.mark.usefixtures("on_one_thread")

P, ROWS, C = 3, 60, 4
BOTH = frozenset({"weight", "bias"})
FAMILIES = [LogisticRegressions, PoissonRegressions]
MODELS = [MixtureOfLogisticRegressions, MixtureOfPoissonRegressions]


@pytest.fixture(params=FAMILIES)
def kind(request):
    return request.param


def stock(kind, eta):
    return dist.Bernoulli(logits=eta) if kind is LogisticRegressions else dist.Poisson(eta.exp())


def problem(kind, rows=ROWS, components=C, dtype=torch.float64, seed=0):
    """Covariates, outcomes under random coefficients, and coefficients to start from."""
    torch.manual_seed(seed)
    with torch.device("cpu"):
        x = torch.randn(rows, P, dtype=torch.float64)
        y = stock(kind, x @ torch.tensor([0.8, -0.5, 0.2]).double() + 0.3).sample()
        weight, bias = (
            0.5 * torch.randn(components, P).double(),
            0.5 * torch.randn(components).double(),
        )
    return x.to(dtype), y.to(dtype), weight.to(dtype), bias.to(dtype)


def loss_of(kind, x, y, q, ridge, weight, bias):
    """Loss of one cluster, by stock distributions."""
    rows = ridge * weight.square().sum() - stock(kind, x @ weight + bias).log_prob(y)
    return (q * rows).sum().item()


def fitted(family, index, y, q=None):
    q = torch.ones(index.shape, dtype=y.dtype) if q is None else q
    statistics = family.statistics_at(index, y, q)
    return family.with_arguments(family.maximize(statistics, BOTH, floor=None)), statistics


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", ["rows", "candidates", "all components", "padded"])
def test_log_prob_and_gradients_equal_stock_distributions(kind, dtype, shape):
    x, y, *given = problem(kind, dtype=dtype)
    mine = [value.clone().requires_grad_() for value in given]
    theirs = [value.double().requires_grad_() for value in given]
    z = torch.randint(C, (3, ROWS), generator=torch.Generator("cpu").manual_seed(2), device="cpu")
    if shape == "padded":
        z[1, ::3], z[2] = -1, -1
    z = {"rows": z[0], "all components": torch.arange(C, device="cpu").unsqueeze(-1)}.get(shape, z)
    full = z.expand(*z.shape[:-1], ROWS)

    table = stock(kind, x.double() @ theirs[0].T + theirs[1]).log_prob(y.double().unsqueeze(-1))
    table = table - 0.1 * theirs[0].square().sum(-1)
    expected = table.T.gather(0, full.clamp_min(0).reshape(-1, ROWS)).reshape(full.shape)
    expected = torch.where(full < 0, -torch.inf, expected)
    actual = kind(x, *mine, ridge=0.1)[z].log_prob(y)
    assert actual.dtype == dtype
    assert_near(actual, expected, TOLERANCE[dtype])

    slope = torch.randn(full.shape, dtype=torch.float64, device="cpu")
    (slope * expected)[full >= 0].sum().backward()
    (slope.to(dtype) * actual)[full >= 0].sum().backward()
    for ours, reference in zip(mine, theirs, strict=True):
        assert_near(ours.grad, reference.grad, TOLERANCE[dtype])


def test_means_and_draws_are_those_of_stock_distributions(kind):
    x, _, weight, bias = problem(kind)
    z = torch.arange(ROWS) % C
    expected = stock(kind, (x * weight[z]).sum(-1) + bias[z])
    selected = kind(x, weight, bias)[z]
    assert_near(selected.mean, expected.mean, 1e-12)
    away = (selected.sample((2000,)).mean(0) - expected.mean) / (expected.variance / 2000).sqrt()
    assert away.abs().max() < 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maximum_of_each_component_is_that_of_sklearn(kind, dtype):
    """scikit-learn fits the weighted rows of each component separately."""
    x, y, weight, bias = problem(kind, 200, dtype=dtype)
    ridge = 0.02
    index = torch.arange(2 * 200).reshape(2, 200) * 7 % C
    q = torch.rand(2, 200, dtype=dtype) + 0.1
    new, _ = fitted(kind(x, weight, bias, ridge=ridge), index, y, q)
    assert new.weight.dtype == dtype
    wide = x.double().repeat(2, 1).numpy(), y.double().repeat(2).numpy()
    for c in range(C):
        own = (index == c).flatten().numpy()
        n = float(q.flatten()[own].sum())
        options = {"tol": 1e-10, "max_iter": 2000}
        if kind is LogisticRegressions:
            peer = LogisticRegression(C=1 / (2 * n * ridge), **options)
        else:
            peer = PoissonRegressor(alpha=2 * ridge, **options)
        peer.fit(wide[0][own], wide[1][own], sample_weight=q.flatten().double().numpy()[own])
        expected = torch.tensor(
            [*peer.coef_.ravel(), *([peer.intercept_] if peer.coef_.ndim == 1 else peer.intercept_)]
        )
        assert_near(torch.cat([new.weight[c], new.bias[c : c + 1]]), expected, 1e-5)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 30),
    start=st.sampled_from([0.0, 1.0, 300.0]),
    ridge=st.sampled_from([0.0, 1e-3, 1.0]),
)
@pytest.mark.parametrize("kind", FAMILIES)
def test_maximum_never_raises_a_loss_and_stays_finite(kind, seed, rows, start, ridge):
    """Few rows, separable classes, no rows at all, starts that overflow."""
    x, y, weight, bias = problem(kind, rows, seed=seed)
    family = kind(x, start * weight, bias, ridge=ridge)
    index = torch.randint(C, (rows,))
    q = torch.rand(rows, dtype=torch.float64)
    new, _ = fitted(family, index, y, q)
    before, after = (
        torch.zeros(C).double().index_add(0, index, -q * f[index].log_prob(y))
        for f in (family, new)
    )
    assert new.weight.isfinite().all()
    assert new.bias.isfinite().all()
    assert (after <= before + 1e-9 * before.abs()).all()


def test_part_of_one_outcome_alone_is_fitted_by_its_bias():
    x, _, weight, bias = problem(LogisticRegressions, 20, 1)
    new, _ = fitted(
        LogisticRegressions(x, weight, bias, ridge=0.01),
        torch.zeros(20, dtype=torch.long),
        torch.ones(20).double(),
    )
    assert -new[torch.zeros(20, dtype=torch.long)].log_prob(torch.ones(20).double()).sum() < 1e-6
    assert new.weight.norm() < 1e-3


def test_component_without_rows_stays_as_it_is(kind):
    x, y, weight, bias = problem(kind)
    new, _ = fitted(kind(x, weight, bias, ridge=0.1), torch.arange(ROWS) % (C - 1), y)
    assert torch.equal(new.weight[-1], weight[-1])
    assert not torch.equal(new.weight[0], weight[0])


def test_statistics_of_batches_are_those_of_all_rows(kind):
    x, y, weight, bias = problem(kind)
    index = torch.arange(3 * ROWS).reshape(3, ROWS) * 5 % (C + 1) - 1
    q = torch.rand(3, ROWS, dtype=torch.float64)
    whole, sums = fitted(kind(x, weight, bias, ridge=0.1), index, y, q)[0], None
    for rows in torch.arange(ROWS).split(25):
        batch = kind(x[rows], weight, bias, ridge=0.1)
        sums = batch[index[:, rows]].statistics(y[rows], q[:, rows], sums)
    new = batch.maximize(sums, BOTH, floor=None)
    torch.testing.assert_close(new["weight"], whole.weight)
    torch.testing.assert_close(new["bias"], whole.bias)


def start(model_class, rows=150, **options):
    kind = (
        LogisticRegressions if model_class is MixtureOfLogisticRegressions else PoissonRegressions
    )
    torch.manual_seed(1)
    x, z = torch.randn(rows, P).double(), torch.arange(rows) % 3
    slopes = 2 * torch.randn(3, P).double()
    y = stock(kind, (x * slopes[z]).sum(-1).clamp(-4, 3)).sample()
    return model_class(components=3, features=P, ridge=1e-3, **options).double(), x, y


@pytest.mark.parametrize("model_class", MODELS)
def test_soft_em_is_monotone(model_class):
    model, x, y = start(model_class)
    em = EM(model, FullPartition(model, components=3), empty="keep")
    losses = torch.tensor([em.step(x, y) for _ in range(15)])
    assert (losses.diff() <= 1e-9 * losses[0].abs()).all()
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("model_class", MODELS)
def test_hard_em_is_monotone_and_its_loss_is_the_objective(model_class):
    model, x, y = start(model_class, equal_weights=True)
    guide = HardPartition(model, components=3)
    em = EM(model, guide, empty="keep")
    losses = torch.tensor([em.step(x, y) for _ in range(15)])
    assert (losses.diff() <= 1e-9 * losses[0].abs()).all()
    assert losses[-1] < 0.9 * losses[0]
    kind = type(model.component_distributions(x))
    objective = sum(
        loss_of(
            kind,
            x[own],
            y[own],
            torch.ones(int(own.sum())),
            model.ridge,
            model.weight[c],
            model.bias[c],
        )
        for c, own in ((c, guide.labels == c) for c in range(3))
    )
    assert em.evaluate_loss(x, y) == pytest.approx(
        objective - len(x) * model.weights[0].log().item()
    )


@pytest.mark.parametrize("model_class", MODELS)
def test_batches_make_the_step_of_all_rows(model_class):
    found = []
    for rows in (150, 40):
        pyro.clear_param_store()
        model, x, y = start(model_class)
        em = EM(model, FullPartition(model, components=3), empty="keep")
        batches = torch.arange(150).split(rows)
        loss = sum(em.accumulate(x[b], y[b], index=b, size=150) for b in batches)
        em.maximize()
        found.append(
            (torch.tensor(loss), model.weight.detach().clone(), model.weights.detach().clone())
        )
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole.to(parts.dtype), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("guide_class", [FullPartition, HardPartition])
def test_masked_rows_may_hold_anything(model_class, guide_class):
    """With NaN in masked rows, the step is that of the other rows."""
    found = []
    for hidden in (0, 30):
        pyro.clear_param_store()
        model, x, y = start(model_class)
        seen = torch.arange(150 + hidden) < 150
        nan = torch.full((hidden,), torch.nan).double()
        x, y = torch.cat([x, nan.unsqueeze(-1).expand(-1, P)]), torch.cat([y, nan])
        program = pyro.poutine.mask(model, seen)
        em = EM(program, guide_class(program, components=3), empty="keep")
        em.step(x, y)
        found.append(torch.cat([model.weight.detach().flatten(), model.bias.detach()]))
    assert found[0].isfinite().all()
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("model_class", MODELS)
def test_svi_lowers_the_loss(model_class):
    model, x, y = start(model_class)
    svi = SVI(
        model,
        FullPartition(model, components=3),
        Adam({"lr": 3e-2}),
        TraceEnum_ELBO(max_plate_nesting=1),
    )
    losses = [svi.step(x, y) for _ in range(40)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("ridge", [1e-3, 0.05])
def test_leave_one_out_gains_are_near_those_of_refits(kind, ridge):
    x, y, weight, bias = problem(kind, ROWS, 2)
    index = (torch.arange(ROWS) >= 24).long()
    family, statistics = fitted(kind(x, weight, bias, ridge=ridge), index, y)
    gains = family.leave_one_out_at(statistics, index, y)

    def least(rows):
        one = torch.ones(len(rows)).double()
        new, _ = fitted(kind(x[rows], weight, bias, ridge=ridge), index[rows], y[rows])
        return loss_of(
            kind, x[rows], y[rows], one, ridge, new.weight[index[rows[0]]], new.bias[index[rows[0]]]
        )

    clusters = [(index == c).nonzero()[:, 0] for c in (0, 1)]
    whole = [least(cluster) for cluster in clusters]
    some = range(0, ROWS, 3)
    exact = torch.tensor(
        [whole[index[i]] - least(clusters[index[i]][clusters[index[i]] != i]) for i in some]
    )
    gains, own = gains[::3], -family[index].log_prob(y)[::3]
    assert ((gains - exact).abs() / exact).median() < 0.01
    # One step is less exact for influential rows, but its error is small compared with the
    # correction.
    assert (gains - exact).abs().sum() < 0.25 * (own - exact).abs().sum()
    assert (gains >= own - 1e-12).all()


def test_leave_one_out_gain_of_a_row_by_itself_is_its_part(kind):
    x, y, weight, bias = problem(kind, 9, 2)
    index = torch.tensor([1] + [0] * 8)
    family, statistics = fitted(kind(x, weight, bias, ridge=0.1), index, y)
    gain = family.leave_one_out_at(statistics, index, y)[0]
    torch.testing.assert_close(gain, -family[index].log_prob(y)[0])
    torch.testing.assert_close(gain, family.alone_at(index, y)[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("score", ["leave_one_out", "modular_bound"])
def test_partitions_take_leave_one_out_scores(model_class, score):
    model, x, y = start(model_class, equal_weights=True)
    em = EM(model, HardPartition(model, components=3, score=score), empty="keep")
    losses = [em.step(x, y) for _ in range(6)]
    assert torch.tensor(losses).isfinite().all()


def test_outcomes_that_cannot_be_are_refused(kind):
    x, _, weight, bias = problem(kind)
    wrong = torch.full((ROWS,), 0.5).double()
    with pytest.raises(DataError, match=r"0\.5"):
        kind(x, weight, bias)[torch.zeros(ROWS).long()].log_prob(wrong)
    with pytest.raises(DataError, match="one per row"):
        kind(x, weight, bias).log_prob_at(torch.zeros(ROWS).long(), wrong[:3])


def test_impossible_arguments_are_refused(kind):
    x, _, weight, bias = problem(kind)
    with pytest.raises(OptionError, match="ridge"):
        kind(x, weight, bias, ridge=-1.0)
    with pytest.raises(OptionError, match="covariates"):
        kind(x[:, :2], weight, bias)
    with pytest.raises(OptionError, match="one outcome"):
        kind(x, weight.unsqueeze(1), bias.unsqueeze(1))


def test_weight_without_bias_is_refused():
    model, x, y = start(MixtureOfPoissonRegressions)
    em = EM(model, FullPartition(model, components=3), empty="keep", freeze=["bias"])
    with pytest.raises(ClosedFormError, match="together"):
        em.step(x, y)


def test_frozen_coefficients_stay():
    model, x, y = start(MixtureOfPoissonRegressions)
    before = model.weight.detach().clone()
    EM(model, FullPartition(model, components=3), empty="keep", freeze=["bias", "weight"]).step(
        x, y
    )
    assert torch.equal(model.weight, before)


def test_stepwise_em_is_refused():
    model, x, y = start(MixtureOfLogisticRegressions)
    em = EM(model, FullPartition(model, components=3), empty="keep", step_size=lambda t: t**-0.6)
    with pytest.raises(ClosedFormError, match="stepwise"):
        em.step(x, y)
