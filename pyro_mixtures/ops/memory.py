"""Memory for large intermediate results on the CPU."""

import numpy as np
import torch
from torch import Tensor


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Allocate uninitialized CPU memory for results of many megabytes that live for one step.

    The memory comes from NumPy, which asks the operating system for huge pages; torch does not.
    Touching fresh memory in pages of 4 KB for the first time took an eighth of an EM step.

    >>> empty((2, 3), torch.float32).shape
    torch.Size([2, 3])
    """
    numpy_dtype = torch.empty(0, dtype=dtype, device="cpu").numpy().dtype
    return torch.from_numpy(np.empty(shape, numpy_dtype))
