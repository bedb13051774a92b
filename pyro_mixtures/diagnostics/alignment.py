"""Label alignment: the permutations that give the components of several fits or draws the same numbers."""

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

Aspect = Tensor | Responsibilities


def align(
    fits: Sequence[Aspect] | Tensor,
    reference: Aspect | None = None,
    *,
    components: int | None = None,
    neighbors: int = 16,
) -> Tensor:
    r"""Permutations (R, C) that relabel R fits or draws like a reference: component k is number ``p[r, k]`` of fit r.

    A mixture's labels are arbitrary. Of what is given for each fit, these permutations bring most
    together with the reference, the pivot (Stephens, "Dealing with label switching in mixture
    models", JRSS B 62, 2000; Marin, Mengersen & Robert, "Bayesian modelling and inference on
    mixtures of distributions", Handbook of Statistics 25, 2005):

    - :class:`~pyro_mixtures.infer.Responsibilities` of the same N rows, of the top candidates (N,
      S) alone: the expected number of rows that agree, :math:`\sum_n \sum_k q^{ref}_n(k)\,
      q_n(p(k))`, is largest. Exact for any C, from a sparse (C, C) matrix; components that share no
      row are paired as they come.
    - Parameters (C, P): the total distance is least. Features of different units want to be scaled
      first. Of more than 1024 components only pairs near each other are looked at (``neighbors``,
      see
      :func:`~pyro_mixtures.partition.sparse_matching.match_nearest`, which says when that is
          exact).

    :param fits: R responsibilities, R tensors (C, P), or one (R, C, P).
    :param reference: the same of the reference, the first of ``fits`` by default.
    :param components: C, needed with responsibilities, which do not show it.
    :param neighbors: partners looked at, of each of many components, by parameters.
    :raises OptionError: without fits, or without ``components`` where they are needed.
    :raises DataError: when fits are neither, do not fit the reference (rows, components), or a
        number is not finite.

    >>> loc = torch.tensor([[0.0], [5.0], [9.0]])
    >>> align([loc, loc[[2, 0, 1]] + 0.1]).tolist()
    [[0, 1, 2], [1, 2, 0]]
    """
    if isinstance(fits, Responsibilities) or not isinstance(fits, Sequence | Tensor):
        raise OptionError(
            f"fits is a {type(fits).__name__}: give a list, of one fit too, or a tensor (R, C, P)"
        )
    if not len(fits):
        raise OptionError("no fits were given: align needs at least one")
    check_whole(neighbors=neighbors)
    first = fits[0] if reference is None else reference
    for aspect in (first, *fits):
        if not isinstance(aspect, Responsibilities | Tensor):
            kind = type(aspect).__name__
            raise DataError(
                f"a {kind} says nothing of a fit: give Responsibilities, or parameters as a tensor (C, P)"
            )
    if isinstance(first, Responsibilities):
        return torch.stack([_by_rows(fit, first, components) for fit in fits])
    return torch.stack([_by_parameters(fit, first, neighbors) for fit in fits])


def relabel(
    params: Mapping[str, Tensor], permutation: Tensor, *, dim: int | Mapping[str, int] = 0
) -> dict[str, Tensor]:
    """Component-wise ``params`` of one fit in the order of ``permutation`` (C,), a row of :func:`align`'s.

    :param params: tensors with an entry a component. Those that components share are not to be
        relabelled.
    :param dim: which of their dimensions counts components, for all or by name. Labels of rows
        change by the inverse: ``permutation.argsort()[labels]``.
    :raises OptionError: when ``dim`` is no whole number, or has none for a param.
    :raises DataError: when a dimension is not of size C, or ``permutation`` is none.

    >>> relabel({"loc": torch.tensor([[9.0], [0.0], [5.0]])}, torch.tensor([1, 2, 0]))["loc"].tolist()
    [[0.0], [5.0], [9.0]]
    """
    _check_permutation(permutation)
    order, moved = permutation.long(), {}
    for name, value in params.items():
        where = _dimension(dim, name)
        if not isinstance(value, Tensor):
            raise DataError(f"param {name!r} is a {type(value).__name__}: give tensors")
        if not -value.dim() <= where < value.dim() or value.shape[where] != len(order):
            raise DataError(
                f"param {name!r} {tuple(value.shape)} has no {len(order)} components in dimension {where}"
            )
        moved[name] = value.index_select(where, order.to(value.device))
    return moved


