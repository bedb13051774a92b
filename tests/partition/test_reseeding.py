"""Rows for empty parts: worst first, half of one donor, enough to be fitted, no more than a part may hold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.partition.reseeding import WorstRows, rows_for_empty


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([None, 4, 9, 30]))
def test_empty_parts_get_rows_of_one_other(seed, fewest, capacity):
    draw = torch.Generator("cpu").manual_seed(seed)
    full, parts, rows = 1 + seed % 4, 6, 24
    labels = torch.randint(full, (rows,), generator=draw, device="cpu", dtype=torch.int32)
    worst = torch.randperm(rows, generator=draw, device="cpu")
    before = torch.bincount(labels, minlength=parts)
    moves = rows_for_empty(labels, worst, parts, fewest=fewest, capacity=capacity)
    if moves is None:
        closed = capacity is not None and capacity * int((before > 0).sum()) < rows
        assert (
            closed
            or int(before.max()) // 2 < fewest
            or (capacity is not None and capacity < fewest)
        )
        return
    for part in moves[moves >= 0].unique().tolist():
        taken = (moves == part).nonzero()[:, 0]
        donor = labels[taken].unique()
        assert before[part] == 0
        assert len(donor) == 1
        assert fewest <= len(taken) <= (capacity or rows)
    left = torch.bincount(labels[moves < 0], minlength=parts)
    assert bool((left[before > 0] > 0).all())


def test_the_worst_rows_of_a_part_go_first():
    labels, worst = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([4, 3, 1, 0, 2, 5])
    assert rows_for_empty(labels, worst, 3).tolist() == [-1, -1, -1, -1, 2, -1]
    assert rows_for_empty(labels, worst, 3, fewest=2).tolist() == [-1, 2, -1, 2, -1, -1]
    assert rows_for_empty(labels, worst, 3, fewest=3) is None


def test_nothing_moves_where_no_part_is_empty_or_there_is_no_room_without_it():
    assert rows_for_empty(torch.tensor([0, 1, 1]), torch.tensor([1, 2, 0]), 2) is None
    assert rows_for_empty(torch.tensor([0, 0, 0]), torch.tensor([1, 2, 0]), 2, capacity=2) is None
    assert (
        rows_for_empty(torch.tensor([0, 0, 0]), torch.tensor([1, 2, 0]), 2, capacity=3) is not None
    )


def test_rows_without_a_part_stay_without():
    moves = rows_for_empty(torch.tensor([-1, 0, 0, -1]), torch.tensor([2, 1]), 2)
    assert moves.tolist() == [-1, -1, 1, -1]


@pytest.mark.meta
def test_worst_rows_of_all_batches_are_in_order_in_every_block():
    worst = WorstRows()
    assert worst.in_order() == []
    losses = torch.tensor(
        [[1.0, 5.0, -torch.inf, 2.0, 4.0], [3.0, 0.0, 9.0, -torch.inf, -torch.inf]], device="cpu"
    )
    index = torch.tensor([10, 11, 12, 13, 14], device="cpu")
    for some in (slice(0, 3), slice(3, 5)):
        worst.add(losses[:, some], index[some])
    assert [rows.tolist() for rows in worst.in_order()] == [[11, 14, 13, 10], [12, 10, 11]]
    worst.clear()
    assert worst.in_order() == []
