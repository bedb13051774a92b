"""Rows in memory, as minibatches with the arguments that a mixture's program takes."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.masked import MaskedTensor

from pyro_mixtures.data.arrays import as_array, is_pandas
from pyro_mixtures.errors import DataError, row_numbers
from pyro_mixtures.options import check_whole

_FEW_ROWS = 1024


class Batch(NamedTuple):
    """Arguments of one call of the model."""

    args: tuple[Tensor, ...]
    kwargs: dict[str, Any]
    rows: int


def numbered(index: Tensor | None) -> AbstractContextManager[None]:
    """Return the context in which errors name rows of a batch by their numbers ``index`` (B,).

    :param index: row numbers within the data set; None if the batch is the data set.
    """
    if index is None:
        return nullcontext()
    return row_numbers(lambda row: int(index[row]))


def spaced_rows(tensors: Sequence[Tensor], minimum: int) -> tuple[Tensor, ...]:
    """Return views of evenly spaced rows, for a first run of a program.

    Programs may initialize their params from the first rows that they see, so one row is not
    enough.

    :returns: at least ``minimum`` and 1,024 rows of each tensor, or all if there are fewer.

    >>> [rows[:3].tolist() for rows in spaced_rows((torch.arange(5000),), 10)]
    [[0, 4, 8]]
    """
    step = max(1, len(tensors[0]) // max(_FEW_ROWS, minimum))
    return tuple(tensor[::step] for tensor in tensors)


class Batches:
    """N rows of one or several tensors, cut into minibatches.

    :param tensors: tensors or arrays with N rows each.
    :param batch_size: rows per minibatch; None for all rows in one call.
    :raises DataError: for no rows, or tensors with different numbers of rows.
    :raises OptionError: for a batch size that is not a positive integer.

    >>> [len(batch.args[0]) for batch in Batches([torch.zeros(5, 2)], batch_size=2).in_order()]
    [2, 2, 1]
    """

    def __init__(self, tensors: Sequence[Any], batch_size: int | None = None):
        self.tensors = tuple(as_rows(tensor) for tensor in tensors)
        if not self.tensors:
            raise DataError("no rows were given")
        sizes = [len(tensor) for tensor in self.tensors]
        if len(set(sizes)) > 1:
            raise DataError(f"the tensors have different numbers of rows: {sizes}")
        if not sizes[0]:
            raise DataError("the data have no rows")
        if batch_size is not None:
            check_whole(batch_size=batch_size)
        self.batch_size = batch_size if batch_size is not None and batch_size < sizes[0] else None
        self._buffers: list[Tensor] = []
        # The last order of rows, and its batch, if that has all rows.
        self._last: tuple[Tensor, Batch] | None = None

    @property
    def rows(self) -> int:
        """Number of rows, N."""
        return len(self.tensors[0])

    @property
    def features(self) -> int:
        """Number of elements per row, over all tensors."""
        return sum(tensor[0].numel() for tensor in self.tensors)

    def in_order(self, order: Tensor | None = None) -> Iterator[Batch]:
        """Iterate over minibatches of consecutive rows, or of consecutive entries of ``order``.

        With an ``order``, a batch is only valid until the next one is requested.

        :param order: (N,) row numbers.
        """
        if order is not None:
            yield from self._gathered(order)
            return
        if self.batch_size is None:
            yield Batch(self.tensors, {}, self.rows)
            return
        for start in range(0, self.rows, self.batch_size):
            stop = min(start + self.batch_size, self.rows)
            index = torch.arange(start, stop, device=self.tensors[0].device)
            yield self._batch(tuple(tensor[start:stop] for tensor in self.tensors), index)

    def _gathered(self, order: Tensor) -> Iterator[Batch]:
        """Copy the rows into buffers, which the next batch overwrites."""
        if self._last is not None and self._last[0] is order:
            yield self._last[1]
            return
        size = self.batch_size or self.rows
        if not self._buffers:
            self._buffers = [torch.empty_like(tensor[:size]) for tensor in self.tensors]
        for index in order.to(self.tensors[0].device).split(size):
            rows = [buffer[: len(index)] for buffer in self._buffers]
            for tensor, buffer in zip(self.tensors, rows, strict=True):
                torch.index_select(tensor, 0, index, out=buffer)
            batch = self._batch(tuple(rows), index)
            # A batch of all rows stays valid until their order changes.
            self._last = (order, batch) if size >= self.rows else None
            yield batch

    def shuffled(self) -> Iterator[Batch]:
        """Iterate over minibatches in a random order, drawn from torch's global generator."""
        if self.batch_size is None:
            yield from self.in_order()
            return
        device = self.tensors[0].device
        for index in torch.randperm(self.rows, device="cpu").split(self.batch_size):
            index = index.to(device)
            yield self._batch(tuple(tensor[index] for tensor in self.tensors), index)

    def _batch(self, tensors: tuple[Tensor, ...], index: Tensor) -> Batch:
        return Batch(tensors, {"index": index, "size": self.rows}, len(index))


def as_rows(data: Any) -> Tensor:
    """Convert data to a tensor whose first dimension counts rows, each number exactly.

    :param data: a tensor, a NumPy array, a pandas DataFrame or Series, or nested lists. Missing
        values of pandas become NaN.
    :returns: the tensor; it shares its memory with arrays where that is possible. Arrays of another
        byte order are copied.
    :raises DataError: for sparse tensors, single numbers, masked entries, data that are not real
        numbers, and numbers that torch cannot hold exactly.

    >>> as_rows(np.zeros((3, 2), dtype=np.float32)).shape
    torch.Size([3, 2])
    >>> as_rows(np.ma.masked_equal([1, 2, 1], 7))
    tensor([1, 2, 1])
    """
    if isinstance(data, Tensor):
        tensor = data
    else:
        array = as_array(data)
        with warnings.catch_warnings():
            # torch warns that read-only arrays (memory maps) are not writable. Rows are only read.
            warnings.filterwarnings(
                "ignore", message="The given NumPy array is not writable", category=UserWarning
            )
            tensor = torch.from_numpy(array)
    _check_plain(tensor)
    if tensor.dim() == 0:
        raise DataError("rows must have at least one dimension, not a single number")
    return tensor


def as_arguments(
    args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Convert NumPy arrays and pandas objects among a program's arguments to tensors.

    :returns: the arguments; all others are unchanged.

    >>> as_arguments([np.zeros(2, dtype=np.float32), 3], {})
    ((tensor([0., 0.]), 3), {})
    """
    converted = {name: _as_argument(value) for name, value in kwargs.items()}
    return tuple(map(_as_argument, args)), converted


def _as_argument(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value
    is_array = isinstance(value, np.ndarray) and value.ndim > 0
    return as_rows(value) if is_array or is_pandas(value) else value


def _check_plain(tensor: Tensor) -> None:
    """Refuse tensors that are not dense real numbers."""
    if isinstance(tensor, MaskedTensor):
        raise DataError(
            "rows are a MaskedTensor: pass the rows without masked entries, or fill the entries "
            "in, x.to_tensor(value)"
        )
    if tensor.is_nested or tensor.layout is not torch.strided:
        remedy = "x.to_padded_tensor(0.0)" if tensor.is_nested else "x.to_dense()"
        raise DataError(f"rows must be dense, not {tensor.layout}: pass {remedy}")
    if tensor.is_quantized:
        raise DataError(f"rows are {tensor.dtype}: pass x.dequantize()")
    if tensor.is_complex():
        raise DataError(f"rows must be real numbers, not {tensor.dtype}: pass x.real, for example")
