"""Predictions of all experts against brute force."""

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import distributions as dist

from pyro_mixtures.distributions import MixtureWeights
from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
from pyro_mixtures.errors import DataError, ModelError, OptionError
from pyro_mixtures.infer.experts.predictions import expert_predictions
from pyro_mixtures.models import MixtureOfRegressions
from tests.infer.experts.programs import DTYPES, brute, randn, regressions

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.mark.meta
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", [(), (3,)])
@pytest.mark.parametrize("chunk", [None, 1, 4, 50])
def test_expert_predictions_agree_with_brute_force(outputs, dtype, chunk):
    weight, bias = randn(5, *outputs, 4, dtype=dtype), randn(5, *outputs, dtype=dtype, seed=1)
    x = randn(11, 4, dtype=dtype, seed=2)
    result = expert_predictions(regressions(weight, bias), x, chunk=chunk)
    assert result.dtype == dtype
    torch.testing.assert_close(result, brute(weight, bias, x))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(1, 7))
def test_expert_predictions_of_any_size(rows, components, features, chunk):
    weight, bias, x = (
        randn(components, features),
        randn(components, seed=1),
        randn(rows, features, seed=2),
    )
    torch.testing.assert_close(
        expert_predictions(regressions(weight, bias), x, chunk=chunk), brute(weight, bias, x)
    )


def test_expert_predictions_of_the_template_program():
    model = MixtureOfRegressions(components=3, features=2, outputs=2)
    x = randn(6, 2, dtype=torch.float32)
    result = expert_predictions(model, x)
    assert not result.requires_grad
    torch.testing.assert_close(result, brute(model.weight.detach(), model.bias.detach(), x))


def test_predictions_draw_nothing_and_leave_no_trace():
    weight, bias, x = randn(3, 2), randn(3, seed=1), randn(5, 2, seed=2)
    with pyro.poutine.trace() as tracer:
        result = expert_predictions(regressions(weight, bias), x)
    assert not tracer.trace.nodes
    for seed in range(3):
        pyro.set_rng_seed(seed)
        assert torch.equal(expert_predictions(regressions(weight, bias), x), result)


def test_other_names_dimensions_masks_and_latents():
    weight, bias, x = randn(3, 2), randn(3, seed=1), randn(5, 2, seed=2)

    def model(x, y=None):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        experts = LinearRegressions(x, weight, bias + shift, torch.ones_like(bias))
        with pyro.plate("rows", len(x)):
            c = pyro.sample("c", MixtureWeights(torch.full_like(bias, 1 / 3)))
            pyro.sample("other", experts[c])
            with pyro.poutine.mask(mask=torch.arange(len(x)) > 0):
                pyro.sample("out", experts[c], obs=y)

    result = expert_predictions(
        model, x, site="c", observed="out", given={"shift": torch.tensor(2.0)}, chunk=2
    )
    torch.testing.assert_close(result, brute(weight, bias, x) + 2.0)
    with pytest.raises(ModelError, match="shift"):
        expert_predictions(model, x, site="c", observed="out")


def test_expert_predictions_refuse_other_programs():
    weight, bias, x = randn(3, 2), randn(3, seed=1), randn(5, 2, seed=2)
    model = regressions(weight, bias)
    with pytest.raises(ModelError, match="no site 'out'"):
        expert_predictions(model, x, observed="out")
    with pytest.raises(ModelError, match="no sample site 'k'"):
        expert_predictions(model, x, site="k")
    with pytest.raises(ModelError, match="y=None"):
        expert_predictions(lambda x, y: model(x, y), x)
    with pytest.raises(OptionError, match="chunk=0"):
        expert_predictions(model, x, chunk=0)
    with pytest.raises(DataError, match="no rows"):
        expert_predictions(model, x[:0])

    def stock(x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("y", dist.Normal(bias[z], 1.0), obs=y)

    with pytest.raises(ModelError, match="Normal"):
        expert_predictions(stock, x)

    def some(x, y=None):
        with pyro.plate("data", len(x), subsample_size=(len(x) + 1) // 2) as rows:
            z = pyro.sample("z", MixtureWeights(torch.ones(3) / 3))
            pyro.sample(
                "y", LinearRegressions(x[rows], weight, bias, torch.ones_like(bias))[z], obs=y
            )

    with pytest.raises(ModelError, match="subsample_size"):
        expert_predictions(some, torch.cat([x, x]), chunk=10)
