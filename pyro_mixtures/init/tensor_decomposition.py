"""Orthogonal decomposition of symmetric tensors: power iteration, simultaneous diagonalization."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.errors import DataError, OptionError

Generator = torch.Generator | None


class TensorComponents(NamedTuple):
    """``T`` as the sum of ``values[k] vectors[k] x vectors[k] x vectors[k]``, and the residual."""

    values: Tensor  # (K,) not negative, descending
    vectors: Tensor  # (K, K) rows of length one
    residual: Tensor  # () Frobenius norm of the rest, relative to that of T


def tensor_power(
    tensor: Tensor, *, restarts: int = 20, iterations: int = 100, generator: Generator = None
) -> TensorComponents:
    """Decompose a whitened symmetric tensor T by the robust tensor power method.

    For one component after the other, the iteration v <- T(I, v, v) / |T(I, v, v)| starts from
    random unit vectors, all at once. The result with the largest T(v, v, v) is kept, and its term
    is subtracted from the tensor.

    :param tensor: (K, K, K).
    :param restarts: number of random starts for each component.
    :param iterations: maximum number of iterations from each start.
    :param generator: source of randomness, on the CPU; torch's global one by default.
    :returns: values and vectors in float64.
    :raises DataError: when the tensor is not (K, K, K), finite and symmetric.
    :raises OptionError: when ``restarts`` or ``iterations`` is not positive.

    Anandkumar, Ge, Hsu, Kakade, Telgarsky, "Tensor decompositions for learning latent variable
    models", JMLR 15 (2014), algorithm 1.

    >>> vectors = torch.linalg.qr(torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)).Q
    >>> values = torch.tensor([3.0, 2.0], dtype=torch.float64)
    >>> tensor = torch.einsum("k,ka,kb,kc->abc", values, *[vectors] * 3)
    >>> tensor_power(tensor, generator=torch.Generator().manual_seed(0)).values
    tensor([3.0000, 2.0000], dtype=torch.float64)
    """
    rest = _checked(tensor)
    if restarts < 1 or iterations < 1:
        raise OptionError(f"restarts={restarts} and iterations={iterations} must be positive")
    vectors, values = rest.new_zeros(rest.shape[:2]), rest.new_zeros(len(rest))
    for k in range(len(rest)):
        starts = torch.randn(
            restarts, len(rest), generator=generator, dtype=rest.dtype, device="cpu"
        ).to(rest.device)
        values[k], vectors[k] = _power(rest, starts, iterations)
        rest = rest - values[k] * _cube(vectors[k])
    return _sorted(tensor, values, vectors)


def simultaneous_diagonalization(
    tensor: Tensor, *, contractions: int = 50, generator: Generator = None
) -> TensorComponents:
    """Decompose a whitened symmetric tensor T by the eigenvectors of its random contractions.

    For almost every g, T(I, I, g) has the eigenvectors of T, with eigenvalues lambda_k g.v_k. The
    further apart these are, the less noise disturbs the eigenvectors. Of several Gaussian g, the
    one whose eigenvectors leave the smallest residual is kept.

    :param tensor: (K, K, K).
    :param contractions: number of random vectors g.
    :param generator: source of randomness, on the CPU; torch's global one by default.
    :returns: values and vectors in float64.
    :raises DataError: when the tensor is not (K, K, K), finite and symmetric.
    :raises OptionError: when ``contractions`` is not positive.

    Kuleshov, Chaganty, Liang, "Tensor factorization via matrix factorization", AISTATS 2015,
    section 3.

    >>> tensor = torch.zeros(2, 2, 2, dtype=torch.float64)
    >>> tensor[0, 0, 0], tensor[1, 1, 1] = 1.0, -4.0
    >>> simultaneous_diagonalization(tensor, generator=torch.Generator().manual_seed(0)).values
    tensor([4., 1.], dtype=torch.float64)
    """
    tensor = _checked(tensor)
    if contractions < 1:
        raise OptionError(f"contractions={contractions} must be positive")
    g = torch.randn(
        contractions, len(tensor), generator=generator, dtype=tensor.dtype, device="cpu"
    ).to(tensor.device)
    contracted = torch.einsum("abc,rc->rab", tensor, g)
    vectors = torch.linalg.eigh(contracted).eigenvectors.mT  # (contractions, K, K), in rows
    values = torch.einsum("abc,rka,rkb,rkc->rk", tensor, vectors, vectors, vectors)
    # The squared residual of orthonormal vectors is |T|^2 - sum_k T(v_k, v_k, v_k)^2.
    best = values.square().sum(-1).argmax()
    return _sorted(tensor, values[best], vectors[best])


def _power(tensor: Tensor, v: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Iterate from ``v`` (starts, K), and return the best value () and vector (K,)."""
    v = torch.nn.functional.normalize(v, dim=-1)
    for _ in range(iterations):
        previous, v = v, torch.nn.functional.normalize(_contract(tensor, v), dim=-1)
        if bool((v - previous).abs().max() < 1e-12):
            break
    values = (_contract(tensor, v) * v).sum(-1)
    return values.max(), v[values.argmax()]


def _contract(tensor: Tensor, v: Tensor) -> Tensor:
    """Compute T(I, v, v) (starts, K)."""
    return (v.unsqueeze(-1) * v.unsqueeze(-2)).flatten(1) @ tensor.flatten(1).mT


def _cube(v: Tensor) -> Tensor:
    return torch.einsum("a,b,c->abc", v, v, v)


def _sorted(tensor: Tensor, values: Tensor, vectors: Tensor) -> TensorComponents:
    """Sort the components. Since -v has the value -T(v, v, v), no value need be negative."""
    vectors = torch.where(values.unsqueeze(-1) < 0, -vectors, vectors)
    values, order = values.abs().sort(descending=True)
    vectors = vectors[order]
    rest = tensor.double() - torch.einsum("k,ka,kb,kc->abc", values, vectors, vectors, vectors)
    norm = torch.linalg.vector_norm(tensor.double())
    residual = torch.linalg.vector_norm(rest) / torch.where(norm > 0, norm, 1.0)
    return TensorComponents(values, vectors, residual)


def _checked(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float64."""
    if tensor.dim() != 3 or len(set(tensor.shape)) != 1 or not len(tensor):
        raise DataError(f"the tensor must be (K, K, K), not {tuple(tensor.shape)}")
    if not bool(tensor.isfinite().all()):
        raise DataError("the tensor contains NaN or infinity")
    tensor = tensor.double()
    tolerance = 1e-4 * tensor.abs().max()
    for axes in ((1, 0, 2), (0, 2, 1)):  # these two swaps generate all permutations
        if bool((tensor - tensor.permute(axes)).abs().max() > tolerance):
            raise DataError(
                "the tensor is not symmetric: pass the average over the permutations of its axes"
            )
    return tensor
