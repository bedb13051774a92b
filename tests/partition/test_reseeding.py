"""Re-seeding of empty clusters: worst rows first, up to half of one donor, within bounds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.partition.reseeding import WorstRows, moves_to_empty_clusters


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([None, 4, 9, 30]))
def test_empty_clusters_get_rows_of_one_other(seed, min_rows, capacity):
    draw = torch.Generator("cpu").manual_seed(seed)
    full, clusters, rows = 1 + seed % 4, 6, 24
    labels = torch.randint(full, (rows,), generator=draw, device="cpu", dtype=torch.int32)
    worst = torch.randperm(rows, generator=draw, device="cpu")
    before = torch.bincount(labels, minlength=clusters)
    moves = moves_to_empty_clusters(labels, worst, clusters, min_rows=min_rows, capacity=capacity)
    if moves is None:
        closed = capacity is not None and capacity * int((before > 0).sum()) < rows
        assert (
            closed
            or int(before.max()) // 2 < min_rows
            or (capacity is not None and capacity < min_rows)
        )
        return
    for cluster in moves[moves >= 0].unique().tolist():
        taken = (moves == cluster).nonzero()[:, 0]
        donor = labels[taken].unique()
        assert before[cluster] == 0
        assert len(donor) == 1
        assert min_rows <= len(taken) <= (capacity or rows)
    left = torch.bincount(labels[moves < 0], minlength=clusters)
    assert bool((left[before > 0] > 0).all())


def test_the_worst_rows_of_a_cluster_move_first():
    labels, worst = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([4, 3, 1, 0, 2, 5])
    assert moves_to_empty_clusters(labels, worst, 3).tolist() == [-1, -1, -1, -1, 2, -1]
    assert moves_to_empty_clusters(labels, worst, 3, min_rows=2).tolist() == [-1, 2, -1, 2, -1, -1]
    assert moves_to_empty_clusters(labels, worst, 3, min_rows=3) is None


def test_nothing_moves_without_empty_clusters_or_beyond_the_capacity_of_others():
    assert moves_to_empty_clusters(torch.tensor([0, 1, 1]), torch.tensor([1, 2, 0]), 2) is None
    assert (
        moves_to_empty_clusters(torch.tensor([0, 0, 0]), torch.tensor([1, 2, 0]), 2, capacity=2)
        is None
    )
    assert (
        moves_to_empty_clusters(torch.tensor([0, 0, 0]), torch.tensor([1, 2, 0]), 2, capacity=3)
        is not None
    )


def test_rows_without_a_cluster_do_not_move():
    moves = moves_to_empty_clusters(torch.tensor([-1, 0, 0, -1]), torch.tensor([2, 1]), 2)
    assert moves.tolist() == [-1, -1, 1, -1]


@pytest.mark.meta
def test_worst_rows_of_all_batches_are_in_order_in_every_block():
    worst = WorstRows()
    assert worst.in_order() == []
    losses = torch.tensor(
        [[1.0, 5.0, -torch.inf, 2.0, 4.0], [3.0, 0.0, 9.0, -torch.inf, -torch.inf]], device="cpu"
    )
    index = torch.tensor([10, 11, 12, 13, 14], device="cpu")
    for batch in (slice(0, 3), slice(3, 5)):
        worst.add(losses[:, batch], index[batch])
    assert [rows.tolist() for rows in worst.in_order()] == [[11, 14, 13, 10], [12, 10, 11]]
    worst.clear()
    assert worst.in_order() == []
