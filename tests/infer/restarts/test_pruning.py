"""Losses of pruning against the log evidence without the component."""

import pytest
import torch

from pyro_mixtures.infer.restarts.pruning import pruning_losses
from tests.diagnostics.model_choice.samples import clusters, gaussians

pytestmark = pytest.mark.usefixtures("on_one_thread")


def test_losses_agree_with_the_log_evidence_without_the_component():
    """The smallest loss is that of one of two overlapping components."""
    x = clusters(3, 20).double()
    model = gaussians(dtype=torch.float64)(4).model
    with torch.no_grad():
        model.loc = torch.tensor(
            [[0.0, 0.0], [9.0, 9.0], [17.0, 18.0], [19.0, 18.0]], dtype=torch.float64
        )
        model.weights = torch.tensor([0.2, 0.3, 0.4, 0.1], dtype=torch.float64)
        model.scale = torch.full((4, 2), 2.0, dtype=torch.float64)
    result = pruning_losses(model, (x,), model.weights.detach(), site="z", chunk=7)
    log_prob = (
        torch.distributions.Normal(model.loc, model.scale).log_prob(x.unsqueeze(1)).sum(-1).detach()
    )
    for c in range(4):
        others = [k for k in range(4) if k != c]
        weights = model.weights[others].detach()
        log_weights = (weights / weights.sum()).log()
        exact = (log_prob + model.weights.detach().log()).logsumexp(-1) - (
            log_prob[:, others] + log_weights
        ).logsumexp(-1)
        assert float(result[c]) == pytest.approx(float(exact.sum()), rel=1e-9)
    assert int(result.argmin()) == 3


@pytest.mark.parametrize("weights", [[1.0, 0.0, 0.0], [1.0, 1e-9, 0.0]])
def test_losses_of_a_component_with_all_the_weight(weights):
    """The sum of the other weights is not zero, although one minus its weight rounds to zero."""
    x, weights = clusters(1, 20), torch.tensor(weights, device="cpu")
    model = gaussians()(3).model
    with torch.no_grad():
        model.loc, model.weights = torch.tensor([[0.0, 0.0], [5.0, 5.0], [6.0, 6.0]]), weights
    result = pruning_losses(model, (x,), weights, site="z", chunk=None)
    assert result[2] == 0
    assert float(result[1]) == pytest.approx(0.0, abs=1e-5)
    if weights[1] == 0:
        assert result[0] == torch.inf
    else:
        normal = torch.distributions.Normal(model.loc[:2].detach(), model.scale[:2].detach())
        log_prob = normal.log_prob(x.unsqueeze(1)).sum(-1)
        assert float(result[0]) == pytest.approx(
            float((log_prob[:, 0] - log_prob[:, 1]).sum()), rel=1e-4
        )
