"""The data plate of a mixture: all rows, or a minibatch with its row numbers."""

import pyro
import torch
from torch import Tensor

from pyro_mixtures.errors import DataError
from pyro_mixtures.options import check_whole


def data_plate(
    rows: Tensor | int | None = None,
    index: Tensor | None = None,
    size: int | None = None,
    *,
    name: str = "data",
) -> pyro.plate:
    """Return a ``pyro.plate`` over rows, for programs ``model(x, index=None, size=None)``.

    :param rows: the rows (B, ...) themselves, or their number; None if ``size`` rows are to be
        drawn.
    :param index: (B,) numbers in [0, size) of these rows within the data set, for a minibatch; the
        plate then scales log densities by ``size / B``. Without it, the rows are the whole data
        set.
    :param size: N, the number of rows of the data set; required with ``index``.
    :param name: name of the plate.
    :returns: the plate, which yields the row numbers when it is entered.
    :raises DataError: when rows, index and size do not fit together.
    :raises OptionError: when a number of rows is not a whole number, or negative.

    >>> import torch
    >>> with data_plate(torch.zeros(3, 2), index=torch.tensor([4, 0, 9]), size=10) as n:
    ...     n
    tensor([4, 0, 9])
    """
    for option, number in (("rows", rows), ("size", size)):
        if number is not None and not isinstance(number, Tensor):
            check_whole(minimum=0, **{option: number})
    count = len(rows) if isinstance(rows, Tensor) else rows
    # Pyro's annotation asks for a string.
    device = str(rows.device) if isinstance(rows, Tensor) else "cpu"
    if index is None:
        return pyro.plate(name, _size_of_all_rows(count, size), device=device)
    if size is None:
        raise DataError("index= numbers rows of a larger data set: pass its size= too")
    _check_index(index, count, size)
    return pyro.plate(name, size, subsample=index, device=device)


def _size_of_all_rows(count: int | None, size: int | None) -> int:
    """Return the number of rows of a plate without row numbers."""
    if count is not None and size not in (None, count):
        raise DataError(
            f"{count} rows of a data set of size={size}: pass index=, their row numbers"
        )
    total = count if count is not None else size
    if total is None:
        raise DataError("data_plate needs rows, or size= to draw that many")
    if total == 0:
        raise DataError("no rows were given: a mixture needs at least one")
    return total


def _check_index(index: Tensor, count: int | None, size: int) -> None:
    if not isinstance(index, Tensor):
        raise DataError(
            f"index must be a tensor of row numbers, not a {type(index).__name__}: "
            "pass torch.tensor(index)"
        )
    if index.is_floating_point() or index.dtype == torch.bool:
        raise DataError(f"index must hold row numbers, integers, not {index.dtype}")
    if count is not None and len(index) != count:
        raise DataError(f"{count} rows but {len(index)} row numbers in index")
    if not len(index) or int(index.min()) < 0 or int(index.max()) >= size:
        raise DataError(f"index must hold row numbers in [0, {size})")
