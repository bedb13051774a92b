"""CPU kernels of the assignment under bounds: greedy filling, and successive shortest paths."""

import numpy as np

from pyro_mixtures.ops.kernels.jit import Array, kernel

Heap = list[np.int32]


@kernel
def fill(cost: Array, order: Array, capacity: int, min_size: int, labels: Array) -> None:
    """Accept the pairs of row and cluster in ``order``, as long as the bounds allow.

    A pair that is refused would be refused at any later time, so one pass is enough.

    :param cost: (K, N); +inf forbids a pair.
    :param labels: (N,) -1 on entry.
    """
    clusters, rows_left = cost.shape
    sizes = np.zeros(clusters, np.int64)
    rows_missing = clusters * min_size
    for pair in order:
        row, k = pair // clusters, pair % clusters
        if cost[k, row] == np.inf:
            return
        is_open = sizes[k] < capacity and (sizes[k] < min_size or rows_left > rows_missing)
        if labels[row] < 0 and is_open:
            rows_missing -= sizes[k] < min_size
            rows_left -= 1
            sizes[k] += 1
            labels[row] = k


@kernel
def choose(cost: Array, price: Array, labels: Array) -> None:
    """Label each row with the first cluster of least ``cost`` (K, N) less ``price`` (K,)."""
    cheapest = np.full(len(labels), np.inf)
    for k in range(len(cost)):
        for row in range(len(labels)):
            reduced_cost = np.float64(cost[k, row]) - price[k]
            if reduced_cost < cheapest[row]:
                labels[row], cheapest[row] = k, reduced_cost


# The nodes of the graph are the K clusters and the sink, which is node K. Every cluster sends
# ``flow`` (K,) of its rows to the sink, from ``min_size`` to ``capacity``; ``balance`` (K + 1,) is
# the excess of a node over that, negative if it lacks rows. ``edge_cost`` (K + 1, K + 1) is the
# cost of moving one row along an edge, and ``moving_row`` (K, K) the row that would move. The
# reduced cost edge_cost[k, j] + price[k] - price[j] is never negative, so no cycle of moves lowers
# the total. ``heaps`` are K * K lists of the rows of k, ordered by the cost of their move to j;
# they may still contain rows that have left k.


@kernel
def transport(
    cost: Array,
    capacity: int,
    min_size: int,
    price: Array,
    labels: Array,
    flow: Array,
    balance: Array,
    reached: Array,
) -> bool:
    """Turn labels, flow and prices into the optimum, in place.

    :returns: False if there is no feasible assignment. Then no edge leaves the nodes ``reached``,
        which have more rows than they can send to the sink.
    """
    clusters = len(cost)
    # Empty lists whose element type numba can infer.
    heaps = [[np.int32(0) for _ in range(0)] for _ in range(clusters * clusters)]
    edge_cost = np.full((clusters + 1, clusters + 1), np.inf)
    moving_row = np.full((clusters, clusters), -1)
    for k in range(clusters):
        _build_heaps(cost, labels, k, heaps, edge_cost, moving_row)
        _update_sink_edges(flow, k, capacity, min_size, edge_cost)
    previous = np.empty(clusters + 1, np.int64)
    for node in range(clusters + 1):
        while balance[node] > 0:
            target = _search(edge_cost, price, balance, node, previous, reached)
            if target < 0:
                return False
            balance[node] -= 1
            balance[target] += 1
            while target != node:
                k, j = previous[target], target
                if k == clusters:
                    flow[j] -= 1
                    _update_sink_edges(flow, j, capacity, min_size, edge_cost)
                elif j == clusters:
                    flow[k] += 1
                    _update_sink_edges(flow, k, capacity, min_size, edge_cost)
                else:
                    _move(cost, labels, moving_row[k, j], k, j, heaps, edge_cost, moving_row)
                target = k
    return True


@kernel
def _search(
    edge_cost: Array, price: Array, balance: Array, source: int, previous: Array, reached: Array
) -> int:
    """Find the node nearest to ``source`` that lacks rows (Dijkstra), and update the prices.

    :returns: that node, -1 if there is none.
    """
    distance = np.full(len(price), np.inf)
    distance[source] = 0.0
    reached[:] = False
    node = _nearest(distance, reached)
    while node >= 0 and balance[node] >= 0:
        reached[node] = True
        for j in range(len(price)):
            # Rounding may leave a reduced cost just below zero.
            length = distance[node] + max(0.0, edge_cost[node, j] + price[node] - price[j])
            if not reached[j] and length < distance[j]:
                distance[j], previous[j] = length, node
        node = _nearest(distance, reached)
    if node >= 0:
        for k in range(len(price)):
            price[k] += min(distance[k], distance[node])
    return node


