"""The threads that run the CPU kernels: as many as torch uses.

The kernels do not use numba's parallel loops. The worker threads of numba and those of torch come
from two OpenMP libraries, and both keep spinning for milliseconds after every parallel region. On a
machine with few cores they then block each other: a step that alternates between the two was
measured to take seven times as long. Plain Python threads also survive a fork, and kernels that
run on them need no parallel compilation.
"""

import itertools
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils

from pyro_mixtures.ops.kernels.jit import Array, instruction, kernel

Result = TypeVar("Result")

# How often a thread polls a number before it goes to sleep: for some milliseconds.
_POLLS = 1 << 15
# The instruction that tells the core that a thread is waiting: the core saves power, and leaves its
# execution units to its other hardware thread.
_PAUSE = {"x86_64": "llvm.x86.sse2.pause", "AMD64": "llvm.x86.sse2.pause"}.get(platform.machine())

_reserved: ContextVar[int | None] = ContextVar("threads reserved for kernels", default=None)


class _ThreadState(threading.local):
    """State of the calling thread."""

    in_task = False  # whether the thread is running a task of run_tasks


_state = _ThreadState()


def thread_count() -> int:
    """Return how many threads a kernel may use.

    :returns: ``torch.get_num_threads()``, or the number that :func:`reserve_threads` has reserved.
    """
    reserved = _reserved.get()
    return torch.get_num_threads() if reserved is None else reserved


@contextmanager
def reserve_threads() -> Iterator[None]:
    """Give all threads to the kernels: within the block, torch's own operations run on one thread.

    For stretches of work whose torch operations are small. The spinning workers of torch would only
    delay the kernels there.
    """
    threads_before = torch.get_num_threads()
    outermost = _reserved.get() is None
    token = _reserved.set(thread_count())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _reserved.reset(token)
        torch.set_num_threads(threads_before)
        if outermost:
            _team.dismiss()


def run_slices(
    task: Callable[[int, int], Result], items: int, *, minimum: int = 256
) -> list[Result]:
    """Call ``task(begin, end)`` for ranges that cover ``range(items)``, on several threads.

    :param minimum: smallest number of items for which a call is worth its overhead.
    :returns: the results, in the order of the ranges.
    """
    ranges = work_slices(items, minimum)
    return run_tasks(lambda i: task(ranges[i].start, ranges[i].stop), len(ranges))


