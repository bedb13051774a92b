"""Conversions of integers to floating-point numbers that lose no digit."""

import warnings

import torch
from torch import Tensor

from pyro_mixtures.errors import DataError


def holds_exactly(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether the floating-point ``dtype`` holds each of the integers ``values`` exactly.

    The result is True for floating-point values.

    >>> holds_exactly(torch.tensor([1 << 24]), torch.float32)
    True
    >>> holds_exactly(torch.tensor([1 + (1 << 24)]), torch.float32)
    False
    """
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        return True
    # Integers of at most 16 bits need no look at their values in float32 and float64.
    if torch.iinfo(values.dtype).max <= _limit(dtype) or not values.numel():
        return True
    if not torch.jit.is_tracing():  # type: ignore[attr-defined]
        return _are_exact(values, dtype)
    with warnings.catch_warnings():
        # A trace holds the check of its example rows only.
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        return _are_exact(values, dtype)


def as_floating(values: Tensor, dtype: torch.dtype, name: str = "rows") -> Tensor:
    """Convert values to a floating-point ``dtype``, integers exactly.

    :param name: of the values, for the error.
    :raises DataError: when ``dtype`` does not hold each of the integers exactly.

    >>> as_floating(torch.tensor([3, 5]), torch.float32)
    tensor([3., 5.])
    """
    check_exact(values, dtype, name)
    return values.to(dtype)


def check_exact(values: Tensor, dtype: torch.dtype, name: str = "rows") -> None:
    """Refuse integers that ``dtype`` does not hold exactly.

    :raises DataError: which names one of them.
    """
    if holds_exactly(values, dtype):
        return
    integers = values.detach().long()
    integer = int(integers[_inexact(integers, dtype)][0])
    wider = "" if dtype == torch.float64 else "use float64 params, model.double(), or "
    raise DataError(
        f"{name} hold the integer {integer}, which {dtype} cannot hold exactly: {wider}"
        "pass smaller numbers, such as differences from the smallest, x - x.min()"
    )


def floating_dtype(values: Tensor, name: str = "rows") -> torch.dtype:
    """Return the dtype in which functions without params compute with ``values``.

    It is that of floating-point values. Integers get torch's default dtype, or float64 where the
    default does not hold them exactly.

    :raises DataError: for integers that float64 does not hold exactly either.

    >>> floating_dtype(torch.tensor([1_700_000_001]))
    torch.float64
    """
    if values.is_floating_point():
        return values.dtype
    default = torch.get_default_dtype()
    if holds_exactly(values, default):
        return default
    check_exact(values, torch.float64, name)
    return torch.float64


def _are_exact(values: Tensor, dtype: torch.dtype) -> bool:
    integers, limit = values.detach().long(), _limit(dtype)
    low, high = integers.aminmax()
    if int(low) >= -limit and int(high) <= limit:
        return True
    return not bool(_inexact(integers, dtype).any())


def _limit(dtype: torch.dtype) -> int:
    """Return the integer up to which ``dtype`` holds all integers, 2^24 for float32."""
    return int(2 / torch.finfo(dtype).eps)


def _inexact(integers: Tensor, dtype: torch.dtype) -> Tensor:
    converted = integers.to(dtype)
    # The largest int64 is rounded to 2^63, whose conversion back is not defined.
    return (converted >= 2.0**63) | (converted.long() != integers)
