"""Bad input gives a typed error that names the value and the remedy; awkward but possible input is fitted."""

import math
import re

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch.distributions import constraints

from pyro_mixtures.data import Batches, as_rows, average_patches, extract_patches
from pyro_mixtures.distributions import (
    CandidateCategorical,
    Categoricals,
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    IsotropicNormals,
    MixtureWeights,
)
from pyro_mixtures.errors import (
    ClosedFormError,
    DataError,
    MixtureError,
    ModelError,
    NumericalError,
    OptionError,
    PartitionError,
    SharedParamsWarning,
)
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, assign, conditional, evidence, fit, reconstruct, responsibilities, sample
from pyro_mixtures.infer.gates import fit_gate
from pyro_mixtures.infer.routing import compare_routing, expert_predictions, fit_combiner
from pyro_mixtures.init import seed_rows
from pyro_mixtures.models.bregman import BregmanMixture
from pyro_mixtures.models.classifiers import (
    MixtureOfLogisticRegressions,
    MixtureOfPoissonRegressions,
    MixtureOfSVMs,
)
from pyro_mixtures.models.factor import MixtureOfFactorAnalyzers
from pyro_mixtures.models.gaussian import GaussianMixture
from pyro_mixtures.models.kmeans import KMeans
from pyro_mixtures.models.modules import MixtureOfModules
from pyro_mixtures.models.regressions import MixtureOfRegressions
from pyro_mixtures.ops import use_backend
from pyro_mixtures.poutine import data_plate

N, C, D = 20, 4, 2
STRATEGIES = [FullPartition, TruncatedPartition]


def draw_rows(rows=N, features=D):
    return torch.randn(rows, features, device="cpu")


def gaussian(components=C, features=D, **options):
    with torch.device("cpu"):
        return GaussianMixture(components=components, features=features, **options)


def guide_of(strategy, model, components=C, **options):
    if strategy is TruncatedPartition:
        options = {"candidates": 2, "neighbors": 3, "seed": 0} | options
    return strategy(model, components=components, **options)


def svi(model, guide):
    return SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1))


def uses(strategy):
    """Everything that reads rows through a guide: each takes a model and rows."""
    return {
        "e-step": lambda model, x: guide_of(strategy, model).posterior(x),
        "em": lambda model, x: EM(model, guide_of(strategy, model)).step(x),
        "loss": lambda model, x: EM(model, guide_of(strategy, model)).evaluate_loss(x),
        "svi": lambda model, x: svi(model, guide_of(strategy, model)).step(x),
        "fit": lambda model, x: fit(EM(model, guide_of(strategy, model)), x, batch_size=7, progress=False),
        "evidence": lambda model, x: evidence(model, x, guide=guide_of(strategy, model)),
    }


EXACT = {"evidence": evidence, "responsibilities": responsibilities, "assign": assign}
USES = [
    *(
        pytest.param(use, id=f"{strategy.__name__}-{name}")
        for strategy in STRATEGIES
        for name, use in uses(strategy).items()
    ),
    *(pytest.param(use, id=f"exact-{name}") for name, use in EXACT.items()),
]


# ---------------------------------------------------------------- rows


@pytest.mark.meta
@pytest.mark.parametrize("use", USES)
def test_nan_rows_are_named_with_their_place_and_the_remedy(use):
    x = draw_rows()
    x[4, 1] = math.nan
    # Minibatches of 7 rows, in order or not, say where in the batch.
    with pytest.raises(DataError, match=r"'x' holds nan at \[\d+, 1\]: remove such rows, or fill them in"):
        use(gaussian(), x)


@pytest.mark.meta
@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_infinite_rows_are_named_with_their_place_and_the_remedy(strategy, covariance):
    x, model = draw_rows(), gaussian(covariance=covariance)
    for value in (math.inf, -math.inf):
        x[4, 1] = value
        with pytest.raises(DataError, match=rf"'x' holds {value} at \[4, 1\]: remove such rows, or fill them in"):
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
    with pytest.raises(DataError, match="row 4 holds NaN or infinity: remove such rows"):
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
        (torch.eye(3).to_sparse(), r"must be dense, not torch\.sparse_coo: give x\.to_dense"),
        (np.array([[1.0], None], dtype=object), "must be real numbers"),
        ([[1.0, 2.0], [3.0]], "must all have the same shape"),
    ],
    ids=["number", "scalar", "strings", "sparse", "objects", "ragged"],
)
def test_things_that_are_no_rows_are_refused(data, message):
    with pytest.raises(DataError, match=message):
        as_rows(data)


def test_no_rows_at_all_are_refused():
    model = gaussian()
    for use in (lambda: Batches([]), lambda: Batches([torch.zeros(0, D)]), lambda: model(torch.zeros(0, D))):
        with pytest.raises(DataError, match="no rows"):
            use()


def test_seeding_refuses_rows_that_are_no_matrix():
    with pytest.raises(DataError, match=r"rows must be \(N, D\), not \(20,\)"):
        seed_rows(torch.zeros(N), 2)


