"""Bregman clustering and k-means by EM, against brute force, scikit-learn and stock Pyro."""

import copy
import math
from functools import cache

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import JitTraceEnum_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.infer.em import em as em_module
from pyro_mixtures.init import Seeds, seed_rows
from pyro_mixtures.models.bregman import DIVERGENCES, BregmanMixture
from pyro_mixtures.models.kmeans import KMeans
from pyro_mixtures.testing import assert_near, exact_loss

FEATURES = 4
PRECISION = torch.tensor([[2.0, 0.5, 0, 0], [0.5, 1.0, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 0.7]])
# Well-separated means for each divergence.
MEANS = torch.tensor([[1.0, 1, 8, 8], [8.0, 8, 1, 1], [8.0, 1, 8, 1]])


pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(params=list(DIVERGENCES))
def divergence(request) -> str:
    return request.param


def make(divergence: str, components: int = 3, **options) -> BregmanMixture:
    given = {"precision": PRECISION} if divergence == "mahalanobis" else {}
    given |= {"total": 40} if divergence == "multinomial" else {}
    torch.manual_seed(0)
    model = BregmanMixture(
        components=components, features=FEATURES, divergence=divergence, **given, **options
    )
    return model.double()


def truth(divergence: str) -> Tensor:
    means = MEANS.double()
    return {"logistic": means / 9, "multinomial": means / means.sum(-1, keepdim=True)}.get(
        divergence, means
    )


def draw(divergence: str, rows: int = 300) -> Tensor:
    """Rows drawn from the true model."""
    model = make(divergence)
    model.weights, model.mean = torch.tensor([0.5, 0.3, 0.2]).double(), truth(divergence)
    with torch.no_grad(), pyro.poutine.block(), pyro.poutine.seed(rng_seed=1):
        x = model(size=rows)
    pyro.clear_param_store()
    return x


def seeds(x: Tensor, components: int) -> Seeds:
    return seed_rows(x, components, generator=torch.Generator("cpu").manual_seed(3))


def losses_of(divergence: str, x: Tensor, mean: Tensor) -> Tensor:
    """Bregman divergences (N, C) of the rows from the means, by their definitions."""
    x = x.unsqueeze(-2)
    if divergence in ("squared", "mahalanobis"):
        precision = (
            PRECISION.double() if divergence == "mahalanobis" else torch.eye(FEATURES).double()
        )
        return 0.5 * torch.einsum("nci,ij,ncj->nc", x - mean, precision, x - mean)
    if divergence == "logistic":
        return torch.nn.functional.softplus(-(2 * x - 1) * mean.logit()).sum(-1)
    if divergence == "itakura_saito":
        return (x / mean - (x / mean).log() - 1).sum(-1)
    mean = mean * x.sum(-1, keepdim=True) if divergence == "multinomial" else mean
    return (torch.xlogy(x, x / mean) - x + mean).sum(-1)


# Hard clustering.


def test_hard_steps_equal_brute_force(divergence):
    x, model = draw(divergence), make(divergence, 4, equal_weights=True)
    model.start_at(seeds(x, 4))
    guide = HardPartition(model, components=4)
    em, mean = EM(model, guide, variance_floor=1e-12), model.mean.detach().clone()
    for _ in range(4):
        em.step(x)
        labels = losses_of(divergence, x, mean).argmin(-1)
        assert torch.equal(guide.labels.long(), labels)
        mean = torch.stack([x[labels == c].mean(0) for c in range(4)])
        mean = mean / mean.sum(-1, keepdim=True) if divergence == "multinomial" else mean
        mean = mean.clamp(1e-9, 1 - 1e-9) if divergence == "logistic" else mean
        torch.testing.assert_close(model.mean.detach(), mean, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("score", ["loss", "leave_one_out"])
def test_hard_objective_falls_until_no_row_moves(divergence, score):
    x, model = draw(divergence), make(divergence, 5, equal_weights=True)
    model.start_at(seeds(x, 5))
    guide = HardPartition(model, components=5, score=score)
    result = fit(EM(model, guide), x, tolerance=0.0, progress=False, callbacks=[nothing_moves])
    elbo = torch.tensor([epoch.elbo for epoch in result.history.epochs])
    assert guide.moved == 0
    assert len(elbo) < 60
    if score == "loss":
        assert (elbo.diff() > -1e-9).all()
    # With equal weights the ELBO of a row is its log density minus log C.
    own = model.component_distributions()[guide.labels.long()].log_prob(x)
    assert result.elbo == pytest.approx(float(own.mean().detach()) - math.log(5), rel=1e-9)


def nothing_moves(result) -> bool:
    return result.guide.moved == 0


def test_leave_one_out_finds_no_worse_partition_than_lloyd():
    """Where Lloyd's algorithm stops, leave-one-out scores can still improve the partition."""
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).double()
    final = []
    for scores in (["loss"], ["loss", "leave_one_out"]):
        model = KMeans(components=12, features=2).double()
        model.start_at(seeds(x, 12))
        labels = None
        for score in scores:
            guide = HardPartition(model, components=12, score=score)
            if labels is not None:
                guide.set_labels(labels)
            em = EM(model, guide)
            objective = []
            for _ in range(25):
                em.step(x)
                objective.append(inertia(x, model.mean.detach(), guide.labels.long()))
            labels = guide.labels
        final.append(min(objective))
        pyro.clear_param_store()
    assert final[1] < final[0]


