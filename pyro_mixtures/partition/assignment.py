"""Assignment of rows to clusters of bounded size, at the least total cost or greedily."""

import math

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.ops.kernels import numba_transport
from pyro_mixtures.ops.kernels.jit import Array

METHODS = ("optimal", "greedy")


def assign(
    cost: Tensor, *, capacity: int | None = None, min_size: int = 0, method: str = "optimal"
) -> Tensor:
    r"""Assign N rows to K clusters of bounded size.

    Without bounds, or if the cheapest clusters of all rows satisfy them, each row gets its
    cheapest cluster, the first one among equals. Otherwise the optimum is that of a transportation
    problem. It is found by successive shortest paths (Ahuja, Magnanti and Orlin, Network Flows,
    1993, section 9.7): from the cheapest clusters, excess rows are moved one by one in the graph of
    the K clusters, whose edge :math:`k \to j` costs
    :math:`\min_{i \in k} c_{ij} - c_{ik}`, kept in a heap.

    Only rows that must move take time, about K² + K log N each. (A linear program has N K unknowns,
    and duplicated columns make an N x N matrix.) If many rows must move, prices computed from every
    fourth row leave few of them. The memory is that of one more cost matrix, in int32. The optimum
    is exact up to the rounding of float64. Equal input gives equal output.

    :param cost: (N, K) floating-point costs; +inf forbids a pair of row and cluster.
    :param capacity: largest number of rows of a cluster; None for no limit.
    :param min_size: smallest number of rows of a cluster.
    :param method: ``"optimal"`` for the least total cost, ``"greedy"`` to accept pairs in the order
        of their cost. A greedy pair is refused when its cluster is full, or when the cluster has
        ``min_size`` rows and all remaining rows are needed by clusters that have fewer.
    :returns: (N,) int64 clusters of the rows, on the CPU.
    :raises OptionError: when an option has an impossible value.
    :raises DataError: when a cost is NaN or -inf, when N rows do not fit the bounds, or when no
        assignment of finite cost does. With ``"greedy"`` also when a row is left whose allowed
        clusters are full, although another assignment may exist.

    >>> cost = torch.tensor([[0.0, 5.0], [0.0, 1.0], [0.0, 3.0]])
    >>> assign(cost, capacity=2)
    tensor([0, 1, 0])
    >>> assign(cost, min_size=1, capacity=2, method="greedy")
    tensor([0, 0, 1])
    """
    rows, clusters = _check(cost, capacity, min_size, method)
    capacity = rows if capacity is None else min(capacity, rows)
    # Clusters come first: the kernels run along rows.
    table = cost.detach().to("cpu").T.contiguous()
    table = table if table.dtype in (torch.float32, torch.float64) else table.float()
    labels = _cheapest(table)
    sizes = torch.bincount(labels, minlength=clusters)
    if int(sizes.min()) >= min_size and int(sizes.max()) <= capacity:
        return labels
    if method == "greedy":
        return _greedy(table, capacity, min_size)
    return _optimal(table, capacity, min_size)


def _check(cost: Tensor, capacity: int | None, min_size: int, method: str) -> tuple[int, int]:
    if method not in METHODS:
        raise OptionError(f"unknown method {method!r}; choose one of {METHODS}")
    if min_size < 0 or (capacity is not None and capacity < max(1, min_size)):
        raise OptionError(
            f"capacity={capacity} and min_size={min_size} must satisfy 0 <= min_size <= capacity "
            "and 1 <= capacity"
        )
    if cost.dim() != 2 or not cost.shape[1] or not cost.is_floating_point():
        raise DataError(
            f"cost must be floating-point numbers (N, K), not {cost.dtype} {tuple(cost.shape)}"
        )
    rows, clusters = cost.shape
    if capacity is not None and capacity * clusters < rows:
        raise DataError(
            f"{clusters} clusters of at most capacity={capacity} rows hold {capacity * clusters}, "
            f"not {rows}: raise capacity"
        )
    if min_size * clusters > rows:
        raise DataError(
            f"{clusters} clusters of at least min_size={min_size} rows need "
            f"{min_size * clusters}, not {rows}: lower min_size"
        )
    return rows, clusters


def _cheapest(table: Tensor) -> Tensor:
    """Find the first cluster (N,) of least cost in each column of ``table`` (K, N)."""
    lowest, labels = table.min(0)
    if bool(lowest.isfinite().all()):
        return labels
    row = int((~lowest.isfinite()).nonzero()[0])
    costs = table[:, row]
    if bool(costs.isnan().any()):
        cluster = int(costs.isnan().nonzero()[0])
        raise DataError(f"the cost of row {row} is NaN in cluster {cluster}")
    if float(lowest[row]) < 0:
        raise DataError(
            f"the cost of row {row} is -inf in cluster {int(labels[row])}: only +inf, which "
            "forbids a pair, may be infinite"
        )
    raise DataError(
        f"the cost of row {row} is +inf in every cluster: leave the row out, or allow a cluster"
    )


