"""Matching of components: the best permutation, errors of matched mixtures, invalid input."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.errors import DataError
from pyro_mixtures.partition.matching import match_components, matched_errors

few = settings(max_examples=30, deadline=None, derandomize=True)


def generator(seed=0):
    return torch.Generator("cpu").manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype, device="cpu")


@few
@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 100),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_total_distance_is_the_least_of_all_permutations(components, features, seed, dtype):
    a, b = (
        normal(components, features, seed=seed, dtype=dtype),
        normal(components, features, seed=seed + 1, dtype=dtype),
    )
    found = match_components(a, b)
    assert sorted(found.tolist()) == list(range(components))
    least = min(
        float((a[list(order)] - b).double().norm(dim=-1).sum())
        for order in itertools.permutations(range(components))
    )
    assert float((a[found] - b).double().norm(dim=-1).sum()) == pytest.approx(
        least, rel=1e-5, abs=1e-6
    )


@pytest.mark.meta
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_permuted_mixture_has_no_error(dtype):
    theta, weights = normal(6, 3, dtype=dtype), torch.softmax(normal(6, dtype=dtype), 0)
    order = torch.randperm(6, generator=generator(3), device="cpu")
    errors = matched_errors(theta[order], theta, weights[order], weights)
    assert torch.equal(order[errors.permutation], torch.arange(6, device="cpu"))
    assert float(errors.worst) == 0 == float(errors.weights)


def test_errors_are_those_of_the_matched_atoms():
    true, found = torch.tensor([[0.0, 0.0], [10.0, 0.0]]), torch.tensor([[10.0, 2.0], [0.0, -1.0]])
    errors = matched_errors(found, true, torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6]))
    assert errors.permutation.tolist() == [1, 0]
    assert errors.atoms.tolist() == [1.0, 2.0]
    assert float(errors.worst) == 2.0
    assert float(errors.weights) == pytest.approx(0.2)


def test_distances_are_not_squared():
    """Squares prefer two equal distances to a long and a short one; their sum here does not."""
    a, b = torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([[3.0, 0.0], [6.0, 1.0]])
    cost = torch.cdist(a, b)
    assert float(cost[0, 1] + cost[1, 0]) < float(cost[0, 0] + cost[1, 1])
    assert float(cost[0, 1] ** 2 + cost[1, 0] ** 2) > float(cost[0, 0] ** 2 + cost[1, 1] ** 2)
    assert match_components(a, b).tolist() == [1, 0]


@pytest.mark.parametrize("where", range(4))
def test_nan_is_refused(where):
    arguments = [torch.zeros(2, 3), torch.zeros(2, 3), torch.full((2,), 0.5), torch.full((2,), 0.5)]
    arguments[where][1] = torch.nan
    with pytest.raises(DataError, match=r"\[1\] contains NaN or infinity"):
        matched_errors(*arguments)


@pytest.mark.parametrize(
    ("a", "b"), [((2, 3), (3, 3)), ((2, 3), (2, 2)), ((2,), (2,)), ((0, 3), (0, 3))]
)
def test_shapes_are_checked(a, b):
    with pytest.raises(DataError, match=r"must be|cannot be matched"):
        match_components(torch.zeros(a), torch.zeros(b))


def test_weights_must_fit():
    with pytest.raises(DataError, match="must both be"):
        matched_errors(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(3) / 3, torch.ones(2) / 2)


def test_parameters_with_gradients_can_be_matched():
    theta = torch.zeros(2, 3, requires_grad=True)
    assert not matched_errors(
        theta, theta, torch.ones(2) / 2, torch.ones(2) / 2
    ).worst.requires_grad
