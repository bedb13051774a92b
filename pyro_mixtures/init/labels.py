"""Start labels of hard partitions: at random, or from a clustering of the rows."""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.data.exact import check_exact, holds_exactly
from pyro_mixtures.data.rows import as_rows
from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.init.seeding import seed_rows
from pyro_mixtures.ops.distances import squared_distance
from pyro_mixtures.partition.assignment import assign

METHODS = ("uniform", "kmeans++", "balanced", "agglomerative", "gaussian")
_BOUNDED = ("uniform", "balanced")  # methods that accept a capacity
_NUMBERS = 1 << 20  # elements of a block of rows or distances
# Length of the seeding chains. It is longer than for seeds alone: a cluster without a seed would
# start as a fraction of another one.
_CHAIN = 100
_KMEANS_ITERATIONS = 10  # of balanced k-means
_WARD_ROWS = 4096  # Ward's linkage holds the distances between all of these
_EM_ROWS, _EM_ITERATIONS = 1 << 14, 30

Generator = torch.Generator | None


def start_labels(
    x: Tensor,
    components: int,
    *,
    method: str = "uniform",
    capacity: int | None = None,
    generator: Generator = None,
) -> Tensor:
    """Compute labels from which a hard partition starts, for its ``set_labels``.

    :param x: (N, D) rows.
    :param components: number of clusters, C.
    :param method: ``"uniform"``: at random, into clusters whose sizes differ by at most one row.
        ``"kmeans++"``: the nearest of spread-out rows. ``"balanced"``: a few iterations of k-means
        with at most ``capacity`` rows per cluster; each solves a transportation problem with N x C
        distances in float32. ``"agglomerative"``: Ward's clusters of at most 4,096 sampled rows;
        other rows get the cluster with the nearest mean. ``"gaussian"``: a short EM of a diagonal
        Gaussian mixture on at most 16,384 sampled rows (or C), from k-means++.
    :param capacity: largest number of rows of a cluster, for ``"uniform"`` and ``"balanced"`` only;
        ceil(N / C) by default.
    :param generator: source of randomness, on the CPU; torch's global one by default.
    :returns: (N,) int64; every cluster has at least one row.
    :raises DataError: when rows are not (N, D), not finite, fewer than C, or more than the clusters
        can hold.
    :raises OptionError: for an unknown method, or a capacity that the method does not support.

    Arthur & Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007 (seeded as in
    :func:`seed_rows`). Ward, "Hierarchical grouping to optimize an objective function", JASA 58
    (1963).

    >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    >>> labels = start_labels(x, 2, method="balanced", generator=torch.Generator().manual_seed(0))
    >>> bool(labels[0] == labels[1]), bool(labels[0] == labels[2])
    (True, False)
    """
    x = as_rows(x)
    _check(x, components, method, capacity)
    if method == "uniform":
        return _uniform(x, components, generator)
    rows = _standardized(x)
    if components == 1:
        return torch.zeros(len(x), dtype=torch.int64, device=x.device)
    if method == "balanced":
        return _balanced(rows, components, capacity or -(-len(x) // components), generator)
    start = {"kmeans++": _kmeans_plus_plus, "agglomerative": _agglomerative, "gaussian": _gaussian}
    return _without_empty(rows, start[method](rows, components, generator), components)


def _check(x: Tensor, components: int, method: str, capacity: int | None) -> None:
    if method not in METHODS:
        raise OptionError(f"unknown method {method!r}; choose one of {METHODS}")
    if x.dim() != 2:
        raise DataError(f"rows must be (N, D), not {tuple(x.shape)}")
    if not 1 <= components <= len(x):
        raise DataError(
            f"{components} components for {len(x)} rows: pass more rows, or fewer components"
        )
    if capacity is not None and method not in _BOUNDED:
        raise OptionError(
            f"method={method!r} does not bound the clusters: leave capacity= out, or choose one of "
            f"{_BOUNDED}"
        )
    if capacity is not None and capacity * components < len(x):
        raise DataError(
            f"{components} clusters of at most capacity={capacity} rows do not hold {len(x)} rows: "
            "raise capacity"
        )


class _StandardizedRows(NamedTuple):
    """Rows relative to their mean, in units of their spread. Only blocks of them are copied."""

    x: Tensor  # (N, D) as given
    center: Tensor  # (D,)
    unit: Tensor  # ()

    def at(self, rows: slice | Tensor) -> Tensor:
        """Return the standardized rows of a slice, or of row numbers."""
        return (self.x[rows].to(self.center) - self.center) / self.unit

    def blocks(self, width: int = 1) -> Iterator[slice]:
        """Iterate over slices of bounded size, for ``width`` elements per row."""
        step = max(1, _NUMBERS // max(width, self.x.shape[1], 1))
        yield from (slice(begin, begin + step) for begin in range(0, len(self.x), step))


def _standardized(x: Tensor) -> _StandardizedRows:
    check_exact(x, torch.float64)
    zero = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    rows = _StandardizedRows(x, zero, zero.new_ones(()))
    center = sum((rows.at(block).sum(0) for block in rows.blocks()), zero) / len(x)
    if not bool(center.isfinite().all()):
        row = int((~x.isfinite()).any(-1).nonzero()[0])
        raise DataError(f"row {row} contains NaN or infinity: remove such rows first")
    rows = rows._replace(center=center)
    squares = sum((rows.at(block).square().sum(0) for block in rows.blocks()), zero)
    unit = (squares.mean() / len(x)).sqrt()
    narrow = x.dtype != torch.float64 and holds_exactly(x, torch.float32)
    dtype = torch.float32 if narrow else torch.float64
    return _StandardizedRows(x, center.to(dtype), torch.where(unit > 0, unit, 1.0).to(dtype))


def _uniform(x: Tensor, components: int, generator: Generator) -> Tensor:
    """Draw labels of equal sizes, up to one row: these satisfy every feasible capacity."""
    order = torch.randperm(len(x), generator=generator, device="cpu")
    return order.remainder_(components).to(x.device)


def _kmeans_plus_plus(rows: _StandardizedRows, components: int, generator: Generator) -> Tensor:
    return _nearest(rows, _seeds(rows, components, generator))


def _balanced(
    rows: _StandardizedRows, components: int, capacity: int, generator: Generator
) -> Tensor:
    """Run Lloyd's algorithm with the labels of least total distance under the capacity."""
    loc = _seeds(rows, components, generator)
    labels: Tensor | None = None
    for _ in range(_KMEANS_ITERATIONS):
        blocks = [_distances(rows.at(block), loc).float() for block in rows.blocks(components)]
        cost = torch.cat(blocks).cpu()
        previous, labels = labels, assign(cost, capacity=capacity, min_size=1).to(loc.device)
        if previous is not None and torch.equal(previous, labels):
            break
        loc = _means(rows, labels, components)
    assert labels is not None
    return labels


def _agglomerative(rows: _StandardizedRows, components: int, generator: Generator) -> Tensor:
    from sklearn.cluster import AgglomerativeClustering  # slow to import

    if components > _WARD_ROWS:
        raise OptionError(
            f"components={components}: method='agglomerative' finds at most {_WARD_ROWS} clusters; "
            "choose another method"
        )
    clustering = AgglomerativeClustering(components, linkage="ward")
    sample = _sample(rows, _WARD_ROWS, generator)
    sample_labels = torch.from_numpy(clustering.fit_predict(rows.at(sample).cpu().numpy()))
    sample_labels = sample_labels.to(sample)
    loc = _means(rows._replace(x=rows.x[sample]), sample_labels, components)
    return _nearest(rows, loc).index_put_((sample,), sample_labels)


def _gaussian(rows: _StandardizedRows, components: int, generator: Generator) -> Tensor:
    from sklearn.exceptions import ConvergenceWarning  # slow to import
    from sklearn.mixture import GaussianMixture

    seed = int(torch.randint(1 << 31, (), generator=generator, device="cpu"))
    mixture = GaussianMixture(
        components, covariance_type="diag", max_iter=_EM_ITERATIONS, random_state=seed
    )
    sample = _sample(rows, max(_EM_ROWS, components), generator)
    with warnings.catch_warnings():
        # A start need not be converged, and rows need not be distinct.
        warnings.simplefilter("ignore", category=ConvergenceWarning)
        mixture.fit(rows.at(sample).cpu().numpy())
    labels = [mixture.predict(rows.at(block).cpu().numpy()) for block in rows.blocks(components)]
    return torch.cat([torch.from_numpy(block_labels) for block_labels in labels]).to(sample)


def _seeds(rows: _StandardizedRows, components: int, generator: Generator) -> Tensor:
    return rows.at(seed_rows(rows.x, components, chain=_CHAIN, generator=generator).index)


def _sample(rows: _StandardizedRows, size: int, generator: Generator) -> Tensor:
    """Draw ``size`` row numbers at random, or take all; in ascending order."""
    order = torch.randperm(len(rows.x), generator=generator, device="cpu")[:size]
    return order.sort().values.to(rows.x.device)


def _distances(block: Tensor, loc: Tensor) -> Tensor:
    """Compute the squared distances (B, C) of the rows from the means."""
    products = torch.addmm(loc.square().sum(-1), block, loc.mT, alpha=-2)
    return (products + block.square().sum(-1, keepdim=True)).clamp_min_(0)


def _nearest(rows: _StandardizedRows, loc: Tensor) -> Tensor:
    blocks = rows.blocks(len(loc))
    return torch.cat([_distances(rows.at(block), loc).argmin(-1) for block in blocks])


def _means(rows: _StandardizedRows, labels: Tensor, components: int) -> Tensor:
    """Compute the means (C, D) of the clusters; zero for empty ones."""
    total = torch.zeros(components, rows.x.shape[1], dtype=torch.float64, device=labels.device)
    for block in rows.blocks():
        total.index_add_(0, labels[block], rows.at(block).double())
    sizes = torch.bincount(labels, minlength=components).clamp_min(1)
    return (total / sizes.unsqueeze(-1)).to(rows.center)


def _without_empty(rows: _StandardizedRows, labels: Tensor, components: int) -> Tensor:
    """Give each empty cluster one row, those farthest from the mean of their larger clusters."""
    sizes = torch.bincount(labels, minlength=components)
    empty = (sizes == 0).nonzero()[:, 0].tolist()
    if not empty:
        return labels
    loc = _means(rows, labels, components)
    distances = torch.cat(
        [squared_distance(rows.at(block), loc[labels[block]]) for block in rows.blocks()]
    )
    for row in distances.argsort(descending=True, stable=True).tolist():
        if not empty:
            break
        if sizes[labels[row]] > 1:
            sizes[labels[row]] -= 1
            labels[row] = empty.pop(0)
    return labels