@pytest.mark.parametrize(
    "use", [evidence, lambda m, *t: fit(EM(m, FullPartition(m, components=C)), *t), lambda m, *t: Batches(t)]
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
    with pytest.raises(OptionError, match=f"{dtype} on the CPU is not supported: use float32 or float64"):
        EM(model, FullPartition(model, components=C)).step(draw_rows().to(dtype))


def test_half_precision_weights_on_the_cpu_are_refused_or_work():
    weights = torch.tensor([0.5, 0.25, 0.25, 0.0], device="cpu", dtype=torch.float16)
    try:
        found = MixtureWeights(weights).log_prob(torch.tensor([0, 1, 3], device="cpu"))
    except MixtureError as error:
        assert "float32" in str(error)  # noqa: PT017
        return
    torch.testing.assert_close(found.float().exp(), torch.tensor([0.5, 0.25, 0.0]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("family", [IsotropicNormals, DiagonalNormals, FullNormals, FactorAnalyzers, Categoricals])
def test_integer_parameters_are_refused(family):
    shapes = {IsotropicNormals: [(C,)], DiagonalNormals: [(C, D)], FullNormals: [(C, D, D)]}
    shapes |= {FactorAnalyzers: [(C, D, 1), (C, D)], Categoricals: []}
    with pytest.raises(OptionError, match=r"floating-point parameters, not torch\.int64"):
        family(*(torch.ones(shape, dtype=torch.int64) for shape in [(C, D), *shapes[family]]))


@pytest.mark.meta
@pytest.mark.parametrize("use", USES)
def test_float64_rows_with_float32_parameters_are_refused_with_both_remedies(use):
    message = r"rows are torch\.float64 but the parameters torch\.float32: .*model\.double\(\) or x\.float\(\)"
    with pytest.raises(DataError, match=message):
        use(gaussian(), draw_rows().double())


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8, torch.float16])
def test_narrower_rows_are_widened_to_the_parameters(dtype):
    model, x = gaussian(), (10 * torch.rand(N, D, device="cpu")).to(dtype)
    for wide in (model, model.double()):
        assert bool(evidence(wide, x).isfinite().all())


def test_components_are_selected_by_integers():
    with pytest.raises(DataError, match=r"selected by integers, not by torch\.float32"):
        DiagonalNormals(torch.zeros(C, D), torch.ones(C, D))[torch.zeros(3)]


@pytest.mark.parametrize("bad", [C, -2])
def test_component_numbers_out_of_range_are_refused(bad):
    with pytest.raises(PartitionError, match=rf"lie in \[.*{bad}.*\], not in \[0, {C}\)"):
        DiagonalNormals(torch.zeros(C, D), torch.ones(C, D))[torch.tensor([0, bad])].log_prob(torch.zeros(2, D))


# ---------------------------------------------------------------- options


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("components", [0, -3])
def test_guides_need_at_least_one_component(strategy, components):
    with pytest.raises(OptionError, match=rf"components={components}: a mixture has at least one"):
        strategy(gaussian(), components=components)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": C + 1}, rf"candidates={C + 1} must lie in \[1, components={C}\]"),
        ({"candidates": 0}, rf"candidates=0 must lie in \[1, components={C}\]"),
        ({"neighbors": C + 1}, rf"neighbors={C + 1} must lie in \[1, components={C}\]"),
        ({"neighbors": 0}, rf"neighbors=0 must lie in \[1, components={C}\]"),
        ({"explore": -1}, "explore=-1 must not be negative"),
    ],
    ids=["C' > C", "C' < 1", "G > C", "G < 1", "explore < 0"],
)
def test_truncated_guide_names_options_out_of_range(options, message):
    with pytest.raises(OptionError, match=message):
        guide_of(TruncatedPartition, gaussian(), **options)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["e-step", "em", "svi", "fit"])
def test_more_components_than_rows_are_refused(strategy, name):
    rows = C - 1
    with pytest.raises(DataError, match=f"{C} components for {rows} rows: give more rows, or fewer components"):
        uses(strategy)[name](gaussian(), draw_rows(rows))


@pytest.mark.parametrize("components", [N + 1, 0, -1])
def test_seeding_names_numbers_of_components_that_the_rows_do_not_allow(components):
    with pytest.raises((DataError, OptionError), match=rf"{components} components for {N} rows: give more rows"):
        seed_rows(draw_rows(), components)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gaussian(covariance="spherical"), "unknown covariance 'spherical'; choose one of .*'isotropic'"),
        (lambda: gaussian(components=0), "components=0 must be positive"),
        (lambda: gaussian(features=0), "features=0 must be positive"),
        (
            lambda: MixtureOfFactorAnalyzers(components=C, features=D, factors=D + 1),
            r"factors=3 must lie in \[0, features=2\]",
        ),
        (lambda: MixtureOfFactorAnalyzers(components=C, features=D, factors=-1), "factors=-1 must not be negative"),
        (
            lambda: seed_rows(draw_rows(), 2, method="kmeans++"),
            r"unknown method 'kmeans\+\+'; choose one of .*'afkmc2'",
        ),
        (lambda: seed_rows(draw_rows(), 2, chain=0), "chain=0"),
        (lambda: MixtureWeights(), "exactly one of probs and logits"),
        (lambda: MixtureWeights(torch.ones(1), torch.ones(1)), "exactly one of probs and logits"),
        (
            lambda: FullNormals(torch.zeros(C, D), torch.eye(D + 1)),
            r"scale_tril \(3, 3\) must end in \(D, D\) with D = 2",
        ),
        (
            lambda: DiagonalNormals(torch.zeros(C, D), torch.ones(C, 3)),
            r"scale \(4, 3\) must end in one feature dimension",
        ),
        (
            lambda: FactorAnalyzers(torch.zeros(C, D), torch.zeros(C, 3, 1), torch.ones(D)),
            r"factor \(4, 3, 1\) must end in \(D, H\)",
        ),
        (lambda: use_backend("cupy").__enter__(), "unknown backend 'cupy'; choose one of"),
        (lambda: Batches([draw_rows()], 0), "batch_size=0 must be positive"),
        (lambda: Batches([draw_rows()], -5), "batch_size=-5 must be positive"),
        (lambda: evidence(gaussian(), draw_rows(), chunk=-1), "chunk=-1"),
    ],
)
def test_impossible_options_are_named_with_what_is_possible(build, message):
    with pytest.raises(OptionError, match=message):
        build()


