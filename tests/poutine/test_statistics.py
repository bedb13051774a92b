"""Sufficient statistics: which responsibilities enter the sums."""

import math

import pytest
import torch

from pyro_mixtures.guides import FullPartition
from pyro_mixtures.models import GaussianMixture
from pyro_mixtures.poutine import collect_statistics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_responsibilities_lost_in_rounding_are_left_out_and_change_no_sum(dtype):
    """Most responsibilities of the middle component are below the dtype's precision."""
    model = GaussianMixture(components=3, features=2).to(dtype)
    with torch.no_grad():
        model.loc = torch.tensor([[-9.0, 0.0], [0.0, 0.0], [9.0, 0.0]], dtype=dtype)
    x = torch.randn(200, 2, dtype=dtype) + model.loc.detach()[torch.arange(200) % 3]
    guide = FullPartition(model, components=3)
    posterior = guide.posterior(x)
    far = posterior.log_prob < math.log(1e-2 * torch.finfo(dtype).eps)
    # Component 99 does not exist, so pairs that were not left out would raise an error.
    candidates = posterior.candidates.expand(far.shape).masked_fill(far, 99)
    posterior = posterior._replace(candidates=candidates)
    sites = collect_statistics(model, guide.read(x), posterior, (x,), {}).sites
    found = sites["x"].family.finish(sites["x"].sums)
    assert 0.3 < float(far.double().mean()) < 0.7
    diff = x - model.loc.detach().unsqueeze(1)
    exact = posterior.probs
    torch.testing.assert_close(found.count, exact.sum(1))
    torch.testing.assert_close(found.first, torch.einsum("cn,cnd->cd", exact, diff))
