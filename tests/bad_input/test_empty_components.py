"""Empty components are re-seeded, dropped or kept, and counted."""

import math

import numpy as np
import pyro
import pytest
import torch

from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, assign, fit
from tests.bad_input.inputs import MODELS, STRATEGIES, clusters, gaussian, guide_of

CASES = [
    (TruncatedPartition, "diagonal"),
    (TruncatedPartition, "full"),
    *((FullPartition, family) for family in ("diagonal", "tied full", "H=0", "H=1")),
]


def fit_with_an_empty_component(strategy, empty, family="diagonal", epochs=4):
    """A fit that starts with component 2 of four far from all rows."""
    x = clusters(60)
    model = MODELS[family](4, x.shape[1])
    with torch.no_grad():
        model.loc.copy_(torch.stack([x[0], x[1], x[0] + 1e4, x[2]]))
    options = {"candidates": 3, "neighbors": 4} if strategy is TruncatedPartition else {}
    guide = guide_of(strategy, model, components=4, **options)
    # Without tolerance, the fit cannot converge before the last epoch.
    found = fit(
        EM(model, guide, empty=empty),
        x,
        epochs=epochs,
        warmup=3,
        tolerance=-math.inf,
        progress=False,
    )
    assert np.isfinite(found.history["elbo"]).all()
    assert all(bool(value.isfinite().all()) for value in pyro.get_param_store().values())
    return model, x, found


@pytest.mark.meta
@pytest.mark.parametrize(("strategy", "family"), CASES)
def test_empty_component_is_reseeded_and_counted(strategy, family):
    model, _, found = fit_with_an_empty_component(strategy, "reseed", family)
    em_epochs = found.history["phase"] == "EM"
    assert found.history["reseeded"][em_epochs][0] == 1
    assert found.history["dropped"].sum() == 0
    assert float(model.loc.detach()[2].abs().max()) < 100
    assert float(model.weights.detach()[2]) > 0.005
    assert found.history["live"][-1] == 4


@pytest.mark.meta
@pytest.mark.parametrize(("strategy", "family"), CASES)
def test_empty_component_is_dropped_and_counted(strategy, family):
    model, x, found = fit_with_an_empty_component(strategy, "drop", family)
    em_epochs = found.history["phase"] == "EM"
    assert found.history["reseeded"].sum() == 0
    assert found.history["dropped"][em_epochs].tolist() == [1] * 4
    assert float(model.weights.detach()[2]) == 0
    assert float(model.weights.detach().sum()) == pytest.approx(1, rel=1e-5)
    assert found.history["live"][-1] == 3
    assert 2 not in assign(model, x)


@pytest.mark.meta
@pytest.mark.parametrize(("strategy", "family"), CASES)
def test_empty_component_is_kept_as_it_was(strategy, family):
    model, x, found = fit_with_an_empty_component(strategy, "keep", family)
    assert found.history["reseeded"].sum() == 0
    assert found.history["dropped"].sum() == 0
    torch.testing.assert_close(model.loc.detach()[2], x[0] + 1e4)
    assert found.history["live"][-1] == 3


@pytest.mark.parametrize("empty", ["reseed", "drop", "keep"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fit_with_all_components_but_one_empty_stays_finite(strategy, empty):
    x = clusters(30)
    model = gaussian(5, 3)
    with torch.no_grad():
        model.loc.copy_(
            1e4 * torch.arange(5.0, device="cpu").unsqueeze(-1) * torch.ones(3, device="cpu")
        )
    guide = guide_of(
        strategy, model, components=5, **({} if strategy is FullPartition else {"neighbors": 5})
    )
    found = fit(
        EM(model, guide, empty=empty), x, epochs=5, warmup=3, tolerance=-math.inf, progress=False
    )
    assert np.isfinite(found.history["elbo"]).all()
    assert all(bool(value.isfinite().all()) for value in pyro.get_param_store().values())


@pytest.mark.parametrize("empty", ["reseed", "drop", "keep"])
def test_stepwise_em_with_an_empty_component_stays_finite(empty):
    x = clusters(60)
    model = gaussian(4, 3)
    with torch.no_grad():
        model.loc.copy_(torch.stack([x[0], x[1], x[0] + 1e4, x[2]]))
    strategy = EM(
        model, FullPartition(model, components=4), empty=empty, step_size=lambda t: t**-0.6
    )
    found = fit(strategy, x, batch_size=20, epochs=4, tolerance=-math.inf, progress=False)
    assert np.isfinite(found.history["elbo"]).all()
    assert all(bool(value.isfinite().all()) for value in pyro.get_param_store().values())
