"""Routing of rows to experts against brute force."""

import pyro
import pytest
import torch
from torch import nn

from pyro_mixtures.errors import OptionError
from pyro_mixtures.guides import HardPartition
from pyro_mixtures.infer import EM, fit
from pyro_mixtures.infer.experts.gates import Gate, Standard, fit_gate
from pyro_mixtures.infer.experts.predictions import mix_experts
from pyro_mixtures.infer.experts.routing import route
from pyro_mixtures.models import MixtureOfRegressions
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


@pytest.mark.parametrize("how", ["hard", "soft"])
@pytest.mark.parametrize(
    ("offset", "spread", "dtype"),
    [(1.7e9, 60.0, torch.float64), (5e4, 2e4, torch.float64), (5e4, 2e4, torch.float32)],
)
def test_routed_predictions_do_not_depend_on_the_units_of_covariates(offset, spread, dtype, how):
    """A hard partition, a gate for its clusters and the routed predictions, against one of u."""
    u = randn(300, 2, dtype=torch.float64)
    far = (u * torch.tensor([spread, 1.0]) + torch.tensor([offset, 0.0])).to(dtype)
    u = (far.double() - torch.tensor([offset, 0.0])) / torch.tensor([spread, 1.0])
    y = u[:, 0].abs() + 0.3 * u[:, 1] + 0.1 * randn(300, dtype=torch.float64, seed=3)
    predictions = []
    for x in (u, far):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model = MixtureOfRegressions(components=2, features=2).to(x.dtype)
        guide = HardPartition(model, components=2, score="leave_one_out")
        guide.set_labels((u[:, 0] > 0.2).long())
        fit(EM(model, guide), x, y.to(x.dtype), progress=False)
        gate = fit_gate(x, guide.labels.long(), 2)
        predictions.append(route(model, gate, x, how).double())
    tolerance = 2e-2 if dtype == torch.float32 else 1e-5
    assert float((predictions[0] - predictions[1]).abs().mean()) < 0.1 * tolerance
    torch.testing.assert_close(predictions[1], predictions[0], rtol=0, atol=tolerance)
