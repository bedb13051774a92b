"""Scores of any rows, seen or not: evidence, responsibilities, assignments; in chunks, never N x C."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.data.rows import Batches
from pyro_mixtures.errors import ModelError, OptionError
from pyro_mixtures.infer.guide import PartitionGuide
from pyro_mixtures.options import check_whole
from pyro_mixtures.poutine import Posterior, ReuseMessenger, exact_posterior, read_structure

# (row, component) pairs of a chunk of an exact computation; rows of a chunk of a truncated one.
_EXACT_PAIRS = 1 << 21
_TRUNCATED_ROWS = 1 << 16


class Responsibilities(NamedTuple):
    """The most probable components of N rows, best first."""

    components: Tensor  # (N, S)
    probs: Tensor  # (N, S)

    def dense(self, components: int) -> Tensor:
        """The same as a table (N, C), zero where a component is not among those kept: for a small C.

        >>> Responsibilities(torch.tensor([[2, 0]]), torch.tensor([[0.75, 0.25]])).dense(3)
        tensor([[0.2500, 0.0000, 0.7500]])
        """
        check_whole(components=components)
        most = int(self.components.max()) + 1
        if components < most:
            raise OptionError(
                f"components={components}: the rows have components up to number {most - 1}"
            )
        table = self.probs.new_zeros(len(self.probs), components)
        return table.scatter_(1, self.components.long(), self.probs)


def log_evidence(
    model: Callable,
    *rows: Tensor,
    guide: PartitionGuide | None = None,
    site: str = "z",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Log evidence (N,) of each row: log sum_c p(c, x).

    :param rows: the model's tensor arguments, N rows each; they need not be those of the fit.
    :param guide: None sums over all C components, exactly. A truncated guide searches each row's
        candidates and gives the truncated evidence, a lower bound, without touching the guide's
        state.
    :param given: values of the model's other latent sites, if it has any.
    :param chunk: rows evaluated at once.
    """
    return torch.cat(
        [p.log_evidence for p, _ in posteriors(model, rows, guide, site, given, chunk)]
    )


def responsibilities(
    model: Callable,
    *rows: Tensor,
    top: int = 3,
    guide: PartitionGuide | None = None,
    site: str = "z",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> Responsibilities:
    """The ``top`` most probable components of each row with their probabilities; arguments as in :func:`log_evidence`."""
    check_whole(top=top)
    found = [p.top(top) for p, _ in posteriors(model, rows, guide, site, given, chunk)]
    return Responsibilities(
        torch.cat([p.candidates.T for p in found]), torch.cat([p.probs.T for p in found])
    )


def assign(
    model: Callable,
    *rows: Tensor,
    guide: PartitionGuide | None = None,
    site: str = "z",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The most probable component (N,) of each row; arguments as in :func:`log_evidence`."""
    return torch.cat([p.winner for p, _ in posteriors(model, rows, guide, site, given, chunk)])


def posteriors(
    model: Callable,
    rows: tuple[Tensor, ...],
    guide: PartitionGuide | None,
    site: str = "z",
    given: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
    most: int = _TRUNCATED_ROWS,
) -> Iterator[tuple[Posterior, tuple[Tensor, ...]]]:
    """q(z) chunk by chunk, with the chunk's rows; exact without a guide. At most ``most`` rows by default."""
    if guide is not None and not callable(getattr(guide, "posterior_of_new_rows", None)):
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
    size = chunk or (
        most if guide is not None else max(1, min(most, _EXACT_PAIRS // structure.components))
    )
    for start in range(0, len(tensors[0]), size):
        part = tuple(tensor[start : start + size] for tensor in tensors)
        with structure.threads():
            posterior = _posterior(model, part, guide, structure, given)
        if len(posterior.index) != len(part[0]):
            raise ModelError(
                f"the model took {len(posterior.index)} of {len(part[0])} rows: with subsample_size its rows cannot be "
                "scored; open its plate without subsample_size"
            )
        yield posterior, part


def _posterior(
    model: Callable, part: tuple, guide: PartitionGuide | None, d: Any, given: Any
) -> Posterior:
    if guide is None:
        return exact_posterior(model, d, part, {}, given)
    return guide.posterior_of_new_rows(*part, model=model, given=given)