def overlap(found: Responsibilities, reference: Responsibilities, components: int) -> csr_matrix:
    """Expected numbers of rows (C, C) that the reference gives component k and the fit component j.

    :raises DataError: when the rows are not as many, or components lie outside [0, C).
    """
    if len(found.components) != len(reference.components):
        raise DataError(
            f"responsibilities of {len(found.components)} rows cannot be aligned with those of "
            f"{len(reference.components)}: give those of the same rows"
        )
    return csr_matrix(_sparse(reference, components).T @ _sparse(found, components))


def permutation_of(overlaps: csr_matrix) -> Tensor:
    """The permutation (C,), on the CPU, of the most overlap."""
    return torch.from_numpy(match_overlap(overlaps))


def _by_rows(found: Aspect, reference: Responsibilities, components: int | None) -> Tensor:
    if components is None:
        raise OptionError(
            "components=None: with responsibilities say how many components there are"
        )
    check_whole(components=components)
    if not isinstance(found, Responsibilities):
        raise DataError(
            f"{type(found).__name__} cannot be aligned with responsibilities: give the same of every fit"
        )
    return permutation_of(overlap(found, reference, components))


def _by_parameters(found: Aspect, reference: Tensor, neighbors: int) -> Tensor:
    if isinstance(found, Responsibilities):
        raise DataError(
            "responsibilities cannot be aligned with parameters: give the same of every fit"
        )
    return match_nearest(found, reference, neighbors=neighbors).cpu()


def _sparse(found: Responsibilities, components: int) -> csr_matrix:
    """(N, C), with S numbers a row. Padding has probability zero, wherever it points."""
    numbers, probs = (t.detach().cpu().numpy() for t in found)
    probs = probs.astype(np.float64)
    if not np.isfinite(probs).all() or (probs < 0).any():
        raise DataError("responsibilities must be finite and not negative")
    used = probs > 0
    if used.any() and not (numbers[used].min() >= 0 and numbers[used].max() < components):
        raise DataError(
            f"responsibilities name components outside [0, {components}): check components="
        )
    ends = np.concatenate([[0], used.sum(1).cumsum()])
    return csr_matrix((probs[used], numbers[used], ends), shape=(len(numbers), components))


def _dimension(dim: int | Mapping[str, int], name: str) -> int:
    if isinstance(dim, Mapping):
        if name not in dim:
            raise OptionError(
                f"dim= says nothing of {name!r}: give each param its dimension that counts components"
            )
        dim = dim[name]
    if isinstance(dim, bool) or not isinstance(dim, Integral):
        raise OptionError(
            f"dim={dim!r} must be the number of a dimension, an int, or a mapping with one for each param"
        )
    return int(dim)


def _check_permutation(permutation: Tensor) -> None:
    if not isinstance(permutation, Tensor):
        raise DataError(
            f"permutation is a {type(permutation).__name__}: give a tensor (C,), a row of align's"
        )
    whole = not permutation.is_floating_point() and permutation.dtype != torch.bool
    numbers = torch.arange(permutation.numel(), device="cpu")
    if (
        permutation.dim() != 1
        or not whole
        or not torch.equal(permutation.cpu().sort().values.long(), numbers)
    ):
        given = f"{permutation.dtype} {tuple(permutation.shape)}"
        raise DataError(
            f"permutation {given} must hold each of 0, ..., C - 1 once, whole numbers: a row of align's"
        )
