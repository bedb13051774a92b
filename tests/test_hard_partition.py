"""Hard partitions: each step against brute force, descent, planted and empty parts, bounds, masks, weights, state."""

import copy
import itertools
import math

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import distributions as dist
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import Adam
from torch import Tensor

from pyro_mixtures.diagnostics import to_arviz
from pyro_mixtures.distributions import MixtureWeights
from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
from pyro_mixtures.errors import ClosedFormError, DataError, OptionError, PartitionError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.guides.hard import HardPartition
from pyro_mixtures.infer import EM, assign, fit, log_evidence
from pyro_mixtures.models import (
    BregmanMixture,
    GaussianMixture,
    KMeans,
    MixtureOfLogisticRegressions,
)
from pyro_mixtures.models.linear_regressions import MixtureOfRegressions
from pyro_mixtures.poutine import data_plate
from pyro_mixtures.testing import TOLERANCE

N, P, K = 90, 2, 3
CONSTANT = 0.5 * math.log(2 * math.pi) + math.log(K)  # of a row, beside its loss
few = settings(max_examples=10, deadline=None, derandomize=True)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request) -> torch.dtype:
    return request.param


pytestmark = pytest.mark.usefixtures("on_one_thread")


def rows_of(
    dtype=torch.float64, rows: int = N, seed: int = 0, noise: float = 0.3
) -> tuple[Tensor, Tensor, Tensor]:
    """Covariates, outcomes, and the regression that each row was drawn from."""
    draw = torch.Generator("cpu").manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64, device="cpu")  # noqa: E731
    truth = torch.arange(rows, device="cpu") % K
    x, weight, bias = normal(rows, P), 3 * normal(K, P), 3 * normal(K)
    y = (x * weight[truth]).sum(-1) + bias[truth] + noise * normal(rows)
    return x.to(dtype), y.to(dtype), truth


def mixture(dtype=torch.float64, seed: int = 0, **options) -> MixtureOfRegressions:
    """Regressions of squared error under equal weights, unless ``options`` say otherwise."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    with torch.device("cpu"):
        model = MixtureOfRegressions(
            components=K, features=P, scale=1.0, equal_weights=True, **options
        )
        with torch.no_grad():
            model.weight, model.bias = torch.randn_like(model.weight), torch.randn_like(model.bias)
            model = model.to(dtype)
            model.weights.fill_(1 / K)  # not rounded to float32
    return model


def started(
    labels: Tensor | None = None,
    dtype=torch.float64,
    seed: int = 0,
    empty: str = "keep",
    ridge=0.0,
    **options,
):
    """A model, its guide and EM."""
    model = mixture(dtype, seed, ridge=ridge)
    guide = HardPartition(model, components=K, **options)
    if labels is not None:
        guide.set_labels(labels)
    return model, guide, EM(model, guide, empty=empty)


def random_labels(seed: int, rows: int = N) -> Tensor:
    return torch.randint(
        K, (rows,), generator=torch.Generator("cpu").manual_seed(seed), device="cpu"
    )


def losses(model: MixtureOfRegressions, x: Tensor, y: Tensor) -> Tensor:
    """Half squared errors, and the row's share of the penalty, (N, C)."""
    error = y.unsqueeze(-1) - x @ model.weight.T - model.bias
    return (0.5 * (error.square() + model.ridge * model.weight.square().sum(-1))).detach()


def least(x: Tensor, y: Tensor, ridge: float = 0.0) -> float:
    """Minimal loss of one part by least squares."""
    if not len(y):
        return 0.0
    penalty = math.sqrt(ridge * len(y)) * torch.ones_like(x[0]).diag()
    a, b = torch.cat([x - x.mean(0), penalty]), torch.cat([y - y.mean(), y.new_zeros(P)])
    weight = torch.linalg.lstsq(a, b.unsqueeze(-1), driver="gelsd").solution
    return float((b - (a @ weight)[:, 0]).square().sum() / 2)


def objective(x: Tensor, y: Tensor, labels: Tensor, ridge: float = 0.0) -> float:
    """F of a partition by brute force."""
    return sum(least(x[labels == k].double(), y[labels == k].double(), ridge) for k in range(K))


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
    em.step(x, y)  # fits the planted parts
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
    ]  # other parts of the literal bound cost all the same
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
    assert done.history["moved"][0] == 0  # the planted parts were fitted first
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


