"""Routing of rows to experts against brute force."""

import pytest
import torch
from torch import nn

from pyro_mixtures.errors import OptionError
from pyro_mixtures.infer.experts.gates import Gate, Standard, fit_gate
from pyro_mixtures.infer.experts.predictions import mix_experts
from pyro_mixtures.infer.experts.routing import route
from tests.infer.experts.programs import DTYPES, brute, labeled, randn, regressions

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.mark.meta
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", [(), (2,)])
@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_routing_agrees_with_brute_force(dtype, outputs, chunk):
    x, labels = labeled(40, 3, 4)
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
    result = route(model, gate, x, "soft", chunk=chunk)
    # Large predictions of both signs cancel.
    torch.testing.assert_close(
        result, soft, rtol=1e-10, atol=1e-2 if dtype == torch.float32 else 1e-9
    )


def test_experts_of_empty_clusters_are_ignored():
    x, labels = labeled(30, 2, 2)
    predictions = randn(30, 3, 2)
    predictions[:, 1] = torch.inf
    log_prob = fit_gate(x, 2 * labels, 3).log_prob(x)
    expected = mix_experts(predictions[:, [0, 2]], log_prob[:, [0, 2]])
    torch.testing.assert_close(mix_experts(predictions, log_prob), expected)


def test_route_refuses_invalid_input():
    x, labels = labeled(30, 2, 3)
    model = regressions(randn(3, 2), randn(3))
    with pytest.raises(OptionError, match="unknown how='soggy'"):
        route(model, fit_gate(x, labels, 3), x, "soggy")
    with pytest.raises(OptionError, match="4 clusters"):
        route(model, fit_gate(x, labels, 4), x)
    with pytest.raises(OptionError, match="gate is a Linear: pass the result of fit_gate"):
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
