"""Rows that cannot be used: typed errors name the value and the remedy."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist

from pyro_mixtures.data import Batches, as_rows, average_patches, extract_patches
from pyro_mixtures.distributions import (
    Categoricals,
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    IsotropicNormals,
    MixtureWeights,
)
from pyro_mixtures.errors import DataError, MixtureError, OptionError, PartitionError
from pyro_mixtures.guides import FullPartition
from pyro_mixtures.infer import EM, fit, log_evidence
from pyro_mixtures.init import seed_rows
from pyro_mixtures.models.factor_analyzers import MixtureOfFactorAnalyzers
from pyro_mixtures.poutine import data_plate
from tests.bad_input.inputs import STRATEGIES, USES, C, D, N, draw_rows, gaussian, guide_of


@pytest.mark.meta
@pytest.mark.parametrize("use", USES)
def test_nan_rows_are_named_with_their_place_and_the_remedy(use):
    x = draw_rows()
    x[4, 1] = math.nan
    # In minibatches of 7 rows, the position is that in the batch.
    with pytest.raises(
        DataError, match=r"'x' holds nan at \[\d+, 1\]: remove such rows, or fill them in"
    ):
        use(gaussian(), x)


@pytest.mark.meta
@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_infinite_rows_are_named_with_their_place_and_the_remedy(strategy, covariance):
    x, model = draw_rows(), gaussian(covariance=covariance)
    for value in (math.inf, -math.inf):
        x[4, 1] = value
        with pytest.raises(
            DataError, match=rf"'x' holds {value} at \[4, 1\]: remove such rows, or fill them in"
        ):
            guide_of(strategy, model).posterior(x)


def test_place_of_a_row_that_is_not_finite_is_exact():
    x = draw_rows()
    x[4, 1] = math.nan
    with pytest.raises(DataError, match=r"holds nan at \[4, 1\]"):
        EM(model := gaussian(), FullPartition(model, components=C)).step(x)


def test_rows_that_are_not_finite_are_named_under_stock_distributions():
    def model(x):
        with data_plate(x):
            z = pyro.sample("z", dist.Categorical(torch.full((C,), 1 / C)))
            pyro.sample("x", dist.Normal(torch.zeros(C, D)[z], 1.0).to_event(1), obs=x)

    x = draw_rows()
    x[3, 0] = math.inf
    with pytest.raises(DataError, match=r"'x' holds inf at \[3, 0\]"):
        FullPartition(model, components=C).posterior(x)


@pytest.mark.meta
@pytest.mark.parametrize("method", ["afkmc2", "random"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_seeding_refuses_rows_that_are_not_finite(value, method):
    x = draw_rows()
    x[4, 1] = value
    with pytest.raises(DataError, match="row 4 contains NaN or infinity: remove such rows"):
        seed_rows(x, 3, method=method)


@pytest.mark.meta
@pytest.mark.parametrize("use", USES)
def test_rows_of_a_wrong_number_of_features_are_named_with_the_right_one(use):
    with pytest.raises(DataError, match=r"rows must be \(N, 2\), not \(\d+, 3\)"):
        use(gaussian(), draw_rows(features=D + 1))


@pytest.mark.meta
@pytest.mark.parametrize("shape", [(N,), (N, D, 1), (N, 1)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_of_a_wrong_shape_are_named_with_the_right_one(strategy, shape):
    with pytest.raises(DataError, match=r"rows must be \(N, 2\), not \(20"):
        guide_of(strategy, gaussian()).posterior(torch.zeros(shape, device="cpu"))


def program_of(build):
    """A plain program over rows with fixed parameters."""

    def model(x):
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(torch.full((C,), 1 / C)))
            pyro.sample("x", build(z), obs=x)

    return model


def normals(z):
    return DiagonalNormals(torch.zeros(C, D), torch.ones(C, D))[z]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shape", [(N, D + 1), (N, 1)])
def test_families_name_the_right_shape_of_rows_in_plain_programs(strategy, shape):
    with pytest.raises(DataError, match=r"rows of shape .* event shape \(2,\); pass rows \(N, 2\)"):
        guide_of(strategy, program_of(normals)).posterior(torch.zeros(shape))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3.0, "at least one dimension"),
        (torch.tensor(3.0), "at least one dimension"),
        (["a", "b"], "must be real numbers"),
        (torch.eye(3).to_sparse(), r"must be dense, not torch\.sparse_coo: pass x\.to_dense"),
        (np.array([[1.0], None], dtype=object), "must be real numbers"),
        ([[1.0, 2.0], [3.0]], "must all have the same shape"),
    ],
    ids=["number", "scalar", "strings", "sparse", "objects", "ragged"],
)
def test_objects_that_are_not_rows_are_refused(data, message):
    with pytest.raises(DataError, match=message):
        as_rows(data)


def test_no_rows_at_all_are_refused():
    model = gaussian()
    for use in (
        lambda: Batches([]),
        lambda: Batches([torch.zeros(0, D)]),
        lambda: model(torch.zeros(0, D)),
    ):
        with pytest.raises(DataError, match="no rows"):
            use()


def test_seeding_refuses_rows_that_are_not_a_matrix():
    with pytest.raises(DataError, match=r"rows must be \(N, D\), not \(20,\)"):
        seed_rows(torch.zeros(N), 2)


@pytest.mark.parametrize(
    "use",
    [
        log_evidence,
        lambda m, *t: fit(EM(m, FullPartition(m, components=C)), *t),
        lambda m, *t: Batches(t),
    ],
)
def test_tensors_of_different_lengths_are_refused(use):
    with pytest.raises(DataError, match=r"different numbers of rows: \[20, 19\]"):
        use(gaussian(), draw_rows(), draw_rows(N - 1))


@pytest.mark.parametrize("missing", ["a label out of range", "labels that are negative"])
def test_labels_out_of_range_are_refused(missing):
    labels = torch.tensor([0, 3 if missing == "a label out of range" else -1])
    with pytest.raises(DataError, match=r"labels lie in \[.*\], not in \[0, 3\)"):
        Categoricals(torch.full((C, 3), 1 / 3))[torch.tensor([0, 1])].log_prob(labels)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"5 x 5 do not fit an image of 4 x 6"):
        extract_patches(torch.zeros(4, 6), 5)
    with pytest.raises(DataError, match=r"are not those of an image of shape \(4, 6\)"):
        average_patches(torch.zeros(3, 4), (4, 6))
    with pytest.raises(DataError, match=r"an image is \(H, W\)"):
        extract_patches(torch.zeros(4), 2)


# ---------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full", "factors"])
def test_half_precision_parameters_on_the_cpu_are_refused(covariance, dtype):
    if covariance == "factors":
        model = MixtureOfFactorAnalyzers(components=C, features=D, factors=1).to(dtype)
    else:
        model = gaussian(covariance=covariance).to(dtype)
    with pytest.raises(
        OptionError, match=f"{dtype} on the CPU is not supported: use float32 or float64"
    ):
        EM(model, FullPartition(model, components=C)).step(draw_rows().to(dtype))


def test_half_precision_weights_on_the_cpu_are_refused_or_work():
    weights = torch.tensor([0.5, 0.25, 0.25, 0.0], device="cpu", dtype=torch.float16)
    try:
        found = MixtureWeights(weights).log_prob(torch.tensor([0, 1, 3], device="cpu"))
    except MixtureError as error:
        assert "float32" in str(error)  # noqa: PT017
        return
    torch.testing.assert_close(
        found.float().exp(), torch.tensor([0.5, 0.25, 0.0]), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize(
    "family", [IsotropicNormals, DiagonalNormals, FullNormals, FactorAnalyzers, Categoricals]
)
def test_integer_parameters_are_refused(family):
    shapes = {IsotropicNormals: [(C,)], DiagonalNormals: [(C, D)], FullNormals: [(C, D, D)]}
    shapes |= {FactorAnalyzers: [(C, D, 1), (C, D)], Categoricals: []}
    with pytest.raises(OptionError, match=r"floating-point parameters, not torch\.int64"):
        family(*(torch.ones(shape, dtype=torch.int64) for shape in [(C, D), *shapes[family]]))


@pytest.mark.meta
@pytest.mark.parametrize("use", USES)
def test_float64_rows_with_float32_parameters_are_refused_with_both_remedies(use):
    message = (
        r"rows are torch\.float64 but the parameters torch\.float32: "
        r".*model\.double\(\) or x\.float\(\)"
    )
    with pytest.raises(DataError, match=message):
        use(gaussian(), draw_rows().double())


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8, torch.float16])
def test_narrower_rows_are_widened_to_the_parameters(dtype):
    model, x = gaussian(), (10 * torch.rand(N, D, device="cpu")).to(dtype)
    for wide in (model, model.double()):
        assert bool(log_evidence(wide, x).isfinite().all())


def test_components_are_selected_by_integers():
    with pytest.raises(DataError, match=r"selected by integers, not by torch\.float32"):
        DiagonalNormals(torch.zeros(C, D), torch.ones(C, D))[torch.zeros(3)]


@pytest.mark.parametrize("bad", [C, -2])
def test_component_numbers_out_of_range_are_refused(bad):
    with pytest.raises(PartitionError, match=rf"lie in \[.*{bad}.*\], not in \[0, {C}\)"):
        DiagonalNormals(torch.zeros(C, D), torch.ones(C, D))[torch.tensor([0, bad])].log_prob(
            torch.zeros(2, D)
        )
