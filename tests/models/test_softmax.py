"""Mixtures of softmax distributions: recovered parameters, counts, truncation, and errors."""

import pyro
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_mixtures.data.items import count_items
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models.softmax import SoftmaxMixture

pytestmark = pytest.mark.usefixtures("on_one_thread")

F64 = torch.float64


def planted(
    components: int = 3, items: int = 2000, width: int = 5, draws: int = 20_000
) -> tuple[SoftmaxMixture, Tensor]:
    """A true model of thetas of length 1.5, and draws of it."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = SoftmaxMixture(components=components, features=torch.randn(items, width, dtype=F64))
        theta = torch.randn(components, width, dtype=F64)
        model.start_at(1.5 * theta / theta.norm(dim=-1, keepdim=True))
        with torch.no_grad(), pyro.poutine.block():
            x = model(size=draws)
    return model, x


def like(truth: SoftmaxMixture, components: int | None = None, **options) -> SoftmaxMixture:
    pyro.clear_param_store()
    torch.manual_seed(1)
    with torch.device("cpu"):
        return SoftmaxMixture(
            components=components or truth.components, features=truth.item_features, **options
        )


def worst_atom(model: SoftmaxMixture, truth: SoftmaxMixture) -> float:
    distance = torch.cdist(truth.theta.detach(), model.theta.detach())
    return float(distance[linear_sum_assignment(distance.numpy())].max())


@pytest.mark.parametrize("solver", ["newton", "gradient"])
def test_em_recovers_planted_parameters(solver):
    """EM from a warm start comes as close as EM from the truth."""
    truth, x = planted()
    items, counts = count_items(x)
    errors, elbos = [], []
    for start in (truth.theta.detach(), truth.theta.detach() + 0.5 * torch.randn(3, 5, dtype=F64)):
        model = like(truth, solver=solver)
        model.start_at(start)
        em = EM(model, FullPartition(model, components=3))
        elbos.append([em.step(items, counts) for _ in range(40)][-1])
        errors.append(worst_atom(model, truth))
    assert errors[0] < 0.25
    assert errors[1] < errors[0] + 0.1
    assert elbos[1] == pytest.approx(elbos[0], rel=1e-4)


def test_solvers_climb_to_the_same_place():
    truth, x = planted()
    items, counts = count_items(x)
    found = []
    for solver in ("newton", "gradient"):
        model = like(truth, solver=solver)
        model.start_at(truth.theta.detach())
        em = EM(model, FullPartition(model, components=3))
        found.append([em.step(items, counts) for _ in range(40)][-1])
    assert found[0] == pytest.approx(found[1], rel=1e-7)


@pytest.mark.meta
def test_counts_stand_for_draws():
    truth, x = planted(items=50, draws=2000)
    items, counts = count_items(x)
    found = []
    for rows in ((x,), (items, counts), (items, counts.double())):
        model = like(truth)
        em = EM(model, FullPartition(model, components=3))
        found.append(torch.tensor([em.step(*rows) for _ in range(4)], dtype=F64, device="cpu"))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["newton", "gradient"])
def test_truncated_em_is_monotone_and_near_exact_em(dtype, solver):
    truth, x = planted(components=20, items=500)
    items, counts = count_items(x)
    final = []
    for truncated in (False, True):
        model = like(truth, solver=solver).to(dtype)
        model.start_at(truth.theta.detach() + 0.1)
        guide = FullPartition(model, components=20)
        if truncated:
            guide = TruncatedPartition(
                model, components=20, candidates=5, neighbors=6, explore=0, seed=0
            )
        em = EM(model, guide, empty="keep")
        losses = torch.tensor([em.step(items, counts) for _ in range(12)], dtype=F64)
        assert (losses.diff() <= 1e-6 * losses[0]).all(), losses
        final.append(EM(model, FullPartition(model, components=20)).evaluate_loss(items, counts))
    # Softmax components overlap, so few candidates lower the ELBO by some thousandths of a nat.
    assert final[1] == pytest.approx(final[0], rel=5e-3)


def test_fits_in_batches_give_the_fit_of_all_rows():
    truth, x = planted(items=300)
    items, counts = count_items(x)
    found = []
    for size in (None, 64):
        model = like(truth)
        fit(
            EM(model, FullPartition(model, components=3)),
            items,
            counts,
            epochs=5,
            batch_size=size,
            progress=False,
        )
        found.append(model.theta.detach())
    torch.testing.assert_close(*found)


def test_empty_components_are_split_off_others_and_win_draws():
    truth, x = planted(items=300)
    items, counts = count_items(x)
    model = like(truth)
    # The third component draws one corner, which does not occur in the data.
    corner = int(truth.item_features[:, 0].argmax())
    items, counts = items[items != corner], counts[items != corner]
    theta = torch.stack([truth.theta[0], truth.theta[1], 200 * torch.eye(5, dtype=F64)[0]]).detach()
    model.start_at(theta)
    em = EM(model, FullPartition(model, components=3))
    reseeded = 0
    for _ in range(10):
        em.step(items, counts)
        reseeded += em.last_update.reseeded
    assert reseeded >= 1
    assert model.weights.min() > 0.01
    assert model.theta.norm(dim=-1).max() < 10


def test_features_are_centered_and_dtypes_follow_them():
    x = torch.randn(20, 3, dtype=F64) + 1e4
    model = SoftmaxMixture(components=2, features=x)
    assert {t.dtype for t in model.state_dict().values()} == {F64}
    torch.testing.assert_close(
        model.item_features.mean(0), torch.zeros(3, dtype=F64), rtol=0, atol=1e-10
    )
    single = SoftmaxMixture(components=2, features=x.float())
    assert {t.dtype for t in single.state_dict().values()} == {torch.float32}
    assert SoftmaxMixture(components=2, features=[[1, 0], [0, 1], [1, 1]]).theta.shape == (2, 2)


def test_bad_features_are_refused():
    x = torch.randn(5, 2)
    with pytest.raises(DataError, match=r"features \(5,\) must be \(p, L\)"):
        SoftmaxMixture(components=2, features=x[:, 0])
    with pytest.raises(DataError, match="at least two items"):
        SoftmaxMixture(components=1, features=x[:1])
    with pytest.raises(DataError, match="features of item 3 are not finite"):
        SoftmaxMixture(components=2, features=x.index_fill(0, torch.tensor([3]), torch.nan))
    with pytest.raises(DataError, match="feature 1 is the same for all items"):
        SoftmaxMixture(components=2, features=x.index_fill(1, torch.tensor([1]), 3.0))
    with pytest.raises(OptionError, match="components=6 for 5 items"):
        SoftmaxMixture(components=6, features=x)
    with pytest.raises(OptionError, match="unknown solver"):
        SoftmaxMixture(components=2, features=x, solver="lbfgs")
    with pytest.raises(OptionError, match="ridge"):
        SoftmaxMixture(components=2, features=x, ridge=-0.1)


def test_bad_rows_are_refused():
    model = SoftmaxMixture(components=2, features=torch.randn(5, 2))
    guide = FullPartition(model, components=2)
    with pytest.raises(DataError, match=r"items lie in \[0, 5\], not in \[0, 5\)"):
        EM(model, guide).step(torch.tensor([0, 5, 1]))
    with pytest.raises(DataError, match="items must be integers"):
        EM(model, guide).step(torch.tensor([0.0, 1.0, 2.0]))
    with pytest.raises(DataError, match="item numbers"):
        model(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(DataError, match="row_weight"):
        model(torch.tensor([0, 1]), torch.ones(3))


def test_bad_starts_are_refused():
    model = SoftmaxMixture(components=2, features=torch.randn(5, 3))
    with pytest.raises(DataError, match=r"theta \(3, 3\) must be \(2, 3\)"):
        model.start_at(torch.zeros(3, 3))
    with pytest.raises(DataError, match="finite"):
        model.start_at(torch.full((2, 3), torch.inf))
    with pytest.raises(DataError, match=r"weights \(3,\)"):
        model.start_at(torch.zeros(2, 3), torch.ones(3))
    with pytest.raises(DataError, match="non-negative"):
        model.start_at(torch.zeros(2, 3), torch.tensor([1.5, -0.5]))
    model.start_at(torch.ones(2, 3), torch.tensor([3.0, 1.0]))
    assert model.weights.tolist() == pytest.approx([0.75, 0.25])


def test_equal_weights_are_constant():
    truth, x = planted(items=100, draws=1000)
    model = like(truth, equal_weights=True)
    EM(model, FullPartition(model, components=3)).step(x)
    assert model.weights.tolist() == pytest.approx([1 / 3] * 3)
    assert dict(model.named_parameters()).keys() == {"theta_unconstrained"}


def test_starts_leave_constant_weights_alone():
    model = SoftmaxMixture(components=2, features=torch.randn(5, 3), equal_weights=True)
    model.start_at(torch.ones(2, 3))
    model.start_at(2 * torch.ones(2, 3), torch.tensor([3.0, 3.0]))
    assert model.weights.tolist() == [0.5, 0.5]
    with pytest.raises(DataError, match="constant and equal"):
        model.start_at(torch.zeros(2, 3), torch.tensor([0.75, 0.25]))
    assert (model.theta == 2).all()
    assert "weights" in dict(model.named_buffers())


@pytest.mark.meta
@pytest.mark.parametrize("kind", [torch.int64, torch.float32, F64])
def test_items_never_drawn_count_for_nothing(kind):
    truth, x = planted(items=50, draws=500)
    counts = torch.bincount(x, minlength=51)[:50]
    assert (counts == 0).any()
    found = []
    for rows in (count_items(x), (torch.arange(50, device="cpu"), counts.to(kind))):
        model = like(truth)
        em = EM(model, FullPartition(model, components=3))
        losses = [em.step(*rows) for _ in range(4)]
        found.append(
            torch.cat(
                [torch.tensor(losses, dtype=F64, device="cpu"), model.theta.detach().flatten()]
            )
        )
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, 2.0], r"row_weight \(2,\) for 3 rows"),
        ([[1.0], [2.0], [3.0]], r"row_weight \(3, 1\) for 3 rows"),
        ([1.0, -2.0, 1.0], "row_weight of row 1 is -2"),
        ([1.0, 1.0, torch.nan], "row_weight of row 2 is nan"),
        ([torch.inf, 1.0, 1.0], "row_weight of row 0 is inf"),
    ],
)
def test_weights_that_cannot_be_are_refused(weight, message):
    model = SoftmaxMixture(components=2, features=torch.randn(5, 2))
    with pytest.raises(DataError, match=message):
        EM(model, FullPartition(model, components=2)).step(
            torch.tensor([0, 4, 1]), torch.tensor(weight)
        )


def test_draws_are_counted():
    draws = torch.randint(7, (100,))
    items, counts = count_items(draws)
    assert torch.equal(items.repeat_interleave(counts), draws.sort().values)
    assert count_items([3, 3])[1].tolist() == [2]
    for bad in (torch.zeros(3), torch.zeros(3, 2, dtype=torch.int64), torch.tensor([True])):
        with pytest.raises(DataError, match="integers"):
            count_items(bad)
    with pytest.raises(DataError, match="the item -2"):
        count_items(torch.tensor([1, -2]))
