"""GatedWeights: a softmax gate as mixture weights, under all strategies."""

import itertools

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import SVI, Predictive, TraceEnum_ELBO, config_enumerate
from pyro.optim import SGD
from sklearn.linear_model import LogisticRegression
from torch.distributions import constraints

from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights, gated_weights
from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.errors import ClosedFormError, DataError, OptionError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, assign, fit, log_evidence, responsibilities
from pyro_mixtures.infer.scoring.predict import sample
from pyro_mixtures.ops.optimize import softmax_regression
from pyro_mixtures.ops.optimize.softmax_regression import SoftmaxRows, minimize
from pyro_mixtures.poutine import data_plate

pytestmark = pytest.mark.usefixtures("on_one_thread")

C, Q, D, N = 3, 2, 2, 60
DTYPES = [torch.float32, torch.float64]


def draw(rows=N, dtype=torch.float64, seed=1):
    """Covariates (N, Q), and rows (N, D) of three groups that depend on the first covariate."""
    g = torch.Generator("cpu").manual_seed(seed)
    u = torch.randn(rows, Q, generator=g, dtype=torch.float64, device="cpu")
    z = (
        (u[:, 0] + 0.7 * torch.randn(rows, generator=g, dtype=torch.float64, device="cpu") + 1)
        .clamp(0, 2)
        .long()
    )
    x = 2.0 * z.unsqueeze(-1) + torch.randn(rows, D, generator=g, dtype=torch.float64, device="cpu")
    return u.to(dtype), x.to(dtype)


def gated_mixture(*, dtype=torch.float64, reference=True, ridge=0.0, components=C, weights=None):
    """z ~ GatedWeights(u, W, b), x ~ Normal(loc[z], scale[z]), from distinct starts."""
    g, own = torch.Generator("cpu").manual_seed(3), components - reference

    def start(*shape):
        return 0.5 * torch.randn(*shape, generator=g, dtype=torch.float64, device="cpu").to(dtype)

    starts = start(own, Q), start(own), 3 * start(components, D)

    def model(u, x=None, index=None, size=None):
        weight, bias = (
            pyro.param("weight", starts[0].clone()),
            pyro.param("bias", starts[1].clone()),
        )
        loc = pyro.param("loc", starts[2].clone())
        scale = pyro.param("scale", torch.ones_like(loc), constraint=constraints.positive)
        gate = GatedWeights(u, weight, bias, ridge=ridge, reference=reference)
        with (
            data_plate(u, index, size),
            pyro.poutine.scale(scale=1.0 if weights is None else weights),
        ):
            z = pyro.sample("z", gate)
            return pyro.sample("x", DiagonalNormals(loc, scale)[z], obs=x)

    return model


def values():
    """The constrained params."""
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def dense_log_joint(u, x, p, *, reference=True, ridge=0.0):
    """log p(z, x) (N, C), from the definition."""
    weight, bias = p["weight"], p["bias"]
    eta = u @ weight.T + bias
    if reference:
        eta = torch.cat([torch.zeros_like(eta[:, :1]), eta], -1)
    prior = eta - eta.exp().sum(-1, keepdim=True).log() - ridge * weight.square().sum()
    normal = torch.distributions.Normal(p["loc"], p["scale"])
    return prior + normal.log_prob(x.unsqueeze(1)).sum(-1)


# The distribution


@pytest.mark.meta
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("chunk", [1 << 22, 7 * C])
def test_log_prob_and_gradient_are_those_of_the_softmax(dtype, reference, chunk, monkeypatch):
    """For shared and for individual candidates with padding, in one and in several blocks."""
    monkeypatch.setattr(gated_weights, "_NUMBERS", chunk)
    u, _ = draw(20, dtype)
    u.requires_grad_(reference)  # covariates may be learned features
    own = C - reference
    w, b = (
        torch.randn(*s, dtype=dtype, device="cpu", requires_grad=True) for s in ((own, Q), (own,))
    )
    eta = u @ w.T + b
    table = (torch.cat([torch.zeros_like(eta[:, :1]), eta], -1) if reference else eta).log_softmax(
        -1
    )
    table = table - 0.3 * w.square().sum()
    gate = GatedWeights(u, w, b, ridge=0.3, reference=reference)
    every = torch.arange(C, device="cpu").unsqueeze(-1)
    torch.testing.assert_close(gate.log_prob(every), table.T)
    torch.testing.assert_close(gate.log_prob(every.expand(C, 20)), table.T)
    z = torch.randint(-1, C, (4, 20), device="cpu")
    expected = torch.where(z < 0, -torch.inf, table.gather(1, z.clamp_min(0).T).T)
    actual = gate.log_prob(z)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gate.log_prob(z.unsqueeze(1)), expected.unsqueeze(1))
    with torch.no_grad():
        torch.testing.assert_close(gate.log_prob(z), expected.detach())
    pull = torch.rand(4, 20, dtype=dtype, device="cpu") * (z >= 0)
    slopes = [
        torch.autograd.grad(
            (torch.where(z < 0, 0.0, out) * pull).sum(),
            (w, b, u)[: 2 + reference],
            retain_graph=True,
        )
        for out in (actual, expected)
    ]
    for mine, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.meta
