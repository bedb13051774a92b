"""When fits search for candidates."""

import pytest

from pyro_mixtures.infer.em.schedule import SearchSchedule


def run(schedule, gains, tolerance=0.1):
    """Which epochs search, if searching and re-weighing gain ``gains`` for their costs."""
    kinds = []
    for _ in range(12):
        kinds.append(schedule.next())
        schedule.record(kinds[-1], gains[kinds[-1]], 24.0 if kinds[-1] else 3.0, tolerance)
    return kinds


@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_given_rhythm_is_kept_from_the_first_epoch(every):
    assert run(SearchSchedule(every), {True: 1.0, False: 1.0}) == [
        epoch % every == 0 for epoch in range(12)
    ]


def test_both_kinds_are_tried_first_and_the_better_one_for_its_cost_is_taken():
    searching, weighing = (
        run(SearchSchedule(), {True: 9.0, False: 1.0}),
        run(SearchSchedule(), {True: 2.0, False: 1.0}),
    )
    assert searching[:2] == weighing[:2] == [True, False]
    assert sum(searching) == 11
    assert sum(weighing) < 4


def test_a_search_comes_after_four_epochs_without_one():
    kinds = run(SearchSchedule(), {True: 0.2, False: 10.0})
    assert kinds == [epoch % 5 == 0 for epoch in range(12)]


def test_an_epoch_that_gains_nothing_is_followed_by_a_search():
    assert run(SearchSchedule(), {True: 9.0, False: 0.01})[:3] == [True, False, True]
    assert all(run(SearchSchedule(), {True: 0.01, False: 9.0}))
