"""Flat component numbers, for components with leading batch dimensions."""

import torch
from torch import Tensor


def flat_index(z: Tensor, lead: torch.Size, components: int) -> Tensor:
    """Number component ``z`` of batch element b as ``b * components + z``.

    ``z`` broadcasts against the leading batch dimensions ``lead`` (vectorized particles, posterior
    draws). The padding value -1 stays -1.

    >>> flat_index(torch.tensor([0, 2, -1]), torch.Size([2, 1]), 3).tolist()
    [[0, 2, -1], [3, 5, -1]]
    """
    if lead.numel() == 1 and len(lead) <= z.dim():
        return z
    offset = components * torch.arange(lead.numel(), device=z.device).reshape(lead)
    return torch.where(z < 0, z, z + offset)


def once(index: Tensor) -> Tensor:
    """Reduce ``index`` (..., B) to (..., 1) if it was expanded over the rows.

    Values that depend on the component alone are then looked up once instead of once per row.

    >>> once(torch.arange(3).unsqueeze(-1).expand(3, 1000)).shape
    torch.Size([3, 1])
    """
    shared = index.dim() > 0 and index.shape[-1] > 0 and index.stride(-1) == 0
    return index[..., :1] if shared else index