# k-means.


def inertia(x: Tensor, mean: Tensor, labels: Tensor) -> float:
    return float((x.double() - mean.double()[labels]).square().sum())


@cache
def digits() -> Tensor:
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().data)


@pytest.mark.parametrize(
    ("components", "dtype"),
    [(10, torch.float64), (50, torch.float32), (50, torch.float64), (200, torch.float64)],
)
def test_k_means_equals_scikit_learn(components, dtype):
    from sklearn.cluster import KMeans as Peer
    from sklearn.cluster import kmeans_plusplus

    x = digits()
    start, index = kmeans_plusplus(x.numpy(), components, random_state=0)
    # Rows of integers may be equally far from two means, and either choice is right.
    start = start + 0.01 * np.random.default_rng(0).standard_normal(start.shape)
    peer = Peer(components, init=start, n_init=1, algorithm="lloyd", tol=0, max_iter=500).fit(
        x.numpy()
    )
    model = KMeans(components=components, features=64).to(dtype)
    model.start_at(Seeds(torch.from_numpy(index), torch.from_numpy(start), x.var(0)))
    guide = HardPartition(model, components=components)
    result = fit(
        EM(model, guide),
        x.to(dtype),
        epochs=500,
        tolerance=0.0,
        progress=False,
        callbacks=[nothing_moves],
    )
    assert guide.moved == 0
    assert int(guide.sizes.min()) > 0
    assert sum(epoch.reseeded for epoch in result.history.epochs) == 0
    assert torch.equal(guide.labels.long(), torch.from_numpy(peer.labels_).long())
    assert inertia(x, model.mean.detach(), guide.labels.long()) == pytest.approx(
        peer.inertia_, rel=1e-6
    )
    constant = len(x) * (math.log(components) + 32 * math.log(2 * math.pi))
    assert -2 * (result.elbo * len(x) + constant) == pytest.approx(peer.inertia_, rel=1e-4)


def test_spherical_k_means_equals_brute_force():
    x = digits()
    unit = x / x.norm(dim=-1, keepdim=True)
    model = KMeans(components=10, features=64, spherical=True).double()
    model.start_at(seeds(x, 10))
    guide = HardPartition(model, components=10)
    em, mean = EM(model, guide), model.mean.detach().clone()
    torch.testing.assert_close(mean.norm(dim=-1), torch.ones(10).double())
    for _ in range(10):
        loss = em.step(x)
        cosine = unit @ mean.T
        labels = cosine.argmax(-1)
        assert torch.equal(guide.labels.long(), labels)
        expected = float((1 - cosine.max(-1).values).sum()) + len(x) * math.log(10)
        assert loss == pytest.approx(expected, rel=1e-10)
        mean = torch.stack([unit[labels == c].sum(0) for c in range(10)])
        mean = mean / mean.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(model.mean.detach(), mean)


def test_spherical_k_means_refuses_rows_without_a_direction():
    x = torch.randn(6, 3)
    x[4] = 0.0
    with pytest.raises(DataError, match=r"row 4 is all zeros"):
        KMeans(components=2, features=3, spherical=True)(x)
    KMeans(components=2, features=3)(x)


def test_far_rows_are_clustered_as_near_ones():
    """The squares of 10^9 leave no digits for the distances, but the rows are exact."""
    x = (
        512 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    ).round().double() / 64
    found = []
    for offset in (0.0, 1e9):
        model = KMeans(components=5, features=3).double()
        start = seeds(x, 5)
        model.start_at(start._replace(loc=start.loc + offset))
        guide = HardPartition(model, components=5)
        fit(EM(model, guide), x + offset, progress=False, callbacks=[nothing_moves])
        found.append(guide.labels)
        pyro.clear_param_store()
    assert torch.equal(*found)


# Soft clustering.


