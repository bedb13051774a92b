"""Samples of random variables in the form that the estimators use: one row per observation."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.data.arrays import are_numbers, as_array, check_unmasked, is_pandas
from pyro_mixtures.data.exact import as_floating
from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError

Array = Tensor | np.ndarray | Sequence[Any]


class Variable(NamedTuple):
    """Observations of one variable, numbers or labels."""

    points: np.ndarray  # (n, d) float64; for labels (n, 1), numbered from 0
    nominal: bool  # two values are equal or infinitely far apart

    def take(self, rows: np.ndarray) -> "Variable":
        """Select rows by number."""
        return Variable(self.points[rows], self.nominal)


def as_variable(values: Array, name: str, *, nominal: bool = False) -> Variable:
    """Convert and check the values (n,) or (n, d) of a non-constant variable, on the CPU."""
    array = _to_numpy(values, name)
    _check_shape(array.shape, name)
    _check_finite(np.all(_is_present(array).reshape(len(array), -1), axis=1), name)
    if nominal:
        points = _encode_labels(array, name).astype(np.float64)[:, None]
    elif array.dtype.kind in "biuf":
        numbers = as_floating(as_rows(array), torch.float64, name).numpy()
        points = numbers.reshape(len(array), -1) + 0.0  # turns -0.0 into 0.0
    else:
        raise DataError(
            f"{name} has dtype {array.dtype}, which is not numeric: name it in discrete= if its "
            "values are labels"
        )
    if not (points != points[0]).any():
        raise _constant(name)
    return Variable(points, nominal)


def as_columns(values: Array, name: str) -> Tensor:
    """Convert and check numbers (n, d) none of whose columns is constant.

    The result stays on the device of ``values`` and is float32 or float64. Integers become float64:
    float32 rounds those above 2^24, which would turn time stamps or row numbers into ties.
    """
    columns = as_rows(values).detach()
    _check_shape(tuple(columns.shape), name)
    if columns.is_complex():
        raise DataError(f"{name} has dtype {columns.dtype}: pass real numbers")
    if columns.is_floating_point():
        columns = _widen_half(columns)
    else:
        columns = as_floating(columns, torch.float64, name)
    columns = columns.reshape(len(columns), -1)
    _check_finite(columns.isfinite().all(1).cpu().numpy(), name)
    for column in (columns == columns[0]).all(0).nonzero()[:1, 0].tolist():
        raise _constant(name if columns.shape[1] == 1 else f"column {column} of {name}")
    return columns


def varying(z: Tensor) -> Tensor:
    """Return the columns of (n, d) that are not constant."""
    return z[:, (z != z[0]).any(0)]


def near_one(z: Tensor) -> Tensor:
    """Divide columns (n, d), none of them zero, by powers of two so that each maximum is 1 to 2.

    This is exact, and it keeps sums and squares of very large or small numbers from overflowing or
    underflowing.
    """
    largest = z.abs().amax(0)
    return z / (largest / (2 * torch.frexp(largest).mantissa))


def _to_numpy(values: Array, name: str) -> np.ndarray:
    if isinstance(values, Tensor):
        return _widen_half(as_rows(values).detach()).cpu().numpy()
    if is_pandas(values) and are_numbers(values):
        return as_array(values)
    check_unmasked(values)
    try:
        return np.asarray(values)
    except ValueError as error:  # lists of different lengths
        raise DataError(
            f"{name} is not an array: pass the values of n rows, (n,) or (n, d)"
        ) from error


def _widen_half(values: Tensor) -> Tensor:
    """16-bit floats as float32, because NumPy lacks a dtype for bfloat16."""
    return values.float() if values.is_floating_point() and values.itemsize < 4 else values


def _is_present(array: np.ndarray) -> np.ndarray:
    """Where a value is not missing: not NaN, infinity, NaT, None or ``pandas.NA``."""
    if array.dtype.kind in "fc":
        return np.isfinite(array)
    if array.dtype.kind == "O":
        return np.array([_is_object_present(value) for value in array.flat], dtype=bool)
    return np.asarray(array == array)  # only NaT differs from itself


def _is_object_present(value: Any) -> bool:
    equals_itself = value == value  # pandas.NA for pandas.NA
    return value is not None and isinstance(equals_itself, bool | np.bool_) and bool(equals_itself)


def _encode_labels(array: np.ndarray, name: str) -> np.ndarray:
    """Numbers (n,), equal for equal values or rows of values."""
    flat = array.reshape(len(array), -1)
    if flat.dtype.kind == "O":
        return _encode_objects(flat, name)
    labels = flat[:, 0] if flat.shape[1] == 1 else flat
    _, numbers = np.unique(labels, axis=0, return_inverse=True)
    return numbers.reshape(-1)


def _encode_objects(flat: np.ndarray, name: str) -> np.ndarray:
    """Numbers (n,) by hash, because objects need not have an order."""
    numbers: dict[Hashable, int] = {}
    try:
        return np.array([numbers.setdefault(tuple(row), len(numbers)) for row in flat])
    except TypeError as error:
        raise DataError(
            f"{name} holds objects that cannot be hashed: pass strings or numbers as labels"
        ) from error


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    if len(shape) not in (1, 2) or 0 in shape:
        raise DataError(f"{name} has shape {shape}: pass the values of n rows, (n,) or (n, d)")


def _check_finite(finite: np.ndarray, name: str) -> None:
    if not finite.all():
        row = int((~finite).argmax())
        raise DataError(
            f"row {row} of {name} contains NaN, infinity or a missing value: remove such rows first"
        )


def _constant(name: str) -> DataError:
    return DataError(f"{name} is constant, so it carries no information: leave it out")
