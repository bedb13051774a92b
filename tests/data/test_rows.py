"""Rows in memory and their minibatches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mixtures.data import Batches, as_rows
from pyro_mixtures.errors import DataError, OptionError

few = settings(max_examples=40, deadline=None, derandomize=True)


@few
@given(st.integers(1, 20), st.integers(1, 25), st.sampled_from(["in_order", "shuffled"]))
def test_batches_hold_every_row_once_with_its_number(rows, batch_size, order):
    x, label = torch.arange(2.0 * rows).reshape(rows, 2), torch.arange(rows)
    batches = list(getattr(Batches([x, label], batch_size), order)())
    assert sum(batch.rows for batch in batches) == rows
    if batch_size >= rows:
        assert [batch.kwargs for batch in batches] == [{}]
        assert all(
            torch.equal(mine, given)
            for mine, given in zip(batches[0].args, (x, label), strict=True)
        )
        return
    assert max(batch.rows for batch in batches) == batch_size
    seen = torch.cat([batch.kwargs["index"] for batch in batches])
    assert sorted(seen.tolist()) == list(range(rows))
    for batch in batches:
        index = batch.kwargs["index"]
        assert batch.kwargs["size"] == rows
        assert batch.rows == len(index)
        assert torch.equal(batch.args[0], x[index])
        assert torch.equal(batch.args[1], label[index])
    if order == "in_order":
        assert torch.equal(seen, label)


def test_shuffled_follows_torchs_seed():
    def order(seed):
        torch.manual_seed(seed)
        return [
            batch.kwargs["index"].tolist() for batch in Batches([torch.zeros(30)], 7).shuffled()
        ]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_rows_and_features_are_counted_over_all_tensors():
    batches = Batches([torch.zeros(5, 2, 3), torch.zeros(5)])
    assert (batches.rows, batches.features) == (5, 7)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], "no rows were given"),
        ([torch.zeros(0, 2)], "no rows"),
        ([torch.zeros(3), torch.zeros(4)], r"different numbers of rows: \[3, 4\]"),
    ],
)
def test_tensors_without_common_rows_are_refused(tensors, message):
    with pytest.raises(DataError, match=message):
        Batches(tensors)


@pytest.mark.parametrize("size", [0, -3])
def test_batch_sizes_below_one_are_refused(size):
    with pytest.raises(OptionError, match=f"batch_size={size}"):
        Batches([torch.zeros(3)], size)


def test_tensors_are_not_copied():
    x = torch.zeros(3, 2)
    assert as_rows(x) is x


@pytest.mark.parametrize(
    "data",
    [
        np.arange(6.0).reshape(3, 2),
        np.arange(6.0).reshape(2, 3).T,
        np.arange(12.0).reshape(6, 2)[::-2],
        [[0, 1], [2, 3]],
        np.array([True, False]),
    ],
)
def test_arrays_and_lists_become_tensors_of_the_same_numbers(data):
    rows = as_rows(data)
    assert np.array_equal(rows.numpy(), np.asarray(data))


def test_read_only_arrays_are_taken_without_a_warning():
    data = np.zeros((3, 2))
    data.flags.writeable = False
    assert as_rows(data).shape == (3, 2)


@pytest.mark.parametrize(
    "data", [np.array([{}, {}]), [["a"], [1, 2]], "rows", 3.0, np.array(["a", "b"])]
)
def test_data_without_rows_of_numbers_are_refused(data):
    with pytest.raises(DataError):
        as_rows(data)


@pytest.mark.meta
def test_row_numbers_lie_on_the_device_of_the_rows():
    batches = Batches([torch.zeros(9, 2, device="cpu")], 4)
    for batch in (*batches.in_order(), *batches.shuffled()):
        assert {part.device.type for part in (*batch.args, batch.kwargs["index"])} == {"cpu"}


# A given order.


orders = st.integers(1, 20).flatmap(lambda n: st.permutations(range(n)))


@few
@given(orders, st.one_of(st.none(), st.integers(1, 25)))
def test_batches_in_a_given_order_hold_its_rows_and_their_numbers(order, batch_size):
    rows = len(order)
    x, label = torch.arange(2.0 * rows).reshape(rows, 2), torch.arange(rows, dtype=torch.uint8)
    batches, order = Batches([x, label], batch_size), torch.tensor(order)
    given = x.clone()
    for _ in range(2):  # buffers are used again
        seen = []
        for batch in batches.in_order(order):
            index = batch.kwargs["index"]
            assert batch.kwargs["size"] == rows
            assert batch.rows == len(index) <= (batch_size or rows)
            assert torch.equal(batch.args[0], x[index])
            assert torch.equal(batch.args[1], label[index])
            seen.append(index.clone())
        assert torch.equal(torch.cat(seen), order)
        assert len(seen) == -(-rows // min(batch_size or rows, rows))
        order = order.flip(0)
    assert torch.equal(x, given)


@pytest.mark.parametrize("batch_size", [4, None])
def test_an_interrupted_pass_does_not_affect_the_next_one(batch_size):
    x, order = torch.arange(10.0), torch.randperm(10)
    batches = Batches([x], batch_size)
    next(batches.in_order(torch.randperm(10)))
    found = [batch.args[0].clone() for batch in batches.in_order(order)]
    assert torch.equal(torch.cat(found), x[order])
    assert [batch.kwargs for batch in Batches([x]).in_order()] == [{}]


def test_a_single_batch_is_kept_while_the_order_is_the_same_object():
    x, order = torch.arange(10.0), torch.randperm(10)
    batches = Batches([x])
    (first,), (again,) = batches.in_order(order), batches.in_order(order)
    assert again is first
    (other,) = batches.in_order(order.flip(0))
    assert other is not first
    assert torch.equal(other.args[0], x[order.flip(0)])
    (back,) = batches.in_order(order)
    assert torch.equal(back.args[0], x[order])


def test_several_batches_are_not_kept():
    x, order = torch.arange(10.0), torch.randperm(10)
    batches = Batches([x], 6)
    for _ in range(2):
        assert [batch.rows for batch in batches.in_order(order)] == [6, 4]


@pytest.mark.meta
def test_rows_in_an_order_lie_on_their_own_device():
    batches = Batches([torch.zeros(9, 2, device="cpu")], 4)
    for batch in batches.in_order(torch.arange(9, device="cpu")):
        assert {part.device.type for part in (*batch.args, batch.kwargs["index"])} == {"cpu"}