# Parts that become empty.


def away(model: MixtureOfRegressions, *parts: int) -> None:
    """Put components where they win no rows."""
    with torch.no_grad():
        model.bias[list(parts)] = 1e3


@pytest.mark.parametrize("score", ["loss", "leave_one_out"])
def test_an_empty_part_gets_rows_and_the_fit_goes_on(score):
    x, y, truth = rows_of(rows=300, noise=0.05)
    model, guide, em = started(truth.clamp_max(1), score=score)
    away(model, 2)
    done = fit(em, x, y, progress=False, tolerance=1e-9)
    assert done.history["reseeded"].tolist()[:3] == [0, 1, 0]
    assert bool((guide.sizes > 50).all())
    assert objective(x, y, guide.labels) < 0.5 * objective(x, y, truth.clamp_max(1))


def test_two_empty_parts_are_filled_without_a_rise():
    x, y, _ = rows_of(rows=300)
    model, guide, em = started(torch.zeros(300, dtype=torch.int64))
    away(model, 1, 2)
    found = [em.step(x, y) for _ in range(10)]
    assert guide.reseeded == 2
    assert bool((guide.sizes > 0).all())
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(found[1:])), found


def test_reviving_and_reseeding_do_not_stand_in_each_others_way():
    """With empty="reseed", the default, EM gives an empty part the params of another before it gets rows."""
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
def test_parts_are_filled_with_rows_enough_to_be_fitted(capacity):
    """Of fewer rows than it has parameters a part would keep those that it had, which fit nothing."""
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


def test_empty_parts_take_no_more_rows_than_the_capacity_and_wait_for_room():
    x, y, _ = rows_of()
    for capacity, filled in ((50, True), (44, False)):
        model, guide, em = started(torch.arange(N) % 2, capacity=capacity)
        away(model, 2)
        found = [em.step(x, y) for _ in range(3)]
        assert guide.reseeded == int(
            filled
        )  # two parts of 44 do not hold 90 rows: the third cannot be closed
        assert 0 < int(guide.sizes[2]) <= capacity
        assert int(guide.sizes.max()) <= capacity
        assert not filled or found[2] <= found[1] + 1e-9


def test_bounds_on_sizes_are_kept():
    x, y, _ = rows_of()
    for options in (
        {"capacity": 32},
        {"min_size": 28},
        {"capacity": 31, "min_size": 29},
        {"capacity": 30},
    ):
        for assignment in ("optimal", "greedy"):
            _, guide, em = started(assignment=assignment, **options)
            for _ in range(3):
                em.step(x, y)
                assert guide.sizes.max() <= options.get("capacity", N)
                assert guide.sizes.min() >= options.get("min_size", 0)


def test_a_bounded_step_has_the_least_total_cost():
    from scipy.optimize import linear_sum_assignment

    x, y, _ = rows_of()
    model, guide, em = started(capacity=30)
    cost = losses(model, x, y).repeat_interleave(30, 1).numpy()
    em.step(x, y)
    rows, places = linear_sum_assignment(cost)
    mine = cost[range(N), 30 * guide.labels.numpy()].sum()
    assert mine == pytest.approx(cost[rows, places].sum(), rel=1e-10)


def test_bounds_need_all_rows_and_room():
    x, y, _ = rows_of()
    _, _, em = started(capacity=40)
    with pytest.raises(OptionError, match="need all 90 rows"):
        fit(em, x, y, batch_size=30, progress=False)
    with pytest.raises(DataError, match="cannot hold 90 rows"):
        started(capacity=29)[2].step(x, y)
    with pytest.raises(DataError, match="too few"):
        started(min_size=31)[2].step(x, y)


# Minibatches, masks, row weights.


@pytest.mark.parametrize("score", ["loss", "leave_one_out"])
def test_minibatches_are_the_full_batch(score, dtype):
    x, y, _ = rows_of(dtype)
    found = []
    for size in (None, 16):
        model, guide, em = started(random_labels(5), dtype, score=score, ridge=0.01)
        done = fit(em, x, y, batch_size=size, epochs=8, patience=20, progress=False)
        found.append(
            (
                torch.tensor(done.history["elbo"]),
                guide.labels,
                model.weight.detach(),
                model.bias.detach(),
            )
        )
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(
            parts, whole, rtol=2e3 * TOLERANCE[dtype], atol=2e3 * TOLERANCE[dtype]
        )