def em(**options):
    model = gaussian()
    return EM(model, FullPartition(model, components=C), **options)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: em(dead="revive"), "unknown dead='revive'; choose one of .*'reseed', 'drop', 'keep'"),
        (lambda: em(variance_floor=-1e-3), "variance_floor=-0.001 must not be negative"),
        (lambda: em(step_size=lambda t: 1.5).step(draw_rows()), r"step_size\(1\) = 1.5 is outside \(0, 1\]"),
        (lambda: em(step_size=lambda t: 0.0).step(draw_rows()), r"step_size\(1\) = 0.0 is outside \(0, 1\]"),
        (lambda: em(freeze=["loc", "wieghts"]).step(draw_rows()), "wieghts"),
        (lambda: em(freeze="loc"), r"freeze='loc' must list names of params: give freeze=\['loc'\]"),
        (lambda: em(gradient="adam"), r"gradient='adam' must be a Pyro optimiser, pyro\.optim\.Adam"),
        (lambda: em(step_size=0.5), "step_size=0.5 must be a function of the step number"),
        (lambda: em().maximize(), "nothing accumulated: call accumulate"),
        (lambda: fit(em(), draw_rows(), epochs=-1), "epochs=-1"),
        (lambda: fit(em(), draw_rows(), warmup=-1), "warmup=-1"),
        (lambda: fit(em(), draw_rows(), patience=0), "patience=0"),
        (lambda: fit(em(), draw_rows(), batch_size=0), "batch_size=0 must be positive"),
    ],
)
def test_strategies_name_impossible_options(use, message):
    with pytest.raises(OptionError, match=message):
        use()


# Every numeric option of the models: how to build one, and the kind of each option.
WHOLE, POSITIVE, NOT_NEGATIVE = "whole", "positive", "not negative"
NUMERIC_OPTIONS = {
    GaussianMixture: {},
    MixtureOfFactorAnalyzers: {"factors": WHOLE},
    BregmanMixture: {"total": WHOLE},
    KMeans: {},
    MixtureOfRegressions: {"outputs": WHOLE, "ridge": NOT_NEGATIVE, "scale": POSITIVE, "closeness": POSITIVE},
    MixtureOfLogisticRegressions: {"ridge": NOT_NEGATIVE, "closeness": POSITIVE},
    MixtureOfPoissonRegressions: {"ridge": NOT_NEGATIVE, "closeness": POSITIVE},
    MixtureOfSVMs: {"classes": WHOLE, "ridge": POSITIVE, "closeness": POSITIVE},
    MixtureOfModules: {"closeness": POSITIVE},
}
NO_NUMBERS = [True, "1", [1], math.nan, math.inf, -math.inf, -1]
REFUSED = {WHOLE: [*NO_NUMBERS, 1.0, 2.5], POSITIVE: [*NO_NUMBERS, 0, 0.0], NOT_NEGATIVE: [*NO_NUMBERS, -1e-9]}
TAKEN = {WHOLE: [2, np.int64(2)], POSITIVE: [1, 0.5, np.float32(0.5)], NOT_NEGATIVE: [0, 0.5, np.float64(0.5)]}


def built(model, **options):
    needed = {
        MixtureOfFactorAnalyzers: {"factors": 1},
        BregmanMixture: {"divergence": "multinomial"},
        MixtureOfModules: {"loss": "squared", "make": lambda: torch.nn.Linear(D, 1)},
    }
    return model(**{"components": C, "features": D} | needed.get(model, {}) | options)


CASES = [
    pytest.param(model, name, kind, id=f"{model.__name__}-{name}")
    for model, options in NUMERIC_OPTIONS.items()
    for name, kind in {"components": WHOLE, "features": WHOLE, **options}.items()
]


@pytest.mark.parametrize(("model", "name", "kind"), CASES)
def test_models_name_numeric_options_that_are_impossible(model, name, kind):
    for value in REFUSED[kind]:
        given = re.escape(repr(value) if isinstance(value, str) else str(value))
        with pytest.raises(OptionError, match=rf"{name}={given} must (be|not be) "):
            built(model, **{name: value})


@pytest.mark.parametrize(("model", "name", "kind"), CASES)
def test_models_take_numeric_options_of_any_library(model, name, kind):
    for value in TAKEN[kind]:
        built(model, **{name: value})


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (GaussianMixture, "tied"),
        (MixtureOfFactorAnalyzers, "tied"),
        (KMeans, "spherical"),
        (BregmanMixture, "equal_weights"),
        *((model, "equal_weights") for model, options in NUMERIC_OPTIONS.items() if "closeness" in options),
    ],
)
def test_flags_are_true_or_false(model, name):
    for value in ("no", None, 0.5):
        with pytest.raises(OptionError, match=f"{name}={value!r} must be True or False"):
            built(model, **{name: value})


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        (np.eye(D), "precision is a ndarray: give a tensor"),
        (torch.eye(D + 1), r"\(3, 3\)\): give floating-point numbers \(2, 2\)"),
        (torch.eye(D, dtype=torch.int64), "torch.int64"),
        (torch.full((D, D), math.nan), "positive definite"),
        (-torch.eye(D), "positive definite"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
    ],
    ids=["array", "shape", "integers", "nan", "negative", "not symmetric"],
)
def test_precisions_that_are_none_are_refused(precision, message):
    with pytest.raises(OptionError, match=message):
        BregmanMixture(components=C, features=D, divergence="mahalanobis", precision=precision)