@pytest.mark.parametrize("kind", ["full", "truncated"])
def test_soft_clustering_never_lowers_the_free_energy(divergence, kind):
    x, model = draw(divergence), make(divergence, 6)
    model.start_at(seeds(x, 6))
    guide = FullPartition(model, components=6)
    if kind == "truncated":
        guide = TruncatedPartition(model, components=6, candidates=2, neighbors=3, seed=0)
    em = EM(model, guide, empty="keep")
    losses = torch.tensor([em.step(x) for _ in range(12)])
    assert (losses.diff() < 1e-9 * losses[0].abs()).all()
    assert losses[-1] < losses[0]


def test_recovers_the_parameters_of_its_own_draws(divergence):
    x, model = draw(divergence, 3000), make(divergence)
    model.start_at(seeds(x, 3))
    if divergence == "logistic":  # rows have four bits each, so start close to the truth
        model.mean = 0.9 * truth(divergence) + 0.05
    em = EM(model, FullPartition(model, components=3))
    for _ in range(20):
        em.step(x)
    expected = truth(divergence)
    nearest = torch.cdist(expected, model.mean.detach()).argmin(-1)
    assert sorted(nearest.tolist()) == [0, 1, 2]
    size = float(expected.max())
    assert (model.mean.detach()[nearest] - expected).abs().max() < 0.15 * size
    assert (model.weights.detach()[nearest] - torch.tensor([0.5, 0.3, 0.2])).abs().max() < (
        0.1 if divergence == "logistic" else 0.05
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_untruncated_loss_is_minus_the_log_evidence(divergence, dtype):
    x, model = draw(divergence, 60), make(divergence).to(dtype)
    model.start_at(seeds(x, 3))
    x = x.to(dtype)
    family = model.component_distributions()
    expected = -float(
        (family.log_prob(x.unsqueeze(-2)) + model.weights.log()).logsumexp(-1).sum().detach()
    )
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    assert elbo.loss(model, FullPartition(model, components=3), x) == pytest.approx(
        expected, rel=tolerance
    )
    assert exact_loss(model, x) == pytest.approx(expected, rel=tolerance)
    assert EM(model, FullPartition(model, components=3)).evaluate_loss(x) == pytest.approx(
        expected, rel=tolerance
    )


def test_stock_gradients_reach_the_params(divergence):
    x, model = draw(divergence, 60), make(divergence)
    model.start_at(seeds(x, 3))
    guided = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        model, FullPartition(model, components=3), x
    )
    enumerated = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        config_enumerate(model), lambda *_, **__: None, x
    )
    mine, theirs = (
        torch.autograd.grad(loss, list(model.parameters())) for loss in (guided, enumerated)
    )
    for one, other in zip(mine, theirs, strict=True):
        assert one.abs().max() > 0
        assert_near(one, other, 1e-9)


def test_minibatches_make_the_step_of_all_rows(divergence):
    x, found = draw(divergence), []
    for batch in (300, 70):
        model = make(divergence)
        model.start_at(seeds(x, 3))
        em = EM(model, FullPartition(model, components=3))
        for _ in range(2):
            for at in range(0, 300, batch):
                index = torch.arange(at, min(300, at + batch))
                em.accumulate(x[index], index=index, size=300)
            em.maximize()
        found.append(model.mean.detach())
        pyro.clear_param_store()
    torch.testing.assert_close(*found)


def test_traced_losses_are_those_of_the_program(divergence):
    x, model = draw(divergence, 60), make(divergence)
    model.start_at(seeds(x, 3))
    guide = FullPartition(model, components=3)
    expected = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x)
    traced = JitTraceEnum_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)
    assert float(traced.loss_and_grads(model, guide, x)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.meta
def test_steps_take_their_device_from_the_rows(divergence):
    with torch.device("cpu"):
        x, model = draw(divergence, 60), make(divergence)
        model.start_at(seeds(x, 3))
    full, hard = (
        FullPartition(model, components=3),
        HardPartition(model, components=3, score="leave_one_out"),
    )
    for guide in (full, hard):
        em = EM(model, guide)
        losses = [em.step(x) for _ in range(3)]
        assert losses[2] <= losses[0]
    assert model.mean.device == x.device


# Row weights and options.


@pytest.mark.parametrize("kind", [FullPartition, HardPartition])
def test_a_row_of_weight_two_counts_as_two(divergence, kind):
    x = draw(divergence, 100)
    weight = 1.0 + (torch.arange(100) % 3)
    found = []
    for rows in ((x, weight.double()), (x.repeat_interleave(weight.long(), 0),)):
        model = make(divergence)
        model.start_at(seeds(x, 3))
        result = fit(
            EM(model, kind(model, components=3)), *rows, epochs=4, batch_size=64, progress=False
        )
        found.append(torch.cat([model.mean.detach().flatten(), model.weights.detach()]))
        assert len(result.history) == 4
        pyro.clear_param_store()
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-7)


