"""Posterior prediction: components come from responsibilities, not from the prior."""

import pyro
import pytest
import torch
from pyro.infer import Predictive
from torch.testing import assert_close

from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.guides import TruncatedPartition
from pyro_mixtures.infer import assign, responsibilities
from tests.sharp_edges.program import WEIGHTS, C, D


def apart(rows=40):
    """A program with well-separated components, rows drawn from it, and their components."""
    loc = 20.0 * torch.arange(C, device="cpu").unsqueeze(-1).repeat(1, D)
    truth = torch.arange(rows, device="cpu") % C

    def model(x):
        with pyro.plate("data", len(x), device=x.device):
            z = pyro.sample("z", MixtureWeights(WEIGHTS))
            pyro.sample("x", DiagonalNormals(loc, torch.ones(D, device=x.device))[z], obs=x)

    return model, loc[truth] + torch.randn(rows, D, device="cpu"), truth


@pytest.mark.meta
def test_predictive_draws_components_from_the_prior():
    model, x, truth = apart()
    z = Predictive(model, {}, num_samples=200, return_sites=["z"])(x)["z"]
    assert (z == truth).float().mean() < 0.4
    shares = torch.bincount(z.reshape(-1), minlength=C) / z.numel()
    assert_close(shares, WEIGHTS, rtol=0, atol=0.02)


@pytest.mark.meta
@pytest.mark.parametrize("truncated", [False, True])
def test_assign_and_responsibilities_give_the_posterior(truncated):
    model, x, truth = apart()
    guide = (
        TruncatedPartition(model, components=C, candidates=2, neighbors=C, seed=0)
        if truncated
        else None
    )
    assert torch.equal(assign(model, x, guide=guide), truth)
    found = responsibilities(model, x, top=1, guide=guide)
    assert torch.equal(found.components[:, 0], truth)
    assert_close(found.probs[:, 0], torch.ones(len(x), device="cpu"))