def scored(**options):
    return responsibilities(gaussian(), draw_rows(), **options)


def denoised(**options):
    return reconstruct(gaussian(), draw_rows(), **{"noise": 0.1} | options)


def gated(**options):
    x, labels = draw_rows(), torch.arange(N, device="cpu") % C
    return fit_gate(x, labels, **{"components": C} | options)


def gated_by_module(**options):
    return gated(module=torch.nn.Linear(D, C), **options)


def combined(**options):
    return fit_combiner(draw_rows(), draw_rows()[:, 0], **options)


def experts(**options):
    pyro.clear_param_store()
    return expert_predictions(built(MixtureOfRegressions), draw_rows(), **options)


STRATEGY_OPTIONS = [
    (em, "variance_floor", NOT_NEGATIVE),
    (em, "gradient_steps", WHOLE),
    (scored, "top", WHOLE),
    (scored, "chunk", WHOLE),
    (denoised, "top", WHOLE),
    (denoised, "chunk", WHOLE),
    (gated, "components", WHOLE),
    (gated, "penalty", POSITIVE),
    (gated_by_module, "epochs", WHOLE),
    (gated_by_module, "batch_size", WHOLE),
    (gated_by_module, "learning_rate", POSITIVE),
    (combined, "penalty", NOT_NEGATIVE),
    (experts, "chunk", WHOLE),
    (lambda batch_size: Batches([draw_rows()], batch_size), "batch_size", WHOLE),
]


@pytest.mark.parametrize(("use", "name", "kind"), STRATEGY_OPTIONS)
def test_strategies_name_numeric_options_that_are_impossible(use, name, kind):
    for value in REFUSED[kind]:
        with pytest.raises(OptionError, match=f"{name}="):
            use(**{name: value})


@pytest.mark.parametrize("noise", [math.nan, math.inf, -0.1, "loud", torch.ones(3), torch.tensor([0.1, -0.1])])
def test_noise_is_a_standard_deviation(noise):
    with pytest.raises(OptionError, match="noise"):
        denoised(noise=noise)


# ---------------------------------------------------------------- arrays, and arguments of programs


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_em_takes_the_arrays_that_fit_takes(strategy):
    x, found = draw_rows(), []
    for rows in (x, x.numpy()):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model = gaussian()
        inference = EM(model, guide_of(strategy, model))
        index = np.arange(N) if rows is not x else torch.arange(N, device="cpu")
        losses = [inference.step(rows), inference.accumulate(rows, index=index, size=N), inference.evaluate_loss(rows)]
        inference.maximize()
        found.append([*losses, inference.step(x=rows)])
    assert found[0] == found[1]


def test_em_takes_arrays_of_covariates_and_outcomes():
    x, y = draw_rows(), draw_rows()[:, 0]
    model = built(MixtureOfRegressions, ridge=0.1)
    inference = EM(model, FullPartition(model, components=C))
    expected = inference.evaluate_loss(x, y)
    assert inference.evaluate_loss(x.numpy(), y.numpy()) == expected
    assert inference.step(x.numpy(), y=y.numpy()) == expected


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda x: gaussian()(x), "rows"),
        (lambda x: built(KMeans)(x), "rows"),
        (lambda x: built(MixtureOfRegressions)(x), "rows"),
        (lambda x: built(MixtureOfRegressions)(draw_rows(), x), "outcomes"),
        (lambda x: built(KMeans)(draw_rows(), x), "row_weight"),
        (lambda x: svi(model := gaussian(), guide_of(FullPartition, model)).step(x), "rows"),
    ],
)
def test_programs_take_tensors_alone(use, name):
    for given in (np.zeros((N, D)), [[0.0] * D] * N, 3.0, torch.tensor(3.0)):
        with pytest.raises(DataError, match=rf"{name} must be a tensor \(N, \.\.\.\), not .*: give torch.as_tensor"):
            use(given)


def test_draws_of_experts_need_covariates():
    model = built(MixtureOfRegressions)
    with pytest.raises(ModelError, match=r"cannot be called with these arguments .*'x'.*sample\(model, x\)"):
        sample(model, size=5)
    assert sample(model, draw_rows().numpy())["y"].shape == (N,)
    pyro.clear_param_store()
    mixture = gaussian()
    with pytest.raises(ModelError, match=r"cannot be called with these arguments .*'rows'"):
        sample(mixture, rows=5)
    assert sample(mixture, size=5)["x"].shape == (5, D)


@pytest.mark.parametrize("name", ["train", "test"])
@pytest.mark.parametrize(("place", "what"), [(0, "covariates"), (1, "outcomes")])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_comparisons_name_rows_that_are_not_finite(name, place, what, bad):
    rows = {key: [draw_rows(), draw_rows()[:, 0]] for key in ("train", "test")}
    rows[name][place][7] = bad
    model = built(MixtureOfRegressions)
    guide = HardPartition(model, components=C)
    guide.plant(torch.arange(N, device="cpu") % C)
    for metric in (None, lambda prediction, y: (prediction - y).abs().mean()):
        with pytest.raises(DataError, match=f"row 7 of the {name} {what} holds NaN or infinity: remove such rows"):
            compare_routing(model, guide, tuple(rows["train"]), tuple(rows["test"]), metric=metric)


def test_fit_asks_for_a_guide_of_this_package():
    model = gaussian()
    with pytest.raises(ModelError, match=r"fit needs a guide of pyro_mixtures\.guides"):
        fit(svi(model, lambda x: None), draw_rows())