def test_options_are_checked():
    with pytest.raises(OptionError, match="unknown divergence 'cosine'"):
        BregmanMixture(components=2, features=2, divergence="cosine")
    with pytest.raises(OptionError, match="precision="):
        BregmanMixture(components=2, features=2, divergence="mahalanobis")
    with pytest.raises(OptionError, match="precision="):
        BregmanMixture(components=2, features=2, precision=torch.eye(2))
    with pytest.raises(OptionError, match="total=3"):
        BregmanMixture(components=2, features=2, divergence="kl", total=3)
    model = BregmanMixture(components=2, features=2)
    with pytest.raises(DataError, match="row_weight"):
        model(torch.zeros(3, 2), torch.ones(2))
    with pytest.raises(DataError, match="seeds"):
        model.start_at(Seeds(torch.arange(3), torch.zeros(3, 2), torch.ones(2)))
    assert set(dict(model.named_buffers())) == set()
    assert set(dict(KMeans(components=2, features=2).named_buffers())) == {"weights"}


def test_the_state_of_a_model_holds_its_precision():
    model = make("mahalanobis")
    other = make("mahalanobis")
    other.precision.zero_()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.precision, PRECISION.double())


@pytest.mark.parametrize("divergence", ["squared", "kl"])
def test_an_empty_component_is_split_off_another_and_separates_from_it(divergence):
    x = torch.cat([torch.poisson(torch.full((60, 2), rate)) for rate in (3.0, 30.0)])
    model = BregmanMixture(components=3, features=2, divergence=divergence)
    with torch.no_grad():
        model.mean = torch.tensor([[3.0, 3.0], [30.0, 30.0], [5000.0, 5000.0]])
    em = EM(model, FullPartition(model, components=3))
    for _ in range(10):
        em.step(x)
    assert len(model.mean.detach().round(decimals=2).unique(dim=0)) == 3


@pytest.mark.parametrize("kind", ["full", "truncated"])
@pytest.mark.parametrize("divergence", ["squared", "kl", "itakura_saito"])
def test_a_split_costs_a_step_no_more_than_its_bound(divergence, kind, monkeypatch):
    """Compared with the step that keeps all components, the rise is bounded."""
    splits = spied_splits(monkeypatch)
    torch.manual_seed(0)
    rates = 0.2 + 20 * torch.rand(6, 3).double()
    x, seen, rises = (
        torch.poisson(rates[torch.randint(6, (200,))]) + (divergence == "itakura_saito"),
        0,
        0,
    )
    with pyro.settings.context(module_local_params=True):
        model = BregmanMixture(components=16, features=3, divergence=divergence).double()
        model.start_at(seeds(x, 16))
        guide = FullPartition(model, components=16)
        if kind == "truncated":
            guide = TruncatedPartition(model, components=16, candidates=3, neighbors=5, seed=0)
        mean = model.mean.detach().clone()
        mean[3] = 300.0  # empty from the start
        model.mean = mean
        em = EM(model, guide)
        for _ in range(25):
            kept = copy.deepcopy(em)
            kept.empty = "keep"
            before, _ = em.step(x), kept.step(x)
            if not splits[-1]:
                continue
            joint = (
                kept.model.component_distributions().log_prob(x.unsqueeze(1))
                + kept.model.weights.log()
            ).detach()
            if kind == "truncated":
                left_out = torch.ones_like(joint, dtype=torch.bool).scatter_(
                    1, guide.sets.table.long(), value=False
                )
                joint = joint.masked_fill(left_out, -torch.inf)
            q, lost = joint.softmax(-1), torch.zeros(len(x)).double()
            for split in splits[-1]:
                lost += q[:, split.component] + q[:, split.like] / 2
            bound = float(-(joint.logsumexp(-1) + torch.log1p(-lost)).sum())
            after = em.evaluate_loss(x)
            seen, rises = seen + 1, rises + (after > before)
            assert after <= bound + 1e-9 * abs(bound)
            # The step itself lowers the loss, so the split causes any rise.
            assert float(-joint.logsumexp(-1).sum()) <= before + 1e-9 * abs(before)
    assert seen
    if (divergence, kind) == ("kl", "truncated"):
        assert rises  # a split can indeed raise the loss


def spied_splits(monkeypatch) -> list:
    """A list that collects the splits of all later M-steps."""
    found, choose = [], em_module.choose_splits

    def spy(*args):
        found.append(choose(*args))
        return found[-1]

    monkeypatch.setattr(em_module, "choose_splits", spy)
    return found
