"""Values computed from tensors, cached without writing anything into the tensors."""

from typing import Generic, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Value = TypeVar("Value")


class TensorMemo(Generic[Value]):
    """One value per tensor, kept until the tensor is changed in place or garbage-collected.

    >>> import torch
    >>> norms = TensorMemo()
    >>> x = torch.ones(4)
    >>> norms.set(x, 2.0)
    >>> norms.get(x)
    2.0
    >>> _ = x.mul_(3)
    >>> norms.get(x) is None
    True
    """

    def __init__(self) -> None:
        self._entries: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def get(self, tensor: Tensor) -> Value | None:
        """Return the value that was set for this tensor, None if the tensor has changed since."""
        entry: tuple[int, Value] | None = self._entries.get(tensor)
        if entry is None or entry[0] != tensor._version:
            return None
        return entry[1]

    def set(self, tensor: Tensor, value: Value) -> None:
        """Remember ``value`` for the present contents of ``tensor``."""
        self._entries[tensor] = (tensor._version, value)
