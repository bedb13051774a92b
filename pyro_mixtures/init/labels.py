"""Labels that a hard partition starts from: at random, or by clusters of the rows."""

import importlib
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.init.seeding import seed_rows
from pyro_mixtures.ops.distances import squared_distance
from pyro_mixtures.partition.assignment import assign

METHODS = ("uniform", "kmeans++", "balanced", "agglomerative", "gaussian")
_CAPPED = ("uniform", "balanced")
_NUMBERS = 1 << 20  # entries of a block of rows or distances
_CHAIN = 100  # longer than for seeds alone: a cluster without one would start as part of another
_ROUNDS = 10  # of balanced k-means, at most
_WARD_ROWS = 4096  # whose distances from one another Ward's linkage holds
_EM_ROWS, _EM_STEPS = 1 << 14, 30

Generator = torch.Generator | None


def start_labels(
    x: Tensor,
    components: int,
    *,
    method: str = "uniform",
    capacity: int | None = None,
    generator: Generator = None,
) -> Tensor:
    """Labels (N,) int64 of rows ``x`` (N, D) to ``plant`` in a hard partition; every part has a row at least.

    :param method: ``"uniform"``: at random into parts of equal size, up to one row. ``"kmeans++"``:
        the nearest of spread-out rows. ``"balanced"``: some rounds of k-means with at most
        ``capacity`` rows a part; each solves a transportation problem over N x C distances in
        float32. ``"agglomerative"``: Ward's clusters of at most 4,096 sampled rows, the other rows
        at the nearest of their means. ``"gaussian"``: a short EM of a diagonal Gaussian mixture
        over at most 16,384 sampled rows (or C), from k-means++. The last two need scikit-learn.
    :param capacity: most rows of a part, for ``"uniform"`` and ``"balanced"`` alone; ceil(N / C) by
        default.
    :param generator: source of randomness, on the CPU; torch's global one by default.
    :raises DataError: when rows are not (N, D), not finite, fewer than C, or more than the parts
        may hold.
    :raises OptionError: for an unknown method, a capacity that it would not keep, or when
        scikit-learn is missing.

    Arthur & Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007 (seeded as
    :func:`seed_rows` does). Ward, "Hierarchical grouping to optimize an objective function", JASA
    58 (1963).

    >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    >>> labels = start_labels(x, 2, method="balanced", generator=torch.Generator().manual_seed(0))
    >>> bool(labels[0] == labels[1]), bool(labels[0] == labels[2])
    (True, False)
    """
    x = as_rows(x)
    _check(x, components, method, capacity)
    if method == "uniform":
        return _uniform(x, components, generator)
    rows = _standardised(x)
    if components == 1:
        return torch.zeros(len(x), dtype=torch.int64, device=x.device)
    if method == "balanced":
        return _balanced(rows, components, capacity or -(-len(x) // components), generator)
    start = {"kmeans++": _spread, "agglomerative": _agglomerative, "gaussian": _gaussian}[method]
    return _without_empty(rows, start(rows, components, generator), components)


def _check(x: Tensor, components: int, method: str, capacity: int | None) -> None:
    if method not in METHODS:
        raise OptionError(f"unknown method {method!r}; choose one of {METHODS}")
    if x.dim() != 2:
        raise DataError(f"rows must be (N, D), not {tuple(x.shape)}")
    if not 1 <= components <= len(x):
        raise DataError(
            f"{components} components for {len(x)} rows: give more rows, or fewer components"
        )
    if capacity is not None and method not in _CAPPED:
        raise OptionError(
            f"method={method!r} bounds no part: leave capacity= out, or choose one of {_CAPPED}"
        )
    if capacity is not None and capacity * components < len(x):
        raise DataError(
            f"{components} parts of at most capacity={capacity} rows do not hold {len(x)} rows"
        )


class _Rows(NamedTuple):
    """Rows in units of their spread about their mean, some at a time: no copy of all of them is made."""

    x: Tensor  # (N, D) as given
    centre: Tensor  # (D,)
    unit: Tensor  # ()

    def at(self, some: Any) -> Tensor:
        return (self.x[some].to(self.centre) - self.centre) / self.unit

    def blocks(self, width: int = 1) -> Iterator[slice]:
        """All rows, as many at a time as bounds ``width`` numbers for each."""
        step = max(1, _NUMBERS // max(width, self.x.shape[1], 1))
        yield from (slice(begin, begin + step) for begin in range(0, len(self.x), step))


def _standardised(x: Tensor) -> _Rows:
    zero = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    rows = _Rows(x, zero, zero.new_ones(()))
    centre = sum((rows.at(some).sum(0) for some in rows.blocks()), zero) / len(x)
    if not bool(centre.isfinite().all()):
        row = int((~x.isfinite()).any(-1).nonzero()[0])
        raise DataError(f"row {row} holds NaN or infinity: remove such rows first")
    rows = rows._replace(centre=centre)
    unit = (
        sum((rows.at(some).square().sum(0) for some in rows.blocks()), zero).mean() / len(x)
    ).sqrt()
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return _Rows(x, centre.to(dtype), torch.where(unit > 0, unit, 1.0).to(dtype))


def _uniform(x: Tensor, components: int, generator: Generator) -> Tensor:
    """Sizes that differ by one row at most keep every capacity that can be kept."""
    return (
        torch.randperm(len(x), generator=generator, device="cpu")
        .remainder_(components)
        .to(x.device)
    )


def _spread(rows: _Rows, components: int, generator: Generator) -> Tensor:
    return _nearest(rows, _seeds(rows, components, generator))


def _balanced(rows: _Rows, components: int, capacity: int, generator: Generator) -> Tensor:
    """Lloyd's algorithm, its labels those of least total distance under the capacity."""
    loc, labels = _seeds(rows, components, generator), None
    for _ in range(_ROUNDS):
        cost = torch.cat(
            [_distance(rows.at(some), loc).float() for some in rows.blocks(components)]
        )
        before, labels = labels, assign(cost.cpu(), capacity=capacity, min_size=1).to(loc.device)
        if before is not None and torch.equal(before, labels):
            break
        loc = _means(rows, labels, components)
    assert labels is not None
    return labels


def _agglomerative(rows: _Rows, components: int, generator: Generator) -> Tensor:
    if components > _WARD_ROWS:
        raise OptionError(
            f"{components} components: method='agglomerative' finds {_WARD_ROWS} at most; choose another"
        )
    cluster = _sklearn("cluster", "agglomerative").AgglomerativeClustering(
        components, linkage="ward"
    )
    some = _sample(rows, _WARD_ROWS, generator)
    found = torch.from_numpy(cluster.fit_predict(rows.at(some).cpu().numpy())).to(some)
    labels = _nearest(rows, _means(rows._replace(x=rows.x[some]), found, components))
    return labels.index_put_((some,), found)


def _gaussian(rows: _Rows, components: int, generator: Generator) -> Tensor:
    mixture = _sklearn("mixture", "gaussian").GaussianMixture(
        components, covariance_type="diag", max_iter=_EM_STEPS, random_state=_seed(generator)
    )
    some = _sample(rows, max(_EM_ROWS, components), generator)
    with warnings.catch_warnings():
        # A start need not have converged, nor need all rows be distinct.
        warnings.simplefilter(
            "ignore", category=_sklearn("exceptions", "gaussian").ConvergenceWarning
        )
        mixture.fit(rows.at(some).cpu().numpy())
    found = [mixture.predict(rows.at(block).cpu().numpy()) for block in rows.blocks(components)]
    return torch.cat([torch.from_numpy(part) for part in found]).to(some)


def _sklearn(module: str, method: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise OptionError(
            f"method={method!r} needs scikit-learn: pip install scikit-learn, or the extra 'pyro-mixtures[demo]'; or "
            "choose another method"
        ) from error


def _seed(generator: Generator) -> int:
    return int(torch.randint(1 << 31, (), generator=generator, device="cpu"))


def _seeds(rows: _Rows, components: int, generator: Generator) -> Tensor:
    return rows.at(seed_rows(rows.x, components, chain=_CHAIN, generator=generator).index)


def _sample(rows: _Rows, most: int, generator: Generator) -> Tensor:
    """Row numbers in ascending order: all of them, or ``most`` drawn at random."""
    order = torch.randperm(len(rows.x), generator=generator, device="cpu")[:most]
    return order.sort().values.to(rows.x.device)


def _distance(block: Tensor, loc: Tensor) -> Tensor:
    """Squared distances (B, C)."""
    cross = torch.addmm(loc.square().sum(-1), block, loc.mT, alpha=-2)
    return (cross + block.square().sum(-1, keepdim=True)).clamp_min_(0)


def _nearest(rows: _Rows, loc: Tensor) -> Tensor:
    return torch.cat([_distance(rows.at(some), loc).argmin(-1) for some in rows.blocks(len(loc))])


def _means(rows: _Rows, labels: Tensor, components: int) -> Tensor:
    """Means (C, D) of the parts; zero where a part is empty."""
    total = torch.zeros(components, rows.x.shape[1], dtype=torch.float64, device=labels.device)
    for some in rows.blocks():
        total.index_add_(0, labels[some], rows.at(some).double())
    sizes = torch.bincount(labels, minlength=components).clamp_min(1)
    return (total / sizes.unsqueeze(-1)).to(rows.centre)


def _without_empty(rows: _Rows, labels: Tensor, components: int) -> Tensor:
    """Empty parts get, one each, the rows that lie farthest from the mean of their own, larger part."""
    sizes = torch.bincount(labels, minlength=components)
    empty = (sizes == 0).nonzero()[:, 0].tolist()
    if not empty:
        return labels
    loc = _means(rows, labels, components)
    far = torch.cat([squared_distance(rows.at(some), loc[labels[some]]) for some in rows.blocks()])
    for row in far.argsort(descending=True, stable=True).tolist():
        if not empty:
            break
        if sizes[labels[row]] > 1:
            sizes[labels[row]] -= 1
            labels[row] = empty.pop(0)
    return labels
