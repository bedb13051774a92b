"""Arrays and pandas objects are converted exactly, or refused with a remedy that works."""

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_mixtures.data import as_rows
from pyro_mixtures.errors import DataError

BIG = (1 << 53) + 1  # the first integer that float64 does not hold


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "i4", "i8"])
def test_other_byte_orders_are_converted_to_the_same_numbers(dtype):
    x = np.arange(6).reshape(3, 2).astype(f">{dtype}")
    rows = as_rows(x)
    assert rows.numpy().dtype == np.dtype(dtype)
    assert np.array_equal(rows.numpy(), x)


def test_long_doubles_become_float64_where_that_is_exact():
    x = np.array([[0.1, np.nan], [np.inf, 3.0]])
    rows = as_rows(x.astype(np.longdouble))
    assert rows.dtype == torch.float64
    assert np.array_equal(rows.numpy(), x, equal_nan=True)


def test_long_doubles_that_float64_would_round_are_refused():
    x = np.ones(2, dtype=np.longdouble) / 3
    if x.dtype.itemsize == 8:
        pytest.skip("long doubles are float64 on this machine")
    with pytest.raises(DataError, match=r"float64 cannot hold exactly: round them, x\.astype"):
        as_rows(x)
    assert as_rows(x.astype(np.float64)).tolist() == [1 / 3, 1 / 3]


def test_unsigned_integers_become_int64_where_that_is_exact():
    x = np.array([(1 << 63) - 1, 2], dtype=np.uint64)
    assert as_rows(x).tolist() == [(1 << 63) - 1, 2]
    x = x + np.uint64(1)
    with pytest.raises(DataError, match=r"int64 cannot hold: .*x - x\.min\(\)"):
        as_rows(x)
    assert as_rows(x - x.min()).tolist() == [(1 << 63) - 3, 0]


# Masked arrays.


@pytest.mark.parametrize("shape", [(6,), (3, 2), (3, 2, 1)])
def test_masked_entries_are_refused_with_remedies_that_work(shape):
    x = np.ma.masked_equal(np.arange(6.0).reshape(shape), 3.0)
    with pytest.raises(DataError, match=r"1 masked entries, the first at \[.*1?\]: remove rows"):
        as_rows(x)
    kept = as_rows(x[~np.ma.getmaskarray(x).reshape(len(x), -1).any(1)])
    assert len(kept) == shape[0] - 1
    assert 3.0 not in kept
    assert as_rows(x.filled(7.0)).flatten()[3] == 7.0


def test_masked_arrays_without_masked_entries_are_taken():
    for mask in (np.ma.nomask, False, np.zeros(3, dtype=bool)):
        assert as_rows(np.ma.masked_array([1, 2, 3], mask)).tolist() == [1, 2, 3]


def test_masked_entries_in_lists_of_arrays_are_refused():
    clean, masked = np.ma.masked_equal([1, 2], 0), np.ma.masked_equal([1, 2], 2)
    assert as_rows([clean, clean]).tolist() == [[1, 2], [1, 2]]
    with pytest.raises(DataError, match="masked entries"):
        as_rows([clean, masked])


# Tensors.


@pytest.mark.filterwarnings("ignore:The PyTorch API of")
def test_masked_nested_and_complex_tensors_are_refused():
    masked = torch.masked.masked_tensor(torch.ones(2), torch.tensor([True, False]))
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for tensor, message in (
        (masked, r"MaskedTensor.*x\.to_tensor"),
        (nested, r"dense.*x\.to_padded_tensor\(0\.0\)"),
        (torch.ones(2) + 1j, r"real numbers, not torch\.complex64: pass x\.real"),
    ):
        with pytest.raises(DataError, match=message):
            as_rows(tensor)
    assert as_rows(masked.to_tensor(5.0)).tolist() == [1.0, 5.0]
    assert as_rows(nested.to_padded_tensor(0.0)).shape == (2, 3)


# pandas.


def frame(**columns):
    return pd.DataFrame(columns)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (frame(a=[1.5, 2.0], b=[3, 4]), [[1.5, 3.0], [2.0, 4.0]]),
        (frame(a=[1.5, 2.0], b=[True, False]), [[1.5, 1.0], [2.0, 0.0]]),
        (frame(a=[1.5, 2.0], b=[3, 4]).convert_dtypes(), [[1.5, 3.0], [2.0, 4.0]]),
        (frame(a=[1.5, 2.0], b=pd.Categorical([9, 7])), [[1.5, 9.0], [2.0, 7.0]]),
        (frame(a=pd.arrays.SparseArray([0.0, 2.5])), [[0.0], [2.5]]),
        (pd.DataFrame([[1, 0.5]], columns=["a", "a"]), [[1.0, 0.5]]),
        (pd.Series([1, 2]), [1, 2]),
        (pd.Series([BIG, 2], dtype="Int64"), [BIG, 2]),
        (frame(a=[1, 2], b=[3, 4]), [[1, 3], [2, 4]]),
    ],
)
def test_frames_become_tensors_of_the_same_numbers(x, expected):
    assert as_rows(x).tolist() == expected


@pytest.mark.parametrize(
    "column",
    [
        pd.array([1, None], dtype="Int64"),
        pd.array([1.0, None], dtype="Float32"),
        pd.array([True, None], dtype="boolean"),
        pd.Categorical([1, None]),
        pd.Categorical([1.0, None]),
    ],
)
def test_missing_values_of_pandas_become_nan(column):
    rows = as_rows(frame(a=column, b=[2, 3]))
    assert rows.is_floating_point()
    assert rows.nan_to_num(nan=-1.0).tolist() == [[1.0, 2.0], [-1.0, 3.0]]


def test_frames_of_one_dtype_keep_it_and_their_memory():
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    rows = as_rows(pd.DataFrame(values, copy=False))
    assert rows.dtype == torch.float32
    assert np.shares_memory(rows.numpy(), values)


@pytest.mark.parametrize(
    "column",
    [
        pd.Categorical(["u", None]),
        ["u", "v"],
        pd.to_datetime(["2020-01-01", "2021-01-01"]),
        [1, "v"],
    ],
)
def test_columns_that_are_not_numbers_are_named_with_a_remedy_that_works(column):
    x = frame(a=[1.0, 2.0], c=column)
    message = r"x\['c'\] holds .*: leave it out, .* x\['c'\]\.astype\('category'\)\.cat\.codes"
    with pytest.raises(DataError, match=message):
        as_rows(x)
    with pytest.raises(DataError, match=r"but x holds .* x\.astype\('category'\)\.cat\.codes"):
        as_rows(x["c"])
    assert as_rows(x.drop(columns="c")).shape == (2, 1)
    x["c"] = x["c"].astype("category").cat.codes
    assert as_rows(x).shape == (2, 2)


@pytest.mark.parametrize(
    "x", [frame(a=[BIG], b=[0.5]), frame(a=pd.array([BIG, None], dtype="Int64"))]
)
def test_columns_of_integers_are_never_rounded(x):
    with pytest.raises(DataError, match=r"x\['a'\] holds integers that float64 cannot hold exact"):
        as_rows(x)
    assert as_rows(x.assign(a=x["a"] - x["a"].min()))[0, 0] == 0
    assert as_rows(x.assign(a=x["a"].astype("float64")))[0, 0] == BIG - 1