def test_support_has_one_value_a_component():
    u, _ = draw(5)
    gate = GatedWeights(
        u, torch.zeros(C - 1, Q, device="cpu").double(), torch.zeros(C - 1, device="cpu").double()
    )
    assert gate.enumerate_support(expand=False).shape == (C, 1)
    assert gate.enumerate_support().tolist() == [[c] * 5 for c in range(C)]
    assert gate.components == C
    assert bool(gate.support.check(torch.tensor([0, C - 1], device="cpu")).all())
    assert not bool(gate.support.check(torch.tensor(C, device="cpu")))


@pytest.mark.parametrize("chunk", [1 << 22, 2 * C])
def test_draws_follow_the_probabilities_of_their_rows(chunk, monkeypatch):
    monkeypatch.setattr(gated_weights, "_NUMBERS", chunk)
    u, _ = draw(5)
    gate = GatedWeights(u, torch.randn(C - 1, Q).double(), torch.randn(C - 1).double(), ridge=1.0)
    draws = gate.sample((40, 500))
    assert draws.shape == (40, 500, 5)
    assert gate.sample().shape == (5,)
    shares = torch.stack([(draws == c).double().mean((0, 1)) for c in range(C)], -1)
    torch.testing.assert_close(shares, gate.table().exp(), rtol=0, atol=0.02)


def test_wrong_shapes_are_refused():
    u = torch.zeros(4, Q)
    with pytest.raises(OptionError, match=r"give \(C - 1, 2\) and \(C - 1,\)"):
        GatedWeights(u, torch.zeros(C, Q + 1), torch.zeros(C))
    with pytest.raises(OptionError, match="bias"):
        GatedWeights(u, torch.zeros(C, Q), torch.zeros(C + 1))
    with pytest.raises(OptionError, match="ridge"):
        GatedWeights(u, torch.zeros(C, Q), torch.zeros(C), ridge=-1.0)
    with pytest.raises(DataError, match=r"covariates must be \(B, Q\)"):
        GatedWeights(torch.zeros(4), torch.zeros(C, Q), torch.zeros(C))
    with pytest.raises(ValueError, match="weight"):
        GatedWeights(u, torch.full((C, Q), torch.nan), torch.zeros(C))


def test_rows_in_another_dimension_are_refused():
    """Their covariates would be matched with the wrong rows."""
    gate = GatedWeights(torch.zeros(4, Q), torch.zeros(C, Q), torch.zeros(C))
    for shape in ((4, 4), (5,), (4, 1)):
        with pytest.raises(DataError, match="last dimension"):
            gate.expand(shape)
    assert gate.expand((1, 4)).batch_shape == (1, 4)

    def model(u, x):
        with pyro.plate("data", 4, dim=-2):
            pyro.sample("z", gate)

    with pytest.raises(DataError, match="last dimension"):
        model(None, None)


# The strategies


@pytest.mark.meta
@pytest.mark.parametrize("reference", [True, False])
def test_log_evidence_and_responsibilities_are_brute_force(reference):
    u, x = draw()
    model = gated_mixture(reference=reference, ridge=0.1)
    found = log_evidence(model, u, x)
    joint = dense_log_joint(u, x, values(), reference=reference, ridge=0.1)
    torch.testing.assert_close(found, joint.logsumexp(-1))
    q, best = responsibilities(model, u, x, top=C), joint.softmax(-1)
    torch.testing.assert_close(torch.zeros_like(best).scatter(1, q.components, q.probs), best)
    assert torch.equal(assign(model, u, x), best.argmax(-1))
    truncated = log_evidence(
        model,
        u,
        x,
        guide=TruncatedPartition(model, components=C, candidates=2, neighbors=2, seed=0),
    )
    assert bool((truncated <= found + 1e-12).all())
    assert torch.allclose(truncated, joint.topk(2).values.logsumexp(-1), atol=0.3)


