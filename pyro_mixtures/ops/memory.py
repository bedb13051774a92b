"""Memory of large intermediate results on the CPU."""

import numpy as np
import torch
from torch import Tensor


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised CPU memory for results of many megabytes that live for one step.

    It comes from NumPy, which asks the system for huge pages, as torch does not: to touch fresh
    memory for the first time in pages of 4 KB was seen to take an eighth of an EM step.

    >>> empty((2, 3), torch.float32).shape
    torch.Size([2, 3])
    """
    return torch.from_numpy(
        np.empty(shape, torch.empty(0, dtype=dtype, device="cpu").numpy().dtype)
    )
