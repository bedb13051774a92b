"""Labels and saved state of hard partitions."""

import copy

import pytest
import torch

from pyro_mixtures.errors import OptionError, PartitionError
from pyro_mixtures.guides import TruncatedPartition
from pyro_mixtures.guides.hard import HardPartition
from pyro_mixtures.infer import EM, assign, log_evidence
from pyro_mixtures.models import (
    KMeans,
)
from tests.guides.hard_regressions import (
    CONSTANT,
    K,
    N,
    losses,
    mixture,
    random_labels,
    rows_of,
    started,
)

pytestmark = pytest.mark.usefixtures("on_one_thread")


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


def test_unseen_rows_take_their_cheapest_component():
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


def test_a_saved_fit_continues_unchanged(tmp_path):
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


def test_saved_labels_that_were_set_are_fitted_first():
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
    guide.set_labels(random_labels(2))
    with pytest.raises(PartitionError, match="another guide"):
        other.load_state_dict(guide.state_dict())
    with pytest.raises(PartitionError, match="or of another version"):
        guide.set_extra_state({"labels": guide.labels, "planted": True})
    smaller = HardPartition(model, components=2)
    with pytest.raises(PartitionError, match="outside"):
        smaller.load_state_dict(started(torch.full((N,), 2))[1].state_dict())


def test_impossible_options_are_refused():
    for options in (
        {"score": "luck"},
        {"assignment": "wish"},
        {"alpha": 0.0},
        {"alpha": 1.5},
        {"capacity": 0},
        {"min_size": -1},
        {"capacity": 3, "min_size": 4},
    ):
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


def test_labels_of_other_data_are_refused():
    x, y, _ = rows_of()
    with pytest.raises(PartitionError, match=r"40 rows.*90"):
        started(random_labels(0, 40))[2].step(x, y)


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