@pytest.mark.meta
@pytest.mark.parametrize("kind", ["enumerated", "full", "truncated"])
def test_svi_steps_are_brute_force(kind):
    u, x = draw()
    model = gated_mixture(ridge=0.1)
    guides = {
        "enumerated": lambda *_, **__: None,
        "full": FullPartition(model, components=C),
        "truncated": TruncatedPartition(model, components=C, candidates=C, neighbors=C),
    }
    model(u, x)
    names = ("weight", "bias", "loc", "scale")
    leaves = {name: pyro.param(name).detach().clone().requires_grad_() for name in names}
    loss = -dense_log_joint(u, x, leaves, ridge=0.1).logsumexp(-1).sum()
    slopes = dict(zip(names, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    program = config_enumerate(model) if kind == "enumerated" else model
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    found = elbo.differentiable_loss(program, guides[kind], u, x)
    torch.testing.assert_close(found, loss)
    found.backward()
    for name in ("weight", "bias", "loc"):
        torch.testing.assert_close(pyro.param(name).grad, slopes[name])
    assert SVI(program, guides[kind], SGD({"lr": 1e-4}), elbo).step(u, x) == pytest.approx(
        loss.item()
    )


@pytest.mark.meta
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("reference", "ridge"), [(True, 0.0), (False, 0.05), (True, 0.05)])
def test_em_is_monotone_and_ends_where_gradients_vanish(dtype, reference, ridge):
    u, x = draw(dtype=dtype)
    model = gated_mixture(dtype=dtype, reference=reference, ridge=ridge)
    em = EM(model, FullPartition(model, components=C))
    losses = [em.step(u, x) for _ in range(40)]
    slack = 1e-4 if dtype == torch.float32 else 1e-9
    assert all(after <= before + slack for before, after in itertools.pairwise(losses))
    assert losses[-1] < losses[0] - 1
    p = {name: value.double().requires_grad_() for name, value in values().items()}
    total = (
        dense_log_joint(u.double(), x.double(), p, reference=reference, ridge=ridge)
        .logsumexp(-1)
        .sum()
    )
    assert total.item() == pytest.approx(-losses[-1], rel=1e-4)
    slope = torch.autograd.grad(total, list(p.values()))
    assert max(float(s.abs().max()) for s in slope) < 0.2


def test_gate_finds_what_generated_the_rows():
    """With well-separated groups, the gate is the multinomial regression of the labels."""
    g = torch.Generator().manual_seed(0)
    u = torch.randn(4000, Q, generator=g, dtype=torch.float64)
    weight, bias = (
        torch.tensor([[1.0, -1.0], [0.0, 2.0]]).double(),
        torch.tensor([0.5, -0.5]).double(),
    )
    z = GatedWeights(u, weight, bias).sample()
    x = 50.0 * z.unsqueeze(-1) + torch.randn(4000, D, dtype=torch.float64)
    model = gated_mixture()
    model(u, x)
    with torch.no_grad():
        pyro.param("loc").copy_(50.0 * torch.arange(3.0).unsqueeze(-1))
    em = EM(model, FullPartition(model, components=C))
    em.step(u, x)
    torch.testing.assert_close(pyro.param("weight").detach(), weight, rtol=0, atol=0.2)
    peer = LogisticRegression(C=1e9, tol=1e-10, max_iter=1000).fit(u.numpy(), z.numpy())
    mine = GatedWeights(u, pyro.param("weight"), pyro.param("bias")).table().exp()
    torch.testing.assert_close(
        mine.detach(), torch.from_numpy(peer.predict_proba(u.numpy())), rtol=0, atol=1e-5
    )


@pytest.mark.meta
def test_minibatches_add_up_to_a_full_step():
    u, x = draw()
    found = []
    for pieces in (1, 4):
        pyro.clear_param_store()
        model = gated_mixture()
        em = EM(model, FullPartition(model, components=C))
        if pieces == 1:
            em.step(u, x)
        else:
            for index in torch.arange(N, device="cpu").chunk(pieces):
                em.accumulate(u[index], x[index], index, N)
            em.maximize()
        found.append(values())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-7, atol=1e-9)


