"""The pool of threads behind the CPU kernels: every task once, errors reach the caller, settings are given back."""

import multiprocessing
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.ops.kernels.threads import for_each, kernels_first, pieces, threads

few = settings(max_examples=40, deadline=None, derandomize=True)
# Long enough for any machine: only what hangs waits for so long.
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
    for_each(seen.append, count)
    return sorted(seen)


# for_each.


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
def test_every_number_is_called_once(several, count):
    assert numbers_seen(count) == list(range(count))


def test_as_many_threads_work_as_torch_has(several):
    """All tasks wait for each other, which they can only do on threads of their own."""
    meet, names = threading.Barrier(several, timeout=HANGS), set()

    def task(_):
        meet.wait()
        names.add(threading.get_ident())

    for_each(task, several)
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
        for_each(task, 20)
    assert numbers_seen(20) == list(range(20))


def test_errors_on_all_threads_reach_the_caller_as_one(several):
    def task(i):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        for_each(task, 20)


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
        for_each(task, 2)
    assert len(ended) == 1


def test_nested_calls_do_not_hang_and_call_every_number_once(several):
    seen = []

    def run():
        torch.set_num_threads(several)
        for_each(lambda i: for_each(lambda j: for_each(lambda k: seen.append((i, j, k)), 5), 6), 40)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    worker.join(HANGS)
    assert not worker.is_alive()
    assert sorted(seen) == [(i, j, k) for i in range(40) for j in range(6) for k in range(5)]


# kernels_first.


def test_kernels_have_all_threads_and_torch_one(several):
    with kernels_first():
        assert threads() == several
        assert torch.get_num_threads() == 1
    assert threads() == several
    assert torch.get_num_threads() == several


def test_an_error_gives_the_threads_back(several):
    with pytest.raises(ZeroDivisionError), kernels_first():
        raise ZeroDivisionError
    assert threads() == several
    assert torch.get_num_threads() == several


def test_an_error_of_a_task_gives_the_threads_back(several):
    def task(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), kernels_first():
        for_each(task, 20)
    assert threads() == several
    assert torch.get_num_threads() == several


def test_blocks_within_blocks_give_back_what_they_found(several):
    with kernels_first():
        with kernels_first():
            assert threads() == several
            assert torch.get_num_threads() == 1
        assert threads() == several
        assert torch.get_num_threads() == 1
    assert threads() == several
    assert torch.get_num_threads() == several


def test_torch_has_one_thread_in_every_task_of_a_block(several):
    meet, found = threading.Barrier(several, timeout=HANGS), []

    def task(_):
        meet.wait()
        found.append(torch.get_num_threads())

    with kernels_first():
        for_each(task, several)
    assert found == [1] * several
    assert torch.get_num_threads() == several


# pieces.


@few
@given(st.integers(0, 5000), st.integers(1, 300), st.sampled_from([1, 2, 5]))
def test_pieces_cover_the_range_once_and_are_not_too_small(items, least, count):
    torch.set_num_threads(count)
    parts = pieces(items, least)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(items))
    assert all(part.step is None for part in parts)
    assert len(parts) == 1 or min(part.stop - part.start for part in parts) >= least
    assert 1 <= len(parts) <= 8 * count


# Forks.


def all_numbers_or_exit():
    """In the child: exit status 1 (and a traceback) if anything is missing."""
    assert numbers_seen(100) == list(range(100))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_the_pool_works_in_a_forked_process():
    torch.set_num_threads(2)
    for_each(lambda _: None, 100)  # so that the parent has a pool
    child = multiprocessing.get_context("fork").Process(target=all_numbers_or_exit, daemon=True)
    child.start()
    child.join(HANGS)
    if child.is_alive():
        child.kill()
    assert child.exitcode == 0
    assert numbers_seen(100) == list(range(100))
