"""Atoms and weights of a softmax mixture by the method of moments, and reasons to doubt them."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.errors import OptionError
from pyro_mixtures.init.identification import second_moment_noise
from pyro_mixtures.init.latent_moments import LatentMoments
from pyro_mixtures.init.tensor_decomposition import (
    TensorComponents,
    simultaneous_diagonalization,
    tensor_power,
)
from pyro_mixtures.options import check_flag

_TINY = 1e-12  # smallest size of eigenvalues and atoms
_MARGIN = 1.5  # by which eigenvalues of the second moment should exceed their noise
_MAX_RELATIVE_ERROR = 0.2  # standard error of a tensor eigenvalue


class MomentAtoms(NamedTuple):
    """Solution of the moment equations."""

    theta: Tensor  # (K, L) float64
    weights: Tensor  # (K,) float64
    doubts: tuple[str, ...]  # reasons not to trust it; empty if there are none


def moment_atoms(
    moments: LatentMoments,
    components: int,
    *,
    max_norm: float,
    diagonalize: bool = False,
    generator: torch.Generator | None = None,
) -> MomentAtoms:
    """Find atoms and weights with the second and third moment of ``moments``.

    With E, V the K leading eigenvalues and eigenvectors of the standardized second moment, T(W, W,
    W) for W = V E^(-1/2) has an orthogonal decomposition, sum_k lambda_k v_k^3. Then the
    standardized theta_k are lambda_k V E^(1/2) v_k, and alpha_k = lambda_k^-2 (Anandkumar et al.,
    JMLR 15, 2014, theorem 4.3). Eigenvalues below the noise are raised to it: whitening by smaller
    ones would turn noise into arbitrarily long atoms.

    :param components: number of atoms, K.
    :param max_norm: longer atoms are clipped to this length, sqrt(theta' Sigma theta).
    :param diagonalize: whether to use :func:`simultaneous_diagonalization` instead of
        :func:`tensor_power`.
    :raises OptionError: for more components than features.

    >>> from pyro_mixtures.init.latent_moments import latent_moments
    >>> features = torch.randn(50_000, 2, generator=torch.Generator().manual_seed(0))
    >>> shares = torch.softmax(features @ torch.tensor([1.0, -0.5]), 0)
    >>> atoms = moment_atoms(latent_moments(features, 1e9 * shares), 1, max_norm=3.0)
    >>> [round(value, 1) for value in atoms.theta[0].tolist()], atoms.doubts
    ([1.0, -0.5], ())
    """
    check_flag(diagonalize=diagonalize)
    rank = moments.points.shape[1]
    if components > rank:
        raise OptionError(
            f"moments find at most one component per feature: {components} components, features of "
            f"rank {rank}; use method='subspace' or 'random'"
        )
    noise = second_moment_noise(moments)
    values, vectors = torch.linalg.eigh(moments.standard_second)
    values, vectors = values[-components:], vectors[:, -components:]
    root = values.clamp_min(max(noise, _TINY)).sqrt()
    decompose = simultaneous_diagonalization if diagonalize else tensor_power
    decomposition = decompose(moments.project_standard(vectors / root), generator=generator)
    eigenvalues = decomposition.values
    atoms = eigenvalues.unsqueeze(-1) * decomposition.vectors @ (vectors * root).mT
    norm = torch.linalg.vector_norm(atoms, dim=-1, keepdim=True)
    atoms = atoms * (max_norm / norm.clamp_min(_TINY)).clamp_max(1.0)
    # No class has more than all draws: a smaller lambda is noise.
    weights = eigenvalues.clamp_min(1.0) ** -2
    doubts = (
        *_hidden_by_noise(values, noise),
        *_inexact(moments, decomposition, decomposition.vectors @ (vectors / root).mT),
        *_clipped(int((norm > max_norm).sum()), max_norm),
    )
    return MomentAtoms(atoms @ moments.factor.mT, weights / weights.sum(), doubts)


def _hidden_by_noise(values: Tensor, noise: float) -> list[str]:
    rank, components = int((values > _MARGIN * noise).sum()), len(values)
    if rank == components:
        return []
    return [
        f"only {rank} of the {components} leading eigenvalues of E theta theta' exceed {_MARGIN} "
        f"times their noise {noise:.3g}; the smallest is {float(values[0]):.3g}"
    ]


def _inexact(
    moments: LatentMoments, decomposition: TensorComponents, directions: Tensor
) -> list[str]:
    """Check the tensor eigenvalues lambda_k = T(w_k, w_k, w_k).

    :param directions: (K, R) w_k, in the space of standardized atoms.
    """
    values = decomposition.values
    standard_errors = _standard_errors(moments, values, directions)
    inexact = int((standard_errors > _MAX_RELATIVE_ERROR * values).sum())
    # w_k . E theta is the square root of alpha_k if the moments belong to a mixture of K classes.
    negative = int((directions @ (moments.mass @ moments.points) <= 0).sum())
    doubts = []
    if inexact:
        doubts.append(
            f"{inexact} tensor eigenvalues have a relative standard error above "
            f"{_MAX_RELATIVE_ERROR}"
        )
    if negative:
        doubts.append(f"the first moment gives {negative} components a negative weight")
    return doubts


def _clipped(count: int, max_norm: float) -> list[str]:
    return [f"{count} atoms were clipped to length {max_norm:.3g}"] if count else []


def _standard_errors(moments: LatentMoments, values: Tensor, directions: Tensor) -> Tensor:
    r"""Compute the standard errors (K,) of the tensor eigenvalues by the delta method.

    A change of the moments changes lambda_k by :math:`\delta T(w_k, w_k, w_k) - (3/2) \lambda_k
    \delta M(w_k, w_k)`; the second term arises because the whitening depends on the second moment.
    An item changes T by s^3 - 3 s |w_k|^2 and M by s^2 - |w_k|^2, where s = w_k . y. Items are
    independent: each adds the square of its share of the draws times its deviation from the mean.
    """
    s = moments.points @ directions.mT
    square = directions.square().sum(-1)
    influence = s**3 - 3 * s * square - 1.5 * values * (s.square() - square)
    deviation = influence - moments.mass @ influence
    return (moments.mass.square() @ deviation.square()).sqrt()