# ---------------------------------------------------------------- minibatches


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"index": torch.arange(5)}, "pass its size= too"),
        ({"index": torch.tensor([0, 1, 2, 3, N]), "size": N}, rf"row numbers in \[0, {N}\)"),
        ({"index": torch.tensor([0, 1, 2, 3, -1]), "size": N}, rf"row numbers in \[0, {N}\)"),
        ({"index": torch.arange(4), "size": N}, "5 rows but 4 row numbers in index"),
        ({"size": N}, f"5 rows of a data set of size={N}: pass index="),
        ({"index": torch.arange(5.0), "size": N}, r"index.*torch\.float32"),
    ],
    ids=["no size", "too large", "negative", "too few", "no index", "no integers"],
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_minibatches_that_do_not_fit_are_refused_with_the_remedy(strategy, kwargs, message):
    model = gaussian()
    with pytest.raises(DataError, match=message):
        guide_of(strategy, model).posterior(draw_rows(5), **kwargs)


def test_data_plate_needs_rows_or_a_size():
    with pytest.raises(DataError, match="needs rows, or size="):
        data_plate()
    with pytest.raises(DataError, match="no rows were given"):
        data_plate(0)


def test_truncated_guide_keeps_to_its_rows():
    model = gaussian()
    guide = guide_of(TruncatedPartition, model)
    guide.posterior(draw_rows())
    message = rf"holds the state of {N} rows, but the data now have {N + 1}: make a new guide, pass index= and size="
    for use in (guide.posterior, EM(model, guide).step, svi(model, guide).step):
        with pytest.raises(PartitionError, match=message):
            use(draw_rows(N + 1))
    # Rows without state are scored, not fitted.
    assert evidence(model, draw_rows(N + 1), guide=guide).shape == (N + 1,)


# ---------------------------------------------------------------- candidate sets and saved state


def test_candidate_sets_must_be_distinct_and_sorted_where_rows_share_them():
    with pytest.raises(PartitionError, match=r"lists a component twice: \[3, 3\]; pad with -1"):
        CandidateCategorical(torch.tensor([[0, 1], [3, 3]]), torch.zeros(2, 2))
    with pytest.raises(PartitionError, match="2 candidates a row but 3 logits"):
        CandidateCategorical(torch.tensor([[0, 1]]), torch.zeros(1, 3))
    logits = torch.tensor([0.1, 0.2, 0.7]).log()
    try:
        unsorted = CandidateCategorical(torch.tensor([4, 2, 3]), logits)
    except PartitionError as error:
        assert "sort" in str(error)  # noqa: PT017
        return
    torch.testing.assert_close(unsorted.log_prob(torch.tensor([4, 2, 3])), logits)


def saved_state(**options):
    model = gaussian()
    guide = guide_of(TruncatedPartition, model, **options)
    guide.posterior(draw_rows())
    pyro.clear_param_store()
    return guide.state_dict()


@pytest.mark.parametrize("options", [{"candidates": 3}, {"neighbors": 2}, {"components": C + 1}], ids=["C'", "G", "C"])
def test_saved_state_of_another_shape_is_refused(options):
    state = saved_state()
    guide = guide_of(TruncatedPartition, gaussian(components=options.get("components", C)), **options)
    with pytest.raises(PartitionError, match=rf"saved state has \(C', C, G\) = \(2, {C}, 3\), this guide \("):
        guide.load_state_dict(state)
    # A refused state leaves the guide as it was.
    assert guide.posterior(draw_rows()).candidates.shape == (guide.candidates, N)


def test_saved_state_of_other_rows_is_refused_at_use():
    state = saved_state()
    guide = guide_of(TruncatedPartition, gaussian())
    guide.load_state_dict(state)
    with pytest.raises(PartitionError, match=rf"state of {N} rows, but the data now have {N - 1}"):
        guide.posterior(draw_rows(N - 1))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, 1], r"row 7 lists a component twice: \[1, 1\]"),
        ([0, C], rf"outside \[0, {C}\)"),
        ([-1, 2], rf"outside \[0, {C}\)"),
    ],
    ids=["twice", "too large", "negative"],
)
def test_saved_state_that_is_broken_is_refused(row, message):
    state = saved_state()
    state["_extra_state"]["candidates"][7] = torch.tensor(row, dtype=torch.int32)
    with pytest.raises(PartitionError, match=message):
        guide_of(TruncatedPartition, gaussian()).load_state_dict(state)


def test_saved_state_with_a_broken_graph_is_refused():
    state = saved_state()
    state["_extra_state"]["neighbors"][2, 1] = C
    with pytest.raises(PartitionError, match=rf"outside \[0, {C}\)"):
        guide_of(TruncatedPartition, gaussian()).load_state_dict(state)


@pytest.mark.parametrize(("index", "component"), [(N, 0), (0, C), (0, -1)], ids=["row", "component", "negative"])
def test_planting_out_of_range_is_refused(index, component):
    guide = guide_of(TruncatedPartition, gaussian())
    with pytest.raises(PartitionError, match=rf"outside \[0, {N if index else C}\)"):
        guide.plant(torch.tensor([index]), torch.tensor([component]), size=N)


# ---------------------------------------------------------------- programs


