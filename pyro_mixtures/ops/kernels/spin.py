"""Waiting for another thread without going to sleep, for a while."""

import platform
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# What tells the core that nothing happens meanwhile: it saves power, and leaves the core to its
# other hardware thread.
_PAUSE = {"x86_64": "llvm.x86.sse2.pause", "AMD64": "llvm.x86.sse2.pause"}.get(platform.machine())


@intrinsic
def _read(typingctx: Any, number: Any) -> Any:
    """``number[0]`` as other threads have left it: a plain read would be moved out of the loop."""

    def codegen(context, builder, signature, args):
        pointer = context.make_array(number)(context, builder, args[0]).data
        if _PAUSE is not None:
            nothing = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, nothing, _PAUSE), [])
        return builder.load_atomic(pointer, ordering="acquire", align=8)

    return types.int64(number), codegen


@njit(cache=True, nogil=True)
def spin_while(number, value, polls):
    """Wait until ``number[0]`` (int64) is no longer ``value``; False when it still is after so many looks."""
    for _ in range(polls):  # noqa: SIM110 - compiled
        if _read(number) != value:  # type: ignore[call-arg]
            return True
    return False