@pytest.mark.parametrize("options", [{}, {"score": "leave_one_out"}, {"capacity": 30}])
def test_masked_rows_have_no_part(options):
    x, y, _ = rows_of()
    mask = torch.arange(N) % 7 != 0
    plain = mixture()
    index = torch.arange(N)

    def masked(x, y, seen):
        with pyro.poutine.mask(mask=seen):
            return plain(x, y)

    guide = HardPartition(masked, components=K, **options)
    em = EM(masked, guide, empty="keep")
    broken = torch.where(mask, y, torch.nan)
    with_mask = [em.step(x, broken, mask) for _ in range(4)]
    labels, weight = guide.labels[mask].clone(), plain.weight.detach().clone()
    assert bool((guide.labels[~mask] == -1).all())
    assert int(guide.sizes.sum()) == int(mask.sum())

    model, guide, em = started(**options)
    alone = [em.step(x[index[mask]], y[mask]) for _ in range(4)]
    assert with_mask == pytest.approx(alone, rel=1e-10)
    assert torch.equal(guide.labels, labels)
    torch.testing.assert_close(model.weight.detach(), weight)


def weighted(model: MixtureOfRegressions):
    """The program with a weight for each row."""

    def program(x, y, row_weight):
        with pyro.poutine.scale(scale=row_weight):
            return model(x, y)

    return program


def test_a_row_of_weight_two_is_two_rows():
    x, y, _ = rows_of()
    times = 1 + torch.arange(N) % 3
    plain = mixture(ridge=0.1)
    program = weighted(plain)
    guide = HardPartition(program, components=K)
    em = EM(program, guide, empty="keep")
    by_weight = [em.step(x, y, times.double()) for _ in range(5)]
    labels, weight = guide.labels.clone(), plain.weight.detach().clone()
    model, guide, em = started(ridge=0.1)
    many = torch.arange(N).repeat_interleave(times)
    by_copies = [em.step(x[many], y[many]) for _ in range(5)]
    assert by_weight == pytest.approx(by_copies, rel=1e-10)
    assert torch.equal(guide.labels, labels[many])
    torch.testing.assert_close(model.weight.detach(), weight)


def test_leave_one_out_gains_of_rows_of_weight_two_are_twice_those_of_one():
    x, y, _ = rows_of()
    program = weighted(mixture())
    guide = HardPartition(program, components=K, score="leave_one_out")
    em = EM(program, guide, empty="keep")
    twice = [em.step(x, y, torch.full((N,), 2.0)) for _ in range(4)]
    labels = guide.labels.clone()
    _, guide, em = started(score="leave_one_out")
    once = [em.step(x, y) for _ in range(4)]
    assert twice == pytest.approx([2 * loss for loss in once], rel=1e-10)
    assert torch.equal(guide.labels, labels)


# State.


@pytest.mark.meta
def test_evaluation_leaves_everything_as_it_is():
    x, y, _ = rows_of()
    model, guide, em = started()
    nothing = em.evaluate_loss(x, y)
    assert nothing == pytest.approx(float(losses(model, x, y).min(1).values.sum()) + N * CONSTANT)
    assert guide.labels is None
    em.step(x, y)
    labels = guide.labels.clone()
    with torch.no_grad():
        model.bias = model.bias + 5.0
    cost = losses(model, x, y).gather(1, labels.long().unsqueeze(-1)).sum()
    assert em.evaluate_loss(x, y) == pytest.approx(float(cost) + N * CONSTANT)
    assert torch.equal(guide.labels, labels)


def test_rows_never_seen_take_their_cheapest_component():
    x, y, _ = rows_of()
    model, guide, em = started(capacity=30)
    em.step(x, y)
    new_x, new_y, _ = rows_of(seed=9, rows=40)
    cost = losses(model, new_x, new_y)
    assert torch.equal(assign(model, new_x, new_y, guide=guide), cost.argmin(1))
    torch.testing.assert_close(
        log_evidence(model, new_x, new_y, guide=guide, chunk=7), -cost.min(1).values - CONSTANT
    )
    assert len(guide.labels) == N


