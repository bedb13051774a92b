"""Samples of random variables as the estimators read them: one row an observation, checked."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError

Array = Tensor | np.ndarray | Sequence


class Variable(NamedTuple):
    """Observations of one variable, numbers or names."""

    points: np.ndarray  # (n, d) float64; (n, 1), numbered from 0, where the values are names
    nominal: bool  # two values are equal or infinitely far apart

    def take(self, rows: np.ndarray) -> "Variable":
        return Variable(self.points[rows], self.nominal)


def as_variable(values: Array, name: str, *, nominal: bool = False) -> Variable:
    """Values (n,) or (n, d) of a variable that varies, on the CPU."""
    array = _as_array(values, name)
    _check_shape(array.shape, name)
    _check_finite(np.all(_known(array).reshape(len(array), -1), axis=1), name)
    if nominal:
        points = _numbered(array, name).astype(np.float64)[:, None]
    elif array.dtype.kind in "biuf":
        points = array.reshape(len(array), -1).astype(np.float64) + 0.0  # minus zero is zero
    else:
        raise DataError(f"{name} has dtype {array.dtype}, which is no number: name it in discrete=")
    _check_varies(bool((points != points[0]).any()), name)
    return Variable(points, nominal)


def as_columns(values: Array, name: str) -> Tensor:
    """Numbers (n, d) of a variable each of whose columns varies; on their own device, of 32 or 64 bits.

    Integers become float64: float32 rounds those above 2^24, which would make ties of times or
    numbers of rows.
    """
    found = as_rows(values).detach()
    _check_shape(tuple(found.shape), name)
    if found.is_complex():
        raise DataError(f"{name} has dtype {found.dtype}: give real numbers")
    found = _not_half(found) if found.is_floating_point() else found.double()
    found = found.reshape(len(found), -1)
    _check_finite(found.isfinite().all(1).cpu().numpy(), name)
    for column in (found == found[0]).all(0).nonzero()[:1, 0].tolist():
        _check_varies(False, name if found.shape[1] == 1 else f"column {column} of {name}")
    return found


def varying(z: Tensor) -> Tensor:
    """The columns of (n, d) that vary."""
    return z[:, (z != z[0]).any(0)]


def near_one(z: Tensor) -> Tensor:
    """Columns (n, d), none of them zero, divided by powers of two so that the largest numbers are 1 to 2.

    This is exact, and keeps sums and squares of very large or small numbers from overflowing or
    vanishing.
    """
    largest = z.abs().amax(0)
    return z / (largest / (2 * torch.frexp(largest).mantissa))


def _as_array(values: Array, name: str) -> np.ndarray:
    if isinstance(values, Tensor):
        return _not_half(as_rows(values).detach()).cpu().numpy()
    try:
        return np.asarray(values)
    except ValueError as error:  # lists of different lengths
        raise DataError(f"{name} is no array: give the values of n rows, (n,) or (n, d)") from error


def _not_half(values: Tensor) -> Tensor:
    """Numbers of 16 bits, for some of which NumPy has no dtype, as float32."""
    return values.float() if values.is_floating_point() and values.itemsize < 4 else values


def _known(array: np.ndarray) -> np.ndarray:
    """Where there is a value: neither NaN nor infinity, nor None, NaT or pandas' NA among objects."""
    if array.dtype.kind in "fc":
        return np.isfinite(array)
    if array.dtype.kind == "O":
        return np.array([_is_known(value) for value in array.flat], dtype=bool)
    return np.asarray(array == array)  # NaT alone differs from itself


def _is_known(value: Any) -> bool:
    same = value == value  # NA for NA
    return value is not None and isinstance(same, bool | np.bool_) and bool(same)


def _numbered(array: np.ndarray, name: str) -> np.ndarray:
    """Equal values, or rows of values, get the same number."""
    flat = array.reshape(len(array), -1)
    if flat.dtype.kind == "O":
        return _numbered_objects(flat, name)
    return np.unique(flat[:, 0] if flat.shape[1] == 1 else flat, axis=0, return_inverse=True)[
        1
    ].reshape(-1)


def _numbered_objects(flat: np.ndarray, name: str) -> np.ndarray:
    """By hash, because objects need not have an order."""
    numbers: dict[Hashable, int] = {}
    try:
        return np.array([numbers.setdefault(tuple(row), len(numbers)) for row in flat])
    except TypeError as error:
        raise DataError(
            f"{name} holds objects that cannot be compared: give strings or numbers"
        ) from error


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    if len(shape) not in (1, 2) or 0 in shape:
        raise DataError(f"{name} has shape {shape}: give the values of n rows, (n,) or (n, d)")


def _check_finite(finite: np.ndarray, name: str) -> None:
    if not finite.all():
        row = int((~finite).argmax())
        raise DataError(
            f"row {row} of {name} holds NaN, infinity or nothing: remove such rows first"
        )


def _check_varies(varies: bool, name: str) -> None:
    if not varies:
        raise DataError(f"{name} is constant, so it tells nothing: leave it out")
