"""Seeding of the components' means with rows of the data: at random, or spread out by AFK-MC²."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.data.exact import floating_dtype
from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.ops.distances import nearest_distance, squared_distance
from pyro_mixtures.options import check_generator, check_integer

METHODS = ("afkmc2", "random")
_NUMBERS = 1 << 20  # elements of a chunk of rows
# Means per block: one matrix product compares the proposals for these with all earlier means.
_BLOCK = 32


class Seeds(NamedTuple):
    """Rows chosen as means."""

    index: Tensor  # type: ignore[assignment]  # (C,) distinct row numbers; shadows tuple.index
    loc: Tensor  # (C, D) these rows
    variance: Tensor  # (D,) of the data, for the initial spread of the components


def seed_rows(
    x: Tensor,
    components: int,
    *,
    method: str = "afkmc2",
    chain: int = 10,
    generator: torch.Generator | None = None,
) -> Seeds:
    """Choose distinct rows as initial means of the components.

    :param x: (N, D) rows.
    :param components: number of means, C.
    :param method: ``"afkmc2"`` approximates k-means++ seeding (spread-out rows) by Markov chains of
        length ``chain``, with O(C² D chain) operations instead of N C D: Bachem, Lucic, Hassani,
        Krause, "Fast and provably good seedings for k-means", NeurIPS 2016. ``"random"`` draws rows
        uniformly.
    :param chain: length of the Markov chains.
    :param generator: source of randomness, on the CPU; torch's global one by default.
    :returns: the row numbers, the rows, and the variance of the data. Integers become float64 where
        the default dtype does not hold them exactly.
    :raises DataError: when rows are not (N, D), not finite, or fewer than C.
    :raises OptionError: for an unknown method, or a chain that is not positive.

    >>> generator = torch.Generator().manual_seed(0)
    >>> seeds = seed_rows(torch.arange(10.0).unsqueeze(-1), 3, generator=generator)
    >>> seeds.loc.shape
    torch.Size([3, 1])
    """
    check_integer(components=components, chain=chain)
    check_generator(generator)
    x = as_rows(x)
    if x.dim() != 2:
        raise DataError(f"rows must be (N, D), not {tuple(x.shape)}")
    if not 1 <= components <= len(x):
        raise DataError(
            f"{components} components for {len(x)} rows: pass more rows, or fewer components"
        )
    if chain < 1:
        raise OptionError(f"chain={chain} must be positive")
    if method not in METHODS:
        raise OptionError(f"unknown method {method!r}; choose one of {METHODS}")
    dtype = floating_dtype(x)
    variance = _variance(x).to(dtype)
    if method == "random":
        index = torch.randperm(len(x), generator=generator, device="cpu")[:components].to(x.device)
    else:
        index = _afkmc2(x, components, chain, generator, dtype)
    return Seeds(index, x[index].to(dtype), variance)


def _variance(x: Tensor) -> Tensor:
    """Compute the variance (D,) of the rows, in chunks and float64."""
    chunks = x.split(_chunk_size(x))
    zero = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    mean = sum((chunk.double().sum(0) for chunk in chunks), zero) / len(x)
    if not bool(torch.isfinite(mean).all()):
        row = int((~x.isfinite()).any(-1).nonzero()[0])
        raise DataError(f"row {row} contains NaN or infinity: remove such rows first")
    variance = sum(((chunk.double() - mean).square_().sum(0) for chunk in chunks), zero) / len(x)
    # A feature without variance gets that of a typical one, so that densities stay finite.
    typical = variance.mean() if bool(variance.mean() > 0) else torch.ones_like(variance.mean())
    return torch.where(variance > 1e-12 * typical, variance, typical)


def _chunk_size(x: Tensor) -> int:
    """Return the number of rows that are converted or multiplied at once."""
    return max(1, _NUMBERS // max(1, x.shape[1]))


def _afkmc2(
    x: Tensor, components: int, chain: int, generator: torch.Generator | None, dtype: torch.dtype
) -> Tensor:
    """Choose the first mean uniformly, the others by Markov chains that accept by distance.

    Proposals follow q(n) = |x_n - first|^2 / (2 sum) + 1 / (2 N).
    """
    first = int(torch.randint(len(x), (), generator=generator, device="cpu"))
    start = x[first].to(dtype)
    chunks = x.split(_chunk_size(x))
    distances = [squared_distance(chunk.to(dtype), start) for chunk in chunks]
    weight = torch.cat(distances).double().to("cpu")
    if not bool(weight.sum() > 0):
        weight = torch.ones_like(weight)
    q = 0.5 / len(x) + 0.5 * weight / weight.sum()
    proposals = _draw(q, (components - 1) * chain, generator).reshape(-1, chain)
    chosen = [first]
    is_chosen = torch.zeros(len(x), dtype=torch.bool, device="cpu")
    is_chosen[first] = True
    uniform = torch.rand(
        components - 1, chain, generator=generator, dtype=torch.float64, device="cpu"
    )
    centers = _Centers(components, start)
    for block in range(1, components, _BLOCK):
        rows = proposals[block - 1 : block - 1 + _BLOCK]
        proposed = x[rows.to(x.device)].to(dtype) - start
        block_distance = centers.distance(proposed.flatten(0, 1), 0).reshape(rows.shape)
        for k in range(len(rows)):
            distance = block_distance[k]
            if k:
                distance = torch.minimum(distance, centers.distance(proposed[k], block))
            # A row that is a mean already has distance zero, so that the chain leaves it at once.
            distance = distance.double().to("cpu").masked_fill(is_chosen[rows[k]], 0.0)
            end = _metropolis_hastings(distance, q[rows[k]], uniform[block - 1 + k])
            row = int(rows[k, end])
            if is_chosen[row]:
                row = _draw_unchosen(is_chosen, generator)
            is_chosen[row] = True
            chosen.append(row)
            centers.add(x[row].to(dtype) - start)
    return torch.tensor(chosen, device=x.device)


class _Centers:
    """The means chosen so far, relative to the first one.

    Otherwise the distances of rows far from zero would be lost to rounding.
    """

    def __init__(self, components: int, first: Tensor):
        self.loc = torch.zeros(components, len(first), dtype=first.dtype, device=first.device)
        self.norms = self.loc.new_zeros(components)
        self.count = 1

    def add(self, center: Tensor) -> None:
        self.loc[self.count] = center
        self.norms[self.count] = center.square().sum()
        self.count += 1

    def distance(self, x: Tensor, begin: int) -> Tensor:
        """Compute the squared distance (N,) of rows from the nearest mean numbered >= ``begin``."""
        centers = slice(begin, self.count)
        return nearest_distance(x, self.loc[centers], self.norms[centers])


def _metropolis_hastings(distance: Tensor, q: Tensor, uniform: Tensor) -> int:
    """Run a chain of independent proposals, and return the proposal at which it ends."""
    ratio = (distance / q).tolist()
    current = 0
    for j in range(1, len(ratio)):
        if ratio[current] == 0 or ratio[j] > ratio[current] * float(uniform[j]):
            current = j
    return current


def _draw(q: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Draw row numbers by inversion: ``multinomial`` takes at most 2^24 categories."""
    cumulative = q.cumsum(0)
    uniform = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
    return torch.searchsorted(cumulative, uniform * cumulative[-1]).clamp_max(len(q) - 1)


def _draw_unchosen(is_chosen: Tensor, generator: torch.Generator | None) -> int:
    remaining = (~is_chosen).nonzero()[:, 0]
    return int(remaining[torch.randint(len(remaining), (), generator=generator, device="cpu")])