@kernel
def _nearest(distance: Array, reached: Array) -> int:
    """Return the nearest node that is not ``reached``, -1 if there is no path to any."""
    node, smallest = -1, np.inf
    for k in range(len(distance)):
        if not reached[k] and distance[k] < smallest:
            node, smallest = k, distance[k]
    return node


@kernel
def _update_sink_edges(flow: Array, k: int, capacity: int, min_size: int, edge_cost: Array) -> None:
    """Open or close the edges between cluster ``k`` and the sink, whose cost is zero."""
    edge_cost[k, -1] = 0.0 if flow[k] < capacity else np.inf
    edge_cost[-1, k] = 0.0 if flow[k] > min_size else np.inf


@kernel
def _move(
    cost: Array,
    labels: Array,
    row: int,
    k: int,
    j: int,
    heaps: list[Heap],
    edge_cost: Array,
    moving_row: Array,
) -> None:
    """Move ``row`` from cluster ``k`` to ``j``."""
    labels[row] = j
    for c in range(len(cost)):
        if moving_row[k, c] == row:
            _update_edge(cost, labels, k, c, heaps, edge_cost, moving_row)
        if c != j and cost[c, row] < np.inf:
            _push(heaps[j * len(cost) + c], row, cost[c], cost[j])
            _update_edge(cost, labels, j, c, heaps, edge_cost, moving_row)


@kernel
def _build_heaps(
    cost: Array, labels: Array, k: int, heaps: list[Heap], edge_cost: Array, moving_row: Array
) -> None:
    """Build the heaps of cluster ``k`` from the rows that it has now."""
    rows = [np.int32(row) for row in range(len(labels)) if labels[row] == k]
    for j in range(len(cost)):
        if j == k:
            continue
        heap, cost_j, cost_k = heaps[k * len(cost) + j], cost[j], cost[k]
        for row in rows:
            if cost_j[row] < np.inf:
                heap.append(row)
        for place in range(len(heap) // 2 - 1, -1, -1):
            _sift_down(heap, place, cost_j, cost_k)
        _update_edge(cost, labels, k, j, heaps, edge_cost, moving_row)


@kernel
def _update_edge(
    cost: Array,
    labels: Array,
    k: int,
    j: int,
    heaps: list[Heap],
    edge_cost: Array,
    moving_row: Array,
) -> None:
    """Update the edge from ``k`` to ``j``, once rows that have left ``k`` are off the top."""
    heap, cost_j, cost_k = heaps[k * len(cost) + j], cost[j], cost[k]
    while len(heap) and labels[heap[0]] != k:
        last = heap.pop()
        if len(heap):
            heap[0] = last
            _sift_down(heap, 0, cost_j, cost_k)
    moving_row[k, j] = heap[0] if len(heap) else -1
    edge_cost[k, j] = _moving_cost(heap[0], cost_j, cost_k) if len(heap) else np.inf


@kernel
def _push(heap: Heap, row: int, cost_j: Array, cost_k: Array) -> None:
    heap.append(np.int32(row))
    place = len(heap) - 1
    while place and _precedes(heap[place], heap[(place - 1) // 2], cost_j, cost_k):
        heap[place], heap[(place - 1) // 2] = heap[(place - 1) // 2], heap[place]
        place = (place - 1) // 2


@kernel
def _sift_down(heap: Heap, place: int, cost_j: Array, cost_k: Array) -> None:
    """Move the row at ``place`` down, below all rows that precede it."""
    while 2 * place + 1 < len(heap):
        child = 2 * place + 1
        if child + 1 < len(heap) and _precedes(heap[child + 1], heap[child], cost_j, cost_k):
            child += 1
        if not _precedes(heap[child], heap[place], cost_j, cost_k):
            return
        heap[place], heap[child] = heap[child], heap[place]
        place = child


@kernel
def _precedes(a: np.int32, b: np.int32, cost_j: Array, cost_k: Array) -> bool:
    """Return whether row ``a`` moves at a lower cost than ``b``, or has the smaller number."""
    x, y = _moving_cost(a, cost_j, cost_k), _moving_cost(b, cost_j, cost_k)
    return bool(x < y or (x == y and a < b))


@kernel
def _moving_cost(row: np.int32, cost_j: Array, cost_k: Array) -> float:
    """Return the cost of moving ``row`` from cluster k to j, in float64 for costs of any dtype."""
    return np.float64(cost_j[row]) - np.float64(cost_k[row])
