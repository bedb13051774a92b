"""M-steps of stock distributions with plain indexing."""

import pyro
import pytest
import torch
from pyro import distributions as dist

from pyro_mixtures.distributions import (
    DiagonalNormals,
    FactorAnalyzers,
    FullNormals,
)
from pyro_mixtures.guides import FullPartition, TruncatedPartition
from pyro_mixtures.infer import EM

C, D, N = 3, 4, 120
F64 = torch.float64

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture
def x():
    return 2 * torch.randn(N, D, dtype=F64) + torch.arange(D) * torch.randint(3, (N, 1))


def _stock_program(kind, x, labels):
    """The same mixture twice: stock distributions indexed by z, and this package's families."""
    loc0, generator = x[:C].clone(), torch.Generator().manual_seed(5)
    rand = lambda *shape: torch.rand(*shape, dtype=F64, generator=generator)  # noqa: E731
    weights0 = torch.tensor([0.2, 0.3, 0.5], dtype=F64)
    scale0, factor0, noise0 = 1 + rand(C, D), rand(C, D, 2), 1 + rand(C, D)
    tril0 = 0.1 * rand(C, D, D).tril(-1) + scale0.diag_embed()
    probs0 = rand(C, 3) / 2 + 0.1
    probs0 = probs0 / probs0.sum(-1, keepdim=True)
    positive = dist.constraints.positive

    def stock(z, loc):
        if kind == "Normal":
            return dist.Normal(
                loc[z], pyro.param("scale", scale0, constraint=positive)[z]
            ).to_event(1)
        if kind == "MultivariateNormal":
            tril = pyro.param("tril", tril0, constraint=dist.constraints.lower_cholesky)
            return dist.MultivariateNormal(loc[z], scale_tril=tril[z])
        factor, noise = (
            pyro.param("factor", factor0.clone()),
            pyro.param("noise", noise0, constraint=positive),
        )
        return dist.LowRankMultivariateNormal(loc[z], factor[z], noise[z])

    def own(z, loc):
        if kind == "Normal":
            return DiagonalNormals(loc, pyro.param("scale", scale0, constraint=positive))[z]
        if kind == "MultivariateNormal":
            return FullNormals(
                loc, pyro.param("tril", tril0, constraint=dist.constraints.lower_cholesky)
            )[z]
        factor, noise = (
            pyro.param("factor", factor0.clone()),
            pyro.param("noise", noise0, constraint=positive),
        )
        return FactorAnalyzers(loc, factor, noise)[z]

    def program(component):
        def model(x, labels, index=None, size=None):
            weights = pyro.param("weights", weights0, constraint=dist.constraints.simplex)
            loc = pyro.param(
                "loc", loc0.clone()
            )  # an unconstrained param is its initial tensor, written in place
            probs = pyro.param("probs", probs0, constraint=dist.constraints.simplex)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(weights))
                pyro.sample("x", component(z, loc), obs=x)
                pyro.sample("label", dist.Categorical(probs[z]), obs=labels)

        return model

    return program(stock), program(own)


@pytest.mark.parametrize("truncated", [False, True], ids=["full", "truncated"])
@pytest.mark.parametrize("kind", ["Normal", "MultivariateNormal", "LowRankMultivariateNormal"])
def test_stock_distributions_with_plain_indexing_get_the_same_steps(x, kind, truncated):
    labels, found = torch.randint(3, (N,)), []
    for model in _stock_program(kind, x, labels):
        pyro.clear_param_store()
        guide = FullPartition(model, components=C)
        if truncated:
            guide = TruncatedPartition(
                model, components=C, candidates=2, neighbors=2, explore=1, seed=0
            )
        em = EM(model, guide)
        losses = torch.tensor([em.step(x, labels) for _ in range(4)])
        found.append(
            {
                "losses": losses,
                **{name: value.detach() for name, value in pyro.get_param_store().items()},
            }
        )
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-9, atol=1e-11)


def test_scalar_normals_with_plain_indexing_are_fitted():
    """``dist.Normal(loc[z], scale)`` over numbers, one scale for all."""
    x = torch.cat([torch.randn(60, dtype=F64) - 4, torch.randn(40, dtype=F64) + 4])

    def model(x):
        weights = pyro.param(
            "weights", torch.tensor([0.5, 0.5], dtype=F64), constraint=dist.constraints.simplex
        )
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0], dtype=F64))
        scale = pyro.param(
            "scale", torch.tensor([1.5, 2.5], dtype=F64), constraint=dist.constraints.positive
        )
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)

    em = EM(model, FullPartition(model, components=2))
    for _ in range(10):
        em.step(x)
    torch.testing.assert_close(
        pyro.param("weights").detach(), torch.tensor([0.6, 0.4], dtype=F64), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(pyro.param("loc")[0].detach(), x[:60].mean(), atol=0.01, rtol=0)
    torch.testing.assert_close(
        pyro.param("scale")[1].detach(), x[60:].std(unbiased=False), atol=0.01, rtol=0
    )