def test_row_weights_are_copies_of_rows():
    u, x = draw()
    times = torch.randint(1, 4, (N,)).double()
    found = []
    for weights in (None, times):
        pyro.clear_param_store()
        some = torch.arange(N).repeat_interleave(times.long()) if weights is None else slice(None)
        model = gated_mixture(ridge=0.1, weights=weights)
        EM(model, FullPartition(model, components=C)).step(u[some], x[some])
        found.append(values())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-6, atol=1e-8)


def test_online_em_is_refused():
    u, x = draw()
    model = gated_mixture()
    em = EM(model, FullPartition(model, components=C), step_size=lambda t: 0.5)
    with pytest.raises(ClosedFormError, match="gate is fitted to the rows themselves"):
        em.step(u, x)


def test_frozen_gates_stay_and_half_frozen_ones_are_refused():
    u, x = draw()
    model = gated_mixture()
    model(u, x)
    before = values()
    EM(model, FullPartition(model, components=C), freeze=["weight", "bias"]).step(u, x)
    after = values()
    assert torch.equal(before["weight"], after["weight"])
    assert torch.equal(before["bias"], after["bias"])
    assert not torch.equal(before["loc"], after["loc"])
    with pytest.raises(ClosedFormError, match="fitted together only"):
        EM(model, FullPartition(model, components=C), freeze=["bias"]).step(u, x)


def test_hard_partitions_fit_the_gate_to_their_labels():
    u, x = draw()
    model = gated_mixture(ridge=0.01, reference=False)
    guide = HardPartition(model, components=C)
    em = EM(model, guide)
    losses = [em.step(u, x) for _ in range(8)]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(losses))
    peer = LogisticRegression(C=1 / (2 * 0.01 * N), tol=1e-10, max_iter=1000).fit(
        u.numpy(), guide.labels.numpy()
    )
    model(u, x)
    mine = GatedWeights(u, pyro.param("weight"), pyro.param("bias"), reference=False).table().exp()
    labels = guide.labels.unique()
    torch.testing.assert_close(
        mine.detach()[:, labels.long()],
        torch.from_numpy(peer.predict_proba(u.numpy())),
        rtol=0,
        atol=1e-4,
    )


def test_truncated_fits_with_all_candidates_are_exact_ones():
    u, x = draw()
    losses = []
    for truncated in (False, True):
        pyro.clear_param_store()
        model = gated_mixture()
        guide = (
            TruncatedPartition(model, components=C, candidates=C, neighbors=C)
            if truncated
            else FullPartition(model, components=C)
        )
        em = EM(model, guide)
        fit(em, u, x, epochs=10, progress=False)
        losses.append(em.evaluate_loss(u, x))
    torch.testing.assert_close(torch.as_tensor(losses[0]), torch.as_tensor(losses[1]))


def test_the_whole_program_is_drawn_by_the_library_too():
    u, _ = draw()
    drawn = sample(gated_mixture(), u)
    assert drawn["z"].shape == (N,)
    assert drawn["x"].shape == (N, D)


def test_new_rows_are_drawn_given_their_covariates():
    u, _ = draw()
    model = gated_mixture()
    drawn = Predictive(model, num_samples=150, return_sites=("z", "x"))(u)
    assert drawn["x"].shape == (150, N, D)
    shares = torch.stack([(drawn["z"] == c).double().mean(0) for c in range(C)], -1)
    gate = GatedWeights(u, pyro.param("weight"), pyro.param("bias")).table().exp()
    torch.testing.assert_close(shares.reshape(N, C), gate.detach(), rtol=0, atol=0.2)


@pytest.mark.parametrize("chunk", [1 << 22, 5 * C])
def test_statistics_of_all_components_are_those_of_pairs(chunk, monkeypatch):
    """Rows of weight zero may hold NaN."""
    monkeypatch.setattr(gated_weights, "_NUMBERS", chunk)
    u, _ = draw(20)
    u[3] = torch.nan
    gate = GatedWeights(u, torch.zeros(C - 1, Q).double(), torch.zeros(C - 1).double())
    q = torch.rand(C, 20).double()
    q[:, 3] = 0.0
    every = torch.arange(C).unsqueeze(-1)
    found, pairs = (
        gate.statistics(every, q),
        gate.statistics(every.expand(C, 20).flip(0).contiguous(), q.flip(0)),
    )
    design = torch.cat([u, torch.ones(20, 1)], -1).nan_to_num()
    torch.testing.assert_close(found.sums, q @ design)
    torch.testing.assert_close(pairs.sums, q @ design)
    torch.testing.assert_close(found.counts, q.sum(-1))
    assert found.batches[0][0].shape == (19, Q + 1)
    two = gate.statistics(every, q, found)
    torch.testing.assert_close(two.counts, 2 * q.sum(-1))


