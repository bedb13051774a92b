"""Samples of random variables as the estimators read them: one row an observation, checked."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.errors import DataError

Array = Tensor | np.ndarray


class Variable(NamedTuple):
    """Observations of one variable, numbers or names."""

    points: np.ndarray  # (n, d) float64; (n, 1), numbered from 0, where the values are names
    nominal: bool  # two values are equal or infinitely far apart

    def take(self, rows: np.ndarray) -> "Variable":
        return Variable(self.points[rows], self.nominal)


def as_variable(values: Array, name: str, *, nominal: bool = False) -> Variable:
    """Values (n,) or (n, d) of a variable that varies, on the CPU."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    _check_shape(array.shape, name)
    if array.dtype.kind == "f":
        _check_finite(np.isfinite(array.reshape(len(array), -1)).all(1), name)
    if nominal:
        points = _numbered(array).astype(np.float64)[:, None]
    elif array.dtype.kind in "biuf":
        points = array.reshape(len(array), -1).astype(np.float64) + 0.0  # minus zero is zero
    else:
        raise DataError(f"{name} has dtype {array.dtype}, which is no number: name it in discrete=")
    _check_varies(bool((points != points[0]).any()), name)
    return Variable(points, nominal)


def as_columns(values: Array, name: str) -> Tensor:
    """Numbers (n, d) of a variable each of whose columns varies; on their own device, in a floating-point dtype."""
    found = values.detach() if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
    _check_shape(tuple(found.shape), name)
    if found.is_complex():
        raise DataError(f"{name} has dtype {found.dtype}: give real numbers")
    if found.dtype not in (torch.float32, torch.float64):
        found = found.to(torch.float32)
    found = found.reshape(len(found), -1)
    _check_finite(found.isfinite().all(1).cpu().numpy(), name)
    for column in (found == found[0]).all(0).nonzero()[:1, 0].tolist():
        _check_varies(False, name if found.shape[1] == 1 else f"column {column} of {name}")
    return found


def _numbered(array: np.ndarray) -> np.ndarray:
    """Equal values, or rows of values, get the same number."""
    flat = array.reshape(len(array), -1)
    return np.unique(flat[:, 0] if flat.shape[1] == 1 else flat, axis=0, return_inverse=True)[1].reshape(-1)


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    if len(shape) not in (1, 2) or 0 in shape:
        raise DataError(f"{name} has shape {shape}: give the values of n rows, (n,) or (n, d)")


def _check_finite(finite: np.ndarray, name: str) -> None:
    if not finite.all():
        raise DataError(f"row {int((~finite).argmax())} of {name} holds NaN or infinity: remove such rows first")


def _check_varies(varies: bool, name: str) -> None:
    if not varies:
        raise DataError(f"{name} is constant, so it tells nothing: leave it out")