def test_other_data_are_refused():
    x, y, _ = rows_of()
    _, _, em = started()
    em.step(x, y)
    with pytest.raises(PartitionError, match=r"90 rows.*40"):
        em.step(x[:40], y[:40])
    with pytest.raises(PartitionError, match=r"90 rows.*40"):
        em.evaluate_loss(x[:40], y[:40])


def test_a_saved_fit_goes_on_as_if_nothing_had_happened(tmp_path):
    x, y, _ = rows_of()
    model, guide, em = started(random_labels(2))
    for _ in range(2):
        em.step(x, y)
    torch.save({"model": model.state_dict(), "guide": guide.state_dict()}, tmp_path / "state.pt")
    expected = [em.step(x, y) for _ in range(3)]
    labels = guide.labels.clone()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    model, guide, em = started(seed=7)
    model.load_state_dict(state["model"])
    guide.load_state_dict(state["guide"])
    assert [em.step(x, y) for _ in range(3)] == expected
    assert torch.equal(guide.labels, labels)


def test_planted_labels_that_were_saved_are_still_to_be_fitted():
    x, y, _ = rows_of()
    state = copy.deepcopy(started(random_labels(2))[1].state_dict())
    _, guide, em = started()
    guide.load_state_dict(state)
    em.step(x, y)
    assert torch.equal(guide.labels.long(), random_labels(2))


def test_the_state_of_another_guide_is_refused():
    x, y, _ = rows_of()
    model, guide, _ = started()
    other = TruncatedPartition(model, components=K, candidates=2, neighbors=2)
    other.posterior(x, y)
    with pytest.raises(PartitionError, match="another guide"):
        guide.load_state_dict(other.state_dict())
    smaller = HardPartition(model, components=2)
    with pytest.raises(PartitionError, match="outside"):
        smaller.load_state_dict(started(torch.full((N,), 2))[1].state_dict())


def test_impossible_options_are_refused():
    for options in (
        {"score": "luck"}, {"assignment": "wish"}, {"alpha": 0.0}, {"alpha": 1.5}, {"capacity": 0}, {"min_size": -1},
        {"capacity": 3, "min_size": 4},
    ):  # fmt: skip
        with pytest.raises(OptionError, match=next(iter(options))):
            HardPartition(mixture(), components=K, **options)
    guide = HardPartition(mixture(), components=K)
    for labels in (
        torch.zeros(3),
        torch.zeros(3, 1).long(),
        torch.tensor([0, 3]),
        torch.tensor([-1, 0]),
    ):
        with pytest.raises(PartitionError, match="labels"):
            guide.set_labels(labels)


def test_planted_labels_of_other_data_are_refused():
    x, y, _ = rows_of()
    with pytest.raises(PartitionError, match=r"40 rows.*90"):
        started(random_labels(0, 40))[2].step(x, y)


def test_sites_that_do_not_know_their_gains_are_refused():
    """Stock distributions have no families."""

    def program(x):
        loc = pyro.param("loc", lambda: torch.randn(K))
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(torch.ones(K) / K))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    guide = HardPartition(program, components=K, score="leave_one_out")
    em, x = EM(program, guide, empty="keep"), rows_of(torch.float32)[1]
    em.step(x)
    with pytest.raises(ClosedFormError, match="score='loss'"):
        em.step(x)


# Other programs, other strategies.


@pytest.mark.meta
def test_classification_em_of_a_gaussian_mixture_is_brute_force():
    """Weights are params, and part of what a row pays."""
    x = rows_of(rows=200)[0] + 3.0 * (torch.arange(200, device="cpu") % K).unsqueeze(-1)
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = GaussianMixture(components=K, features=P).double()
        with torch.no_grad():
            model.loc = 3.0 * torch.randn(K, P, dtype=torch.float64)
    loc, scale, weights = (t.detach().clone() for t in (model.loc, model.scale, model.weights))
    guide = HardPartition(model, components=K)
    em = EM(model, guide, empty="keep", variance_floor=0.0)
    for _ in range(5):
        joint = weights.log() + dist.Normal(loc, scale).log_prob(x.unsqueeze(1)).sum(-1)
        labels = joint.argmax(1)
        assert em.step(x) == pytest.approx(-float(joint.max(1).values.sum()), rel=1e-9)
        assert torch.equal(guide.labels.long(), labels)
        parts = [x[labels == k] for k in range(K)]
        weights = torch.bincount(labels, minlength=K).double() / 200
        loc = torch.stack([part.mean(0) for part in parts])
        scale = torch.stack([part.std(0, correction=0) for part in parts])
        torch.testing.assert_close(model.loc.detach(), loc)
        torch.testing.assert_close(model.scale.detach(), scale)
        torch.testing.assert_close(model.weights.detach(), weights)


