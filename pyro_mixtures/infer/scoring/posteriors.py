"""Scores of rows: log evidence, responsibilities, assignments; in chunks, never N x C."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.errors import ModelError, OptionError, row_numbers
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.options import check_whole
from pyro_mixtures.poutine import Posterior, ReuseMessenger, exact_posterior, read_structure

# (row, component) pairs per chunk of an exact computation, and rows per chunk of a truncated one.
_EXACT_PAIRS = 1 << 21
_TRUNCATED_ROWS = 1 << 16


class Responsibilities(NamedTuple):
    """The most probable components of N rows, best first."""

    components: Tensor  # (N, S)
    probs: Tensor  # (N, S)

    def dense(self, components: int) -> Tensor:
        """Return a table (N, C) of all responsibilities, zero where none was stored; for small C.

        :param components: C, at least the largest component number plus one.
        :raises OptionError: when it is less.

        >>> Responsibilities(torch.tensor([[2, 0]]), torch.tensor([[0.75, 0.25]])).dense(3)
        tensor([[0.2500, 0.0000, 0.7500]])
        """
        check_whole(components=components)
        needed = int(self.components.max()) + 1
        if components < needed:
            raise OptionError(
                f"components={components}, but rows have components up to number {needed - 1}: "
                f"pass components={needed} or more"
            )
        table = self.probs.new_zeros(len(self.probs), components)
        return table.scatter_(1, self.components.long(), self.probs)


def log_evidence(
    model: Callable[..., Any],
    *rows: Tensor,
    guide: PartitionGuide | None = None,
    site: str = "z",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Compute the log evidence of each row, log sum_c p(c, x).

    :param model: the Pyro program.
    :param rows: the model's tensor arguments, N rows each; they need not be those of the fit.
    :param guide: None sums over all C components, exactly. A truncated guide searches each row's
        candidates and gives the truncated log evidence, a lower bound; its state does not change.
    :param site: name of the discrete site, if there is no guide.
    :param given: values of the model's other latent sites, if it has any.
    :param chunk: rows evaluated at once; None chooses by the memory that they need.
    :returns: (N,), in nats.
    :raises ModelError: when the program cannot be scored, or ``given`` names other sites.

    >>> from pyro_mixtures.models import GaussianMixture
    >>> log_evidence(GaussianMixture(components=3, features=2), torch.randn(5, 2)).shape
    torch.Size([5])
    """
    chunks = posteriors(model, rows, guide, site, given, chunk)
    return torch.cat([posterior.log_evidence for posterior, _ in chunks])


def responsibilities(
    model: Callable[..., Any],
    *rows: Tensor,
    top: int = 3,
    guide: PartitionGuide | None = None,
    site: str = "z",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> Responsibilities:
    """Compute the most probable components of each row, with their probabilities.

    :param model: the fitted program.
    :param top: S, the number of components per row.
    :param rows, guide, site, given, chunk: as in :func:`log_evidence`.
    :returns: components and probabilities (N, S), best first.
    :raises OptionError: when ``top`` is not a positive integer.

    >>> from pyro_mixtures.models import GaussianMixture
    >>> model = GaussianMixture(components=3, features=2)
    >>> responsibilities(model, torch.randn(5, 2), top=2).probs.shape
    torch.Size([5, 2])
    """
    check_whole(top=top)
    chunks = posteriors(model, rows, guide, site, given, chunk)
    best = [posterior.top(top) for posterior, _ in chunks]
    return Responsibilities(
        components=torch.cat([posterior.candidates.T for posterior in best]),
        probs=torch.cat([posterior.probs.T for posterior in best]),
    )


def assign(
    model: Callable[..., Any],
    *rows: Tensor,
    guide: PartitionGuide | None = None,
    site: str = "z",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Compute the most probable component of each row.

    :param rows, guide, site, given, chunk: as in :func:`log_evidence`.
    :returns: (N,) component numbers.

    >>> from pyro_mixtures.models import GaussianMixture
    >>> assign(GaussianMixture(components=3, features=2), torch.randn(5, 2)).shape
    torch.Size([5])
    """
    chunks = posteriors(model, rows, guide, site, given, chunk)
    return torch.cat([posterior.winner for posterior, _ in chunks])


def posteriors(
    model: Callable[..., Any],
    rows: tuple[Tensor, ...],
    guide: PartitionGuide | None,
    site: str = "z",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
    *,
    max_rows: int = _TRUNCATED_ROWS,
) -> Iterator[tuple[Posterior, tuple[Tensor, ...]]]:
    """Yield q(z) of each chunk of rows, with these rows; exact without a guide.

    :param max_rows: largest number of rows per chunk, if ``chunk`` is None.
    """
    if guide is not None and not isinstance(guide, PartitionGuide):
        raise ModelError(
            f"guide={guide!r} is no guide: pass one of pyro_mixtures.guides, or None for exact sums"
        )
    tensors = Batches(rows).tensors
    if chunk is not None:
        check_whole(chunk=chunk)
    first = tuple(tensor[:1] for tensor in tensors)
    structure = read_structure(model, site, first, {}) if guide is None else guide.read(*first)
    unknown = sorted(set(given or ()) - set(structure.latent))
    if unknown:
        raise ModelError(
            f"given={unknown}: the model has no such latent sites; it has {list(structure.latent)}"
        )
    model = ReuseMessenger()(model)
    if guide is None:
        max_rows = max(1, min(max_rows, _EXACT_PAIRS // structure.components))
    size = chunk or max_rows
    for start in range(0, len(tensors[0]), size):
        row_chunk = tuple(tensor[start : start + size] for tensor in tensors)
        with structure.threads(), row_numbers(start.__add__):
            if guide is None:
                posterior = exact_posterior(model, structure, row_chunk, {}, given)
            else:
                posterior = guide.posterior_of_new_rows(*row_chunk, model=model, given=given)
        if len(posterior.index) != len(row_chunk[0]):
            raise ModelError(
                f"the model took {len(posterior.index)} of {len(row_chunk[0])} rows: with "
                "subsample_size its rows cannot be scored; open its plate without subsample_size"
            )
        yield posterior, row_chunk
