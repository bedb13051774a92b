"""Assignment of rows to parts of bounded size, of least total cost or greedily."""

import math

import numpy as np
import torch
from torch import Tensor

from pyro_mixtures.errors import DataError, OptionError
from pyro_mixtures.ops.kernels import numba_transport

METHODS = ("optimal", "greedy")


def assign(
    cost: Tensor, *, capacity: int | None = None, min_size: int = 0, method: str = "optimal"
) -> Tensor:
    r"""Component (N,) int64, on the CPU, of each row at ``cost`` (N, C); each has ``min_size`` to ``capacity`` rows.

    :param cost: float; +inf forbids a pair of row and component.
    :param capacity: largest number of rows of a component; None for no limit. ``min_size``: fewest.
    :param method: ``"optimal"`` for the least total cost, ``"greedy"`` to accept the pairs in the
        order of their cost as long as there is room. A greedy pair is refused when its component is
        full, or has ``min_size`` rows while the rows left are only just enough for those that have
        fewer.
    :raises OptionError: when an option has an impossible value.
    :raises DataError: when the cost is NaN or -inf, when N rows do not fit the bounds, or when no
        assignment of finite cost does; ``"greedy"`` also when it has used up the components that a
        row may have, though others may be left.

    Without bounds, and wherever they hold by themselves, each row has its cheapest component, the
    first among equals. Otherwise the optimum is that of a transportation problem, which is found by
    successive shortest paths (Ahuja, Magnanti and Orlin, Network Flows, 1993, section 9.7): from
    the cheapest components, rows too many or too few are passed on one by one in the graph of the C
    components, whose edge :math:`k \to j` costs
    :math:`\min_{i \in k} c_{ij} - c_{ik}`, kept in a heap. Only rows that must move cost time,
    about C² + C log N each, where a linear program has N C unknowns and duplicated columns make an
    N x N matrix; if many must, prices of the components found on every fourth row leave few. Memory
    is that of one more cost matrix, in int32. The optimum is exact up to the rounding of float64.
    Equal input has equal output.

    >>> cost = torch.tensor([[0.0, 5.0], [0.0, 1.0], [0.0, 3.0]])
    >>> assign(cost, capacity=2)
    tensor([0, 1, 0])
    >>> assign(cost, min_size=1, capacity=2, method="greedy")
    tensor([0, 0, 1])
    """
    rows, components = _check(cost, capacity, min_size, method)
    capacity = rows if capacity is None else min(capacity, rows)
    # Components first: the kernels run along rows.
    table = cost.detach().to("cpu").T.contiguous()
    table = table if table.dtype in (torch.float32, torch.float64) else table.float()
    labels = _cheapest(table)
    sizes = torch.bincount(labels, minlength=components)
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
            f"capacity={capacity} and min_size={min_size}: give 0 <= min_size <= capacity, and room for one row"
        )
    if cost.dim() != 2 or not cost.shape[1] or not cost.is_floating_point():
        raise DataError(
            f"cost must be floating-point numbers (N, C), not {cost.dtype} {tuple(cost.shape)}"
        )
    rows, components = cost.shape
    if capacity is not None and capacity * components < rows:
        raise DataError(
            f"{components} components of at most capacity={capacity} rows hold {capacity * components}, not {rows}"
        )
    if min_size * components > rows:
        raise DataError(
            f"{components} components of at least min_size={min_size} rows need {min_size * components}, not {rows}"
        )
    return rows, components


def _cheapest(table: Tensor) -> Tensor:
    """First component (N,) of least cost in each column of ``table`` (C, N)."""
    lowest, labels = table.min(0)
    if bool(lowest.isfinite().all()):
        return labels
    row = int((~lowest.isfinite()).nonzero()[0])
    given = table[:, row]
    if bool(given.isnan().any()):
        raise DataError(
            f"the cost of row {row} is NaN in component {int(given.isnan().nonzero()[0])}"
        )
    if float(lowest[row]) < 0:
        raise DataError(
            f"the cost of row {row} is -inf in component {int(labels[row])}; only +inf may be infinite"
        )
    raise DataError(
        f"the cost of row {row} is +inf in every component: leave the row out, or allow it one"
    )