def program(*, site="z", observed=None, plate=True, fn=None, twice=False, outer=None):
    """Mixtures that are none, each in its own way."""
    fn = MixtureWeights(torch.full((C,), 1 / C)) if fn is None else fn

    def body(x):
        z = pyro.sample(site, fn, obs=observed)
        if twice:
            pyro.sample(site, fn)
        pyro.sample("x", dist.Normal(torch.zeros(C, D)[z.long()], 1.0).to_event(1), obs=x)

    def model(x):
        if not plate:
            return body(x)
        with data_plate(x) if outer is None else outer():
            if outer is None:
                return body(x)
            with pyro.plate("data", len(x), dim=-1):
                return body(x)

    return model


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (program(site="k"), r"no sample site 'z'; it has \['k', 'x'\]. Pass site="),
        (program(twice=True), "a name is used by two sites.*'z'.*every site needs its own"),
        (program(observed=torch.zeros(N, dtype=torch.long)), "'z' is observed: nothing is left to infer"),
        (program(plate=False), r"'z' must lie in exactly one vectorised plate, the data plate; it lies in \[\]"),
        (program(fn=dist.Uniform(0.0, 3.0)), "'z' is Uniform: a mixture's z must be discrete"),
        (
            program(outer=lambda: pyro.plate("groups", 3, dim=-2)),
            r"exactly one vectorised plate, the data plate; it lies in \['groups', 'data'\]",
        ),
    ],
    ids=["no site", "two sites", "observed", "no plate", "continuous", "two plates"],
)
def test_programs_that_are_no_mixture_are_refused_with_the_reason(strategy, model, message):
    with pytest.raises(ModelError, match=f"(?s){message}"):
        guide_of(strategy, model).posterior(draw_rows())


def test_scoring_refuses_programs_that_are_no_mixture():
    for use in (evidence, responsibilities, assign):
        with pytest.raises(ModelError, match="no sample site 'z'"):
            use(program(site="k"), draw_rows())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_em_refuses_a_guide_of_another_program(strategy):
    with pytest.raises(ModelError, match="made for another model: build guide and EM from the same program"):
        EM(gaussian(), guide_of(strategy, gaussian()))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("components", [C - 1, C + 2])
def test_guide_of_another_number_of_components_is_refused(strategy, components):
    guide = guide_of(strategy, gaussian(), components=components)
    with pytest.raises(
        OptionError, match=f"site 'z' has {C} components, but the guide was given components={components}"
    ):
        guide.posterior(draw_rows())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_program_that_changes_its_number_of_components_is_refused(strategy):
    sizes = iter([C, C + 1, C + 1])

    def model(x):
        components = next(sizes)
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(torch.full((components,), 1 / components)))
            pyro.sample("x", DiagonalNormals(torch.zeros(components, D), torch.ones(D))[z], obs=x)

    with pytest.raises(ModelError, match=f"'z' now has {C + 1} components; the guide was made for {C}"):
        guide_of(strategy, model).posterior(draw_rows())


def with_prior(x, index=None, size=None):
    with pyro.plate("components", C, device=x.device):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(D), 3.0).to_event(1))
    with data_plate(x, index, size):
        z = pyro.sample("z", MixtureWeights(torch.full((C,), 1 / C)))
        pyro.sample("x", DiagonalNormals(loc, torch.ones(D))[z], obs=x)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_guide_names_latent_sites_that_nobody_gives_a_value(strategy):
    message = r"latent site 'loc' is not 'z' and has no value: give the guide beside=.*AutoNormal\(poutine\.block"
    with pytest.raises(ModelError, match=message):
        guide_of(strategy, with_prior).posterior(draw_rows())
    with pytest.raises(ModelError, match=message):
        svi(with_prior, guide_of(strategy, with_prior)).step(draw_rows())
    with pytest.raises(ModelError, match="latent site 'loc'"):
        evidence(with_prior, draw_rows())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("beside", [None, AutoNormal, AutoDelta])
def test_em_refuses_latent_sites_and_points_to_svi(strategy, beside):
    guide = guide_of(strategy, with_prior, beside=beside and beside(poutine.block(with_prior, hide=["z"])))
    with pytest.raises(ClosedFormError, match=r"sites \['loc'\] are latent: use SVI"):
        EM(with_prior, guide).step(draw_rows())


def test_guide_beside_must_return_its_values():
    guide = FullPartition(with_prior, components=C, beside=lambda x: None)
    with pytest.raises(ModelError, match="guide beside must return a dict"):
        guide.posterior(draw_rows())


# ---------------------------------------------------------------- closed forms


def in_params(build):
    """A mixture over rows whose observed site is built from params by ``build(z)``."""

    def model(x):
        weights = pyro.param("weights", torch.full((C,), 1 / C), constraint=constraints.simplex)
        with data_plate(x):
            z = pyro.sample("z", MixtureWeights(weights))
            pyro.sample("x", build(z), obs=x)

    return model


def loc_param():
    return pyro.param("loc", lambda: torch.randn(C, D))


def log_scale_param():
    return pyro.param("log_scale", lambda: torch.zeros(C, D) + 0.1 * torch.rand(C, D))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda z: DiagonalNormals(loc_param(), log_scale_param().exp())[z],
            "'scale' of site 'x' is computed from params",
        ),
        (
            lambda z: dist.Normal(loc_param()[z], log_scale_param().exp()[z]).to_event(1),
            "'scale' of site 'x' is computed from params",
        ),
        (
            lambda z: dist.StudentT(3.0, loc_param()[z], 1.0).to_event(1),
            r"site 'x' \(StudentT, 1 event dimensions\) has no closed-form M-step",
        ),
        (lambda z: dist.Laplace(loc_param()[z], 1.0).to_event(1), r"site 'x' \(Laplace.* has no closed-form M-step"),
    ],
    ids=["log_scale.exp()", "stock log_scale.exp()", "StudentT", "Laplace"],
)
def test_em_names_what_has_no_closed_form_and_the_ways_out(strategy, build, message):
    model = in_params(build)
    with pytest.raises(ClosedFormError, match=message) as found:
        EM(model, guide_of(strategy, model)).step(draw_rows())
    for remedy in ("use SVI", "gradient= to EM"):
        assert remedy in str(found.value)


