"""GatedWeights as mixture weights, under all strategies."""

import itertools

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, TraceEnum_ELBO, config_enumerate
from pyro.optim import SGD
from sklearn.linear_model import LogisticRegression

from pyro_mixtures.distributions import gated_weights
from pyro_mixtures.distributions.gated_weights import GatedWeights
from pyro_mixtures.errors import ClosedFormError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, assign, fit, log_evidence, responsibilities
from pyro_mixtures.infer.scoring.predict import sample
from tests.distributions.gated_mixtures import (
    DTYPES,
    C,
    D,
    N,
    Q,
    dense_log_joint,
    draw,
    gated_mixture,
    values,
)

pytestmark = pytest.mark.usefixtures("on_one_thread")


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
