"""The threads of the CPU kernels: as many as torch uses.

The kernels do not use numba's own parallel loops. Its worker threads and torch's, from two OpenMP
libraries, go on spinning for milliseconds after every region, so that on a machine with few cores
each stands in the way of the other: a step that alternates between them was measured to take seven
times as long. A team of plain threads also survives a fork, and needs no parallel compilation.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch

from pyro_mixtures.ops.kernels.spin import spin_while

# Looks at a number before a thread goes to sleep: some milliseconds.
_POLLS = 1 << 15

_reserved: ContextVar[int | None] = ContextVar("threads reserved for kernels", default=None)
_inside = threading.local()  # .task: whether this thread is in a task of for_each


def threads() -> int:
    """How many threads a kernel may use: ``torch.get_num_threads()``, or what :func:`kernels_first` has reserved."""
    reserved = _reserved.get()
    return torch.get_num_threads() if reserved is None else reserved


@contextmanager
def kernels_first() -> Iterator[None]:
    """Within the block all threads belong to the kernels, and torch's own operations run on the calling thread.

    For stretches of work whose torch operations are small: its spinning workers would only delay
    the kernels.
    """
    before, outermost = torch.get_num_threads(), _reserved.get() is None
    token = _reserved.set(threads())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _reserved.reset(token)
        torch.set_num_threads(before)
        if outermost:
            _team.dismiss()


def for_each(task: Callable[[int], object], count: int) -> None:
    """Call ``task(i)`` for i = 0, ..., count - 1, in any order and on several threads; it must release the GIL.

    Calls from within a task, and those of a second thread meanwhile, stay on their own thread.
    """
    numbers = itertools.count()

    def work() -> None:
        before = getattr(_inside, "task", False)
        _inside.task = True
        try:
            # next() of a counter is atomic: each number goes to one thread.
            for i in numbers:
                if i >= count:
                    return
                task(i)
        finally:
            _inside.task = before

    helpers = min(threads(), count) - 1
    if helpers < 1:
        for i in range(count):
            task(i)
    elif getattr(_inside, "task", False) or not _team.taken.acquire(blocking=False):
        work()
    else:
        try:
            _team.run(work, helpers, reserved=_reserved.get() is not None)
        finally:
            _team.taken.release()


class _Job:
    """Work that several threads do together, each by one call of the same function."""

    def __init__(self, work: Callable[[], None], helpers: int, reserved: bool):
        self.work, self.places, self.reserved = work, helpers, reserved
        self.active = np.zeros(1, np.int64)  # helpers at work
        self.errors: list[BaseException] = []
        self._lock, self._idle = threading.Lock(), threading.Event()

    def help_out(self) -> None:
        """A helper's part; nothing, where there is nothing left to do."""
        with self._lock:
            if not self.places:
                return
            self.places -= 1
            self.active[0] += 1
        try:
            if self.reserved and torch.get_num_threads() != 1:  # a setting of the thread
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
        """Wait for the helpers at work; who has not begun by now does not begin."""
        with self._lock:
            self.places, active = 0, int(self.active[0])
            self._idle.clear()
        while active and spin_while(self.active, active, _POLLS):
            active = int(self.active[0])
        if active:
            with self._lock:
                if not self.active[0]:
                    return
            self._idle.wait()


class _Team:
    """Helper threads. Between two jobs of one block of :func:`kernels_first` they wait without going to sleep.

    To wake a thread takes long: a tenth of a millisecond, and several on a virtual machine whose
    idle cores are given away, which a step with its dozen of kernels would wait for each time.
    """

    def __init__(self) -> None:
        self.taken = threading.Lock()
        self._changed = threading.Condition()
        self._call = np.zeros(1, np.int64)  # number of the last job
        self._job: _Job | None = None
        self._linger = False
        self._helpers = 0

    def run(self, work: Callable[[], None], helpers: int, *, reserved: bool) -> None:
        """Call ``work()`` on this thread and on ``helpers`` others; errors are raised when all have ended."""
        job = _Job(work, helpers, reserved)
        self._hire(helpers)
        self._post(job, linger=reserved)
        try:
            work()
        finally:
            job.finish()
            self._job = None  # which holds on to its arguments
        if job.errors:
            raise job.errors[0]

    def dismiss(self) -> None:
        """Let the helpers sleep."""
        if self._linger:
            self._post(None, linger=False)

    def _post(self, job: _Job | None, *, linger: bool) -> None:
        with self._changed:
            self._job, self._linger = job, linger
            self._call[0] += 1
            self._changed.notify_all()

    def _hire(self, helpers: int) -> None:
        while self._helpers < helpers:
            threading.Thread(
                target=self._serve, name=f"kernel-{self._helpers}", daemon=True
            ).start()
            self._helpers += 1

    def _serve(self) -> None:
        seen = 0
        while True:
            if not (self._linger and spin_while(self._call, seen, _POLLS)):
                with self._changed:
                    while self._call[0] == seen:
                        self._changed.wait()
            with self._changed:
                seen, job = int(self._call[0]), self._job
            if job is not None:
                job.help_out()
                del job


def pieces(items: int, least: int = 256) -> list[slice]:
    """Cut ``range(items)`` into some slices a thread, each of at least ``least`` items."""
    count = max(1, min(8 * threads(), items // least))
    return [slice(i * items // count, (i + 1) * items // count) for i in range(count)]


def _new_team() -> None:
    """The threads of a team do not live on in a forked process."""
    global _team
    _team = _Team()


_team = _Team()
os.register_at_fork(after_in_child=_new_team)
