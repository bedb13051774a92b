"""Fits do not depend on threads, batches, the order of rows, or narrow dtypes."""

import copy
import sys

import numpy as np
import pyro
import pytest
import torch

from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM, assign, log_evidence
from pyro_mixtures.models import MixtureOfFactorAnalyzers
from tests.infer.em.clusters import (
    F32,
    F64,
    FAMILIES,
    PARTITIONS,
    assert_same,
    clusters,
    params,
    quiet,
    started,
)

pytestmark = pytest.mark.usefixtures("on_one_thread")


def winners(em):
    return em.guide.sets.table[:, 0].long()


# Threads.


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("partition", ["exact", "truncated"])
def test_fits_are_the_same_bits_on_any_number_of_threads(family, partition, dtype, monkeypatch):
    monkeypatch.setattr(
        sys.modules["pyro_mixtures.infer.em.m_step"], "_NUMBERS_PER_BLOCK", 64
    )  # several blocks of components
    x, found = clusters(1500, 5, components=40).to(dtype), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        model = started(family, x, 70, dtype)
        result = quiet(EM(model, PARTITIONS[partition](model)), x, epochs=4)
        sets = winners(result.inference) if partition == "truncated" else None
        found.append((params(model), result.history["elbo"], result.history["evaluations"], sets))
    (mine, *history, sets), (theirs, *others, theirs_sets) = found
    assert_same(mine, theirs, rtol=0, atol=0)
    for column, other in zip(history, others, strict=True):
        assert np.array_equal(column, other)
    assert sets is None or torch.equal(sets, theirs_sets)


def spied(em):
    """The calls of ``accumulate``: numbers of the rows of each batch, in the fit's order."""
    seen, accumulate = [], em.accumulate

    def spy(*args, **kwargs):
        seen.append(kwargs["index"].clone() if "index" in kwargs else None)
        return accumulate(*args, **kwargs)

    em.accumulate = spy
    return seen


