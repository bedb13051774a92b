"""Assignment of rows to parts of bounded size, of least total cost or greedily."""

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from pyro_mixtures.errors import DataError, OptionError

METHODS = ("optimal", "greedy")


def assign(cost: Tensor, *, most: int | None = None, least: int = 0, method: str = "optimal") -> Tensor:
    r"""Component (N,) int64, on the CPU, of each row at ``cost`` (N, C); each has ``least`` to ``most`` rows.

    :param cost: float; +inf forbids a pair of row and component.
    :param most: most rows of a component; None for no limit. ``least``: fewest.
    :param method: ``"optimal"`` for the least total cost, ``"greedy"`` to accept the pairs in the order of their cost
        as long as there is room. A greedy pair is refused when its component is full, or has ``least`` rows while the
        rows left are only just enough for those that have fewer.
    :raises OptionError: when an option has an impossible value.
    :raises DataError: when the cost is NaN or -inf, when N rows do not fit the bounds, or when no assignment of finite
        cost does; ``"greedy"`` also when it has used up the components that a row may have, though others may be left.

    Without bounds, and wherever they hold by themselves, each row has its cheapest component, the first among equals.
    Otherwise the optimum is that of a transportation problem, which is found by successive shortest paths (Ahuja,
    Magnanti and Orlin, Network Flows, 1993, section 9.7): from the cheapest components, rows too many or too few are
    passed on one by one in the graph of the C components, whose edge :math:`k \to j` costs
    :math:`\min_{i \in k} c_{ij} - c_{ik}`, kept in a heap. Only rows that must move cost time, about C² + C log N each,
    where a linear program has N C unknowns and duplicated columns make an N x N matrix; if many must, prices of the
    components found on every fourth row leave few. Memory is that of one more cost matrix, in int32. The optimum is
    exact up to the rounding of float64. Equal input has equal output.

    >>> cost = torch.tensor([[0.0, 5.0], [0.0, 1.0], [0.0, 3.0]])
    >>> assign(cost, most=2)
    tensor([0, 1, 0])
    >>> assign(cost, least=1, most=2, method="greedy")
    tensor([0, 0, 1])
    """
    rows, components = _check(cost, most, least, method)
    most = rows if most is None else min(most, rows)
    # Components first: the kernels run along rows.
    table = cost.detach().to("cpu").T.contiguous()
    table = table if table.dtype in (torch.float32, torch.float64) else table.float()
    labels = _cheapest(table)
    sizes = torch.bincount(labels, minlength=components)
    if int(sizes.min()) >= least and int(sizes.max()) <= most:
        return labels
    if method == "greedy":
        return _greedy(table, most, least)
    return _optimal(table, most, least)


def _check(cost: Tensor, most: int | None, least: int, method: str) -> tuple[int, int]:
    if method not in METHODS:
        raise OptionError(f"unknown method {method!r}; choose one of {METHODS}")
    if least < 0 or (most is not None and most < max(1, least)):
        raise OptionError(f"most={most} and least={least}: give 0 <= least <= most, and room for one row")
    if cost.dim() != 2 or not cost.shape[1] or not cost.is_floating_point():
        raise DataError(f"cost must be floating-point numbers (N, C), not {cost.dtype} {tuple(cost.shape)}")
    rows, components = cost.shape
    if most is not None and most * components < rows:
        raise DataError(f"{components} components of at most most={most} rows hold {most * components}, not {rows}")
    if least * components > rows:
        raise DataError(f"{components} components of at least least={least} rows need {least * components}, not {rows}")
    return rows, components


def _cheapest(table: Tensor) -> Tensor:
    """First component (N,) of least cost in each column of ``table`` (C, N)."""
    least, labels = table.min(0)
    if bool(least.isfinite().all()):
        return labels
    row = int((~least.isfinite()).nonzero()[0])
    given = table[:, row]
    if bool(given.isnan().any()):
        raise DataError(f"the cost of row {row} is NaN in component {int(given.isnan().nonzero()[0])}")
    if float(least[row]) < 0:
        raise DataError(f"the cost of row {row} is -inf in component {int(labels[row])}; only +inf may be infinite")
    raise DataError(f"the cost of row {row} is +inf in every component: leave the row out, or allow it one")


def _optimal(table: Tensor, most: int, least: int) -> Tensor:
    price = _prices(table, most, least)
    labels, flow, balance = _start(table, most, least, price)
    reached = np.zeros(len(price), np.bool_)
    if not _transport(table.numpy(), most, least, price, labels, flow, balance, reached):
        raise _infeasible(labels, reached, most, least)
    return torch.from_numpy(labels)


