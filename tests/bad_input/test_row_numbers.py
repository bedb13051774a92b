"""Errors name rows by their numbers in the user's data, not by those in a batch or a chunk."""

import pickle

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO

from pyro_mixtures.errors import DataError, MixtureError, NumericalError, row_numbers
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import (
    EM,
    assign,
    conditional,
    fit,
    log_evidence,
    reconstruct,
    responsibilities,
    standard_errors,
)
from pyro_mixtures.models import GaussianMixture, KMeans
from pyro_mixtures.models.linear_regressions import MixtureOfRegressions
from pyro_mixtures.models.support_vector_machines import MixtureOfSVMs

N, ROW = 50, 33


def gaussian():
    return GaussianMixture(components=2, features=2)


def em(model, strategy=FullPartition):
    options = {"candidates": 1, "neighbors": 1} if strategy is TruncatedPartition else {}
    return EM(model, strategy(model, components=2, **options))


def svi(model):
    guide = FullPartition(model, components=2)
    return SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1))


USES = {
    "fit": lambda m, *x: fit(em(m), *x, progress=False),
    "minibatches": lambda m, *x: fit(em(m), *x, batch_size=7, progress=False),
    "truncated": lambda m, *x: fit(em(m, TruncatedPartition), *x, batch_size=7, progress=False),
    "stepwise": lambda m, *x: fit(
        EM(m, FullPartition(m, components=2), step_size=lambda t: t**-0.6),
        *x,
        batch_size=7,
        progress=False,
    ),
    "SVI": lambda m, *x: fit(svi(m), *x, batch_size=7, progress=False),
    "log_evidence": lambda m, *x: log_evidence(m, *x, chunk=7),
    "responsibilities": lambda m, *x: responsibilities(m, *x, chunk=7),
    "assign": lambda m, *x: assign(m, *x, chunk=7),
    "with a guide": lambda m, *x: assign(
        m, *x, chunk=7, guide=TruncatedPartition(m, components=2, candidates=1, neighbors=1)
    ),
    "reconstruct": lambda m, *x: reconstruct(m, *x, noise=0.1, chunk=7),
    "standard_errors": lambda m, *x: standard_errors(m, *x, chunk=7),
}
WITHOUT_RECONSTRUCTION = [name for name in USES if name != "reconstruct"]


@pytest.mark.parametrize("use", USES)
def test_rows_that_are_not_finite_are_named_by_their_numbers(use):
    x = torch.randn(N, 2)
    x[ROW, 1] = torch.nan
    with pytest.raises(DataError, match=rf"'x' holds nan at \[{ROW}, 1\]"):
        USES[use](gaussian(), x)


@pytest.mark.parametrize("use", [name for name in USES if name != "standard_errors"])
def test_rows_whose_density_vanishes_are_named_by_their_numbers(use):
    x = torch.randn(N, 2)
    x[ROW, 1] = 1e25
    with pytest.raises(NumericalError, match=f"row {ROW} has log joint -inf"):
        USES[use](gaussian(), x)


def test_rows_with_missing_features_are_named_by_their_numbers():
    x = torch.randn(N, 2)
    x[ROW, 1] = 1e25
    x[[3, ROW], 0] = torch.nan
    with pytest.raises(MixtureError, match=f"row {ROW} "):
        conditional(gaussian(), x, chunk=1)


@pytest.mark.parametrize("use", WITHOUT_RECONSTRUCTION)
def test_covariates_that_are_not_finite_are_named_by_their_numbers(use):
    x = torch.randn(N, 2)
    x[ROW, 0] = torch.inf
    with pytest.raises(DataError, match=f"row {ROW} of the model's argument 0 contains NaN"):
        USES[use](MixtureOfRegressions(components=2, features=2), x, torch.randn(N))


def test_the_m_step_names_rows_by_their_numbers():
    x, y = torch.randn(N, 2), torch.arange(N) % 2
    x[ROW, 0] = torch.inf
    with pytest.raises(DataError, match=f"row {ROW} of "):
        USES["minibatches"](MixtureOfSVMs(components=2, features=2), x, y)


@pytest.mark.parametrize("use", USES)
def test_row_weights_are_named_by_their_numbers(use):
    weight = torch.ones(N)
    weight[ROW] = -1.0
    with pytest.raises(DataError, match=rf"row_weight of row {ROW} is -1\.0"):
        USES[use](gaussian(), torch.randn(N, 2), weight)


@pytest.mark.parametrize("use", ["minibatches", "assign"])
def test_rows_without_a_direction_are_named_by_their_numbers(use):
    x = torch.randn(N, 2)
    x[ROW] = 0
    with pytest.raises(DataError, match=f"row {ROW} is all zeros"):
        USES[use](KMeans(components=2, features=2, spherical=True), x)


def test_numbers_are_restated_from_the_inside_out_and_survive_pickling():
    with (
        pytest.raises(DataError, match=r"row 107 of \{rows") as raised,
        row_numbers(lambda row: 100 + row),
        row_numbers(lambda row: row + 2),
    ):
        raise DataError.at_row(5, "row {row} of {rows}")
    assert str(pickle.loads(pickle.dumps(raised.value))) == "row 107 of {rows}"
    with pytest.raises(DataError, match="no row"), row_numbers(lambda row: 100 + row):
        raise DataError("no row")
