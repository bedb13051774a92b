"""Arguments of another type: typed errors instead of those of Python or torch."""

import numpy as np
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import Adam

from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.guides import FullPartition, HardPartition, TruncatedPartition
from pyro_mixtures.infer import EM, best_of, fit
from pyro_mixtures.init import seed_rows
from pyro_mixtures.models import BregmanMixture, GaussianMixture, KMeans, MixtureOfFactorAnalyzers


@pytest.fixture
def x():
    return torch.randn(30, 2)


def gaussian():
    return GaussianMixture(components=2, features=2)


@pytest.mark.parametrize("strategy", [FullPartition, HardPartition, TruncatedPartition])
@pytest.mark.parametrize("value", ["2", 2.0, None, True])
def test_numbers_of_components_of_guides(strategy, value):
    with pytest.raises(OptionError, match=r"components=.* must be a whole number"):
        strategy(gaussian(), components=value)


@pytest.mark.parametrize("name", ["candidates", "neighbors", "explore", "seed"])
@pytest.mark.parametrize("value", ["2", 2.0, True])
def test_numbers_of_the_truncated_guide(name, value):
    with pytest.raises(OptionError, match=rf"{name}=.* must be a whole number"):
        TruncatedPartition(
            gaussian(), components=2, **{"candidates": 2, "neighbors": 2, name: value}
        )


@pytest.mark.parametrize("strategy", [FullPartition, HardPartition, TruncatedPartition])
def test_integers_of_numpy_are_accepted(strategy, x):
    model, options = gaussian(), {"components": np.int64(2)}
    if strategy is TruncatedPartition:
        options |= {"candidates": np.int64(2), "neighbors": np.int32(2), "seed": np.int64(3)}
    assert np.isfinite(EM(model, strategy(model, **options)).step(x))


@pytest.mark.parametrize(
    ("components", "options", "message"),
    [
        ("2", {}, "components='2' must be a whole number"),
        (2.0, {}, "components=2.0 must be a whole number"),
        (2, {"chain": "9"}, "chain='9' must be a whole number"),
        (2, {"generator": np.random.default_rng(0)}, r"must be a torch\.Generator on the CPU"),
    ],
)
def test_arguments_of_seeding(x, components, options, message):
    with pytest.raises(OptionError, match=message):
        seed_rows(x, components, **options)


@pytest.mark.parametrize("model", [GaussianMixture, KMeans, BregmanMixture, "factors"])
def test_start_at_takes_seeds(model, x):
    options = {"components": 2, "features": 2}
    if model == "factors":
        model, options = MixtureOfFactorAnalyzers, {**options, "factors": 1}
    model = model(**options)
    with pytest.raises(OptionError, match=r"seeds is a Tensor: pass the result of seed_rows\(x, 2"):
        model.start_at(x[:2])
    model.start_at(seed_rows(x, 2))


@pytest.mark.parametrize("inference", [None, gaussian, 3])
def test_fit_takes_an_inference(inference, x):
    inference = inference() if callable(inference) else inference
    name = type(inference).__name__
    with pytest.raises(
        ModelError, match=rf"of type {name}: pass .* fit\(EM\(model, guide\), rows\)"
    ):
        fit(inference, x, progress=False)


@pytest.mark.parametrize("callbacks", [print, None, 3, ["print"], [None]])
def test_callbacks_are_a_list_of_functions(callbacks, x):
    model = gaussian()
    em = EM(model, FullPartition(model, components=2))
    with pytest.raises(OptionError, match=r"pass a list, such as callbacks=\[print\]"):
        fit(em, x, callbacks=callbacks, progress=False)


def test_callbacks_may_be_any_iterable(x):
    model, calls = gaussian(), []
    em = EM(model, FullPartition(model, components=2))
    fit(em, x, callbacks=iter([calls.append]), epochs=2, progress=False)
    assert calls


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"starts": 3}, r"starts=3 is no list: pass one function per start"),
        ({"starts": [print], "steps": 2.5}, "steps=2.5 must be a whole number"),
    ],
)
def test_arguments_of_best_of(options, message, x):
    with pytest.raises(OptionError, match=message):
        best_of(gaussian, x, **options)


@pytest.mark.parametrize("rate", [None, "0.5", 0.0, 2.0, float("nan")])
def test_step_sizes_are_numbers(rate, x):
    model = gaussian()
    em = EM(model, FullPartition(model, components=2), step_size=lambda step: rate)
    with pytest.raises(OptionError, match=r"step_size\(1\) = .* is outside \(0, 1\]"):
        em.step(x)


def test_a_stock_svi_is_an_inference(x):
    model = gaussian()
    svi = SVI(model, FullPartition(model, components=2), Adam({"lr": 0.01}), TraceEnum_ELBO())
    assert len(fit(svi, x, epochs=1, warmup=0, progress=False).history) == 1
