"""The history of a fit: its columns, and what they count."""

import json

import numpy as np
import pytest
import torch

from pyro_mixtures.errors import OptionError
from pyro_mixtures.guides import FullPartition, SearchingGuide
from pyro_mixtures.infer import Epoch, History, log_evidence
from tests.infer.em.strategies import C, N, exact, quiet, truncated

pytestmark = pytest.mark.usefixtures("on_one_thread")


# History.


def test_history_has_columns_and_a_dict_for_json(x, strategy):
    found = quiet(strategy(x), x, epochs=3, batch_size=40)
    history = found.history
    assert isinstance(history, History)
    columns = history.to_dict()
    assert list(columns) == [name for name in Epoch._fields if name != "details"]
    assert json.loads(json.dumps(columns)) == columns
    for name in columns:
        assert history[name].tolist() == columns[name]
        assert len(history[name]) == len(history)
    assert np.diff(history["seconds"]).min() >= 0
    assert found.elbo == history["elbo"][-1]
    assert (history["live"] >= 1).all()
    assert (history["live"] <= C).all()
    with pytest.raises(OptionError, match="no column 'loss'"):
        history["loss"]


@pytest.mark.parametrize("batch_size", [None, 40])
def test_recorded_elbo_is_the_log_evidence_before_the_update(x, batch_size):
    em = exact(x)
    expected = log_evidence(em.model, x).mean().item()
    elbos = [expected]
    quiet(
        em,
        x,
        epochs=3,
        batch_size=batch_size,
        callbacks=[lambda f: elbos.append(log_evidence(f.model, x).mean().item())],
    )
    found = quiet(em, x, epochs=1)
    assert found.elbo == pytest.approx(elbos[-1], rel=1e-12)
    assert -em.evaluate_loss(x) / N == pytest.approx(
        log_evidence(em.model, x).mean().item(), rel=1e-12
    )
    assert elbos == sorted(elbos)


@pytest.mark.parametrize("batch_size", [None, 40])
def test_evaluations_are_those_of_all_posteriors(x, strategy, batch_size):
    inference = strategy(x)
    counted, posterior = [], inference.guide.posterior

    def counting(*args, **kwargs):
        found = posterior(*args, **kwargs)
        counted.append(found.evaluations)
        return found

    inference.guide.posterior = counting
    totals = []
    found = quiet(
        inference,
        x,
        epochs=3,
        batch_size=batch_size,
        callbacks=[lambda _: totals.append(sum(counted))],
    )
    assert found.history["evaluations"].tolist() == totals
    if type(inference.guide) is FullPartition:
        assert totals == [N * C, 2 * N * C, 3 * N * C]


def test_evaluations_count_from_the_start_of_each_fit(x):
    em = exact(x)
    for _ in range(2):
        assert quiet(em, x, epochs=2).history["evaluations"].tolist() == [N * C, 2 * N * C]
    assert em.guide.evaluations == 4 * N * C


@pytest.mark.parametrize(
    ("empty", "reseeded", "dropped"), [("reseed", 1, 0), ("drop", 0, 1), ("keep", 0, 0)]
)
@pytest.mark.parametrize("build", [exact, truncated])
def test_history_counts_what_was_reseeded_and_dropped(x, build, empty, reseeded, dropped):
    em = build(x, empty=empty)
    with torch.no_grad():
        em.model.loc[2] += 1e4
    found = quiet(em, x, epochs=1)
    searching = found.history["phase"] == "warm-up"
    assert searching.sum() == 2 * isinstance(em.guide, SearchingGuide)
    for name, expected in (("reseeded", reseeded), ("dropped", dropped)):
        assert found.history[name][searching].tolist() == [0, 0][: searching.sum()]
        assert found.history[name][-1] == expected
    assert found.history["live"][-1] == C - 1


def test_a_fit_prints_in_one_line(x, strategy):
    """However many epochs and rows it has."""
    fitted = quiet(strategy(x), x, epochs=3, batch_size=40)
    assert repr(fitted.history).startswith("History(")
    assert f"{len(fitted.history)} epochs" in repr(fitted)
    assert "elbo=" in repr(fitted)
    assert "\n" not in repr(fitted)
    assert len(repr(fitted)) < 200


def test_an_empty_history_prints():
    assert repr(History()) == "History(0 epochs)"