def test_em_names_params_that_no_site_of_closed_form_owns():
    def model(x):
        pyro.param("stray", torch.zeros(3))
        gaussian_like(x)

    gaussian_like = in_params(lambda z: DiagonalNormals(loc_param(), torch.ones(D))[z])
    with pytest.raises(
        ClosedFormError, match=r"params \['stray'\] have no closed form: freeze= them, use SVI, or pass"
    ):
        EM(model, FullPartition(model, components=C)).step(draw_rows())


def test_em_names_means_that_components_share():
    model = in_params(lambda z: DiagonalNormals(pyro.param("loc", torch.zeros(D)), torch.ones(C, D))[z])
    with pytest.raises(ClosedFormError, match=r"loc of shape \(2,\) is shared by 4 components: give each its own"):
        EM(model, FullPartition(model, components=C)).step(draw_rows())


def test_refused_em_step_leaves_the_params_alone():
    model = in_params(lambda z: DiagonalNormals(loc_param(), log_scale_param().exp())[z])
    strategy = EM(model, FullPartition(model, components=C))
    for _ in range(2):
        with pytest.raises(ClosedFormError):
            strategy.step(draw_rows())
    assert torch.equal(pyro.param("weights"), torch.full((C,), 1 / C))
    assert torch.equal(pyro.param("loc").detach(), loc_param().detach())


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_params_that_diverged_are_named_with_the_remedy(strategy):
    """Where validation is on, torch refuses them first."""
    model = gaussian()
    with torch.no_grad():
        model.loc[1, 0] = math.nan
    message = r"param 'loc' is not finite.*lower the learning"
    with pyro.validation_enabled(False), pytest.raises(NumericalError, match=message):
        guide_of(strategy, model, **({} if strategy is FullPartition else {"neighbors": C})).posterior(draw_rows())


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
    with pytest.raises(ModelError, match="no site 'y'"):
        conditional(model, x, observed="y")


def test_all_errors_are_one_family_and_values_errors():
    typed = (OptionError, DataError, ModelError, PartitionError, ClosedFormError, NumericalError)
    assert all(issubclass(error, MixtureError) and issubclass(error, ValueError) for error in typed)


# ---------------------------------------------------------------- awkward but possible: no NaN


def isotropic(components, features):
    return gaussian(components, features, covariance="isotropic")


def full(components, features):
    return gaussian(components, features, covariance="full")


def tied_full(components, features):
    return gaussian(components, features, covariance="full", tied=True)


def analyzers(factors, tied=False):
    def build(components, features):
        with torch.device("cpu"):
            return MixtureOfFactorAnalyzers(components=components, features=features, factors=factors, tied=tied)

    return build


MODELS = {
    "isotropic": isotropic,
    "diagonal": gaussian,
    "full": full,
    "tied full": tied_full,
    "H=0": analyzers(0),
    "H=1": analyzers(1),
    "H=1 tied": analyzers(1, tied=True),
}


def clusters(rows=40, features=3, components=3):
    """Rows of well-separated groups."""
    centers = 4.0 * torch.arange(components, device="cpu").unsqueeze(-1)
    return centers[torch.arange(rows, device="cpu") % components] + torch.randn(rows, features, device="cpu")


def constant_feature():
    x = clusters()
    x[:, 1] = 7.0
    return x


ROWS = {
    "constant feature": constant_feature,
    "only constant features": lambda: torch.full((20, 3), 7.0, device="cpu"),
    "duplicated rows": lambda: clusters(10).repeat(4, 1),
    "three distinct rows": lambda: clusters(3).repeat(10, 1),
    "N = C + 1": lambda: clusters(4),
    "N = C": lambda: clusters(3),
    "one feature": lambda: clusters(features=1),
    "far from zero": lambda: clusters() + 1000.0,
    "tiny numbers": lambda: 1e-6 * clusters(),
    "features of many sizes": lambda: clusters() * torch.tensor([1e-4, 1.0, 1e4], device="cpu"),
}


def assert_fits(build, x, strategy, components=3, dead="reseed", epochs=4, **options):
    """A few epochs of EM, in which everything stays finite."""
    model = build(components, x.shape[1])
    guide = guide_of(strategy, model, components=components, **options)
    seeds = seed_rows(x, components)
    with torch.no_grad():
        model.loc.copy_(seeds.loc)
    model.set_variance(seeds.variance)
    found = fit(EM(model, guide, dead=dead), x, epochs=epochs, warmup=1, progress=False)
    elbo = found.history["elbo"]
    assert np.isfinite(elbo).all()
    for name, value in pyro.get_param_store().items():
        assert bool(value.isfinite().all()), name
    assert bool(evidence(model, x).isfinite().all())
    return model, guide, found


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
        torch.testing.assert_close(covariance.detach(), torch.cov(x.T, correction=0), rtol=1e-3, atol=1e-3)


@pytest.mark.meta
def test_one_component_is_fitted_by_the_truncated_guide():
    x = clusters()
    model, _, _ = assert_fits(gaussian, x, TruncatedPartition, components=1, candidates=1, neighbors=1)
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
    for strategy, options in ((FullPartition, {}), (TruncatedPartition, {"candidates": 3, "neighbors": 3})):
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


# ---------------------------------------------------------------- dead components


DEAD_CASES = [
    (TruncatedPartition, "diagonal"),
    (TruncatedPartition, "full"),
    *((FullPartition, family) for family in ("diagonal", "tied full", "H=0", "H=1")),
]


