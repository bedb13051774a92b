"""Woodbury algebra and distances against dense linear algebra."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.ops.distances import nearest_distance, squared_distance
from pyro_mixtures.ops.lowrank import factorize, posterior_covariance, posterior_mean

few = settings(max_examples=25, deadline=None, derandomize=True)


@few
@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 5))
def test_factorize_inverts_the_covariance(components, features, rank):
    factor = torch.randn(components, features, rank, dtype=torch.float64)
    noise = 0.5 + torch.rand(components, features, dtype=torch.float64)
    dense = factor @ factor.mT + noise.diag_embed()
    low = factorize(factor, noise)
    torch.testing.assert_close(
        low.precision.diag_embed() - low.projection.mT @ low.projection, dense.inverse()
    )
    torch.testing.assert_close(low.logdet, dense.logdet())
    beta = factor.mT @ dense.inverse()
    diff, index = (
        torch.randn(2, features, 1, dtype=torch.float64),
        torch.tensor([components - 1, 0]),
    )
    torch.testing.assert_close(posterior_mean(low, index, diff), beta[index] @ diff)
    expected = torch.eye(rank, dtype=torch.float64) - beta @ factor
    torch.testing.assert_close(posterior_covariance(low), expected.expand(components, rank, rank))


def test_factorize_is_differentiable():
    factor = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    noise = (0.5 + torch.rand(2, 3, dtype=torch.float64)).requires_grad_()
    torch.autograd.gradcheck(lambda *args: tuple(factorize(*args)), (factor, noise))


@few
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
def test_distances_are_those_of_the_differences(rows, centers, features):
    x = torch.randn(rows, features, dtype=torch.float64)
    c = torch.randn(centers, features, dtype=torch.float64)
    table = (x.unsqueeze(1) - c).square().sum(-1)
    torch.testing.assert_close(squared_distance(x, c[0]), table[:, 0])
    torch.testing.assert_close(nearest_distance(x, c), table.amin(-1))


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_distance_of_a_row_from_itself_is_zero(shift):
    x = torch.rand(5, 3) + shift
    shifted = x - x[0]
    assert nearest_distance(shifted, shifted).tolist() == [0.0] * 5
