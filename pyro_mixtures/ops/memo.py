"""Values computed from tensors, remembered without writing anything into the tensors."""

import weakref
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

Value = TypeVar("Value")


class Entry(NamedTuple, Generic[Value]):
    """A value, and the contents of the tensor for which it was computed."""

    tensor: weakref.ref[Tensor]
    version: int
    value: Value


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
        # By id: a look-up takes a fifth of the time of torch's WeakTensorKeyDictionary.
        self._entries: dict[int, Entry[Value]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, tensor: Tensor) -> Value | None:
        """Return the value that was set for the present contents of this very tensor, or None."""
        entry = self._entries.get(id(tensor))
        if entry is None or entry.tensor() is not tensor or entry.version != tensor._version:
            return None
        return entry.value

    def set(self, tensor: Tensor, value: Value) -> None:
        """Remember ``value`` for the present contents of ``tensor``.

        Tensors of ``torch.inference_mode()`` do not count their changes: they are not remembered.
        """
        if tensor.is_inference():
            return
        key, entries = id(tensor), self._entries

        def forget(dead: weakref.ref[Tensor]) -> None:
            # Another tensor may have the id by now.
            if key in entries and entries[key].tensor is dead:
                del entries[key]

        entries[key] = Entry(weakref.ref(tensor, forget), tensor._version, value)
