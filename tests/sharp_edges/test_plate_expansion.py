"""Plate expansion: distributions of z stay themselves when a plate expands them."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from torch.testing import assert_close

from pyro_mixtures.distributions import (
    CandidateCategorical,
    MixtureWeights,
    RestrictedSupport,
    Selected,
)
from tests.sharp_edges.program import FAMILIES, LOC, WEIGHTS, C, N, draw_rows, log_joint


def in_plate(fn, rows=N):
    """The distribution as a plate over ``rows`` expands it."""

    def program():
        with pyro.plate("data", rows, device="cpu"):
            pyro.sample("z", fn)

    return poutine.trace(program).get_trace().nodes["z"]["fn"]


@pytest.mark.meta
def test_mixture_weights_stay_themselves_in_a_plate():
    weights = WEIGHTS.clone()
    fn = in_plate(MixtureWeights(weights))
    assert isinstance(fn, MixtureWeights)
    assert fn.arguments["probs"] is weights
    assert fn.batch_shape == (N,)
    assert fn.enumerate_support(expand=False).shape == (C, 1)
    assert_close(fn.enumerate_support(), torch.arange(C, device="cpu").unsqueeze(-1).expand(C, N))


@pytest.mark.meta
def test_candidate_categoricals_stay_themselves_in_a_plate():
    sets = torch.tensor([[0, 2], [4, 1]], device="cpu").repeat(N // 2, 1)
    own = in_plate(CandidateCategorical(sets, torch.zeros(N, 2, device="cpu")))
    assert isinstance(own, CandidateCategorical)
    assert torch.equal(own.enumerate_support(), sets.T)
    one_for_all = in_plate(CandidateCategorical(sets[1:2], torch.zeros(1, 2, device="cpu")))
    assert isinstance(one_for_all, CandidateCategorical)
    assert torch.equal(one_for_all.enumerate_support(), sets[1:2].T.expand(2, N))
    shared = in_plate(CandidateCategorical(sets[0], torch.zeros(2, device="cpu")))
    assert isinstance(shared, CandidateCategorical)
    assert torch.equal(shared.enumerate_support(expand=False), sets[0].unsqueeze(-1))
    assert torch.equal(shared.enumerate_support(), sets[0].unsqueeze(-1).expand(2, N))


@pytest.mark.meta
def test_restricted_supports_stay_themselves_in_a_plate():
    sets = torch.tensor([[0, 2], [4, -1]], device="cpu").repeat(N // 2, 1)
    for base in (MixtureWeights(WEIGHTS), dist.Categorical(WEIGHTS)):
        fn = in_plate(RestrictedSupport(base, sets))
        assert isinstance(fn, RestrictedSupport)
        assert fn.batch_shape == (N,)
        assert torch.equal(fn.enumerate_support(), sets.T)
        assert_close(
            fn.log_prob(fn.enumerate_support())[:, :2].exp(),
            torch.tensor([[0.1, 0.15], [0.3, 0.0]], device="cpu"),
        )


@pytest.mark.meta
@pytest.mark.parametrize("family", FAMILIES)
def test_selection_stays_lazy_in_a_plate(family):
    components, z = FAMILIES[family](LOC), torch.arange(C, device="cpu").unsqueeze(-1)
    fn = in_plate(components[z])
    assert isinstance(fn, Selected)
    assert fn.family is components
    assert fn.z is z
    assert fn.batch_shape == (C, N)
    x = draw_rows()
    assert_close(fn.log_prob(x), log_joint(x, scale=0.5, weights=torch.ones(C, device="cpu")).T)


def test_a_stock_expansion_loses_the_candidates_of_the_rows():
    class Candidates(dist.TorchDistribution):
        arg_constraints = {}
        has_enumerate_support = True

        def enumerate_support(self, expand=True):
            return torch.tensor([[3], [5]], device="cpu").repeat(1, N)

    fn = Candidates(torch.Size([N]), validate_args=False).expand([N])
    assert not isinstance(fn, Candidates)
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        fn.enumerate_support()