def test_stock_svi_descends_on_the_objective():
    x, y, _ = rows_of()
    model, guide, _ = started()
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    cost = losses(model, x, y).min(1).values.sum()
    assert elbo.loss(model, guide, x, y) == pytest.approx(float(cost) + N * CONSTANT)
    loss = elbo.differentiable_loss(model, guide, x, y)
    grad = torch.autograd.grad(loss, model.bias.unconstrained())[0]
    own = torch.nn.functional.one_hot(guide.labels.long(), K)
    error = y.unsqueeze(-1) - x @ model.weight.T - model.bias
    torch.testing.assert_close(grad, -(own * error).sum(0).detach())
    svi = SVI(model, guide, Adam({"lr": 0.2}), elbo)
    found = [svi.step(x, y) for _ in range(40)]
    assert found[-1] - N * CONSTANT < 0.5 * (found[0] - N * CONSTANT)


def test_stock_svi_fits_planted_parts_until_they_are_released():
    x, y, _ = rows_of()
    model, guide, _ = started(random_labels(4))
    svi = SVI(model, guide, Adam({"lr": 0.3}), TraceEnum_ELBO(max_plate_nesting=1))
    found = [svi.step(x, y) for _ in range(40)]
    assert torch.equal(guide.labels.long(), random_labels(4))
    assert found[-1] - N * CONSTANT == pytest.approx(objective(x, y, random_labels(4)), rel=0.05)
    guide.release()
    svi.step(x, y)
    assert guide.moved > 0


def test_a_program_with_two_observations_adds_up_their_losses_and_gains():
    """Rows with a hidden second outcome are scored by the first alone."""
    x, y, _ = rows_of()
    second, seen = y.roll(1), torch.arange(N) % 4 != 0
    given = [torch.nn.Parameter(torch.randn(K, P, dtype=torch.float64)) for _ in range(2)]

    def program(x, y, second, seen):
        weights = [
            pyro.param(f"weight{i}", lambda i=i: given[i].detach().clone()) for i in range(2)
        ]
        biases = [
            pyro.param(f"bias{i}", lambda: torch.zeros(K, dtype=torch.float64)) for i in range(2)
        ]
        one = torch.ones(K, dtype=torch.float64)
        first, other = (
            LinearRegressions(x, w, b, one) for w, b in zip(weights, biases, strict=True)
        )
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(one / K))
            pyro.sample("y", first[z], obs=y)
            with pyro.poutine.mask(mask=seen):
                pyro.sample("second", other[z], obs=second)

    guide = HardPartition(program, components=K, score="leave_one_out")
    labels = random_labels(6)
    guide.set_labels(labels)
    em = EM(program, guide, empty="keep")
    em.step(x, y, torch.where(seen, second, 1e6), seen)
    own = 0.5 * math.log(2 * math.pi)
    cost = torch.full((N, K), math.log(K), dtype=torch.float64)
    for i, outcome, known in ((0, y, torch.ones_like(seen)), (1, second, seen)):
        weight, bias = (pyro.param(f"{name}{i}").detach() for name in ("weight", "bias"))
        each = 0.5 * (outcome.unsqueeze(-1) - x @ weight.T - bias).square() + own
        for n, k in enumerate(labels.tolist()):
            part = (labels == k) & known
            rest = part.clone()
            rest[n] = False
            each[n, k] = least(x[part], outcome[part]) - least(x[rest], outcome[rest]) + own
        cost += torch.where(known.unsqueeze(-1), each, 0.0)
    em.step(x, y, torch.where(seen, second, 1e6), seen)
    assert torch.equal(guide.labels.long(), cost.argmin(1))


def test_labels_are_those_of_fitted_parts_while_an_empty_one_waits_for_rows():
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
def test_parts_under_learned_weights_may_stay_empty_and_the_objective_never_rises(seed):
    torch.manual_seed(seed)
    x = torch.randn(300, 1, dtype=torch.float64)
    y = (x[:, 0].abs() > 0.6).double()
    model = MixtureOfLogisticRegressions(components=3, features=1, ridge=0.1).double()
    done = fit(EM(model, HardPartition(model, components=3)), x, y, progress=False)
    assert done.history["elbo"][-1] >= done.history["elbo"].max() - 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_filling_empty_parts_never_raises_the_objective(seed):
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