def _optimal(table: Tensor, capacity: int, min_size: int) -> Tensor:
    price = _start_prices(table, capacity, min_size)
    labels, flow, balance = _start(table, capacity, min_size, price)
    reached = np.zeros(len(price), np.bool_)
    feasible = numba_transport.transport(
        table.numpy(), capacity, min_size, price, labels, flow, balance, reached
    )
    if not feasible:
        raise _infeasible(labels, reached, capacity, min_size)
    return torch.from_numpy(labels)


def _start_prices(table: Tensor, capacity: int, min_size: int) -> Array:
    """Compute start prices (K + 1,): those of every fourth row's optimum if many rows must move."""
    clusters, rows = table.shape
    sizes = np.bincount(table.min(0).indices.numpy(), minlength=clusters)
    excess = max(np.maximum(sizes - capacity, 0).sum(), np.maximum(min_size - sizes, 0).sum())
    # With the prices of a sample, about sqrt(N K) rows must move.
    if excess**2 <= 4 * rows * clusters:
        return np.zeros(clusters + 1)
    sample = table[:, ::4].contiguous()
    fraction = sample.shape[1] / rows
    capacity, min_size = math.ceil(capacity * fraction), math.floor(min_size * fraction)
    price = _start_prices(sample, capacity, min_size)
    labels, flow, balance = _start(sample, capacity, min_size, price)
    reached = np.zeros(len(price), np.bool_)
    # If the sample has no solution, the prices reached are still a good start.
    numba_transport.transport(
        sample.numpy(), capacity, min_size, price, labels, flow, balance, reached
    )
    # Rounding must not make a cluster look full that is not.
    sink_price = price[-1]
    low = np.where(flow < capacity, sink_price, -np.inf)
    high = np.where(flow > min_size, sink_price, np.inf)
    return np.append(price[:-1].clip(low, high), sink_price)


def _start(table: Tensor, capacity: int, min_size: int, price: Array) -> tuple[Array, Array, Array]:
    """Compute the state from which the transport kernel starts.

    :returns: the cheapest clusters at these prices, regardless of the bounds; the flow that is
        optimal at these prices; the balance of the nodes.
    """
    labels = np.zeros(table.shape[1], np.int64)
    numba_transport.choose(table.numpy(), price, labels)
    sizes, sink_price = np.bincount(labels, minlength=len(table)), price[-1]
    flow = sizes.clip(
        np.where(price[:-1] < sink_price, capacity, min_size),
        np.where(price[:-1] > sink_price, min_size, capacity),
    )
    return labels, flow, np.append(sizes - flow, flow.sum() - len(labels))


def _infeasible(labels: Array, reached: Array, capacity: int, min_size: int) -> DataError:
    """Say why there is no assignment: the nodes ``reached`` (K + 1,) have excess rows."""
    inside, sizes = reached[:-1], np.bincount(labels, minlength=len(reached) - 1)
    if reached[-1]:
        short, rows = np.flatnonzero(~inside).tolist(), sizes[~inside].sum()
        return DataError(
            f"clusters {short} need {min_size * len(short)} rows, min_size={min_size} each, but at "
            f"most {rows} rows can have finite costs there: lower min_size, or allow these "
            "clusters more rows"
        )
    full, rows = np.flatnonzero(inside).tolist(), sizes[inside].sum()
    return DataError(
        f"{rows} rows have finite costs in clusters {full} only, which hold "
        f"{capacity * len(full)} rows, capacity={capacity} each: raise capacity, or allow these "
        "rows other clusters"
    )


def _greedy(table: Tensor, capacity: int, min_size: int) -> Tensor:
    # Row after row, so that equal costs are in the order of rows, then of clusters.
    order = table.T.reshape(-1).argsort(stable=True)
    labels = torch.full((table.shape[1],), -1, dtype=torch.int64, device="cpu")
    numba_transport.fill(table.numpy(), order.numpy(), capacity, min_size, labels.numpy())
    unassigned = int((labels < 0).sum())
    if unassigned:
        raise DataError(
            f"greedy filling (min_size={min_size}, capacity={capacity}) leaves {unassigned} of "
            f'{len(labels)} rows without a cluster of finite cost: method="optimal" finds an '
            "assignment if there is one"
        )
    return labels
