"""Degenerate rows are fitted without NaN; errors on vanishing densities name the remedy."""

import math

import pyro
import pytest
import torch

from pyro_mixtures.errors import (
    ClosedFormError,
    DataError,
    MixtureError,
    ModelError,
    NumericalError,
    OptionError,
    PartitionError,
)
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import conditional, reconstruct
from tests.bad_input.inputs import (
    MODELS,
    ROWS,
    STRATEGIES,
    C,
    assert_fits,
    clusters,
    draw_rows,
    gaussian,
    guide_of,
    svi,
)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_params_that_diverged_are_named_with_the_remedy(strategy):
    """With validation enabled, torch refuses them first."""
    model = gaussian()
    with torch.no_grad():
        model.loc[1, 0] = math.nan
    message = r"param 'loc' is not finite.*lower the learning"
    with pyro.validation_enabled(False), pytest.raises(NumericalError, match=message):
        guide_of(
            strategy, model, **({} if strategy is FullPartition else {"neighbors": C})
        ).posterior(draw_rows())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_whose_density_vanishes_everywhere_are_named_with_the_remedy(strategy):
    x = draw_rows()
    x[6] = 3e30
    with pytest.raises(NumericalError, match=r"row 6 has log joint -inf .*float64"):
        guide_of(strategy, gaussian()).posterior(x)


def test_prediction_names_what_it_lacks():
    model, x = gaussian(), draw_rows()
    with pytest.raises(OptionError, match="pass noise="):
        reconstruct(model, x)
    with pytest.raises(ModelError, match=r"no observed site 'y'; it has \['x'\]"):
        reconstruct(model, x, noise=0.1, observed="y")
    with pytest.raises(ModelError, match=r"no observed site 'y'; it has \['x'\]"):
        conditional(model, x, observed="y")


def test_all_errors_are_one_family_and_values_errors():
    typed = (OptionError, DataError, ModelError, PartitionError, ClosedFormError, NumericalError)
    assert all(issubclass(error, MixtureError) and issubclass(error, ValueError) for error in typed)


# ---------------------------------------------------------------- degenerate rows


@pytest.mark.meta
@pytest.mark.parametrize("rows", ROWS)
def test_awkward_rows_are_fitted_without_nan_by_the_truncated_guide(rows):
    assert_fits(gaussian, ROWS[rows](), TruncatedPartition)


@pytest.mark.meta
@pytest.mark.parametrize("family", ["diagonal", "full", "H=1"])
@pytest.mark.parametrize("rows", ROWS)
def test_awkward_rows_are_fitted_without_nan(rows, family):
    assert_fits(MODELS[family], ROWS[rows](), FullPartition)


@pytest.mark.meta
@pytest.mark.parametrize("family", ["isotropic", "tied full", "H=0", "H=1 tied"])
@pytest.mark.parametrize("rows", ["constant feature", "three distinct rows", "N = C"])
def test_degenerate_rows_are_fitted_without_nan_by_the_other_families(rows, family):
    assert_fits(MODELS[family], ROWS[rows](), FullPartition)


def test_no_factors_are_a_diagonal_mixture():
    x, found = clusters(), []
    for build in (gaussian, MODELS["H=0"]):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        found.append(assert_fits(build, x, FullPartition)[2].elbo)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.meta
@pytest.mark.parametrize("family", MODELS)
def test_one_component_is_the_maximum_likelihood_normal(family):
    x = clusters()
    model, _, _ = assert_fits(MODELS[family], x, FullPartition, components=1)
    torch.testing.assert_close(model.loc.detach()[0], x.mean(0), rtol=1e-4, atol=1e-3)
    if family == "full":
        covariance = model.scale_tril[0] @ model.scale_tril[0].T
        torch.testing.assert_close(
            covariance.detach(), torch.cov(x.T, correction=0), rtol=1e-3, atol=1e-3
        )


@pytest.mark.meta
def test_one_component_is_fitted_by_the_truncated_guide():
    x = clusters()
    model, _, _ = assert_fits(
        gaussian, x, TruncatedPartition, components=1, candidates=1, neighbors=1
    )
    torch.testing.assert_close(model.loc.detach()[0], x.mean(0), rtol=1e-4, atol=1e-3)


@pytest.mark.meta
@pytest.mark.parametrize(
    "options",
    [
        {"candidates": 1},
        {"neighbors": 1},
        {"neighbors": 5},
        {"explore": 0},
        {"neighbors": 1, "explore": 0},
        {"candidates": 5, "neighbors": 5, "explore": 20},
        {"candidates": 1, "neighbors": 1, "explore": 0},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()),
)
def test_extreme_options_of_the_truncated_guide_are_fitted_without_nan(options):
    x = clusters()
    _, guide, _ = assert_fits(gaussian, x, TruncatedPartition, components=5, **options)
    guide.sets.check()


def test_all_candidates_give_the_exact_fit():
    x = clusters()
    found = []
    for strategy, options in (
        (FullPartition, {}),
        (TruncatedPartition, {"candidates": 3, "neighbors": 3}),
    ):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        _, _, result = assert_fits(gaussian, x, strategy, **options)
        found.append(result.elbo)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rows", ["constant feature", "three distinct rows", "N = C + 1"])
def test_svi_on_awkward_rows_stays_finite(rows, strategy):
    x = ROWS[rows]()
    model = gaussian(3, x.shape[1])
    inference = svi(model, guide_of(strategy, model, components=3))
    assert all(math.isfinite(inference.step(x)) for _ in range(5))
    assert all(bool(value.isfinite().all()) for value in pyro.get_param_store().values())
