"""The choice of kernels: numba for float32 and float64 on the CPU, torch for everything else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_mixtures.errors import OptionError

_BACKENDS = ("auto", "torch")
_chosen = "auto"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use the kernels of backend ``name`` within the block.

    :param name: ``"auto"`` for numba where it applies (on the CPU), or ``"torch"`` for the
        reference implementation, which runs on any device.
    :returns: a context manager; at its end the previous backend is in use again.
    :raises OptionError: for any other name.

    >>> with use_backend("torch"):
    ...     pass
    """
    global _chosen
    if name not in _BACKENDS:
        raise OptionError(f"unknown backend {name!r}; choose one of {_BACKENDS}")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def on_numba(values: Tensor, dtype: torch.dtype | None) -> bool:
    """Return whether the numba kernels can take tensors like ``values``.

    :param dtype: dtype of the computation; None for a kernel of integers.
    """
    return (
        _chosen == "auto"
        and values.device.type == "cpu"
        and dtype in (None, torch.float32, torch.float64)
    )
