"""The threads of the CPU kernels: as many as torch uses, sleeping between kernels.

The kernels do not use numba's own parallel loops. Its worker threads and torch's, from two OpenMP libraries, go on
spinning for milliseconds after every region, so that on a machine with few cores each stands in the way of the other:
a step that alternates between them was measured to take seven times as long. A pool of plain threads also survives a
fork, and needs no parallel compilation.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_reserved: ContextVar[int | None] = ContextVar("threads reserved for kernels", default=None)
_pool: ThreadPoolExecutor | None = None


def threads() -> int:
    """How many threads a kernel may use: ``torch.get_num_threads()``, or what :func:`kernels_first` has reserved."""
    reserved = _reserved.get()
    return torch.get_num_threads() if reserved is None else reserved


@contextmanager
def kernels_first() -> Iterator[None]:
    """Within the block all threads belong to the kernels, and torch's own operations run on the calling thread.

    For stretches of work whose torch operations are small: its spinning workers would only delay the kernels.
    """
    before = torch.get_num_threads()
    token = _reserved.set(threads())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _reserved.reset(token)
        torch.set_num_threads(before)


def for_each(task: Callable[[int], object], count: int) -> None:
    """Call ``task(i)`` for i = 0, ..., count - 1, in any order and on several threads; it must release the GIL."""
    workers, reserved = min(threads(), count), _reserved.get() is not None
    numbers = itertools.count()

    def work() -> None:
        # next() of a counter is atomic: each number goes to one thread.
        for i in numbers:
            if i >= count:
                return
            task(i)

    def help_out() -> None:
        if reserved and torch.get_num_threads() != 1:  # a setting of the thread, taken back with the block's own
            torch.set_num_threads(1)
        work()

    if workers <= 1:
        work()
        return
    helpers = [_workers().submit(help_out) for _ in range(workers - 1)]
    try:
        work()
    finally:
        # One that has not begun by now has nothing left to do. (Waiting for it could wait for ever, in a nested call.)
        waiting = [helper for helper in helpers if not helper.cancel()]
        errors = [error for helper in waiting if (error := helper.exception()) is not None]
    if errors:
        raise errors[0]


def pieces(items: int, least: int = 256) -> list[slice]:
    """Cut ``range(items)`` into some slices a thread, each of at least ``least`` items."""
    count = max(1, min(8 * threads(), items // least))
    return [slice(i * items // count, (i + 1) * items // count) for i in range(count)]


def _workers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(2, 4 * (os.cpu_count() or 1)), thread_name_prefix="kernel")
    return _pool


def _forget_pool() -> None:
    """The threads of a pool do not live on in a forked process."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)
