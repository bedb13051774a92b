"""Squared Euclidean distances, for seeding."""

import torch
from torch import Tensor


def squared_distance(x: Tensor, center: Tensor) -> Tensor:
    """``|x_n - center|^2`` (N,) of rows (N, D) from one center (D,)."""
    return (x - center).square().sum(-1)


def nearest_distance(x: Tensor, centers: Tensor) -> Tensor:
    """Squared distance (N,) of rows (N, D) from the nearest of ``centers`` (K, D).

    >>> nearest_distance(torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [7.0]]))
    tensor([1., 4.])
    """
    return torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist").amin(-1).square()
