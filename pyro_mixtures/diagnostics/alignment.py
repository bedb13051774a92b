"""Alignment of labels: permutations that number the components of several fits or draws alike."""

from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.infer import Responsibilities
from pyro_mixtures.options import check_whole
from pyro_mixtures.partition.sparse_matching import match_nearest, match_overlap

Alignable = Tensor | Responsibilities


def align(
    fits: Sequence[Alignable] | Tensor,
    reference: Alignable | None = None,
    *,
    components: int | None = None,
    neighbors: int = 16,
) -> Tensor:
    r"""Find permutations that relabel several fits or draws like a reference.

    The labels of a mixture are arbitrary. The permutations maximize the agreement of each fit with
    the reference (Stephens, "Dealing with label switching in mixture models", JRSS B 62, 2000;
    Marin, Mengersen & Robert, "Bayesian modelling and inference on mixtures of distributions",
    Handbook of Statistics 25, 2005). Agreement is measured on one of these:

    - :class:`~pyro_mixtures.infer.Responsibilities` of the same N rows; the top candidates (N, S)
      are enough. The expected number of rows that agree, :math:`\sum_n \sum_k q^{ref}_n(k)\,
      q_n(p(k))`, is maximal. This is exact for any C and uses a sparse (C, C) matrix. Components
      that share no row are paired arbitrarily.
    - Parameters (C, P): the total distance is minimal. Scale features of different units first. For
      more than 1024 components only pairs of nearby components are considered; see
      :func:`~pyro_mixtures.partition.sparse_matching.match_nearest` for when that is exact.

    :param fits: R responsibilities, R tensors (C, P), or one tensor (R, C, P).
    :param reference: the same for the reference; the first of ``fits`` by default.
    :param components: C, which must be given with responsibilities.
    :param neighbors: number of candidates per component for many components given by parameters.
    :returns: permutations (R, C): component k of the reference is component ``p[r, k]`` of fit r.
    :raises OptionError: without fits, or without ``components`` if they are needed.
    :raises DataError: if fits are of another type, do not match the reference (rows, components),
        or are not finite.

    >>> loc = torch.tensor([[0.0], [5.0], [9.0]])
    >>> align([loc, loc[[2, 0, 1]] + 0.1]).tolist()
    [[0, 1, 2], [1, 2, 0]]
    """
    if isinstance(fits, Responsibilities) or not isinstance(fits, Sequence | Tensor):
        raise OptionError(
            f"fits is of type {type(fits).__name__}: pass a list, even for one fit, or a tensor "
            "(R, C, P)"
        )
    if not len(fits):
        raise OptionError("fits is empty: align needs at least one fit")
    check_whole(neighbors=neighbors)
    first = fits[0] if reference is None else reference
    for fit in (first, *fits):
        if not isinstance(fit, Responsibilities | Tensor):
            raise DataError(
                f"a fit is of type {type(fit).__name__}: pass Responsibilities, or parameters as a "
                "tensor (C, P)"
            )
    if isinstance(first, Responsibilities):
        return torch.stack([_align_by_rows(fit, first, components) for fit in fits])
    return torch.stack([_align_by_parameters(fit, first, neighbors) for fit in fits])


def relabel(
    params: Mapping[str, Tensor], permutation: Tensor, *, dim: int | Mapping[str, int] = 0
) -> dict[str, Tensor]:
    """Reorder the components of one fit's params by a permutation.

    Labels of rows change by the inverse: ``permutation.argsort()[labels]``.

    :param params: tensors with an entry per component, by name. Leave out params that components
        share.
    :param permutation: (C,), a row of the result of :func:`align`.
    :param dim: the dimension that counts components, for all params or by name.
    :returns: the reordered params.
    :raises OptionError: if ``dim`` is not a whole number, or lacks a param.
    :raises DataError: if a dimension is not of size C, or ``permutation`` is not a permutation.

    >>> loc = torch.tensor([[9.0], [0.0], [5.0]])
    >>> relabel({"loc": loc}, torch.tensor([1, 2, 0]))["loc"].tolist()
    [[0.0], [5.0], [9.0]]
    """
    _check_permutation(permutation)
    order, relabeled = permutation.long(), {}
    for name, value in params.items():
        component_dim = _component_dim(dim, name)
        if not isinstance(value, Tensor):
            raise DataError(f"param {name!r} is of type {type(value).__name__}: pass tensors")
        has_dim = -value.dim() <= component_dim < value.dim()
        if not has_dim or value.shape[component_dim] != len(order):
            raise DataError(
                f"param {name!r} {tuple(value.shape)} does not have {len(order)} components in "
                f"dimension {component_dim}"
            )
        relabeled[name] = value.index_select(component_dim, order.to(value.device))
    return relabeled


