"""Marginals of z: responsibilities are exact, and stand in where compute_marginals fails."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import infer_discrete
from torch.testing import assert_close

from pyro_mixtures.distributions import DiagonalNormals, MixtureWeights
from pyro_mixtures.guides import TruncatedPartition
from pyro_mixtures.infer import responsibilities
from pyro_mixtures.poutine import truncate
from tests.sharp_edges.program import ELBO, LOC, WEIGHTS, C, D, N, draw_rows, log_joint, no_guide


def enumerated(weights, select):
    def model(x):
        with pyro.plate("data", len(x), device=x.device):
            z = pyro.sample("z", weights, infer={"enumerate": "parallel"})
            pyro.sample("x", select(z), obs=x)

    return model


STOCK = enumerated(dist.Categorical(WEIGHTS), lambda z: dist.Normal(LOC[z], 1.0).to_event(1))
OURS = enumerated(
    MixtureWeights(WEIGHTS), lambda z: DiagonalNormals(LOC, torch.ones(D, device="cpu"))[z]
)


def table_of(found, components=C):
    """Responsibilities as a dense (N, C) table."""
    table = torch.zeros(len(found.probs), components, device="cpu")
    return table.scatter(1, found.components, found.probs)


@pytest.mark.meta
@pytest.mark.parametrize("model", [STOCK, OURS], ids=["stock", "ours"])
def test_responsibilities_are_the_exact_marginals(model):
    x = draw_rows()
    exact = ELBO.compute_marginals(STOCK, no_guide, x)["z"].probs
    assert_close(table_of(responsibilities(model, x, top=C)), exact)
    assert_close(exact, log_joint(x).softmax(-1))


@pytest.mark.meta
def test_mixture_weights_work_with_compute_marginals_and_sample_posterior():
    x = draw_rows()
    marginal = ELBO.compute_marginals(OURS, no_guide, x)["z"]
    assert_close(marginal.log_prob(marginal.enumerate_support()).T.exp(), log_joint(x).softmax(-1))
    best = infer_discrete(OURS, first_available_dim=-2, temperature=0)
    assert torch.equal(
        poutine.trace(best).get_trace(x).nodes["z"]["value"], log_joint(x).argmax(-1)
    )
    copies = x[:1].expand(2000, D)
    draws = (
        poutine.trace(infer_discrete(OURS, first_available_dim=-2))
        .get_trace(copies)
        .nodes["z"]["value"]
    )
    shares = torch.bincount(draws, minlength=C) / len(draws)
    assert_close(shares, log_joint(x[:1]).softmax(-1)[0], rtol=0, atol=0.04)


@pytest.mark.meta
def test_truncated_responsibilities_stand_in_for_marginals_of_wrapped_distributions():
    x = draw_rows()
    guide = TruncatedPartition(OURS, components=C, candidates=2, neighbors=C, seed=0)
    guide.posterior(x)
    sets = guide.sets.table.long()
    with pytest.raises(TypeError, match="logits"):
        ELBO.compute_marginals(truncate(OURS, "z", sets), no_guide, x)
    with pytest.raises(NotImplementedError, match="guide enumeration"):
        ELBO.compute_marginals(OURS, guide, x)
    kept = log_joint(x).gather(-1, sets)
    expected = torch.zeros(N, C, device="cpu").scatter(1, sets, kept.softmax(-1))
    posterior = guide.eval().posterior(x)
    found = torch.zeros(N, C, device="cpu").scatter(1, posterior.candidates.T, posterior.probs.T)
    assert_close(found, expected)
    assert_close(table_of(responsibilities(OURS, x, top=2, guide=guide)), expected)
