"""Epochs that search for candidates and epochs that re-weigh them, and what a fit leaves behind."""

import math

import numpy as np
import pytest
import torch

from pyro_mixtures.guides import SearchingGuide
from pyro_mixtures.infer import EM, fit
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


# Epochs that search, and epochs that do not.


@pytest.mark.parametrize("search_every", [1, 3, None])
def test_fits_search_in_the_epochs_that_were_asked_for(family, search_every):
    x = clusters(700, 3, apart=1.5)
    model = started(family, x, 8)
    em = EM(model, PARTITIONS["truncated"](model), empty="keep")
    history = quiet(em, x, epochs=12, warmup=2, search_every=search_every).history
    updates = history["phase"] == "EM"
    assert history["searched"][~updates].tolist() == [True] * 2
    searched = history["searched"][updates]
    if search_every is None:
        assert searched[:2].tolist() == [True, False]
        assert not any(
            not searched[k : k + 5].any() for k in range(len(searched) - 4)
        )  # at most four between
    else:
        assert searched.tolist() == [epoch % search_every == 0 for epoch in range(12)]
    spent = np.diff(history["evaluations"], prepend=0)[updates]
    assert (spent[~searched] == len(x) * em.guide.candidates).all()
    assert (spent[searched] > len(x) * em.guide.candidates).all()
    elbo = history["elbo"]
    assert np.diff(elbo).min() >= -1e-10 * np.abs(elbo).max()


@pytest.mark.parametrize("search_every", [1, 3, None])
def test_exact_guides_search_nothing(family, search_every):
    x = clusters(300, 3, apart=1.5)
    model = started(family, x, 5)
    history = quiet(
        EM(model, PARTITIONS["exact"](model)), x, epochs=7, search_every=search_every
    ).history
    assert history["searched"].tolist() == [False] * 7
    assert np.diff(history["evaluations"], prepend=0).tolist() == [5 * len(x)] * 7


def test_only_epochs_that_search_end_a_fit():
    x = clusters(300, 3)
    model = started(FAMILIES["diagonal"], x, 5)
    em = EM(model, PARTITIONS["truncated"](model), empty="keep")
    found = fit(
        em, x, epochs=100, tolerance=math.inf, patience=2, search_every=4, warmup=0, progress=False
    )
    assert found.converged
    assert (
        found.history["searched"].nonzero()[0].tolist()
        == [0, 4, 8][: int(found.history["searched"].sum())]
    )
    assert found.history["searched"][-1]
    assert found.history["searched"].sum() >= 2


def far_away(family, dtype):
    """Three clusters of many features, and six components of which two are far from all rows."""
    x = clusters(600, 64, components=3).to(dtype)
    model = started(family, x, 6, dtype)
    with torch.no_grad():
        model.loc[4:] += 1e3
    return x, EM(model, PARTITIONS["truncated"](model), empty="reseed")


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("search_every", [1, 3, None])
def test_components_are_reseeded_by_epochs_that_search_only_and_keep_rows(
    family, search_every, dtype
):
    x, em = far_away(family, dtype)
    history = quiet(em, x, epochs=10, search_every=search_every).history
    updates = history["phase"] == "EM"
    searched, reseeded, live = (history[name][updates] for name in ("searched", "reseeded", "live"))
    assert reseeded[~searched].sum() == 0
    assert reseeded.sum() == 2  # re-seeded components have enough rows to stay non-empty
    assert np.diff(live).min() >= 0
    assert live[-1] == 6
    assert em.guide.rows_won.min() > 20


@pytest.mark.parametrize("search_every", [2, 3])
def test_a_component_that_becomes_empty_between_searches_waits_for_the_next_one(search_every):
    x = clusters(600, 3, components=3, apart=10.0)
    model = started(FAMILIES["diagonal"], x, 6)
    em = EM(model, PARTITIONS["truncated"](model), empty="reseed")

    def take_away(found):
        """Before the second epoch, which re-weighs."""
        if len(found.history) == 3:
            with torch.no_grad():
                model.loc[5] += 1e4

    history = quiet(
        em, x, epochs=search_every + 1, search_every=search_every, callbacks=[take_away]
    ).history
    updates = history["phase"] == "EM"
    expected = [epoch % search_every == 0 for epoch in range(search_every + 1)]
    assert history["searched"][updates].tolist() == expected
    reseeded = history["reseeded"][updates].tolist()
    assert reseeded[0] == 0
    assert reseeded[1:] == [0] * (search_every - 1) + [1]


def finished(em, found=None):
    if isinstance(em.guide, SearchingGuide):
        assert em.guide.search is True
    assert em.guide.reuse is None
    assert not em._sites
    if found is not None:
        assert found.history["searched"].tolist().count(False) > 0  # search was off at times


def test_after_a_fit_the_guide_searches_and_reuses_nothing(small_batches):
    x = clusters(1500, 3)
    model = started(FAMILIES["diagonal"], x, 6)
    em = EM(model, PARTITIONS["truncated"](model), empty="keep")
    finished(em, quiet(em, x, epochs=5, search_every=9))


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("epoch", [1, 4], ids=["warm-up", "EM"])
def test_after_an_error_of_a_callback_the_guide_searches_and_reuses_nothing(
    error, epoch, small_batches
):
    x = clusters(1500, 3)
    model = started(FAMILIES["diagonal"], x, 6)
    em = EM(model, PARTITIONS["truncated"](model), empty="keep")
    states = []

    def broken(found):
        states.append(found.guide.search)
        if len(found.history) == epoch:
            raise error

    if error is KeyboardInterrupt:
        assert quiet(em, x, epochs=5, search_every=9, callbacks=[broken]).interrupted
    else:
        with pytest.raises(error):
            quiet(em, x, epochs=5, search_every=9, callbacks=[broken])
    assert states[-1] == (epoch == 1)
    finished(em)


def test_after_an_error_between_batches_the_next_fit_is_that_of_a_fresh_start(small_batches):
    x = clusters(3000, 3)
    model = started(FAMILIES["diagonal"], x, 6)
    quiet(EM(model, PARTITIONS["exact"](model)), x, epochs=2)
    expected = params(model)
    model = started(FAMILIES["diagonal"], x, 6)
    em = EM(model, PARTITIONS["exact"](model))
    accumulate, calls = em.accumulate, []

    def broken(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError
        return accumulate(*args, **kwargs)

    em.accumulate = broken
    threads = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        quiet(em, x)
    finished(em)
    assert torch.get_num_threads() == threads
    quiet(em, x, epochs=2)
    assert_same(params(model), expected, rtol=0, atol=0)
