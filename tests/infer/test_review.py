"""Programs that EM or scoring once got silently wrong, each now right or refused."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import constraints

from pyro_mixtures import (
    EM,
    Categoricals,
    DiagonalNormals,
    MixtureWeights,
    assign,
    data_plate,
    fit,
    log_evidence,
)
from pyro_mixtures.errors import ClosedFormError, DataError, ModelError, SharedParamsWarning
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.models import GaussianMixture

LOC = torch.tensor([[-2.0, 0.0], [2.0, 0.5]])


def rows(n: int = 200) -> torch.Tensor:
    return LOC[torch.arange(n) % 2] + torch.randn(n, 2)


def params():
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    loc = pyro.param("loc", LOC + 0.3)
    return weights, loc, pyro.param("scale", torch.ones(2, 2), constraint=constraints.positive)


def base(x, index=None, size=None, scale=1.0, mask=True):
    weights, loc, sd = params()
    with data_plate(x, index, size):
        z = pyro.sample("z", MixtureWeights(weights))
        with poutine.scale(scale=scale), poutine.mask(mask=mask):
            pyro.sample("x", DiagonalNormals(loc, sd)[z], obs=x)


def test_a_factor_outside_the_data_plate_is_refused_by_em():
    def model(x):
        base(x)
        pyro.factor("prior", -pyro.param("loc").square().sum())

    with pytest.raises(ClosedFormError, match=r"prior.*outside the data plate"):
        EM(model, FullPartition(model, components=2)).step(rows())


def test_row_weights_of_one_site_reach_its_m_step():
    x, row_weights = rows(), torch.rand(200) + 0.1
    em = EM(base, FullPartition(base, components=2))
    for _ in range(200):
        em.step(x, scale=row_weights)
    loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        base, FullPartition(base, components=2), x, scale=row_weights
    )
    (slope,) = torch.autograd.grad(loss, [pyro.param("loc").unconstrained()])
    assert slope.abs().max() < 0.05


def test_a_global_scale_changes_nothing_about_em():
    x = rows()
    scaled = poutine.scale(base, scale=1 / len(x))
    EM(scaled, FullPartition(scaled, components=2)).step(x)
    found = pyro.param("loc").detach().clone()
    pyro.clear_param_store()
    EM(base, FullPartition(base, components=2)).step(x)
    torch.testing.assert_close(found, pyro.param("loc").detach())


def test_masked_placeholders_of_one_site_never_reach_the_params():
    x = rows()
    seen = torch.arange(len(x)) % 4 > 0
    holes = torch.where(seen.unsqueeze(-1), x, torch.nan)
    em = EM(base, FullPartition(base, components=2))
    with pyro.validation_enabled(False):
        em.step(holes, mask=seen)
    found = pyro.param("loc").detach().clone()
    pyro.clear_param_store()
    EM(base, FullPartition(base, components=2)).step(x[seen])
    torch.testing.assert_close(found, pyro.param("loc").detach())


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
    assert -6 < fitted.elbo < -2  # nats a row, not a fifth of them


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


def test_a_masked_distribution_is_read_like_a_mask():
    x, seen = rows(), torch.arange(200) % 4 > 0

    def model(x):
        weights, loc, sd = params()
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(weights))
            pyro.sample("x", DiagonalNormals(loc, sd)[z].mask(seen), obs=x)

    EM(model, FullPartition(model, components=2)).step(x)
    found = pyro.param("loc").detach().clone()
    pyro.clear_param_store()
    EM(base, FullPartition(base, components=2)).step(x, mask=seen)
    torch.testing.assert_close(found, pyro.param("loc").detach())


def masked(x, mask, index=None, size=None):
    """All of a row is masked, z too."""
    with poutine.mask(mask=mask):
        base(x, index=index, size=size)


def test_batches_of_masked_rows_add_nothing():
    x, seen = rows(), torch.arange(200) < 100
    em = EM(masked, FullPartition(masked, components=2))
    loss = sum(em.accumulate(x[some], seen[some]) for some in (slice(0, 100), slice(100, 200)))
    em.maximize()
    found = pyro.param("loc").detach().clone()
    pyro.clear_param_store()
    assert EM(base, FullPartition(base, components=2)).step(x[seen]) == pytest.approx(loss)
    torch.testing.assert_close(found, pyro.param("loc").detach())


def test_nothing_but_masked_rows_is_refused():
    em = EM(masked, FullPartition(masked, components=2))
    with pytest.raises(DataError, match="all 200 rows have weight zero, or are masked"):
        em.step(rows(), torch.zeros(200, dtype=torch.bool))


def test_stepwise_em_survives_a_minibatch_of_masked_rows():
    em = EM(masked, FullPartition(masked, components=2), step_size=lambda t: 0.5)
    em.step(rows(), torch.ones(200, dtype=torch.bool))
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    em.step(rows(), torch.zeros(200, dtype=torch.bool))
    for name, value in before.items():  # the statistics shrink, what they fit does not
        torch.testing.assert_close(pyro.param(name).detach(), value)
