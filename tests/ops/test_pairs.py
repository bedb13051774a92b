"""Pairs sorted by component, in both backends."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.errors import OptionError, PartitionError
from pyro_mixtures.ops import sort_pairs, use_backend
from pyro_mixtures.ops.backend import on_numba

BACKENDS = ["auto", "torch"]
few = settings(max_examples=40, deadline=None, derandomize=True)


@few
@given(st.lists(st.integers(-1, 4), max_size=40), st.sampled_from(BACKENDS))
def test_pairs_are_the_valid_slots_in_a_stable_order_of_components(numbers, backend):
    rows = torch.arange(len(numbers)) + 100
    with use_backend(backend):
        pairs = sort_pairs(torch.tensor(numbers, dtype=torch.int64), rows, 5)
    expected = sorted((c, slot) for slot, c in enumerate(numbers) if c >= 0)
    assert pairs.order.tolist() == [slot for _, slot in expected]
    assert pairs.rows.tolist() == [slot + 100 for _, slot in expected]
    assert pairs.components.tolist() == [c for c, _ in expected]
    assert pairs.starts.tolist() == [sum(c < limit for c, _ in expected) for limit in range(6)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("trail", [(), (1,), (2, 1)])
def test_everyone_with_everyone_is_sorted_as_any_other(backend, rows, trail):
    """z = 0, ..., C - 1 expanded over the rows takes a short cut."""
    shape = (3, rows, *trail)
    z = torch.arange(3).reshape(3, *(1,) * (len(shape) - 1)).expand(shape)
    numbers = torch.arange(z[0].numel()).reshape(shape[1:]).expand(shape)
    with use_backend(backend):
        short, plain = sort_pairs(z, numbers, 3), sort_pairs(z.contiguous(), numbers, 3)
    for mine, theirs in zip(short, plain, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "z", [torch.tensor(1), torch.zeros(0, dtype=torch.int64), torch.zeros(3, 0, dtype=torch.int64)]
)
def test_a_single_number_and_no_rows_at_all_are_sorted_too(backend, z):
    with use_backend(backend):
        pairs = sort_pairs(z, torch.zeros_like(z), 3)
    assert len(pairs.rows) == z.numel()
    assert pairs.starts.tolist() == [0, 0, z.numel(), z.numel()]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [-2, 3])
def test_components_out_of_range_are_refused(backend, bad):
    with use_backend(backend), pytest.raises(PartitionError, match=r"not in \[0, 3\)"):
        sort_pairs(torch.tensor([0, bad]), torch.tensor([0, 1]), 3)


def test_use_backend_is_undone_at_the_end_of_the_block():
    x = torch.zeros(1)
    with use_backend("torch"):
        assert not on_numba(x, x.dtype)
    with pytest.raises(ZeroDivisionError), use_backend("torch"):
        raise ZeroDivisionError
    assert on_numba(x, x.dtype)


def test_an_unknown_backend_is_refused():
    with pytest.raises(OptionError, match=r"'cuda'.*choose one of"), use_backend("cuda"):
        pass
