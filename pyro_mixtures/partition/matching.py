"""Matching of the components of two mixtures, and their distance after it."""

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_mixtures.errors import DataError


class MatchedErrors(NamedTuple):
    """Distances of an estimated mixture from the true one, for any order of their components."""

    worst: Tensor  # () largest distance of an atom
    weights: Tensor  # () sum of |alpha_k - alpha*_k|, at most 2
    atoms: Tensor  # (K,) distance of each true atom from its estimate
    permutation: Tensor  # (K,) int64: theta[permutation[k]] belongs to theta_true[k]


def match_components(a: Tensor, b: Tensor) -> Tensor:
    """Find the permutation of least total Euclidean distance between ``a[permutation]`` and ``b``.

    The Hungarian method finds the best of all permutations (Crouse, "On implementing 2D rectangular
    assignment algorithms", IEEE Trans. AES 52, 2016, as implemented in SciPy), with distances in
    float64.

    :param a: (K, D).
    :param b: (K, D).
    :returns: (K,) int64, on the device of ``a``.
    :raises DataError: when the shapes differ or are not (K, D), or a number is not finite.

    >>> match_components(torch.tensor([[5.0], [0.1], [2.0]]), torch.tensor([[0.0], [2.5], [4.0]]))
    tensor([1, 2, 0])
    """
    a, b = _checked(a, "a"), _checked(b, "b")
    if a.shape != b.shape:
        raise DataError(
            f"components {tuple(a.shape)} and {tuple(b.shape)} cannot be matched: pass both as "
            "(K, D)"
        )
    difference = a.unsqueeze(0) - b.to(a.device).unsqueeze(1)
    cost = torch.linalg.vector_norm(difference, dim=-1)  # rows for b, columns for a
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(columns).to(a.device)


def matched_errors(
    theta: Tensor, theta_true: Tensor, weights: Tensor, weights_true: Tensor
) -> MatchedErrors:
    """Compute the errors of an estimated mixture after matching its atoms with the true ones.

    :param theta: (K, D) estimated atoms.
    :param theta_true: (K, D) true atoms.
    :param weights: (K,) estimated weights.
    :param weights_true: (K,) true weights.
    :returns: the distances, and the permutation of :func:`match_components`.
    :raises DataError: when shapes do not fit each other, or a number is not finite.

    >>> theta, weights = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([0.75, 0.25])
    >>> errors = matched_errors(theta, torch.zeros(2, 2), weights, torch.tensor([0.5, 0.5]))
    >>> float(errors.worst), float(errors.weights)
    (5.0, 0.5)
    """
    permutation = match_components(theta, theta_true)
    estimated = _checked(weights, "weights", dim=1)
    true = _checked(weights_true, "weights_true", dim=1)
    if estimated.shape != permutation.shape or true.shape != permutation.shape:
        raise DataError(
            f"weights {tuple(estimated.shape)} and {tuple(true.shape)} must both be "
            f"({len(permutation)},)"
        )
    true_atoms = _checked(theta_true, "theta_true").to(theta.device)
    difference = _checked(theta, "theta")[permutation] - true_atoms
    atoms = torch.linalg.vector_norm(difference, dim=-1)
    weight_difference = estimated.to(theta.device)[permutation] - true.to(theta.device)
    return MatchedErrors(atoms.max(), weight_difference.abs().sum(), atoms, permutation)


def _checked(x: Tensor, name: str, dim: int = 2) -> Tensor:
    """Return ``x`` in float64, detached."""
    if x.dim() != dim or not len(x):
        expected = "(K, D)" if dim == 2 else "(K,)"
        raise DataError(f"{name} must be {expected} with K >= 1, not {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        row = int((~x.isfinite()).reshape(len(x), -1).any(-1).nonzero()[0])
        raise DataError(f"{name}[{row}] contains NaN or infinity and cannot be matched")
    return x.detach().double()
