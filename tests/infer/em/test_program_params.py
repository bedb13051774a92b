"""Which params of a program EM updates, and programs that EM or scoring refuses."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyro_mixtures import (
    EM,
    Categoricals,
    DiagonalNormals,
    MixtureWeights,
    assign,
    fit,
    log_evidence,
)
from pyro_mixtures.errors import ClosedFormError, ModelError, SharedParamsWarning
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.models import GaussianMixture
from tests.infer.em.two_normals import LOC, base, params, rows


def test_a_factor_outside_the_data_plate_is_refused_by_em():
    def model(x):
        base(x)
        pyro.factor("prior", -pyro.param("loc").square().sum())

    with pytest.raises(ClosedFormError, match=r"prior.*outside the data plate"):
        EM(model, FullPartition(model, components=2)).step(rows())


def test_models_that_subsample_themselves_cannot_be_scored():
    def model(x):
        weights, loc, sd = params()
        with pyro.plate("data", len(x), subsample_size=min(40, len(x))) as i:
            z = pyro.sample("z", MixtureWeights(weights))
            pyro.sample("x", DiagonalNormals(loc, sd)[z], obs=x[i])

    for score in (log_evidence, assign):
        with pytest.raises(ModelError, match="40 of 200 rows"):
            score(model, rows())
    fitted = fit(EM(model, FullPartition(model, components=2)), rows(), epochs=3, progress=False)
    assert -6 < fitted.elbo < -2  # nats per row of all rows, not of a fifth


def test_dropped_components_leave_every_row_a_live_candidate():
    x = torch.randn(300, 2)
    model = GaussianMixture(components=100, features=2)
    em = EM(
        model,
        TruncatedPartition(model, components=100, candidates=2, neighbors=4, seed=0),
        empty="drop",
    )
    for _ in range(12):
        em.step(x)
        assert em.evaluate_loss(x) < float("inf")
    assert em.last_update.dropped > 0


def test_frozen_leaves_stay():
    model = GaussianMixture(components=2, features=2)
    model.scale_unconstrained.requires_grad_(False)
    EM(model, FullPartition(model, components=2)).step(rows())
    assert bool((model.scale == 1).all())


def test_a_constant_is_not_taken_for_a_param_of_equal_value():
    def model(x):
        weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        loc = pyro.param("loc", LOC[:, 0] + 0.1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], 0.5), obs=x)

    EM(model, FullPartition(model, components=2)).step(rows()[:, 0])


def test_an_error_in_a_pass_leaves_no_statistics_behind():
    x = rows()
    x[150] = torch.nan
    em = EM(base, FullPartition(base, components=2))
    with pytest.raises(ValueError, match="nan"):
        fit(em, x, batch_size=100, progress=False)
    clean = rows()
    loss = em.step(clean)
    found = pyro.param("loc").detach().clone()
    pyro.clear_param_store()
    again = EM(base, FullPartition(base, components=2))
    assert again.step(clean) == pytest.approx(loss)
    torch.testing.assert_close(found, pyro.param("loc").detach())


def test_copies_of_a_model_say_that_the_store_holds_the_original():
    model = GaussianMixture(components=2, features=2)
    guide = FullPartition(model, components=2)
    EM(model, guide).step(rows())
    other, others_guide = copy.deepcopy((model, guide))
    with pytest.warns(SharedParamsWarning, match="clear_param_store"):
        EM(other, others_guide).evaluate_loss(rows())


def test_labels_are_counted_beyond_what_float32_can_hold():
    n = (1 << 24) + 8
    z = torch.zeros(1, dtype=torch.int64).expand(n)
    counts = (
        Categoricals(torch.tensor([[0.5, 0.5]]))[z].statistics(z, torch.ones(1).expand(n)).counts
    )
    assert counts[0, 0] == n


def test_a_function_of_a_param_is_not_taken_for_the_param():
    def model(x):
        weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        loc = pyro.param("loc", LOC)
        variance = pyro.param("variance", torch.ones(2, 2), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], variance[z].sqrt()).to_event(1), obs=x)

    with pytest.raises(ClosedFormError, match="computed from params"):
        EM(model, FullPartition(model, components=2)).step(rows())
    assert bool((pyro.param("variance") == 1).all())
