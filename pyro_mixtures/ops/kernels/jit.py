"""Typed decorators for numba kernels: compiled once, cached on disk, and without the GIL."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit
from numba.extending import intrinsic
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., object])
Array = NDArray[Any]
Arguments = tuple[Any, ...]  # of a kernel: arrays and numbers

# Fast mathematics without nnan and ninf: a NaN in the data must reach the caller, which turns it
# into a typed error.
FAST_MATH = ("reassoc", "contract", "arcp", "nsz")


def kernel(function: Function) -> Function:
    """Compile ``function`` with exact floating-point arithmetic."""
    return cast(Function, njit(cache=True, nogil=True)(function))


def fast_kernel(function: Function) -> Function:
    """Compile ``function``; sums may be evaluated in any order."""
    return cast(Function, njit(fastmath=set(FAST_MATH), cache=True, nogil=True)(function))


def inlined(function: Function) -> Function:
    """Compile ``function`` into every kernel that calls it."""
    return cast(Function, njit(inline="always")(function))


def instruction(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make an intrinsic of ``function``, which emits its LLVM code."""
    return cast(Callable[..., Any], intrinsic(function))


def instruction_with_literals(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make an intrinsic whose emitted code depends on the values of literal arguments."""
    return cast(Callable[..., Any], intrinsic(prefer_literal=True)(function))
