"""CPU kernels of the assignment under bounds in numba: greedy filling, and successive shortest paths."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def fill(table, order, most, least, labels):
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
def choose(table, price, labels):
    """First component of least cost for each row, at these prices."""
    cheapest = np.full(len(labels), np.inf)
    for c in range(len(table)):
        for i in range(len(labels)):
            cost = np.float64(table[c, i]) - price[c]
            if cost < cheapest[i]:
                labels[i], cheapest[i] = c, cost


# The graph's nodes are the C components and, as node C, the outside, to which every component sends
# ``flow`` (C,) of its rows, ``least`` to ``most``; ``balance`` (C + 1,) is what a node has beyond
# that, or lacks. ``gap`` (C + 1, C + 1) is what an edge costs, and ``via`` (C, C) the row that
# would move. No reduced cost gap[k, j] + price[k] - price[j] is ever negative: thus no cycle of
# moves lowers the total. ``heaps`` are C * C lists of the rows of k by what a move to j costs; rows
# that have left k may still be there.


@njit(cache=True, nogil=True)
def transport(table, most, least, price, labels, flow, balance, reached):
    """Turn labels, flow and prices into the optimum. False when there is none: see the nodes ``reached``."""
    components = len(table)
    heaps = [[np.int32(0) for _ in range(0)] for _ in range(components * components)]
    gap, via = (
        np.full((components + 1, components + 1), np.inf),
        np.full((components, components), -1),
    )
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
