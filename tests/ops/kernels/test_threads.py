"""Threads of the CPU kernels: every task runs once, errors reach the caller, settings return."""

import multiprocessing
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.ops.kernels.threads import (
    reserve_threads,
    run_slices,
    run_tasks,
    thread_count,
    work_slices,
)

few = settings(max_examples=40, deadline=None, derandomize=True)
# Seconds, more than any machine needs: only a hanging test waits this long.
HANGS = 60.0


@pytest.fixture(autouse=True)
def _threads_of_torch():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2, 5])
def several(request):
    torch.set_num_threads(request.param)
    return request.param


def numbers_seen(count):
    seen = []
    run_tasks(seen.append, count)
    return sorted(seen)


# run_tasks and run_slices.


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
def test_every_number_is_called_once(several, count):
    assert numbers_seen(count) == list(range(count))


def test_as_many_threads_work_as_torch_has(several):
    """All tasks wait for each other, which they can only do on threads of their own."""
    meet, names = threading.Barrier(several, timeout=HANGS), set()

    def task(_):
        meet.wait()
        names.add(threading.get_ident())

    run_tasks(task, several)
    assert len(names) == several
    assert threading.get_ident() in names


@pytest.mark.parametrize("on_caller", [True, False], ids=["caller", "helper"])
def test_an_error_reaches_the_caller(on_caller):
    torch.set_num_threads(2)
    caller, meet = threading.get_ident(), threading.Barrier(2, timeout=HANGS)

    def task(i):
        if i < 2:
            meet.wait()  # one on either thread
            if (threading.get_ident() == caller) == on_caller:
                raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        run_tasks(task, 20)
    assert numbers_seen(20) == list(range(20))


def test_errors_on_all_threads_reach_the_caller_as_one(several):
    def task(i):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        run_tasks(task, 20)


def test_helpers_have_ended_when_an_error_is_raised():
    """What a task writes to must not change after its caller has gone on."""
    torch.set_num_threads(2)
    caller, meet, go_on, ended = (
        threading.get_ident(),
        threading.Barrier(2, timeout=HANGS),
        threading.Event(),
        [],
    )

    def task(i):
        meet.wait()
        if threading.get_ident() == caller:
            threading.Timer(0.05, go_on.set).start()
            raise ZeroDivisionError
        go_on.wait(HANGS)
        ended.append(i)

    with pytest.raises(ZeroDivisionError):
        run_tasks(task, 2)
    assert len(ended) == 1


def test_nested_calls_do_not_hang_and_call_every_number_once(several):
    seen = []

    def run():
        torch.set_num_threads(several)
        run_tasks(
            lambda i: run_tasks(lambda j: run_tasks(lambda k: seen.append((i, j, k)), 5), 6), 40
        )

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    worker.join(HANGS)
    assert not worker.is_alive()
    assert sorted(seen) == [(i, j, k) for i in range(40) for j in range(6) for k in range(5)]


def test_results_keep_the_order_of_the_tasks(several):
    assert run_tasks(lambda i: i * i, 100) == [i * i for i in range(100)]
    ranges = run_slices(lambda begin, end: (begin, end), 1000, minimum=10)
    assert [i for begin, end in ranges for i in range(begin, end)] == list(range(1000))


# reserve_threads.


def test_kernels_have_all_threads_and_torch_has_one(several):
    with reserve_threads():
        assert thread_count() == several
        assert torch.get_num_threads() == 1
    assert thread_count() == several
    assert torch.get_num_threads() == several


def test_an_error_restores_the_number_of_threads(several):
    with pytest.raises(ZeroDivisionError), reserve_threads():
        raise ZeroDivisionError
    assert thread_count() == several
    assert torch.get_num_threads() == several


def test_an_error_of_a_task_restores_the_number_of_threads(several):
    def task(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), reserve_threads():
        run_tasks(task, 20)
    assert thread_count() == several
    assert torch.get_num_threads() == several


def test_nested_blocks_restore_the_number_of_threads(several):
    with reserve_threads():
        with reserve_threads():
            assert thread_count() == several
            assert torch.get_num_threads() == 1
        assert thread_count() == several
        assert torch.get_num_threads() == 1
    assert thread_count() == several
    assert torch.get_num_threads() == several


def test_torch_has_one_thread_in_every_task_of_a_block(several):
    meet, found = threading.Barrier(several, timeout=HANGS), []

    def task(_):
        meet.wait()
        found.append(torch.get_num_threads())

    with reserve_threads():
        run_tasks(task, several)
    assert found == [1] * several
    assert torch.get_num_threads() == several


# work_slices.


@few
@given(st.integers(0, 5000), st.integers(1, 300), st.sampled_from([1, 2, 5]))
def test_slices_cover_the_range_once_and_are_not_too_small(items, minimum, count):
    torch.set_num_threads(count)
    slices = work_slices(items, minimum)
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(items))
    assert all(s.step is None for s in slices)
    assert len(slices) == 1 or min(s.stop - s.start for s in slices) >= minimum
    assert 1 <= len(slices) <= 8 * count


# Forks.


def all_numbers_or_exit():
    """In the child: exit status 1 (and a traceback) if anything is missing."""
    assert numbers_seen(100) == list(range(100))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_the_pool_works_in_a_forked_process():
    torch.set_num_threads(2)
    run_tasks(lambda _: None, 100)  # so that the parent has a pool
    child = multiprocessing.get_context("fork").Process(target=all_numbers_or_exit, daemon=True)
    child.start()
    child.join(HANGS)
    if child.is_alive():
        child.kill()
    assert child.exitcode == 0
    assert numbers_seen(100) == list(range(100))
