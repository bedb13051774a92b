"""Models, guides, rows and consumers of rows for the tests of bad input."""

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO

from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM, assign, fit, log_evidence, responsibilities
from pyro_mixtures.init import seed_rows
from pyro_mixtures.models.bregman import BregmanMixture
from pyro_mixtures.models.experts import MixtureOfExperts
from pyro_mixtures.models.factor_analyzers import MixtureOfFactorAnalyzers
from pyro_mixtures.models.gaussian import GaussianMixture

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
    """All functions that read rows through a guide; each takes a model and rows."""
    return {
        "e-step": lambda model, x: guide_of(strategy, model).posterior(x),
        "em": lambda model, x: EM(model, guide_of(strategy, model)).step(x),
        "loss": lambda model, x: EM(model, guide_of(strategy, model)).evaluate_loss(x),
        "svi": lambda model, x: svi(model, guide_of(strategy, model)).step(x),
        "fit": lambda model, x: fit(
            EM(model, guide_of(strategy, model)), x, batch_size=7, progress=False
        ),
        "evidence": lambda model, x: log_evidence(model, x, guide=guide_of(strategy, model)),
    }


EXACT = {"evidence": log_evidence, "responsibilities": responsibilities, "assign": assign}
USES = [
    *(
        pytest.param(use, id=f"{strategy.__name__}-{name}")
        for strategy in STRATEGIES
        for name, use in uses(strategy).items()
    ),
    *(pytest.param(use, id=f"exact-{name}") for name, use in EXACT.items()),
]


def isotropic(components, features):
    return gaussian(components, features, covariance="isotropic")


def full(components, features):
    return gaussian(components, features, covariance="full")


def tied_full(components, features):
    return gaussian(components, features, covariance="full", tied=True)


def analyzers(factors, tied=False):
    def build(components, features):
        with torch.device("cpu"):
            return MixtureOfFactorAnalyzers(
                components=components, features=features, factors=factors, tied=tied
            )

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
    return centers[torch.arange(rows, device="cpu") % components] + torch.randn(
        rows, features, device="cpu"
    )


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


def assert_fits(build, x, strategy, components=3, empty="reseed", epochs=4, **options):
    """A few epochs of EM, in which all values stay finite."""
    model = build(components, x.shape[1])
    guide = guide_of(strategy, model, components=components, **options)
    seeds = seed_rows(x, components)
    with torch.no_grad():
        model.loc.copy_(seeds.loc)
    model.set_variance(seeds.variance)
    found = fit(EM(model, guide, empty=empty), x, epochs=epochs, warmup=1, progress=False)
    elbo = found.history["elbo"]
    assert np.isfinite(elbo).all()
    for name, value in pyro.get_param_store().items():
        assert bool(value.isfinite().all()), name
    assert bool(log_evidence(model, x).isfinite().all())
    return model, guide, found


def built(model, **options):
    """A model with the options that it requires."""
    needed = {
        MixtureOfFactorAnalyzers: {"factors": 1},
        BregmanMixture: {"divergence": "multinomial"},
        MixtureOfExperts: {"loss": "squared", "make": lambda: torch.nn.Linear(D, 1)},
    }
    return model(**{"components": C, "features": D} | needed.get(model, {}) | options)
