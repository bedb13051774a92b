"""Gates, expert predictions, routing and combiners, against scikit-learn and brute force."""

import warnings

import numpy as np
import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import distributions as dist
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler
from torch import nn

from pyro_mixtures.distributions import MixtureWeights
from pyro_mixtures.distributions.regression.linear_regressions import LinearRegressions
from pyro_mixtures.errors import DataError, ModelError, OptionError, PartitionError
from pyro_mixtures.guides import FullPartition, HardPartition
from pyro_mixtures.infer import EM
from pyro_mixtures.infer.experts.gates import Gate, Standard, fit_gate
from pyro_mixtures.infer.experts.routing import (
    accuracy,
    chosen,
    compare_routing,
    expert_predictions,
    fit_combiner,
    mixed,
    r2,
    route,
)
from pyro_mixtures.models import MixtureOfRegressions
from pyro_mixtures.poutine import data_plate

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float64]


pytestmark = pytest.mark.usefixtures("on_one_thread")


def randn(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(*shape, dtype=dtype, device=CPU, generator=generator)


def labelled(n, features, parts, seed=0):
    """Rows of unequal scales, and labels that depend on them and on chance."""
    x = randn(n, features, seed=seed)
    scores = x @ randn(features, parts, seed=seed + 1) + 0.7 * randn(n, parts, seed=seed + 2)
    scale = torch.logspace(-2, 2, features, dtype=torch.float64, device=CPU)
    return x * scale + 3 * scale, scores.argmax(-1)


def regressions(weight, bias):
    """A plain program over constant experts."""
    scale = torch.ones_like(bias)

    def model(x, y=None):
        experts = LinearRegressions(x, weight, bias, scale)
        with data_plate(x):
            z = pyro.sample(
                "z",
                MixtureWeights(torch.full_like(bias.reshape(len(bias), -1)[:, 0], 1 / len(bias))),
            )
            return pyro.sample("y", experts[z], obs=y)

    return model


def brute(weight, bias, x):
    """Predictions (N, C, ...), one expert and row at a time."""
    return torch.stack(
        [torch.stack([w @ row + b for w, b in zip(weight, bias, strict=True)]) for row in x]
    )


def with_labels(labels, components):
    """A guide of a partition that was not fitted."""
    guide = HardPartition(lambda: None, components=components)
    guide.labels = None if labels is None else torch.as_tensor(labels, device="cpu")
    return guide


# Gates.


@pytest.mark.meta
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("penalty", [1.0, 0.05])
@pytest.mark.parametrize("parts", [3, 6])
def test_gate_is_multinomial_logistic_regression(parts, penalty, dtype):
    x, labels = labelled(250, 4, parts)
    gate, new = fit_gate(x.to(dtype), labels, parts, penalty=penalty), 1.5 * x[:40]
    scaler = StandardScaler().fit(x.numpy())
    sklearn = LogisticRegression(C=1 / penalty, tol=1e-9, max_iter=20_000).fit(
        scaler.transform(x), labels.numpy()
    )
    expected = sklearn.predict_log_proba(scaler.transform(new))
    found = gate.log_prob(new.to(dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    np.testing.assert_array_equal(gate(new.to(dtype)).numpy(), expected.argmax(-1))
    assert torch.equal(gate(new.to(dtype)), gate.assign(new.to(dtype)))


def test_two_parts_have_half_the_penalty_of_one_weight_vector():
    x, labels = labelled(200, 3, 2)
    gate = fit_gate(x, labels, 2, penalty=0.5)
    z = StandardScaler().fit_transform(x.numpy())
    sklearn = LogisticRegression(C=2 / 0.5, tol=1e-10, max_iter=20_000).fit(z, labels.numpy())
    np.testing.assert_allclose(gate.log_prob(x).numpy(), sklearn.predict_log_proba(z), atol=1e-4)


def test_gate_looks_at_rows_in_chunks(monkeypatch):
    x, labels = labelled(100, 3, 4)
    whole = fit_gate(x, labels, 4).log_prob(x)
    monkeypatch.setattr("pyro_mixtures.infer.experts.gates._NUMBERS", 64)
    monkeypatch.setattr("pyro_mixtures.infer.experts.gates._ROWS", 7)
    torch.testing.assert_close(fit_gate(x, labels, 4).log_prob(x), whole, atol=1e-4, rtol=1e-4)


def test_parts_without_rows_are_impossible():
    x, labels = labelled(120, 3, 3)
    gate = fit_gate(x, torch.tensor([0, 2, 5])[labels], 7)
    log_prob = gate.log_prob(x)
    assert (log_prob[:, [1, 3, 4, 6]] == -torch.inf).all()
    torch.testing.assert_close(log_prob[:, [0, 2, 5]], fit_gate(x, labels, 3).log_prob(x))


def test_one_part_with_rows_is_certain():
    gate = fit_gate(randn(5, 2), torch.full((5,), 1), 3)
    assert gate.log_prob(randn(4, 2, seed=1)).exp().tolist() == [[0.0, 1.0, 0.0]] * 4


def test_one_row_and_constant_features():
    assert fit_gate(randn(1, 3), torch.tensor([2]), 4)(randn(6, 3, seed=1)).tolist() == [2] * 6
    x, labels = labelled(80, 3, 3)
    constant = torch.cat([x, torch.full((80, 1), 0.1, dtype=x.dtype)], -1)
    expected = fit_gate(x, labels, 3).log_prob(x)
    torch.testing.assert_close(
        fit_gate(constant, labels, 3).log_prob(constant), expected, atol=1e-4, rtol=1e-4
    )


def test_integer_rows_and_rows_of_several_dimensions():
    x = torch.randint(
        0, 256, (60, 2, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    labels = (x[:, 0, 0] > 128).long() + 2 * (x[:, 1, 2] > 128).long()
    gate = fit_gate(x, labels, 4, penalty=0.01)
    assert (gate(x) == labels).double().mean() > 0.9
    torch.testing.assert_close(
        gate.log_prob(x),
        fit_gate(x.flatten(1).float(), labels, 4, penalty=0.01).log_prob(x.flatten(1).float()),
    )


def test_a_gate_is_a_module_that_can_be_saved():
    x, labels = labelled(60, 2, 3)
    gate = fit_gate(x, labels, 3)
    other = fit_gate(x + 1, labels.flip(0), 3)
    other.load_state_dict(gate.state_dict())
    assert torch.equal(other.log_prob(x), gate.log_prob(x))
    assert not gate.log_prob(x).requires_grad


def test_a_users_module_learns_what_a_line_cannot():
    x = randn(400, 2, dtype=torch.float32)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    pyro.set_rng_seed(1)
    module = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(0.0), nn.Linear(16, 3))
    gate = fit_gate(x, labels, 3, module=module, epochs=40, batch_size=50, penalty=1e-3)
    assert gate.module is module
    assert not module.training
    assert (gate(x) == labels).double().mean() > 0.95
    assert (gate.log_prob(x)[:, 2] == -torch.inf).all()
    assert (fit_gate(x, labels, 3)(x) == labels).double().mean() < 0.8


def test_a_users_linear_module_comes_to_the_convex_solution():
    x, labels = labelled(150, 2, 3)
    module = nn.Linear(2, 3, bias=False, dtype=torch.float64)
    gate = fit_gate(
        x, labels, 3, module=module, epochs=600, batch_size=150, learning_rate=0.05, penalty=4.0
    )
    z = StandardScaler().fit_transform(x.numpy())
    sklearn = LogisticRegression(C=0.25, tol=1e-10, max_iter=9999, fit_intercept=False).fit(
        z, labels.numpy()
    )
    np.testing.assert_allclose(gate.log_prob(x).numpy(), sklearn.predict_log_proba(z), atol=1e-4)


def test_training_repeats_with_the_seed():
    x, labels = labelled(90, 3, 3)

    def fitted(seed):
        pyro.set_rng_seed(seed)
        return fit_gate(x, labels, 3, module=nn.Linear(3, 3), epochs=3, batch_size=16).log_prob(x)

    assert torch.equal(fitted(1), fitted(1))
    assert not torch.equal(fitted(1), fitted(2))


def test_gate_refuses_what_it_cannot_use():
    x, labels = labelled(20, 3, 3)
    with pytest.raises(PartitionError, match="-1 marks rows"):
        fit_gate(x, labels - 1, 3)
    with pytest.raises(PartitionError, match=r"not in \[0, 2\)"):
        fit_gate(x, labels.clamp_min(2), 2)
    with pytest.raises(PartitionError, match="integers"):
        fit_gate(x, labels.double(), 3)
    with pytest.raises(PartitionError, match=r"integers \(20,\)"):
        fit_gate(x, labels[:-1], 3)
    with pytest.raises(OptionError, match="penalty"):
        fit_gate(x, labels, 3, penalty=0.0)
    with pytest.raises(OptionError, match="components"):
        fit_gate(x, labels, 0)
    with pytest.raises(DataError, match="row 4"):
        fit_gate(
            x.index_put(
                (torch.tensor([4]), torch.tensor([1])), torch.tensor(torch.nan, dtype=x.dtype)
            ),
            labels,
            3,
        )
    with pytest.raises(DataError, match="at least one"):
        fit_gate(x[:0], labels[:0], 3)
    with pytest.raises(DataError, match="must be"):
        fit_gate(x, labels, 3).log_prob(x[:, :2])
    with pytest.raises(OptionError, match="one logit for each"):
        fit_gate(x, labels, 3, module=nn.Linear(3, 2))
    with pytest.raises(OptionError, match="no parameters"):
        fit_gate(x, labels, 3, module=nn.Identity())
    with pytest.raises(OptionError, match="epochs=0"):
        fit_gate(x, labels, 3, module=nn.Linear(3, 3), epochs=0)


def test_a_gate_that_does_not_converge_says_so(monkeypatch):
    x, labels = labelled(50, 3, 3)
    monkeypatch.setattr("pyro_mixtures.infer.experts.gates._STEPS", 1)
    with pytest.warns(RuntimeWarning, match="before convergence"):
        fit_gate(x, labels, 3)


# Predictions of all experts.


@pytest.mark.meta
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", [(), (3,)])
@pytest.mark.parametrize("chunk", [None, 1, 4, 50])
def test_expert_predictions_are_brute_forces(outputs, dtype, chunk):
    weight, bias = randn(5, *outputs, 4, dtype=dtype), randn(5, *outputs, dtype=dtype, seed=1)
    x = randn(11, 4, dtype=dtype, seed=2)
    found = expert_predictions(regressions(weight, bias), x, chunk=chunk)
    assert found.dtype == dtype
    torch.testing.assert_close(found, brute(weight, bias, x))


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
    found = expert_predictions(model, x)
    assert not found.requires_grad
    torch.testing.assert_close(found, brute(model.weight.detach(), model.bias.detach(), x))


def test_nothing_is_drawn_and_nothing_seen_outside():
    weight, bias, x = randn(3, 2), randn(3, seed=1), randn(5, 2, seed=2)
    with pyro.poutine.trace() as tracer:
        found = expert_predictions(regressions(weight, bias), x)
    assert not tracer.trace.nodes
    for seed in range(3):
        pyro.set_rng_seed(seed)
        assert torch.equal(expert_predictions(regressions(weight, bias), x), found)


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

    found = expert_predictions(
        model, x, site="c", observed="out", given={"shift": torch.tensor(2.0)}, chunk=2
    )
    torch.testing.assert_close(found, brute(weight, bias, x) + 2.0)
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


# Routing.


@pytest.mark.meta
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", [(), (2,)])
@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_routing_is_what_one_computes_by_hand(dtype, outputs, chunk):
    x, labels = labelled(40, 3, 4)
    x = x.to(dtype)
    weight, bias = randn(4, *outputs, 3, dtype=dtype), randn(4, *outputs, dtype=dtype, seed=1)
    model, gate, all_components = (
        regressions(weight, bias),
        fit_gate(x, labels, 4),
        brute(weight, bias, x),
    )
    hard = torch.stack(
        [
            row[c]
            for row, c in zip(all_components, gate.log_prob(x).argmax(-1).tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(route(model, gate, x, chunk=chunk), hard)
    soft = torch.einsum("nc...,nc->n...", all_components, gate.log_prob(x).exp())
    found = route(model, gate, x, "soft", chunk=chunk)
    # Large predictions of both signs, which cancel.
    torch.testing.assert_close(
        found, soft, rtol=1e-10, atol=1e-2 if dtype == torch.float32 else 1e-9
    )


def test_an_expert_of_an_empty_part_has_no_say():
    x, labels = labelled(30, 2, 2)
    predictions = randn(30, 3, 2)
    predictions[:, 1] = torch.inf
    log_prob = fit_gate(x, 2 * labels, 3).log_prob(x)
    expected = mixed(predictions[:, [0, 2]], log_prob[:, [0, 2]])
    torch.testing.assert_close(mixed(predictions, log_prob), expected)


def test_route_refuses_what_it_cannot_do():
    x, labels = labelled(30, 2, 3)
    model = regressions(randn(3, 2), randn(3))
    with pytest.raises(OptionError, match="unknown how='soggy'"):
        route(model, fit_gate(x, labels, 3), x, "soggy")
    with pytest.raises(OptionError, match="4 parts"):
        route(model, fit_gate(x, labels, 4), x)
    with pytest.raises(OptionError, match="gate is a Linear: give one of fit_gate"):
        route(model, nn.Linear(2, 3), x)


def test_a_gate_made_by_hand():
    """Any module can be a gate: here one that is not trained."""
    standard = Standard(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    sign = nn.Linear(1, 2, bias=False)
    nn.init.constant_(sign.weight, 0.0)
    with torch.no_grad():
        sign.weight[1] = 50.0
    gate = Gate(sign, standard, torch.tensor([True, True]))
    absolute = regressions(torch.tensor([[-1.0], [1.0]]), torch.zeros(2))
    x = torch.tensor([[-3.0], [-1.0], [2.0]])
    assert route(absolute, gate, x).tolist() == [3.0, 1.0, 2.0]
    torch.testing.assert_close(route(absolute, gate, x, "soft"), torch.tensor([3.0, 1.0, 2.0]))


# Combiners.


@pytest.mark.meta
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inner", "outer"), [((), ()), ((2,), ()), ((2,), (3,)), ((), (2, 2))])
@pytest.mark.parametrize("penalty", [0.3, 20.0])
def test_combiner_is_ridge_regression_on_the_concatenated_predictions(inner, outer, penalty, dtype):
    predictions = randn(60, 4, *inner, dtype=dtype) + 5
    y = randn(60, *outer, dtype=dtype, seed=1) + predictions.flatten(1).square().sum(-1).view(
        -1, *(1,) * len(outer)
    )
    found = fit_combiner(predictions, y, penalty)(predictions[:20])
    rows = predictions.flatten(1).double().numpy()
    sklearn = Ridge(alpha=penalty).fit(rows, y.reshape(60, -1).double().numpy())
    expected = sklearn.predict(rows[:20]).reshape(20, *outer)
    assert found.dtype == dtype
    np.testing.assert_allclose(
        found.numpy(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-9
    )


def test_combiner_looks_at_rows_in_chunks_and_bears_collinear_experts(monkeypatch):
    predictions, y = randn(50, 3), randn(50, seed=1)
    predictions = torch.cat([predictions, predictions], 1)
    whole = fit_combiner(predictions, y, 0.0)(predictions)
    monkeypatch.setattr("pyro_mixtures.infer.experts.combiners._NUMBERS", 30)
    torch.testing.assert_close(fit_combiner(predictions, y, 0.0)(predictions), whole)
    design = np.c_[predictions.numpy(), np.ones(50)]
    np.testing.assert_allclose(
        whole.numpy(), design @ np.linalg.lstsq(design, y.numpy(), rcond=None)[0], atol=1e-9
    )


def test_combiner_of_classes_is_multinomial_logistic_regression():
    scores, labels = randn(150, 4, 3), torch.tensor([0, 1, 3])[labelled(150, 2, 3)[1]]
    scores[torch.arange(150), 0, labels.clamp_max(2)] += 1.5
    combiner = fit_combiner(scores, labels, 0.7)
    rows = scores.flatten(1).numpy()
    sklearn = LogisticRegression(C=1 / 0.7, tol=1e-10, max_iter=9999).fit(rows, labels.numpy())
    probs = combiner(scores)
    assert probs.shape == (150, 4)
    assert (probs[:, 2] == 0).all()
    np.testing.assert_allclose(probs[:, [0, 1, 3]].numpy(), sklearn.predict_proba(rows), atol=1e-4)


def test_combiner_refuses_what_it_cannot_use():
    predictions, y = randn(10, 3), randn(10, seed=1)
    with pytest.raises(DataError, match="for outcomes"):
        fit_combiner(predictions, y[:-1])
    with pytest.raises(DataError, match="for outcomes"):
        fit_combiner(predictions[:, 0], y)
    with pytest.raises(DataError, match="outcomes are not all finite"):
        fit_combiner(predictions, y / 0)
    with pytest.raises(OptionError, match="penalty=-1"):
        fit_combiner(predictions, y, -1.0)
    with pytest.raises(OptionError, match="penalty=0"):
        fit_combiner(predictions, torch.arange(10), 0.0)
    with pytest.raises(DataError, match="classes"):
        fit_combiner(predictions, torch.arange(10) - 1)
    with pytest.raises(DataError, match="4 predictions a row"):
        fit_combiner(predictions, y)(randn(5, 4))


# The comparison.


def three_regressions(n, seed):
    """Three clusters of covariates, each with its own regression."""
    part = torch.arange(n) % 3
    centers = 6 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    x = centers[part] + randn(n, 2, seed=seed)
    weight = torch.tensor([[2.0, -1.0], [-3.0, 1.0], [1.0, 4.0]], dtype=torch.float64)
    bias = torch.tensor([0.0, 20.0, -30.0], dtype=torch.float64)
    return x, (weight[part] * x).sum(-1) + bias[part] + 0.1 * randn(n, seed=seed + 1), part


def test_routing_predicts_new_rows_where_one_regression_does_not():
    x, y, part = three_regressions(300, 1)
    new_x, new_y, _ = three_regressions(150, 3)
    model = MixtureOfRegressions(
        components=3, features=2, ridge=1e-4, scale=1.0, equal_weights=True
    ).double()
    guide = HardPartition(model, components=3)
    guide.set_labels(part)
    em = EM(model, guide, empty="keep")
    for _ in range(3):
        em.step(x, y)
    assert (guide.labels == part).double().mean() > 0.95  # but for rows where two regressions meet
    found = compare_routing(model, guide, (x, y), (new_x, new_y))
    alone = Ridge().fit(x.numpy(), y.numpy()).score(new_x.numpy(), new_y.numpy())
    assert alone < 0.8
    assert found["hard"] > 0.95
    assert found["soft"] > 0.95
    # Linear in outputs that are linear in x: no better than one regression.
    assert found["combiner"] == pytest.approx(alone, abs=0.02)
    assert list(found) == ["hard", "soft", "combiner", "oracle_unattainable"]
    assert found["oracle_unattainable"] >= max(found.values())
    gate = fit_gate(x, guide.labels, 3)
    assert found["hard"] == pytest.approx(
        r2_score(new_y.numpy(), route(model, gate, new_x).numpy())
    )
    assert found["soft"] == pytest.approx(
        r2_score(new_y.numpy(), route(model, gate, new_x, "soft").numpy())
    )
    combiner = fit_combiner(expert_predictions(model, x), y)
    expected = r2_score(new_y.numpy(), combiner(expert_predictions(model, new_x)).numpy())
    assert found["combiner"] == pytest.approx(expected)


def test_comparison_with_a_gate_and_a_metric_of_ones_own():
    x, y, part = three_regressions(60, 5)
    model = regressions(randn(3, 2), randn(3, seed=1))
    gate = fit_gate(x, part.flip(0), 3)
    found = compare_routing(
        model,
        with_labels(part, 3),
        (x, y),
        (x, y),
        gate=gate,
        metric=lambda p, y: (p - y).abs().max(),
    )
    all_components = expert_predictions(model, x)
    assert found["hard"] == pytest.approx(float((chosen(all_components, gate(x)) - y).abs().max()))
    best = (all_components - y.unsqueeze(-1)).abs().amin(-1)
    assert found["oracle_unattainable"] == pytest.approx(float(best.max()))


def test_comparison_of_several_outputs_averages_r2():
    x, part = labelled(50, 2, 2)
    weight, bias = randn(2, 3, 2), randn(2, 3, seed=1)
    y = chosen(brute(weight, bias, x), part) + randn(50, 3, seed=2)
    found = compare_routing(regressions(weight, bias), with_labels(part, 2), (x, y), (x, y))
    prediction = route(regressions(weight, bias), fit_gate(x, part, 2), x, "soft")
    assert found["soft"] == pytest.approx(r2_score(y.numpy(), prediction.numpy()))
    best = (brute(weight, bias, x) - y.unsqueeze(1)).square().sum(-1).argmin(-1)
    assert found["oracle_unattainable"] == pytest.approx(
        r2_score(y.numpy(), chosen(brute(weight, bias, x), best))
    )


def test_comparison_of_classes_takes_their_scores():
    """Experts whose means are scores of three classes; the oracle prefers an expert that is right."""
    x, part = labelled(80, 2, 2)
    weight, bias = randn(2, 3, 2), randn(2, 3, seed=1)
    scores = brute(weight, bias, x)
    y = chosen(scores, part).argmax(-1)
    found = compare_routing(regressions(weight, bias), with_labels(part, 2), (x, y), (x, y))
    gate = fit_gate(x, part, 2)
    expected = (chosen(scores, gate(x)).argmax(-1) == y).double().mean()
    assert found["hard"] == pytest.approx(float(expected))
    assert found["soft"] == pytest.approx(
        float((mixed(scores, gate.log_prob(x)).argmax(-1) == y).double().mean())
    )
    sklearn = LogisticRegression(C=1.0, tol=1e-9, max_iter=9999).fit(
        scores.flatten(1).numpy(), y.numpy()
    )
    assert found["combiner"] == pytest.approx(sklearn.score(scores.flatten(1).numpy(), y.numpy()))
    assert found["oracle_unattainable"] == 1.0  # its own part's expert is right about every row


def test_the_oracle_prefers_an_expert_that_is_right_to_one_with_more_belief():
    bias = torch.tensor([[0.46, 0.45, 0.09], [0.30, 0.40, 0.30]], dtype=torch.float64)
    model = regressions(torch.zeros(2, 3, 1, dtype=torch.float64), bias)
    x, y = randn(4, 1), torch.ones(4, dtype=torch.int64)
    assert (
        compare_routing(model, with_labels(torch.arange(4) % 2, 2), (x, y), (x, y))[
            "oracle_unattainable"
        ]
        == 1.0
    )


def test_comparison_refuses_what_does_not_fit():
    x, y, part = three_regressions(30, 1)
    model = regressions(randn(3, 2), randn(3, seed=1))
    with pytest.raises(PartitionError, match="no labels"):
        compare_routing(model, with_labels(None, 3), (x, y), (x, y))
    with pytest.raises(
        PartitionError, match="FullPartition holds no labels of rows: give the HardPartition"
    ):
        compare_routing(model, FullPartition(model, components=3), (x, y), (x, y))
    with pytest.raises(PartitionError, match="labels of 29 rows"):
        compare_routing(model, with_labels(part[1:], 3), (x, y), (x, y))
    with pytest.raises(PartitionError, match="-1 marks rows"):
        compare_routing(model, with_labels(part - 1, 3), (x, y), (x, y))
    with pytest.raises(DataError, match="29 outcomes"):
        compare_routing(model, with_labels(part, 3), (x, y[1:]), (x, y))
    with pytest.raises(DataError, match="metric="):
        compare_routing(model, with_labels(part, 3), (x, part), (x, part))
    with pytest.raises(DataError, match="R2 is not defined"):
        compare_routing(model, with_labels(part, 3), (x, y), (x[:1], y[:1]))
    with pytest.raises(DataError, match="outcomes are"):
        compare_routing(model, with_labels(part, 3), (x, y.unsqueeze(-1)), (x, y.unsqueeze(-1)))
    with pytest.raises(OptionError, match="2 parts"):
        compare_routing(model, with_labels(part, 3), (x, y), (x, y), gate=fit_gate(x, part % 2, 2))


def test_one_new_row_with_a_metric():
    x, y, part = three_regressions(30, 1)
    model = regressions(randn(3, 2), randn(3, seed=1))
    found = compare_routing(
        model, with_labels(part, 3), (x, y), (x[:1], y[:1]), metric=lambda p, y: (p - y).abs().sum()
    )
    best = (expert_predictions(model, x[:1]) - y[0]).abs().min()
    assert found["oracle_unattainable"] == pytest.approx(float(best))


def test_metrics():
    y, prediction = randn(20, 2), randn(20, 2, seed=1)
    assert r2(prediction, y) == pytest.approx(r2_score(y.numpy(), prediction.numpy()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])) == 0.5