# Empty components


def move_away(model, u, x, component):
    """Move the component far away from all rows."""
    model(u, x)
    with torch.no_grad():
        pyro.param("loc")[component] = 1e4


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("component", [0, 1])
def test_empty_components_are_reseeded_with_half_of_the_probability_of_another(
    reference, component
):
    u, x = draw()
    model = gated_mixture(reference=reference)
    move_away(model, u, x, component)
    em = EM(model, FullPartition(model, components=C))
    em.step(u, x)
    assert em.last_update.reseeded == 1
    p = values()
    gate = GatedWeights(u, p["weight"], p["bias"], reference=reference)
    table = gate.table()
    twins = [
        c for c in range(C) if c != component and torch.allclose(table[:, c], table[:, component])
    ]
    assert len(twins) == 1
    assert all(bool(value.isfinite().all()) for value in p.values())
    losses = [em.step(u, x) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_dropped_components_have_no_probability_and_stay_dropped():
    u, x = draw()
    model = gated_mixture()
    move_away(model, u, x, 2)
    em = EM(model, FullPartition(model, components=C), empty="drop")
    losses = [em.step(u, x) for _ in range(6)]
    assert em.last_update.dropped == 1
    p = values()
    probs = GatedWeights(u, p["weight"], p["bias"]).table().exp()
    assert float(probs[:, 2].abs().max()) == 0.0
    torch.testing.assert_close(probs.sum(-1), torch.ones(N).double())
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(losses))
    # Gradients leave it unchanged, and all other values finite.
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        config_enumerate(model), lambda *_: None, u, x
    )
    loss.backward()
    assert bool(pyro.param("weight").grad.isfinite().all())
    assert pyro.param("weight").grad[1].tolist() == [0.0, 0.0]


def test_some_rows_of_a_dropped_component_go_to_the_others():
    u, _x = draw()
    gate = GatedWeights(u, torch.zeros(C - 1, Q).double(), torch.zeros(C - 1).double())
    q = torch.rand(C, N).double()
    statistics = gate.statistics(torch.arange(C).unsqueeze(-1), q / q.sum(0))
    both = frozenset({"weight", "bias"})
    kept = GatedWeights(u, **gate.maximize(statistics, both)).table().exp()
    left = (
        GatedWeights(
            u, **gate.maximize(statistics, both, dropped=torch.tensor([False, True, False]))
        )
        .table()
        .exp()
    )
    torch.testing.assert_close(left[:, [0, 2]], kept[:, [0, 2]] / (1 - kept[:, [1]]))


def test_the_reference_cannot_be_dropped():
    u, x = draw()
    model = gated_mixture()
    move_away(model, u, x, 0)
    with pytest.raises(ClosedFormError, match="reference and cannot be dropped"):
        EM(model, FullPartition(model, components=C), empty="drop").step(u, x)
    pyro.clear_param_store()
    model = gated_mixture(reference=False)
    move_away(model, u, x, 0)
    EM(model, FullPartition(model, components=C), empty="drop").step(u, x)
    assert pyro.param("bias")[0].item() == -torch.inf


@pytest.mark.parametrize("component", [0, 1])
def test_kept_components_without_rows_do_not_disturb_the_others(component):
    u, x = draw()
    model = gated_mixture()
    move_away(model, u, x, component)
    em = EM(model, FullPartition(model, components=C), empty="keep")
    losses = [em.step(u, x) for _ in range(6)]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(losses))
    p = values()
    assert float(GatedWeights(u, p["weight"], p["bias"]).table().exp()[:, component].max()) < 1e-6


# The M-step's problem


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


def labelled(rows=80, classes=4, seed=0):
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
    rows, _q = labelled()
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
    rows, _q = labelled()
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
    rows, q = labelled()
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
