"""Duplicates and padding in candidate sets: the former are refused, the latter count as nothing."""

import pytest
import torch
from torch.testing import assert_close

from pyro_mixtures.distributions import CandidateCategorical, MixtureWeights, RestrictedSupport
from pyro_mixtures.errors import PartitionError
from pyro_mixtures.poutine import truncate
from tests.sharp_edges.program import (
    ELBO,
    WEIGHTS,
    N,
    draw_rows,
    gradients,
    log_joint,
    no_guide,
    plain,
)


@pytest.mark.meta
@pytest.mark.parametrize("shared", [False, True])
def test_duplicate_candidates_are_refused(shared):
    twice = torch.tensor([1, 1, 3] if shared else [[0, 1, 2], [3, 1, 3]], device="cpu")
    row, given = (0, "1, 1, 3") if shared else (1, "3, 1, 3")
    message = rf"candidate set {row} lists a component twice: \[{given}\]; pad with -1"
    with pytest.raises(PartitionError, match=message):
        CandidateCategorical(twice, torch.zeros(twice.shape, device="cpu"))
    with pytest.raises(PartitionError, match=message):
        RestrictedSupport(MixtureWeights(WEIGHTS), twice)


@pytest.mark.meta
def test_truncate_refuses_duplicate_candidates():
    twice = torch.zeros(N, 2, dtype=torch.long, device="cpu")
    with pytest.raises(PartitionError, match="lists a component twice"):
        ELBO.loss(truncate(plain, "z", twice), no_guide, draw_rows())


def test_unchecked_duplicates_would_count_twice():
    twice = RestrictedSupport(
        MixtureWeights(WEIGHTS), torch.tensor([[2, 2]], device="cpu"), validate_args=False
    )
    assert_close(twice.log_prob(twice.enumerate_support()).logsumexp(0).exp(), 2 * WEIGHTS[2:3])


@pytest.mark.meta
def test_padding_counts_as_nothing_in_truncate():
    x = draw_rows()
    padded = torch.tensor([[0, -1, 3, -1]], device="cpu").repeat(N, 1)
    padded[::2] = torch.tensor([4, 1, -1, -1], device="cpu")
    found = ELBO.loss(truncate(plain, "z", padded), no_guide, x)
    joint = torch.where(padded >= 0, log_joint(x).gather(-1, padded.clamp_min(0)), -torch.inf)
    assert_close(found, -float(joint.logsumexp(-1).sum()), rtol=1e-6, atol=0)


@pytest.mark.meta
def test_padding_gives_no_gradient_and_no_nan():
    x, pair = draw_rows(), torch.tensor([[0, 3]], device="cpu").expand(N, 2)
    padded = torch.nn.functional.pad(pair, (0, 1), value=-1)
    found = [gradients(truncate(plain, "z", sets), no_guide, x) for sets in (padded, pair)]
    assert_close(found[0], found[1])