def _prices(table: Tensor, most: int, least: int) -> np.ndarray:
    """Prices (C + 1,) to start from: those of every fourth row's optimum, where many rows have to move."""
    components, rows = table.shape
    sizes = np.bincount(table.min(0).indices.numpy(), minlength=components)
    excess = max(np.maximum(sizes - most, 0).sum(), np.maximum(least - sizes, 0).sum())
    # Prices of a sample leave about sqrt(N C) rows to move.
    if excess**2 <= 4 * rows * components:
        return np.zeros(components + 1)
    sample = table[:, ::4].contiguous()
    share = sample.shape[1] / rows
    most, least = math.ceil(most * share), math.floor(least * share)
    price = _prices(sample, most, least)
    labels, flow, balance = _start(sample, most, least, price)
    # Where the sample has no solution, the prices reached are as good as any to start from.
    _transport(sample.numpy(), most, least, price, labels, flow, balance, np.zeros(len(price), np.bool_))
    # Rounding must not make a component look full that is not.
    low, high = np.where(flow < most, price[-1], -np.inf), np.where(flow > least, price[-1], np.inf)
    return np.append(price[:-1].clip(low, high), price[-1])


def _start(table: Tensor, most: int, least: int, price: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of the rows at the prices, whatever the sizes; the flow that fits the prices; the nodes' balance."""
    labels = np.zeros(table.shape[1], np.int64)
    _choose(table.numpy(), price, labels)
    sizes, outside = np.bincount(labels, minlength=len(table)), price[-1]
    flow = sizes.clip(np.where(price[:-1] < outside, most, least), np.where(price[:-1] > outside, least, most))
    return labels, flow, np.append(sizes - flow, flow.sum() - len(labels))


def _infeasible(labels: np.ndarray, reached: np.ndarray, most: int, least: int) -> DataError:
    """What forbids every assignment: the nodes ``reached`` (C + 1,) have rows too many, but no edge leaves them."""
    inside, sizes = reached[:-1], np.bincount(labels, minlength=len(reached) - 1)
    if reached[-1]:
        short, held = np.flatnonzero(~inside).tolist(), sizes[~inside].sum()
        return DataError(
            f"components {short} need {least * len(short)} rows, least={least} each, but at most {held} rows can have "
            "finite costs there: lower least, or allow them more rows"
        )
    closed, held = np.flatnonzero(inside).tolist(), sizes[inside].sum()
    return DataError(
        f"{held} rows have finite costs in components {closed} only, which hold {most * len(closed)} rows, most={most} "
        "each: raise most, or allow these rows others"
    )


def _greedy(table: Tensor, most: int, least: int) -> Tensor:
    # Row after row, so that equal costs are met in the order of rows, then of components.
    order = table.T.reshape(-1).argsort(stable=True)
    labels = torch.full((table.shape[1],), -1, dtype=torch.int64, device="cpu")
    _fill(table.numpy(), order.numpy(), most, least, labels.numpy())
    left = int((labels < 0).sum())
    if left:
        raise DataError(
            f"greedy filling (least={least}, most={most}) leaves {left} of {len(labels)} rows without a component of "
            'finite cost: method="optimal" finds places for them if there are any'
        )
    return labels


@njit(cache=True, nogil=True)
def _fill(table, order, most, least, labels):
    """Accept the pairs in ``order`` while there is room. What was refused once would be refused ever after."""
    components, left = table.shape
    sizes = np.zeros(components, np.int64)
    lack = components * least
    for pair in order:
        i, c = pair // components, pair % components
        if table[c, i] == np.inf:
            return
        if labels[i] < 0 and sizes[c] < most and (sizes[c] < least or left > lack):
            lack -= sizes[c] < least
            left -= 1
            sizes[c] += 1
            labels[i] = c


@njit(cache=True, nogil=True)
def _choose(table, price, labels):
    """First component of least cost for each row, at these prices."""
    cheapest = np.full(len(labels), np.inf)
    for c in range(len(table)):
        for i in range(len(labels)):
            cost = np.float64(table[c, i]) - price[c]
            if cost < cheapest[i]:
                labels[i], cheapest[i] = c, cost


# The graph's nodes are the C components and, as node C, the outside, to which every component sends ``flow`` (C,) of
# its rows, ``least`` to ``most``; ``balance`` (C + 1,) is what a node has beyond that, or lacks. ``gap`` (C + 1, C + 1)
# is what an edge costs, and ``via`` (C, C) the row that would move. No reduced cost gap[k, j] + price[k] - price[j] is
# ever negative: thus no cycle of moves lowers the total. ``heaps`` are C * C lists of the rows of k by what a move to j
# costs; rows that have left k may still be there.


@njit(cache=True, nogil=True)
def _transport(table, most, least, price, labels, flow, balance, reached):
    """Turn labels, flow and prices into the optimum. False when there is none: see the nodes ``reached``."""
    components = len(table)
    heaps = [[np.int32(0) for _ in range(0)] for _ in range(components * components)]
    gap, via = np.full((components + 1, components + 1), np.inf), np.full((components, components), -1)
    for k in range(components):
        _build(table, labels, k, heaps, gap, via)
        _open(flow, k, most, least, gap)
    previous = np.empty(components + 1, np.int64)
    for node in range(components + 1):
        while balance[node] > 0:
            target = _search(gap, price, balance, node, previous, reached)
            if target < 0:
                return False
            balance[node] -= 1
            balance[target] += 1
            while target != node:
                k, j = previous[target], target
                if k == components:
                    flow[j] -= 1
                    _open(flow, j, most, least, gap)
                elif j == components:
                    flow[k] += 1
                    _open(flow, k, most, least, gap)
                else:
                    _move(table, labels, via[k, j], k, j, heaps, gap, via)
                target = k
    return True


@njit(cache=True, nogil=True)
def _search(gap, price, balance, source, previous, reached):
    """Node nearest to ``source`` that lacks rows (Dijkstra), or -1; the prices change with the distances."""
    distance = np.full(len(price), np.inf)
    distance[source] = 0.0
    reached[:] = False
    node = _nearest(distance, reached)
    while node >= 0 and balance[node] >= 0:
        reached[node] = True
        for j in range(len(price)):
            # Rounding may leave a reduced cost just below zero.
            length = distance[node] + max(0.0, gap[node, j] + price[node] - price[j])
            if not reached[j] and length < distance[j]:
                distance[j], previous[j] = length, node
        node = _nearest(distance, reached)
    if node >= 0:
        for k in range(len(price)):
            price[k] += min(distance[k], distance[node])
    return node


@njit(cache=True, nogil=True)
def _nearest(distance, reached):
    """Node of least distance among those not reached, -1 when there is no way to any."""
    node, least = -1, np.inf
    for k in range(len(distance)):
        if not reached[k] and distance[k] < least:
            node, least = k, distance[k]
    return node


@njit(cache=True, nogil=True)
def _open(flow, k, most, least, gap):
    """The edges between component ``k`` and the outside, which are free as long as the bounds allow."""
    gap[k, -1] = 0.0 if flow[k] < most else np.inf
    gap[-1, k] = 0.0 if flow[k] > least else np.inf


@njit(cache=True, nogil=True)
def _move(table, labels, row, k, j, heaps, gap, via):
    """Row ``row`` leaves component ``k`` for ``j``."""
    labels[row] = j
    for c in range(len(table)):
        if via[k, c] == row:
            _renew(table, labels, k, c, heaps, gap, via)
        if c != j and table[c, row] < np.inf:
            _push(heaps[j * len(table) + c], row, table[c], table[j])
            _renew(table, labels, j, c, heaps, gap, via)


@njit(cache=True, nogil=True)
def _build(table, labels, k, heaps, gap, via):
    """The heaps of component ``k``, for the rows that it has now."""
    rows = [np.int32(row) for row in range(len(labels)) if labels[row] == k]
    for j in range(len(table)):
        if j == k:
            continue
        heap, to, own = heaps[k * len(table) + j], table[j], table[k]
        for row in rows:
            if to[row] < np.inf:
                heap.append(row)
        for at in range(len(heap) // 2 - 1, -1, -1):
            _sink(heap, at, to, own)
        _renew(table, labels, k, j, heaps, gap, via)


@njit(cache=True, nogil=True)
def _renew(table, labels, k, j, heaps, gap, via):
    """The edge from ``k`` to ``j``, after rows that are no longer in ``k`` are off the top of its heap."""
    heap, to, own = heaps[k * len(table) + j], table[j], table[k]
    while len(heap) and labels[heap[0]] != k:
        last = heap.pop()
        if len(heap):
            heap[0] = last
            _sink(heap, 0, to, own)
    via[k, j] = heap[0] if len(heap) else -1
    gap[k, j] = _gap(heap[0], to, own) if len(heap) else np.inf


@njit(cache=True, nogil=True)
def _push(heap, row, to, own):
    heap.append(np.int32(row))
    at = len(heap) - 1
    while at and _before(heap[at], heap[(at - 1) // 2], to, own):
        heap[at], heap[(at - 1) // 2] = heap[(at - 1) // 2], heap[at]
        at = (at - 1) // 2


@njit(cache=True, nogil=True)
def _sink(heap, at, to, own):
    """Let the row in place ``at`` sink below all that come before it."""
    while 2 * at + 1 < len(heap):
        child = 2 * at + 1
        if child + 1 < len(heap) and _before(heap[child + 1], heap[child], to, own):
            child += 1
        if not _before(heap[child], heap[at], to, own):
            return
        heap[at], heap[child] = heap[child], heap[at]
        at = child


@njit(cache=True, nogil=True)
def _before(a, b, to, own):
    x, y = _gap(a, to, own), _gap(b, to, own)
    return x < y or (x == y and a < b)


@njit(cache=True, nogil=True)
def _gap(row, to, own):
    """Cost of the row in another component less that in its own, in float64 whatever the dtype of the costs."""
    return np.float64(to[row]) - np.float64(own[row])
