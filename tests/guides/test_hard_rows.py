"""Hard partitions of minibatches, masked rows, weighted rows, and rows that cannot be used."""

import math

import pyro
import pytest
import torch

from pyro_mixtures.errors import DataError, PartitionError
from pyro_mixtures.guides.hard import HardPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.models import (
    GaussianMixture,
)
from pyro_mixtures.models.linear_regressions import MixtureOfRegressions
from pyro_mixtures.testing import TOLERANCE
from tests.guides.hard_regressions import K, N, mixture, random_labels, rows_of, started

pytestmark = pytest.mark.usefixtures("on_one_thread")


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
def test_masked_rows_have_no_label(options):
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
    with pytest.raises(DataError, match="row 7 of the model's argument 0 contains NaN or infinity"):
        EM(model, HardPartition(model, components=2)).step(x, y)


@pytest.mark.parametrize(
    "labels", [[0, 1], torch.tensor([True, False]), torch.zeros(3), torch.zeros(2, 2).long()]
)
def test_labels_must_be_integers_of_rows(labels):
    model = GaussianMixture(components=2, features=2)
    with pytest.raises(PartitionError, match="labels must be"):
        HardPartition(model, components=2).set_labels(labels)
