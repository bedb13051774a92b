"""Pairs sorted by component, in both backends."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.errors import OptionError, PartitionError
from pyro_mixtures.ops import Pairs, Quadratic, pair_log_density, use_backend
from pyro_mixtures.ops.backend import on_numba
from pyro_mixtures.ops.pairs import chunk_bounds

BACKENDS = ["auto", "torch"]
few = settings(max_examples=40, deadline=None, derandomize=True)


@few
@given(st.lists(st.integers(-1, 4), max_size=40), st.sampled_from(BACKENDS))
def test_pairs_are_the_valid_slots_in_a_stable_order_of_components(numbers, backend):
    rows = torch.arange(len(numbers)) + 100
    with use_backend(backend):
        pairs = Pairs(torch.tensor(numbers, dtype=torch.int64).reshape(1, -1), 5, rows).sorted
    expected = sorted((c, slot) for slot, c in enumerate(numbers) if c >= 0)
    assert pairs.order.tolist() == [slot for _, slot in expected]
    assert pairs.rows.tolist() == [slot + 100 for _, slot in expected]
    assert pairs.starts.tolist() == [sum(c < limit for c, _ in expected) for limit in range(6)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_all_pairs_are_sorted_like_any_others(backend, rows):
    """z = 0, ..., C - 1 expanded over the rows takes a shortcut."""
    z = torch.arange(3).unsqueeze(-1).expand(3, rows)
    with use_backend(backend):
        short, plain = Pairs(z, 3).sorted, Pairs(z.contiguous(), 3).sorted
    for mine, theirs in zip(short, plain, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_at_all_are_sorted_too(backend):
    with use_backend(backend):
        pairs = Pairs(torch.zeros(3, 0, dtype=torch.int64), 3).sorted
    assert len(pairs.rows) == 0
    assert pairs.starts.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [-2, 3])
def test_components_out_of_range_are_refused(backend, bad):
    z = torch.tensor([[0, bad]])
    with use_backend(backend), pytest.raises(PartitionError, match=r"not in \[0, 3\)"):
        Pairs(z, 3).sorted  # noqa: B018
    kernel = Quadratic(
        torch.zeros(3, 1), torch.ones(3, 1), torch.zeros(3, 0, 1), torch.zeros(3), 1.0
    )
    with use_backend(backend), pytest.raises(PartitionError, match=r"not in \[0, 3\)"):
        pair_log_density(torch.zeros(2, 1), kernel, Pairs(z, 3))


@pytest.mark.parametrize("items", [0, 1, 7])
def test_chunks_cover_every_component_once(items):
    starts = torch.tensor([0, 0, items, items, 9 + items])
    bounds = chunk_bounds(starts, 3).tolist()
    assert bounds[0] == 0
    assert bounds[-1] == 4
    assert bounds == sorted(bounds)


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
