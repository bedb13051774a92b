"""Candidate sets: distinct, in range, read and written by row number."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.errors import PartitionError
from pyro_mixtures.partition import CandidateSets

few = settings(max_examples=40, deadline=None, derandomize=True)


def make(rows=20, components=8, candidates=3, seed=0):
    generator = torch.Generator("cpu").manual_seed(seed)
    return CandidateSets(
        rows=rows, components=components, candidates=candidates, generator=generator
    )


@few
@given(st.data(), st.integers(1, 30), st.integers(1, 12))
def test_sets_are_distinct_and_in_range(data, rows, components):
    candidates = data.draw(st.integers(1, components))
    sets = make(rows, components, candidates)
    assert sets.table.dtype == torch.int32
    assert (sets.table.shape, sets.rows) == ((rows, candidates), rows)
    for row in sets.table.tolist():
        assert len(set(row)) == candidates
        assert set(row) <= set(range(components))
    sets.check()


@pytest.mark.parametrize("candidates", [1, 2, 5])
def test_every_component_is_a_candidate_of_some_row(candidates):
    assert set(make(2000, 10, candidates).table.flatten().tolist()) == set(range(10))


def test_one_candidate_is_drawn_uniformly():
    counts = torch.bincount(make(20_000, 10, 1).table[:, 0]).double()
    assert ((counts - 2000) / 2000**0.5).abs().max() < 5


def test_the_same_seed_gives_the_same_sets():
    assert torch.equal(make(seed=4).table, make(seed=4).table)
    assert not torch.equal(make(seed=4).table, make(seed=5).table)


def test_written_rows_are_read_back_and_others_stay():
    sets = make()
    before, index = sets.table.clone(), torch.tensor([7, 2])
    sets.write(index, torch.tensor([[0, 1, 2], [5, 6, 7]]))  # int64, as computed
    assert sets.read(index).tolist() == [[0, 1, 2], [5, 6, 7]]
    assert sets.read(index).dtype == torch.int32
    others = [n for n in range(20) if n not in (7, 2)]
    assert torch.equal(sets.table[others], before[others])


def test_read_returns_a_copy():
    sets = make()
    before = sets.table.clone()
    sets.read(torch.arange(20)).zero_()
    assert torch.equal(sets.table, before)


@pytest.mark.parametrize(
    ("bad", "message"),
    [([1, 1, 2], "row 4 lists a component twice"), ([0, 1, 8], "outside"), ([-1, 0, 1], "outside")],
)
def test_check_names_the_problem(bad, message):
    sets = make()
    sets.write(torch.tensor([4]), torch.tensor([bad]))
    with pytest.raises(PartitionError, match=message):
        sets.check()


@pytest.mark.meta
def test_state_stays_on_the_cpu():
    sets = make()
    sets.write(torch.tensor([1], device="cpu"), torch.tensor([[0, 1, 2]], device="cpu"))
    assert sets.table.device.type == sets.read(torch.tensor([1], device="cpu")).device.type == "cpu"