def work_slices(items: int, minimum: int = 256) -> list[slice]:
    """Cut ``range(items)`` into a few slices per thread, each of at least ``minimum`` items."""
    count = max(1, min(8 * thread_count(), items // minimum))
    return [slice(i * items // count, (i + 1) * items // count) for i in range(count)]


def run_tasks(task: Callable[[int], Result], count: int) -> list[Result]:
    """Call ``task(i)`` for i = 0, ..., count - 1 on several threads, in any order.

    The task must release the GIL to run in parallel. Calls from within a task stay on its thread,
    and so do calls of a second thread while a first one is using the helper threads.

    :returns: the results, in the order of i.
    """
    results: dict[int, Result] = {}
    numbers = itertools.count()

    def work() -> None:
        nested, _state.in_task = _state.in_task, True
        try:
            # next() of a counter is atomic: each number goes to one thread.
            for i in numbers:
                if i >= count:
                    return
                results[i] = task(i)
        finally:
            _state.in_task = nested

    helpers = min(thread_count(), count) - 1
    if helpers < 1:
        return [task(i) for i in range(count)]
    if _state.in_task or not _team.in_use.acquire(blocking=False):
        work()
    else:
        try:
            _team.run(work, helpers, reserved=_reserved.get() is not None)
        finally:
            _team.in_use.release()
    return [results[i] for i in range(count)]


class _Job:
    """Work that several threads share, each by one call of the same function."""

    def __init__(self, work: Callable[[], None], helpers: int, reserved: bool):
        self.work = work
        self.open_places = helpers  # for helpers that have not begun
        self.reserved = reserved
        self.active = np.zeros(1, np.int64)  # number of helpers at work
        self.errors: list[BaseException] = []
        self._lock = threading.Lock()
        self._idle = threading.Event()

    def help_out(self) -> None:
        """Work as a helper, unless enough helpers have begun or the job has ended."""
        with self._lock:
            if not self.open_places:
                return
            self.open_places -= 1
            self.active[0] += 1
        try:
            # The number of torch's threads is a setting of each thread.
            if self.reserved and torch.get_num_threads() != 1:
                torch.set_num_threads(1)
            self.work()
        except BaseException as error:
            self.errors.append(error)
        finally:
            with self._lock:
                self.active[0] -= 1
                if not self.active[0]:
                    self._idle.set()

    def finish(self) -> None:
        """Wait for the helpers at work; helpers that have not begun by now do not begin."""
        with self._lock:
            self.open_places, active = 0, int(self.active[0])
            self._idle.clear()
        while active and spin_while(self.active, active, _POLLS):
            active = int(self.active[0])
        if active:
            with self._lock:
                if not self.active[0]:
                    return
            self._idle.wait()


class _Team:
    """Helper threads, which stay awake between the jobs of one block of :func:`reserve_threads`.

    Waking a thread takes a tenth of a millisecond, and several milliseconds on a virtual machine
    whose idle cores are given away. A step with a dozen kernels would wait that long for each.
    """

    def __init__(self) -> None:
        self.in_use = threading.Lock()
        self._changed = threading.Condition()
        self._job_number = np.zeros(1, np.int64)  # of the last job
        self._job: _Job | None = None
        self._stay_awake = False
        self._helpers = 0

    def run(self, work: Callable[[], None], helpers: int, *, reserved: bool) -> None:
        """Call ``work()`` on this thread and on ``helpers`` others.

        The first error of a helper is raised after all of them have ended.
        """
        job = _Job(work, helpers, reserved)
        self._start_threads(helpers)
        self._post(job, stay_awake=reserved)
        try:
            work()
        finally:
            job.finish()
            self._job = None  # the job holds references to its arguments
        if job.errors:
            raise job.errors[0]

    def dismiss(self) -> None:
        """Let the helpers sleep."""
        if self._stay_awake:
            self._post(None, stay_awake=False)

    def _post(self, job: _Job | None, *, stay_awake: bool) -> None:
        with self._changed:
            self._job, self._stay_awake = job, stay_awake
            self._job_number[0] += 1
            self._changed.notify_all()

    def _start_threads(self, helpers: int) -> None:
        while self._helpers < helpers:
            threading.Thread(
                target=self._serve, name=f"kernel-{self._helpers}", daemon=True
            ).start()
            self._helpers += 1

    def _serve(self) -> None:
        seen = 0
        while True:
            if not (self._stay_awake and spin_while(self._job_number, seen, _POLLS)):
                with self._changed:
                    while self._job_number[0] == seen:
                        self._changed.wait()
            with self._changed:
                seen, job = int(self._job_number[0]), self._job
            if job is not None:
                job.help_out()
                del job


@instruction
def _read(typingctx: Any, number: Any) -> Any:
    """Read ``number[0]`` as other threads have left it.

    The compiler would move a plain read out of the loop.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = context.make_array(number)(context, builder, args[0]).data
        if _PAUSE is not None:
            no_arguments = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, no_arguments, _PAUSE), [])
        return builder.load_atomic(pointer, ordering="acquire", align=8)

    return types.int64(number), codegen


@kernel
def spin_while(number: Array, value: int, polls: int) -> bool:
    """Wait, without sleeping, until ``number[0]`` (int64) is no longer ``value``.

    :returns: False if it still is after so many ``polls``.
    """
    for _ in range(polls):  # noqa: SIM110 - compiled
        if _read(number) != value:
            return True
    return False


def _new_team() -> None:
    """Start afresh in a forked process, where the threads of the team do not exist."""
    global _team
    _team = _Team()


_team = _Team()
os.register_at_fork(after_in_child=_new_team)
