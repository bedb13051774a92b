"""Arrays, masked arrays, nested lists and pandas objects as NumPy arrays that torch can read."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_mixtures.errors import DataError

_REAL = "biuf"  # kinds of dtypes: booleans, integers, unsigned integers, floats


def is_pandas(data: Any) -> bool:
    """Whether ``data`` is a pandas DataFrame or Series. Does not import pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.DataFrame | pandas.Series)


def are_numbers(data: Any) -> bool:
    """Whether all columns of a pandas DataFrame or Series hold numbers, which may be missing."""
    return all(dtype.kind in _REAL for dtype in (data.dtypes if data.ndim > 1 else [data.dtype]))


def as_array(data: Any) -> NDArray[Any]:
    """Convert data to a contiguous array of real numbers, each of them exactly.

    :param data: an array, a pandas DataFrame or Series, or nested lists. Missing values of pandas'
        nullable columns become NaN, and categories that are numbers become these numbers.
    :returns: the array, in a dtype and byte order that torch supports; it shares its memory with
        ``data`` where that is possible.
    :raises DataError: for masked entries, for columns or objects that are not real numbers, and for
        numbers that no dtype of torch holds exactly.

    >>> as_array(np.array([[1, 2]], dtype=">i2")).dtype == np.dtype(np.int16)
    True
    """
    if is_pandas(data):
        array = _from_pandas(data)
    else:
        check_unmasked(data)
        try:
            array = np.asarray(data)
        except ValueError as error:
            raise DataError(f"rows must all have the same shape: {error}") from error
    if array.dtype.kind not in _REAL:
        raise DataError(f"rows must be real numbers of one shape, not {array.dtype}")
    if not array.ndim:
        raise DataError("rows must have at least one dimension, not a single number")
    return np.ascontiguousarray(_in_dtype_of_torch(array))


def _in_dtype_of_torch(array: NDArray[Any]) -> NDArray[Any]:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == np.uint64 and array.size:
        largest = int(array.max())
        if largest >= 1 << 63:
            raise DataError(
                f"rows hold the integer {largest}, which int64 cannot hold: round it to float64, "
                "x.astype(np.float64), or pass smaller numbers, such as x - x.min()"
            )
        return array.view(np.int64)
    if array.dtype.char == "g":
        return _from_long_double(array)
    return array


def _from_long_double(array: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore", under="ignore"):
        converted = array.astype(np.float64)
    changed = (converted != array) & ~np.isnan(array)
    if changed.any():
        raise DataError(
            f"rows are {array.dtype} and hold {array[changed][0]!r}, which float64 cannot hold "
            "exactly: round them, x.astype(np.float64)"
        )
    return converted


def check_unmasked(data: Any) -> None:
    """Refuse masked entries, which a conversion would replace by what lies under the mask.

    :raises DataError: for masked arrays, and lists of them, in which an entry is masked.
    """
    if isinstance(data, list | tuple):
        if any(isinstance(item, np.ma.MaskedArray) for item in data):
            for item in data:
                check_unmasked(item)
        return
    if not isinstance(data, np.ma.MaskedArray) or not data.ndim or data.dtype.names:
        return
    masked = np.argwhere(np.ma.getmaskarray(data))
    if len(masked):
        raise DataError(
            f"rows have {len(masked)} masked entries, the first at {masked[0].tolist()}: remove "
            "rows with masked entries, x[~np.ma.getmaskarray(x).reshape(len(x), -1).any(1)], or "
            "fill the entries in, x.filled(value)"
        )


# pandas.


def _from_pandas(data: Any) -> NDArray[Any]:
    if data.ndim == 1:
        return _column(data, "x")
    kinds = {dtype for dtype in data.dtypes if isinstance(dtype, np.dtype) and dtype.kind in _REAL}
    if len(kinds) == 1 and len(set(data.dtypes)) == 1:
        return np.asarray(data.to_numpy())  # without a copy
    columns = [
        _column(data.iloc[:, number], f"x[{name!r}]") for number, name in enumerate(data.columns)
    ]
    dtype = np.result_type(*columns) if columns else np.dtype(np.float64)
    values = np.empty(data.shape, dtype)
    for number, column in enumerate(columns):
        values[:, number] = _exact(column, dtype, f"x[{data.columns[number]!r}]")
    return values


def _column(series: Any, name: str) -> NDArray[Any]:
    """Return the values of a column; ``name`` is the Python expression for it."""
    dtype, pandas = series.dtype, sys.modules["pandas"]
    if isinstance(dtype, pandas.CategoricalDtype):
        return _numbers_of_categories(series, name)
    if dtype.kind not in _REAL:
        raise _not_numbers(name, str(dtype))
    if isinstance(dtype, np.dtype | pandas.SparseDtype):
        return np.asarray(series)
    present = ~np.asarray(series.isna(), dtype=bool)
    plain = np.dtype(dtype.numpy_dtype)
    return _with_missing(series[present].to_numpy(dtype=plain), present, name)


def _numbers_of_categories(series: Any, name: str) -> NDArray[Any]:
    categories, codes = series.dtype.categories, np.asarray(series.cat.codes)
    if not len(categories) or categories.dtype.kind not in _REAL:
        raise _not_numbers(name, f"categories of {categories.dtype}")
    present = codes >= 0
    return _with_missing(_column(categories.to_series(), name)[codes[present]], present, name)


def _with_missing(values: NDArray[Any], present: NDArray[Any], name: str) -> NDArray[Any]:
    """Return a column of ``values`` where rows are ``present``, and of NaN elsewhere."""
    if present.all():
        return values
    dtype = values.dtype if values.dtype.kind == "f" else np.dtype(np.float64)
    column = np.full(len(present), np.nan, dtype)
    column[present] = _exact(values, dtype, name)
    return column


def _exact(column: NDArray[Any], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """Convert a column to the common dtype of a frame."""
    if column.dtype.kind in "iu" and dtype.kind == "f" and not _is_exact(column, dtype):
        raise DataError(
            f"{name} holds integers that {dtype} cannot hold exactly: round them, "
            f"{name}.astype({dtype.name!r}), or pass smaller numbers, {name} - {name}.min()"
        )
    return column.astype(dtype)


def _is_exact(column: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    limit = int(2 / np.finfo(dtype).eps)
    info = np.iinfo(column.dtype)
    if info.max <= limit:
        return True
    large = column[(column > limit) | (column < max(-limit, info.min))]
    converted = large.astype(dtype)
    # Integers above 2^63 are rounded to floats whose conversion back is not defined.
    return bool((converted < 2.0**63).all()) and np.array_equal(
        converted.astype(column.dtype), large
    )


def _not_numbers(name: str, dtype: str) -> DataError:
    return DataError(
        f"rows must be real numbers, but {name} holds {dtype}: leave it out, or pass numbers for "
        f"its values, such as {name}.astype('category').cat.codes"
    )