def with_a_dead_component(strategy, dead, family="diagonal", epochs=4):
    """A fit that starts with component 2 of four far from all rows."""
    x = clusters(60)
    model = MODELS[family](4, x.shape[1])
    with torch.no_grad():
        model.loc.copy_(torch.stack([x[0], x[1], x[0] + 1e4, x[2]]))
    options = {"candidates": 3, "neighbors": 4} if strategy is TruncatedPartition else {}
    guide = guide_of(strategy, model, components=4, **options)
    # Without tolerance no fit of so few epochs counts as converged before its time.
    found = fit(EM(model, guide, dead=dead), x, epochs=epochs, warmup=3, tolerance=-math.inf, progress=False)
    assert np.isfinite(found.history["elbo"]).all()
    assert all(bool(value.isfinite().all()) for value in pyro.get_param_store().values())
    return model, x, found


@pytest.mark.meta
@pytest.mark.parametrize(("strategy", "family"), DEAD_CASES)
def test_dead_component_is_reseeded_and_counted(strategy, family):
    model, _, found = with_a_dead_component(strategy, "reseed", family)
    em_epochs = found.history["phase"] == "EM"
    assert found.history["reseeded"][em_epochs][0] == 1
    assert found.history["dropped"].sum() == 0
    assert float(model.loc.detach()[2].abs().max()) < 100
    assert float(model.weights.detach()[2]) > 0.005
    assert found.history["live"][-1] == 4


@pytest.mark.meta
@pytest.mark.parametrize(("strategy", "family"), DEAD_CASES)
def test_dead_component_is_dropped_for_good_and_counted(strategy, family):
    model, x, found = with_a_dead_component(strategy, "drop", family)
    em_epochs = found.history["phase"] == "EM"
    assert found.history["reseeded"].sum() == 0
    assert found.history["dropped"][em_epochs].tolist() == [1] * 4
    assert float(model.weights.detach()[2]) == 0
    assert float(model.weights.detach().sum()) == pytest.approx(1, rel=1e-5)
    assert found.history["live"][-1] == 3
    assert 2 not in assign(model, x)


@pytest.mark.meta
@pytest.mark.parametrize(("strategy", "family"), DEAD_CASES)
def test_dead_component_is_kept_as_it_was(strategy, family):
    model, x, found = with_a_dead_component(strategy, "keep", family)
    assert found.history["reseeded"].sum() == 0
    assert found.history["dropped"].sum() == 0
    torch.testing.assert_close(model.loc.detach()[2], x[0] + 1e4)
    assert found.history["live"][-1] == 3


@pytest.mark.parametrize("dead", ["reseed", "drop", "keep"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_components_but_one_dead_is_survived(strategy, dead):
    x = clusters(30)
    model = gaussian(5, 3)
    with torch.no_grad():
        model.loc.copy_(1e4 * torch.arange(5.0, device="cpu").unsqueeze(-1) * torch.ones(3, device="cpu"))
    guide = guide_of(strategy, model, components=5, **({} if strategy is FullPartition else {"neighbors": 5}))
    found = fit(EM(model, guide, dead=dead), x, epochs=5, warmup=3, tolerance=-math.inf, progress=False)
    assert np.isfinite(found.history["elbo"]).all()
    assert all(bool(value.isfinite().all()) for value in pyro.get_param_store().values())


@pytest.mark.parametrize("dead", ["reseed", "drop", "keep"])
def test_dead_components_under_stepwise_em_are_survived(dead):
    x = clusters(60)
    model = gaussian(4, 3)
    with torch.no_grad():
        model.loc.copy_(torch.stack([x[0], x[1], x[0] + 1e4, x[2]]))
    strategy = EM(model, FullPartition(model, components=4), dead=dead, step_size=lambda t: t**-0.6)
    found = fit(strategy, x, batch_size=20, epochs=4, tolerance=-math.inf, progress=False)
    assert np.isfinite(found.history["elbo"]).all()
    assert all(bool(value.isfinite().all()) for value in pyro.get_param_store().values())


@pytest.mark.meta
@pytest.mark.parametrize("components", [C, C + 1])
def test_second_model_of_a_session_warns_that_it_takes_the_first_ones_params(components):
    """Both modules call their params alike, and Pyro silently gives the second those of the first."""
    x, first = draw_rows(), gaussian()
    EM(first, FullPartition(first, components=C)).step(x)
    second = gaussian(components=components)
    with pytest.warns(SharedParamsWarning, match=r"values of \['loc', 'scale', 'weights'\].*clear_param_store\(\)"):
        second(x)


def test_first_model_warns_that_it_takes_the_second_ones_params():
    """It has run before, and a second fit has followed in a store that was cleared: its own values would be lost."""
    x, first = draw_rows(), gaussian()
    evidence(first, x)
    pyro.clear_param_store()
    evidence(gaussian(), x)
    with pytest.warns(SharedParamsWarning, match=r"values of \['loc', 'scale', 'weights'\]"):
        evidence(first, x)


def test_second_model_keeps_its_own_params_after_either_remedy():
    x, first = draw_rows(), gaussian()
    EM(first, FullPartition(first, components=C)).step(x)
    pyro.clear_param_store()
    second = gaussian()
    own = second.loc.detach().clone()
    evidence(second, x)
    assert torch.equal(second.loc.detach(), own)
    with pyro.settings.context(module_local_params=True):
        third = gaussian(components=C + 1)
        own = third.loc.detach().clone()
        evidence(third, x)
        assert torch.equal(third.loc.detach(), own)
