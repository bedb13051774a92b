"""Components of two mixtures matched with each other, and how far apart they are then."""

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_mixtures.errors import DataError


class MatchedErrors(NamedTuple):
    """Distance of an estimated mixture from the true one, whatever the order of their components."""

    worst: Tensor  # () largest distance of an atom
    weights: Tensor  # () sum of |alpha_k - alpha*_k|, at most 2
    atoms: Tensor  # (K,) distance of each true atom from its own
    permutation: Tensor  # (K,) int64: theta[permutation[k]] belongs to theta_true[k]


def match_components(a: Tensor, b: Tensor) -> Tensor:
    """Permutation (K,) of least total Euclidean distance between ``a[permutation]`` and ``b``, both (K, D).

    Of all permutations, by the Hungarian method (Crouse, "On implementing 2D rectangular assignment
    algorithms", IEEE Trans. AES 52, 2016, as scipy has it); distances in float64. The permutation
    lies on the device of ``a``.

    :raises DataError: when the shapes differ or are not (K, D), or a number is not finite.

    >>> match_components(torch.tensor([[5.0], [0.1], [2.0]]), torch.tensor([[0.0], [2.5], [4.0]]))
    tensor([1, 2, 0])
    """
    a, b = _checked(a, "a"), _checked(b, "b")
    if a.shape != b.shape:
        raise DataError(
            f"components {tuple(a.shape)} and {tuple(b.shape)} cannot be matched: give both as (K, D)"
        )
    cost = torch.linalg.vector_norm(
        a.unsqueeze(0) - b.to(a.device).unsqueeze(1), dim=-1
    )  # (b's, a's)
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(columns).to(a.device)


def matched_errors(
    theta: Tensor, theta_true: Tensor, weights: Tensor, weights_true: Tensor
) -> MatchedErrors:
    """Errors of atoms ``theta`` (K, D) and ``weights`` (K,) once :func:`match_components` has put them in order.

    :raises DataError: when shapes do not fit one another, or a number is not finite.

    >>> theta, weights = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([0.75, 0.25])
    >>> errors = matched_errors(theta, torch.zeros(2, 2), weights, torch.tensor([0.5, 0.5]))
    >>> float(errors.worst), float(errors.weights)
    (5.0, 0.5)
    """
    permutation = match_components(theta, theta_true)
    found, true = _checked(weights, "weights", dim=1), _checked(weights_true, "weights_true", dim=1)
    if found.shape != permutation.shape or true.shape != permutation.shape:
        raise DataError(
            f"weights {tuple(found.shape)} and {tuple(true.shape)} must both be ({len(permutation)},)"
        )
    difference = _checked(theta, "theta")[permutation] - _checked(theta_true, "theta_true").to(
        theta.device
    )
    atoms = torch.linalg.vector_norm(difference, dim=-1)
    shift = (found.to(theta.device)[permutation] - true.to(theta.device)).abs().sum()
    return MatchedErrors(atoms.max(), shift, atoms, permutation)


def _checked(x: Tensor, name: str, dim: int = 2) -> Tensor:
    """``x`` in float64, detached."""
    if x.dim() != dim or not len(x):
        expected = "(K, D)" if dim == 2 else "(K,)"
        raise DataError(
            f"{name} must be {expected} with one component at least, not {tuple(x.shape)}"
        )
    if not bool(x.isfinite().all()):
        row = int((~x.isfinite()).reshape(len(x), -1).any(-1).nonzero()[0])
        raise DataError(f"{name}[{row}] holds NaN or infinity: nothing can be matched with it")
    return x.detach().double()
