"""Impossible options: typed errors name the value and the possible ones."""

import math
import re

import numpy as np
import pyro
import pytest
import torch

from pyro_mixtures.data import Batches
from pyro_mixtures.distributions import (
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
    MixtureWeights,
)
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, fit, log_evidence, reconstruct, responsibilities
from pyro_mixtures.infer.experts.combiners import fit_combiner
from pyro_mixtures.infer.experts.gates import fit_gate
from pyro_mixtures.infer.experts.predictions import expert_predictions
from pyro_mixtures.init import seed_rows
from pyro_mixtures.models import (
    MixtureOfLogisticRegressions,
    MixtureOfPoissonRegressions,
    MixtureOfSVMs,
)
from pyro_mixtures.models.bregman import BregmanMixture
from pyro_mixtures.models.experts import MixtureOfExperts
from pyro_mixtures.models.factor_analyzers import MixtureOfFactorAnalyzers
from pyro_mixtures.models.gaussian import GaussianMixture
from pyro_mixtures.models.kmeans import KMeans
from pyro_mixtures.models.linear_regressions import MixtureOfRegressions
from pyro_mixtures.ops import use_backend
from tests.bad_input.inputs import STRATEGIES, C, D, N, built, draw_rows, gaussian, guide_of, uses


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
    with pytest.raises(
        DataError, match=f"{C} components for {rows} rows: pass more rows, or fewer components"
    ):
        uses(strategy)[name](gaussian(), draw_rows(rows))


@pytest.mark.parametrize("components", [N + 1, 0, -1])
def test_seeding_names_numbers_of_components_that_the_rows_do_not_allow(components):
    with pytest.raises(
        (DataError, OptionError), match=rf"{components} components for {N} rows: pass more rows"
    ):
        seed_rows(draw_rows(), components)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: gaussian(covariance="spherical"),
            "unknown covariance 'spherical'; choose one of .*'isotropic'",
        ),
        (lambda: gaussian(components=0), "components=0 must be positive"),
        (lambda: gaussian(features=0), "features=0 must be positive"),
        (
            lambda: MixtureOfFactorAnalyzers(components=C, features=D, factors=D + 1),
            r"factors=3 must lie in \[0, features=2\]",
        ),
        (
            lambda: MixtureOfFactorAnalyzers(components=C, features=D, factors=-1),
            "factors=-1 must not be negative",
        ),
        (
            lambda: seed_rows(draw_rows(), 2, method="kmeans++"),
            r"unknown method 'kmeans\+\+'; choose one of .*'afkmc2'",
        ),
        (lambda: seed_rows(draw_rows(), 2, chain=0), "chain=0"),
        (lambda: MixtureWeights(), "neither of probs and logits: pass one"),
        (
            lambda: MixtureWeights(torch.ones(1), torch.ones(1)),
            "both of probs and logits: pass one",
        ),
        (
            lambda: FullNormals(torch.zeros(C, D), torch.eye(D + 1)),
            r"scale_tril \(3, 3\) must end in \(D, D\) with D = 2",
        ),
        (
            lambda: DiagonalNormals(torch.zeros(C, D), torch.ones(C, 3)),
            r"scale \(4, 3\) must end in the same number of features",
        ),
        (
            lambda: FactorAnalyzers(torch.zeros(C, D), torch.zeros(C, 3, 1), torch.ones(D)),
            r"factor \(4, 3, 1\) must end in \(D, H\)",
        ),
        (lambda: use_backend("cupy").__enter__(), "unknown backend 'cupy'; choose one of"),
        (lambda: Batches([draw_rows()], 0), "batch_size=0 must be positive"),
        (lambda: Batches([draw_rows()], -5), "batch_size=-5 must be positive"),
        (lambda: log_evidence(gaussian(), draw_rows(), chunk=-1), "chunk=-1"),
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
        (
            lambda: em(empty="revive"),
            "unknown empty='revive'; choose one of .*'reseed', 'drop', 'keep'",
        ),
        (lambda: em(variance_floor=-1e-3), "variance_floor=-0.001 must not be negative"),
        (
            lambda: em(step_size=lambda t: 1.5).step(draw_rows()),
            r"step_size\(1\) = 1.5 is outside \(0, 1\]",
        ),
        (
            lambda: em(step_size=lambda t: 0.0).step(draw_rows()),
            r"step_size\(1\) = 0.0 is outside \(0, 1\]",
        ),
        (lambda: em(freeze=["loc", "wieghts"]).step(draw_rows()), "wieghts"),
        (
            lambda: em(freeze="loc"),
            r"freeze='loc' must list names of params: pass freeze=\['loc'\]",
        ),
        (
            lambda: em(gradient="adam"),
            r"gradient='adam' must be a Pyro optimizer, for example pyro\.optim\.Adam",
        ),
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
    MixtureOfRegressions: {
        "outputs": WHOLE,
        "ridge": NOT_NEGATIVE,
        "scale": POSITIVE,
        "input_density": POSITIVE,
    },
    MixtureOfLogisticRegressions: {"ridge": NOT_NEGATIVE, "input_density": POSITIVE},
    MixtureOfPoissonRegressions: {"ridge": NOT_NEGATIVE, "input_density": POSITIVE},
    MixtureOfSVMs: {"classes": WHOLE, "ridge": POSITIVE, "input_density": POSITIVE},
    MixtureOfExperts: {"input_density": POSITIVE},
}
NO_NUMBERS = [True, "1", [1], math.nan, math.inf, -math.inf, -1]
REFUSED = {
    WHOLE: [*NO_NUMBERS, 1.0, 2.5],
    POSITIVE: [*NO_NUMBERS, 0, 0.0],
    NOT_NEGATIVE: [*NO_NUMBERS, -1e-9],
}
TAKEN = {
    WHOLE: [2, np.int64(2)],
    POSITIVE: [1, 0.5, np.float32(0.5)],
    NOT_NEGATIVE: [0, 0.5, np.float64(0.5)],
}

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
        *(
            (model, "equal_weights")
            for model, options in NUMERIC_OPTIONS.items()
            if "input_density" in options
        ),
    ],
)
def test_flags_are_true_or_false(model, name):
    for value in ("no", None, 0.5):
        with pytest.raises(OptionError, match=f"{name}={value!r} must be True or False"):
            built(model, **{name: value})


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        (np.eye(D), "precision is a ndarray: pass a tensor"),
        (torch.eye(D + 1), r"\(3, 3\): pass floating-point numbers \(2, 2\)"),
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


@pytest.mark.parametrize(
    "noise", [math.nan, math.inf, -0.1, "loud", torch.ones(3), torch.tensor([0.1, -0.1])]
)
def test_noise_is_a_standard_deviation(noise):
    with pytest.raises(OptionError, match="noise"):
        denoised(noise=noise)
