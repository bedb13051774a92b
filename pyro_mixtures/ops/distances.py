"""Squared Euclidean distances, for seeding."""

import torch
from torch import Tensor


def squared_distance(x: Tensor, center: Tensor) -> Tensor:
    """Compute ``|x_n - center|^2`` (N,) of rows (N, D) from one center (D,) or one each (N, D)."""
    return (x - center).square().sum(-1)


def nearest_distance(x: Tensor, centers: Tensor, norms: Tensor | None = None) -> Tensor:
    """Compute the squared distance (N,) of rows (N, D) from the nearest of ``centers`` (K, D).

    One matrix product finds the nearest center; the distance is then computed from the difference.
    Rows that lie far from zero compared with their distances should be shifted first.

    :param norms: (K,) squared lengths of the centers, if known.

    >>> nearest_distance(torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [7.0]]))
    tensor([1., 4.])
    """
    norms = centers.square().sum(-1) if norms is None else norms
    nearest = torch.addmm(norms, x, centers.mT, alpha=-2).argmin(-1)
    return squared_distance(x, centers[nearest])