def test_batches_chosen_by_the_library_give_the_fit_of_one_batch(family, small_batches):
    x = clusters(3000, 4, apart=1.5)
    model = started(family, x, 6)
    em = EM(model, FullPartition(model, components=6))
    whole = quiet(em, x, batch_size=len(x))
    expected = params(model)
    model = started(family, x, 6)
    em = EM(model, FullPartition(model, components=6))
    seen = spied(em)
    parts = quiet(em, x)
    assert [len(index) for index in seen] == [1024, 1024, 952] * 3
    assert_same(params(model), expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(parts.history["elbo"], whole.history["elbo"], rtol=1e-9)


def test_rows_ordered_by_winner_give_the_fit_of_one_batch_in_the_users_order(family, small_batches):
    """Candidates are all components, so that the truncated fit is the exact one."""
    x = clusters(3000, 4, apart=1.5)
    given = x.clone()
    model = started(family, x, 6)
    quiet(EM(model, FullPartition(model, components=6)), x, batch_size=len(x))
    expected = params(model)
    model = started(family, x, 6)
    em = EM(model, PARTITIONS["all"](model))
    seen = spied(em)
    quiet(em, x)
    assert [len(index) for index in seen] == [1024, 1024, 952] * 3
    for epoch in (seen[:3], seen[3:6], seen[6:]):
        order = torch.cat(epoch)
        assert torch.equal(order.sort().values, torch.arange(len(x)))
        assert not torch.equal(order, torch.arange(len(x)))
    assert_same(params(model), expected, rtol=1e-6, atol=1e-9)
    assert torch.equal(x, given)


@pytest.mark.parametrize("rows", [900, 3000], ids=["one batch", "several batches"])
@pytest.mark.parametrize("threads", [1, 2])
def test_results_of_ordered_rows_are_in_the_users_order(family, small_batches, rows, threads):
    torch.set_num_threads(threads)
    x = clusters(rows, 4, apart=20.0)
    given, labels = x.clone(), torch.arange(rows) % 6
    model = started(family, x, 6)
    em = EM(model, PARTITIONS["truncated"](model))
    seen = spied(em)
    quiet(em, x, warmup=5, epochs=12, search_every=1)
    assert any(not torch.equal(index, index.sort().values) for index in seen)  # an order was chosen
    assert torch.equal(winners(em), labels)
    assert torch.equal(assign(model, x), labels)
    assert torch.equal(assign(model, x, guide=em.guide), labels)
    assert torch.equal(x, given)


def test_rows_come_by_their_winners_once_these_are_known(small_batches):
    x = clusters(3000, 4, apart=20.0)
    model = started(FAMILIES["diagonal"], x, 6)
    em = EM(model, PARTITIONS["truncated"](model))
    seen = spied(em)
    quiet(em, x, warmup=12, epochs=1)
    won = winners(em)[torch.cat(seen)]
    assert len(won) == len(x)
    assert int((won.diff() != 0).sum()) == 5


# Narrow rows.


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("narrow", [torch.uint8, torch.float16], ids=["uint8", "float16"])
@pytest.mark.parametrize("partition", ["exact", "truncated"])
def test_narrow_rows_give_the_parameters_of_the_same_rows_as_floats(
    family, partition, narrow, dtype, small_batches
):
    x = (20 * clusters(1500, 4) + 128).clamp(0, 255).round().to(narrow)
    given, found = x.clone(), []
    for rows in (x, x.to(dtype)):
        model = started(family, x, 6, dtype)
        em = EM(model, PARTITIONS[partition](model))
        history = quiet(em, rows).history
        found.append((params(model), history["elbo"]))
    assert torch.equal(x, given)
    (mine, elbo), (theirs, expected) = found
    np.testing.assert_allclose(elbo, expected, rtol=1e-6)
    assert_same(mine, theirs, rtol=1e-5, atol=1e-5)


def wide_rows():
    """Features of scale 1e-3 to 1e3, all around 1e3: as float32 the smallest have 4 bits left."""
    scale = 10.0 ** torch.arange(-3, 4, dtype=F64)
    return (1e3 + scale * clusters(600, 7, components=4)).to(F32), scale


@pytest.mark.parametrize("partition", ["exact", "all"])
def test_float32_fits_agree_with_those_in_float64(family, partition):
    x, _ = wide_rows()
    narrow = started(family, x, 4, F32)
    start = copy.deepcopy(narrow)
    found = {}
    for dtype in (F32, F64):
        pyro.clear_param_store()
        model, rows = copy.deepcopy(start).to(dtype), x.to(dtype)
        before = log_evidence(model, rows).detach()
        em = EM(model, PARTITIONS[partition](model), empty="keep")
        em.guide.posterior(rows)  # finds all candidates
        loss = em.step(rows)
        values = {
            n: getattr(model, n).detach().double() for n in ("weights", "loc", *em_names(model))
        }
        after = log_evidence(model, rows).detach()
        pyro.clear_param_store()
        exact = log_evidence(copy.deepcopy(model).double(), rows.double()).detach()
        torch.testing.assert_close(after.double(), exact, rtol=1e-4, atol=1e-4)
        found[dtype] = values, loss, before.double(), after.double()
    mine, loss, before, after = found[F32]
    theirs, expected_loss, expected_before, expected_after = found[F64]
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    torch.testing.assert_close(before, expected_before, rtol=1e-4, atol=1e-4)
    # Means that float32 can hold differ from the best ones by up to 3 % of the smallest deviation.
    assert after.sum().item() == pytest.approx(expected_after.sum().item(), rel=5e-4)
    deviation = x.double().std(0)
    rounding = torch.finfo(F32).eps * x.double().abs().amax(0)
    assert bool(((mine["loc"] - theirs["loc"]).abs() <= 1e-4 * deviation + rounding).all())
    torch.testing.assert_close(mine["weights"], theirs["weights"], rtol=1e-4, atol=1e-6)
    for name in em_names(narrow):
        a, b = (
            in_deviations(name, mine[name], deviation),
            in_deviations(name, theirs[name], deviation),
        )
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def em_names(model):
    if isinstance(model, MixtureOfFactorAnalyzers):
        return ("factor", "noise")
    return ("scale_tril",) if model.covariance == "full" else ("scale",)


def in_deviations(name, value, deviation):
    """Arguments of the covariances where every feature has its own unit."""
    if name == "noise":
        return value / deviation.square()
    if name == "scale":
        return value if value.dim() == 1 else value / deviation
    return value / deviation.unsqueeze(-1)