# Experts with places.


def test_closeness_is_what_a_row_pays_for_its_distance():
    x, y, _ = rows_of(rows=40)
    torch.manual_seed(0)
    near = MixtureOfRegressions(
        components=3, features=x.shape[1], equal_weights=True, input_density=0.7
    ).to(x.dtype)
    free = MixtureOfRegressions(components=3, features=x.shape[1], equal_weights=True).to(x.dtype)
    with torch.no_grad():
        free.weight, free.bias = near.weight.clone(), near.bias.clone()
    log_joint = []
    for model in (near, free):
        pyro.clear_param_store()
        posterior = FullPartition(model, components=3).posterior(x, y)
        log_joint.append(posterior.log_prob + posterior.log_evidence)
    paid = log_joint[1] - log_joint[0]
    expected = 0.7 * (x - near.loc.detach().unsqueeze(1)).square().mean(-1)
    torch.testing.assert_close(paid - paid[:1], expected - expected[:1])


def test_places_part_experts_that_outcomes_do_not():
    """Two regions with the same line: without places nothing says where they part."""
    x = torch.cat([torch.randn(60, 2) - 4, torch.randn(60, 2) + 4])
    y = x.sum(-1) + 0.1 * torch.randn(120)
    model = MixtureOfRegressions(
        components=2, features=2, scale=1.0, equal_weights=True, input_density=1.0
    )
    guide = HardPartition(model, components=2)
    guide.set_labels(torch.arange(120) % 10 // 9)
    fit(EM(model, guide), x, y, progress=False)
    found = guide.labels[:60].float().mean(), guide.labels[60:].float().mean()
    assert sorted(map(float, found)) == [0.0, 1.0]


def test_closeness_must_be_positive():
    with pytest.raises(OptionError, match=r"input_density=0\.0 must be positive"):
        MixtureOfRegressions(components=2, features=2, input_density=0.0)


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
    assert stored["sizes"].dims == ("epoch", "part")
    assert float(stored["objective"][-1]) == objective[-1]


# Data that cannot be used.


def test_outcomes_of_another_shape_are_refused():
    x, y, _ = rows_of(rows=30)
    model = MixtureOfRegressions(components=2, features=x.shape[1]).double()
    with pytest.raises(DataError, match=r"outcomes must be \(N,\), not \(30, 1\)"):
        model(x, y.unsqueeze(-1))
    wide = MixtureOfRegressions(components=2, features=x.shape[1], outputs=2).double()
    pyro.clear_param_store()
    with pytest.raises(DataError, match=r"outcomes must be \(N, 2\), not \(30,\)"):
        wide(x, y)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_covariates_that_are_not_finite_are_named(bad):
    x, y, _ = rows_of(rows=30)
    x[7, 1] = bad
    model = MixtureOfRegressions(components=2, features=x.shape[1]).double()
    with pytest.raises(DataError, match="row 7 of the model's argument 0 holds NaN or infinity"):
        EM(model, HardPartition(model, components=2)).step(x, y)


@pytest.mark.parametrize(
    "labels", [[0, 1], torch.tensor([True, False]), torch.zeros(3), torch.zeros(2, 2).long()]
)
def test_labels_must_be_integers_of_rows(labels):
    model = GaussianMixture(components=2, features=2)
    with pytest.raises(PartitionError, match="labels must be"):
        HardPartition(model, components=2).set_labels(labels)


@pytest.mark.parametrize("score", ["loss", "leave_one_out"])
def test_a_fitted_guide_can_be_copied(score):
    """Statistics that are views of params would be refused after a step in place."""
    x = torch.cat([torch.randn(30, 2) - 4, torch.randn(30, 2) + 4])
    model = KMeans(components=2, features=2)
    guide = HardPartition(model, components=2, score=score)
    em = EM(model, guide)
    for _ in range(3):
        em.step(x)
    twin = copy.deepcopy(guide)
    assert torch.equal(twin.labels, guide.labels)
    assert twin.labels is not guide.labels
