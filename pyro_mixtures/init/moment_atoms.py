"""Atoms and weights of a softmax mixture by the method of moments, and what speaks against trusting them."""

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

_TINY = 1e-12  # of a component of the tensor without any size
_MARGIN = 1.5  # of the second moment's eigenvalues over their noise
_SHAKY = 0.2  # relative standard error of a tensor eigenvalue that is too much


class MomentAtoms(NamedTuple):
    """Solution of the moment equations."""

    theta: Tensor  # (K, L) float64
    weights: Tensor  # (K,) float64
    doubts: tuple[str, ...]  # why it is not to be trusted; empty when it may be


def moment_atoms(
    moments: LatentMoments,
    components: int,
    *,
    longest: float,
    diagonalize: bool = False,
    generator: torch.Generator | None = None,
) -> MomentAtoms:
    """Atoms whose second and third moment are those of ``moments``.

    With E, V the K leading eigenvalues and eigenvectors of the standardised second moment, T(W, W,
    W) for W = V E^(-1/2) has an orthogonal decomposition, sum_k lambda_k v_k^3; then the
    standardised theta_k are lambda_k V E^(1/2) v_k and alpha_k = lambda_k^-2 (Anandkumar et al.,
    JMLR 15, 2014, theorem 4.3). Eigenvalues below the noise are raised to it: whitened by less,
    noise would make up atoms without bound.

    :param longest: length sqrt(theta' Sigma theta) to which longer atoms are clipped.
    :param diagonalize: by :func:`simultaneous_diagonalization` instead of :func:`tensor_power`.
    :raises OptionError: for more components than features.

    >>> from pyro_mixtures.init.latent_moments import latent_moments
    >>> features = torch.randn(50_000, 2, generator=torch.Generator().manual_seed(0))
    >>> shares = torch.softmax(features @ torch.tensor([1.0, -0.5]), 0)
    >>> found = moment_atoms(latent_moments(features, 1e9 * shares), 1, longest=3.0)
    >>> [round(value, 1) for value in found.theta[0].tolist()], found.doubts
    ([1.0, -0.5], ())
    """
    if components > moments.points.shape[1]:
        raise OptionError(
            f"moments find at most one component a feature: {components} components, features of rank "
            f"{moments.points.shape[1]}; start from the subspace, or at random"
        )
    noise = second_moment_noise(moments)
    values, vectors = torch.linalg.eigh(moments.standard_second)
    values, vectors = values[-components:], vectors[:, -components:]
    root = values.clamp_min(max(noise, _TINY)).sqrt()
    decompose = simultaneous_diagonalization if diagonalize else tensor_power
    parts = decompose(moments.project_standard(vectors / root), generator=generator)
    atoms = parts.values.unsqueeze(-1) * parts.vectors @ (vectors * root).mT
    length = torch.linalg.vector_norm(atoms, dim=-1, keepdim=True)
    atoms = atoms * (longest / length.clamp_min(_TINY)).clamp_max(1.0)
    # No class has more than all draws: a smaller lambda is noise.
    weights = parts.values.clamp_min(1.0) ** -2
    doubts = (
        *_hidden(values, noise),
        *_inexact(moments, parts, parts.vectors @ (vectors / root).mT),
        *_too_long(int((length > longest).sum()), longest),
    )
    return MomentAtoms(atoms @ moments.factor.mT, weights / weights.sum(), doubts)


def _hidden(values: Tensor, noise: float) -> list[str]:
    rank, components = int((values > _MARGIN * noise).sum()), len(values)
    if rank == components:
        return []
    return [
        f"only {rank} of the {components} leading eigenvalues of E theta theta' exceed {_MARGIN} times their "
        f"noise {noise:.3g}; the least is {float(values[0]):.3g}"
    ]


def _inexact(moments: LatentMoments, parts: TensorComponents, directions: Tensor) -> list[str]:
    """``directions`` (K, R) are those w_k in the space of standardised atoms with lambda_k = T(w_k, w_k, w_k)."""
    shaky = int((_standard_errors(moments, parts.values, directions) > _SHAKY * parts.values).sum())
    # w_k . E theta is the square root of alpha_k, if the moments belong to a mixture of K classes.
    negative = int((directions @ (moments.mass @ moments.points) <= 0).sum())
    found = {
        f"{shaky} tensor eigenvalues have a standard error of more than a fifth": shaky,
        f"the first moment gives {negative} components a negative weight": negative,
    }
    return [doubt for doubt, count in found.items() if count]


def _too_long(clipped: int, longest: float) -> list[str]:
    return [f"{clipped} atoms were clipped to length {longest:.3g}"] if clipped else []


def _standard_errors(moments: LatentMoments, values: Tensor, directions: Tensor) -> Tensor:
    r"""Of the tensor eigenvalues (K,), by the delta method.

    A change of the moments changes lambda_k by :math:`\delta T(w_k, w_k, w_k) - (3/2) \lambda_k
    \delta M(w_k, w_k)`, the second term because the whitening moves with the second moment. An item
    changes T by s^3 - 3 s |w_k|^2 and M by s^2 - |w_k|^2, where s = w_k . y. Items are independent:
    each adds the square of its share of the draws times its deviation from the mean.
    """
    s = moments.points @ directions.mT
    square = directions.square().sum(-1)
    influence = s**3 - 3 * s * square - 1.5 * values * (s.square() - square)
    deviation = influence - moments.mass @ influence
    return (moments.mass.square() @ deviation.square()).sqrt()