def overlap(fit: Responsibilities, reference: Responsibilities, components: int) -> csr_matrix:
    """Return the expected number of rows (C, C) with component k in the reference and j in the fit.

    :raises DataError: if the numbers of rows differ, or components lie outside [0, C).
    """
    if len(fit.components) != len(reference.components):
        raise DataError(
            f"responsibilities of {len(fit.components)} rows cannot be aligned with those of "
            f"{len(reference.components)} rows: pass those of the same rows"
        )
    return csr_matrix(_to_sparse(reference, components).T @ _to_sparse(fit, components))


def permutation_of(overlaps: csr_matrix) -> Tensor:
    """Return the permutation (C,) of maximal overlap, on the CPU."""
    return torch.from_numpy(match_overlap(overlaps))


def _align_by_rows(fit: Alignable, reference: Responsibilities, components: int | None) -> Tensor:
    if components is None:
        raise OptionError("components=None: pass the number of components with responsibilities")
    check_whole(components=components)
    if not isinstance(fit, Responsibilities):
        raise DataError(
            f"{type(fit).__name__} cannot be aligned with responsibilities: pass the same type for "
            "every fit"
        )
    return permutation_of(overlap(fit, reference, components))


def _align_by_parameters(fit: Alignable, reference: Tensor, neighbors: int) -> Tensor:
    if isinstance(fit, Responsibilities):
        raise DataError(
            "responsibilities cannot be aligned with parameters: pass the same type for every fit"
        )
    return match_nearest(fit, reference, neighbors=neighbors).cpu()


def _to_sparse(responsibilities: Responsibilities, components: int) -> csr_matrix:
    """Responsibilities (N, C), with S entries per row; padding has probability zero."""
    numbers, probs = (tensor.detach().cpu().numpy() for tensor in responsibilities)
    probs = probs.astype(np.float64)
    if not np.isfinite(probs).all() or (probs < 0).any():
        raise DataError("responsibilities must be finite and not negative")
    positive = probs > 0
    used_numbers = numbers[positive]
    if len(used_numbers) and not (used_numbers.min() >= 0 and used_numbers.max() < components):
        raise DataError(
            f"responsibilities name components outside [0, {components}): check components="
        )
    row_ends = np.concatenate([[0], positive.sum(1).cumsum()])
    return csr_matrix((probs[positive], used_numbers, row_ends), shape=(len(numbers), components))


def _component_dim(dim: int | Mapping[str, int], name: str) -> int:
    if isinstance(dim, Mapping):
        if name not in dim:
            raise OptionError(
                f"dim= has no entry for {name!r}: pass the dimension that counts components for "
                "each param"
            )
        dim = dim[name]
    if isinstance(dim, bool) or not isinstance(dim, Integral):
        raise OptionError(
            f"dim={dim!r} must be the number of a dimension, or a mapping from params to numbers"
        )
    return int(dim)


def _check_permutation(permutation: Tensor) -> None:
    if not isinstance(permutation, Tensor):
        raise DataError(
            f"permutation is of type {type(permutation).__name__}: pass a tensor (C,), a row of "
            "the result of align"
        )
    is_whole = not permutation.is_floating_point() and permutation.dtype != torch.bool
    numbers = torch.arange(permutation.numel(), device="cpu")
    if (
        permutation.dim() != 1
        or not is_whole
        or not torch.equal(permutation.cpu().sort().values.long(), numbers)
    ):
        raise DataError(
            f"permutation {permutation.dtype} {tuple(permutation.shape)} must contain each "
            "of the integers 0, ..., C - 1 exactly once: pass a row of the result of align"
        )
