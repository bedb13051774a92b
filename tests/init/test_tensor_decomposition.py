"""Tensor decompositions: exact on orthogonal tensors, stable under noise, invalid input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.init.tensor_decomposition import simultaneous_diagonalization, tensor_power

METHODS = [tensor_power, simultaneous_diagonalization]
few = settings(max_examples=20, deadline=None, derandomize=True)


def generator(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def orthogonal(size, seed=0):
    """Orthonormal rows (K, K)."""
    return torch.linalg.qr(
        torch.randn(size, size, generator=generator(seed), dtype=torch.float64, device="cpu")
    ).Q


def build(values, vectors):
    return torch.einsum("k,ka,kb,kc->abc", values, vectors, vectors, vectors)


def symmetric(size, seed):
    noise = torch.randn(
        size, size, size, generator=generator(seed), dtype=torch.float64, device="cpu"
    )
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    return sum(noise.permute(order) for order in orders) / 6


@pytest.mark.parametrize("decompose", METHODS)
@few
@given(st.integers(1, 7), st.integers(0, 1000), st.data())
def test_orthogonal_tensors_are_recovered(decompose, size, seed, data):
    """Values of either sign become positive, and their vectors change sign."""
    signs = torch.tensor(
        data.draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=size, max_size=size))
    )
    values = torch.linspace(1.0, 3.0, size, dtype=torch.float64) * signs
    vectors = orthogonal(size, seed)
    tensor = build(values, vectors)
    found = decompose(tensor, generator=generator(seed))
    torch.testing.assert_close(
        found.values, values.abs().sort(descending=True).values, rtol=1e-7, atol=1e-7
    )
    torch.testing.assert_close(build(found.values, found.vectors), tensor, rtol=0, atol=1e-6)
    order = values.abs().argsort(descending=True)
    torch.testing.assert_close(
        found.vectors, (vectors * signs.unsqueeze(-1))[order], rtol=0, atol=1e-6
    )
    assert float(found.residual) < 1e-6


@pytest.mark.parametrize("decompose", METHODS)
def test_equal_values_are_separated(decompose):
    """They occur with equal weights; a matrix would not have unique eigenvectors."""
    vectors = orthogonal(4)
    found = decompose(
        build(torch.full((4,), 2.0, dtype=torch.float64), vectors), generator=generator()
    )
    torch.testing.assert_close(
        (found.vectors @ vectors.mT).amax(-1), torch.ones(4, dtype=torch.float64), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("decompose", METHODS)
def test_noise_changes_the_result_by_its_own_size(decompose):
    vectors, values = orthogonal(5), torch.linspace(2.0, 3.0, 5, dtype=torch.float64)
    noise = symmetric(5, 1)
    found = decompose(build(values, vectors) + 0.01 * noise / noise.norm(), generator=generator())
    assert (found.values - values.flip(0)).abs().max() < 0.011
    assert (found.vectors @ vectors.mT).amax(-1).min() > 1 - 1e-4
    assert 0 < float(found.residual) < 0.01


def test_the_first_vector_found_is_an_eigenvector_of_any_symmetric_tensor():
    """T(I, v, v) = lambda v before the first term is subtracted."""
    tensor = symmetric(4, 2)
    found = tensor_power(tensor, iterations=3000, generator=generator())
    image = torch.einsum("abc,kb,kc->ka", tensor, found.vectors, found.vectors)
    error = (image - found.values.unsqueeze(-1) * found.vectors).norm(dim=-1)
    assert error.min() < 1e-6 < error.max()


@pytest.mark.parametrize("decompose", METHODS)
def test_a_tensor_of_zeros_ends_finite(decompose):
    found = decompose(torch.zeros(3, 3, 3), generator=generator())
    assert found.values.tolist() == [0.0, 0.0, 0.0]
    assert all(bool(part.isfinite().all()) for part in found)


@pytest.mark.meta
@pytest.mark.parametrize("decompose", METHODS)
def test_equal_seeds_give_equal_results_in_float64(decompose):
    tensor = build(
        torch.linspace(1, 2, 3, dtype=torch.float64, device="cpu"), orthogonal(3)
    ).float()
    first, second = (
        decompose(tensor, generator=generator()),
        decompose(tensor, generator=generator()),
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert {part.dtype for part in first} == {torch.float64}


@pytest.mark.parametrize("decompose", METHODS)
@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.zeros(2, 2), "must be"),
        (torch.zeros(2, 2, 3), "must be"),
        (torch.zeros(0, 0, 0), "must be"),
        (torch.full((2, 2, 2), torch.nan), "NaN"),
        (torch.arange(8.0).reshape(2, 2, 2), "not symmetric"),
    ],
)
def test_unusable_tensors_are_refused(decompose, tensor, says):
    with pytest.raises(DataError, match=says):
        decompose(tensor)


def test_options_must_be_positive():
    with pytest.raises(OptionError, match="restarts=0"):
        tensor_power(torch.zeros(2, 2, 2), restarts=0)
    with pytest.raises(OptionError, match="contractions=0"):
        simultaneous_diagonalization(torch.zeros(2, 2, 2), contractions=0)
