"""Means of the components at rows of the data: at random, or spread out by AFK-MC2."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.ops.distances import nearest_distance, squared_distance

METHODS = ("afkmc2", "random")
_NUMBERS = 1 << 20
_MEANS_A_BLOCK = 32  # whose proposals are compared with all means before them by one matrix product


class Seeds(NamedTuple):
    """Rows chosen as means."""

    index: Tensor  # type: ignore[assignment]  # (C,) distinct row numbers; shadows tuple.index
    loc: Tensor  # (C, D) those rows
    variance: Tensor  # (D,) of the data, for the components' initial spread


def seed_rows(
    x: Tensor,
    components: int,
    *,
    method: str = "afkmc2",
    chain: int = 10,
    generator: torch.Generator | None = None,
) -> Seeds:
    """Choose ``components`` distinct rows of ``x`` (N, D) as means.

    :param method: ``"afkmc2"`` approximates k-means++ seeding (spread-out rows) by Markov chains of
        length ``chain``: O(C^2 D chain) distances instead of N C D. Bachem, Lucic, Hassani, Krause,
        "Fast and provably good seedings for k-means", NeurIPS 2016. ``"random"`` draws rows
        uniformly.
    :param generator: source of randomness, on the CPU; torch's global one by default.
    :raises DataError: when C > N, or rows are not finite.

    >>> seeds = seed_rows(torch.arange(10.0).unsqueeze(-1), 3, generator=torch.Generator().manual_seed(0))
    >>> seeds.loc.shape
    torch.Size([3, 1])
    """
    x = as_rows(x)
    if x.dim() != 2:
        raise DataError(f"rows must be (N, D), not {tuple(x.shape)}")
    if not 1 <= components <= len(x):
        raise DataError(
            f"{components} components for {len(x)} rows: give more rows, or fewer components"
        )
    if chain < 1:
        raise OptionError(f"chain={chain} must be positive")
    if method not in METHODS:
        raise OptionError(f"unknown method {method!r}; choose one of {METHODS}")
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    variance = _variance(x).to(dtype)
    index = (
        _random(x, components, generator)
        if method == "random"
        else _afkmc2(x, components, chain, generator, dtype)
    )
    return Seeds(index, x[index].to(dtype), variance)


def _variance(x: Tensor) -> Tensor:
    """Variance (D,) of the rows, in chunks and float64."""
    chunks = x.split(_chunk(x))
    mean = sum(part.double().sum(0) for part in chunks) / len(x)
    if not bool(torch.isfinite(mean).all()):
        row = int((~x.isfinite()).any(-1).nonzero()[0])
        raise DataError(f"row {row} holds NaN or infinity: remove such rows first")
    variance = sum((part.double() - mean).square_().sum(0) for part in chunks) / len(x)
    # A feature without variance gets that of a typical one, so that densities stay finite.
    typical = variance.mean() if bool(variance.mean() > 0) else torch.ones_like(variance.mean())
    variance = torch.where(variance > 1e-12 * typical, variance, typical)
    return variance


def _chunk(x: Tensor) -> int:
    """Rows that are widened or multiplied at once."""
    return max(1, _NUMBERS // max(1, x.shape[1]))


def _random(x: Tensor, components: int, generator: torch.Generator | None) -> Tensor:
    return torch.randperm(len(x), generator=generator, device="cpu")[:components].to(x.device)


def _afkmc2(
    x: Tensor, components: int, chain: int, generator: torch.Generator | None, dtype: torch.dtype
) -> Tensor:
    """First mean uniform; proposals follow q(n) = |x_n - first|^2 / 2 sum + 1 / 2N, chains accept by distance ratio."""
    first = int(torch.randint(len(x), (), generator=generator, device="cpu"))
    start = x[first].to(dtype)
    parts = [squared_distance(part.to(dtype), start) for part in x.split(_chunk(x))]
    weight = torch.cat(parts).double().to("cpu")
    if not bool(weight.sum() > 0):
        weight = torch.ones_like(weight)
    q = 0.5 / len(x) + 0.5 * weight / weight.sum()
    proposals = _draw(q, (components - 1) * chain, generator)
    chosen = [first]
    taken = torch.zeros(len(x), dtype=torch.bool, device="cpu")
    taken[chosen[0]] = True
    uniform = torch.rand(
        components - 1, chain, generator=generator, dtype=torch.float64, device="cpu"
    )
    centers = _Centers(components, start)
    for block in range(1, components, _MEANS_A_BLOCK):
        rows = proposals[(block - 1) * chain : (block - 1 + _MEANS_A_BLOCK) * chain].reshape(
            -1, chain
        )
        proposed = x[rows.to(x.device)].to(dtype) - start
        far = centers.distance(proposed.flatten(0, 1), 0).reshape(rows.shape)
        for k in range(len(rows)):
            distance = torch.minimum(far[k], centers.distance(proposed[k], block)) if k else far[k]
            # A row that is a mean already has distance zero and is left at the first opportunity.
            distance = distance.double().to("cpu").masked_fill(taken[rows[k]], 0.0)
            row = int(rows[k, _chain(distance, q[rows[k]], uniform[block - 1 + k])])
            if taken[row]:
                row = _untaken(taken, generator)
            taken[row] = True
            chosen.append(row)
            centers.add(x[row].to(dtype) - start)
    return torch.tensor(chosen, device=x.device)


class _Centers:
    """The means so far, relative to the first: rows far from zero must not lose their distances to rounding."""

    def __init__(self, components: int, first: Tensor):
        self.loc = torch.zeros(components, len(first), dtype=first.dtype, device=first.device)
        self.norms = self.loc.new_zeros(components)
        self.count = 1

    def add(self, center: Tensor) -> None:
        self.loc[self.count] = center
        self.norms[self.count] = center.square().sum()
        self.count += 1

    def distance(self, x: Tensor, begin: int) -> Tensor:
        """Squared distance (N,) of rows from the nearest mean but for the first ``begin``."""
        some = slice(begin, self.count)
        return nearest_distance(x, self.loc[some], self.norms[some])


def _chain(distance: Tensor, q: Tensor, uniform: Tensor) -> int:
    """The Metropolis-Hastings chain with independent proposals; returns where it ends."""
    ratio = (distance / q).tolist()
    at = 0
    for j in range(1, len(ratio)):
        if ratio[at] == 0 or ratio[j] > ratio[at] * float(uniform[j]):
            at = j
    return at


def _draw(q: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Row numbers by inversion: ``multinomial`` takes at most 2^24 categories."""
    cumulative = q.cumsum(0)
    uniform = (
        torch.rand(count, generator=generator, dtype=torch.float64, device="cpu") * cumulative[-1]
    )
    return torch.searchsorted(cumulative, uniform).clamp_max(len(q) - 1)


def _untaken(taken: Tensor, generator: torch.Generator | None) -> int:
    free = (~taken).nonzero()[:, 0]
    return int(free[torch.randint(len(free), (), generator=generator, device="cpu")])
