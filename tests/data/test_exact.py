"""Conversions of integers to floating point are exact, or refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.data.exact import as_floating, floating_dtype, holds_exactly
from pyro_mixtures.errors import DataError

few = settings(max_examples=200, deadline=None, derandomize=True)
BITS = {torch.float32: 24, torch.float64: 53}


def near_powers_of_two():
    return st.builds(
        lambda sign, power, step: max(-(1 << 63), min(sign * (1 << power) + step, (1 << 63) - 1)),
        st.sampled_from([-1, 1]),
        st.integers(20, 63),
        st.integers(-300, 300),
    )


@few
@given(st.lists(near_powers_of_two(), min_size=1, max_size=4), st.sampled_from(list(BITS)))
def test_integers_are_held_exactly_if_their_digits_fit(integers, dtype):
    def fits(integer):
        magnitude = abs(integer)
        low_zeros = (magnitude & -magnitude).bit_length() - 1
        return magnitude.bit_length() - low_zeros <= BITS[dtype]

    values = torch.tensor(integers)
    assert holds_exactly(values, dtype) == all(map(fits, integers))
    if all(map(fits, integers)):
        assert list(map(int, as_floating(values, dtype).tolist())) == integers
        return
    with pytest.raises(DataError, match="cannot hold exactly") as raised:
        as_floating(values, dtype)
    named = int(str(raised.value).split("integer ")[1].split(",")[0])
    assert named in integers
    assert not fits(named)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.bool])
def test_short_integers_are_always_held(dtype):
    assert holds_exactly(torch.ones(3).to(dtype), torch.float32)


def test_the_dtype_of_a_computation_holds_the_values():
    assert floating_dtype(torch.zeros(2, dtype=torch.float64)) == torch.float64
    assert floating_dtype(torch.tensor([1 << 24])) == torch.float32
    assert floating_dtype(torch.tensor([1 + (1 << 24)])) == torch.float64
    with pytest.raises(DataError, match=r"which torch\.float64 cannot hold exactly: pass smaller"):
        floating_dtype(torch.tensor([1 + (1 << 53)]))