def _optimal(table: Tensor, capacity: int, min_size: int) -> Tensor:
    price = _prices(table, capacity, min_size)
    labels, flow, balance = _start(table, capacity, min_size, price)
    reached = np.zeros(len(price), np.bool_)
    if not numba_transport.transport(
        table.numpy(), capacity, min_size, price, labels, flow, balance, reached
    ):
        raise _infeasible(labels, reached, capacity, min_size)
    return torch.from_numpy(labels)


def _prices(table: Tensor, capacity: int, min_size: int) -> np.ndarray:
    """Prices (C + 1,) to start from: those of every fourth row's optimum, where many rows have to move."""
    components, rows = table.shape
    sizes = np.bincount(table.min(0).indices.numpy(), minlength=components)
    excess = max(np.maximum(sizes - capacity, 0).sum(), np.maximum(min_size - sizes, 0).sum())
    # Prices of a sample leave about sqrt(N C) rows to move.
    if excess**2 <= 4 * rows * components:
        return np.zeros(components + 1)
    sample = table[:, ::4].contiguous()
    share = sample.shape[1] / rows
    capacity, min_size = math.ceil(capacity * share), math.floor(min_size * share)
    price = _prices(sample, capacity, min_size)
    labels, flow, balance = _start(sample, capacity, min_size, price)
    # Where the sample has no solution, the prices reached are as good as any to start from.
    numba_transport.transport(
        sample.numpy(),
        capacity,
        min_size,
        price,
        labels,
        flow,
        balance,
        np.zeros(len(price), np.bool_),
    )
    # Rounding must not make a component look full that is not.
    low, high = (
        np.where(flow < capacity, price[-1], -np.inf),
        np.where(flow > min_size, price[-1], np.inf),
    )
    return np.append(price[:-1].clip(low, high), price[-1])


def _start(
    table: Tensor, capacity: int, min_size: int, price: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of the rows at the prices, whatever the sizes; the flow that fits the prices; the nodes' balance."""
    labels = np.zeros(table.shape[1], np.int64)
    numba_transport.choose(table.numpy(), price, labels)
    sizes, outside = np.bincount(labels, minlength=len(table)), price[-1]
    flow = sizes.clip(
        np.where(price[:-1] < outside, capacity, min_size),
        np.where(price[:-1] > outside, min_size, capacity),
    )
    return labels, flow, np.append(sizes - flow, flow.sum() - len(labels))


def _infeasible(labels: np.ndarray, reached: np.ndarray, capacity: int, min_size: int) -> DataError:
    """What forbids every assignment: the nodes ``reached`` (C + 1,) have rows too many, but no edge leaves them."""
    inside, sizes = reached[:-1], np.bincount(labels, minlength=len(reached) - 1)
    if reached[-1]:
        short, held = np.flatnonzero(~inside).tolist(), sizes[~inside].sum()
        return DataError(
            f"components {short} need {min_size * len(short)} rows, min_size={min_size} each, but at most {held} rows can have "
            "finite costs there: lower min_size, or allow them more rows"
        )
    closed, held = np.flatnonzero(inside).tolist(), sizes[inside].sum()
    return DataError(
        f"{held} rows have finite costs in components {closed} only, which hold {capacity * len(closed)} rows, capacity={capacity} "
        "each: raise capacity, or allow these rows others"
    )


def _greedy(table: Tensor, capacity: int, min_size: int) -> Tensor:
    # Row after row, so that equal costs are met in the order of rows, then of components.
    order = table.T.reshape(-1).argsort(stable=True)
    labels = torch.full((table.shape[1],), -1, dtype=torch.int64, device="cpu")
    numba_transport.fill(table.numpy(), order.numpy(), capacity, min_size, labels.numpy())
    left = int((labels < 0).sum())
    if left:
        raise DataError(
            f"greedy filling (min_size={min_size}, capacity={capacity}) leaves {left} of {len(labels)} rows without a component of "
            'finite cost: method="optimal" finds places for them if there are any'
        )
    return labels
