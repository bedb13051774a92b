"""CPU kernel of the sparse linear assignment in numba: successive shortest paths."""

from heapq import heappop, heappush

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def match(ends, columns, cost, alone):
    """Column (n,) of each of n rows at the least total cost, -1 for a row left alone at the cost ``alone``.

    Rows in compressed form: row i may have ``columns[ends[i] : ends[i + 1]]``, of n columns, at
    these costs. A row that can neither have one nor stay alone (``alone`` = inf) is left too, and
    all after it.

    Each row in turn takes its shortest path (Dijkstra) to a column that is free, or to a row that
    would rather be alone, over reduced costs c - u - v, which are never negative but for rounding.
    No column is looked at twice, so it ends whatever the costs are: at most n searches of all
    entries.
    """
    rows = len(ends) - 1
    partner, owner = np.full(rows, -1), np.full(rows, -1)
    u, v = np.empty(rows), np.zeros(rows)
    for i in range(rows):
        u[i] = alone
        for at in range(ends[i], ends[i + 1]):
            u[i] = min(u[i], cost[at])
    distance, before = np.full(rows, np.inf), np.full(rows, -1)
    settled = np.zeros(rows, np.bool_)
    for i in range(rows):
        if u[i] < np.inf and not _augment(
            i, ends, columns, cost, alone, partner, owner, u, v, distance, before, settled
        ):
            break
    return partner


@njit(cache=True, nogil=True)
def _augment(source, ends, columns, cost, alone, partner, owner, u, v, distance, before, settled):
    """Give row ``source`` a column, or leave it alone, and others what is then best for them; False without a way."""
    seen, heap = [source for _ in range(0)], [(0.0, source) for _ in range(0)]
    row, so_far, last, length = (
        source,
        0.0,
        -1,
        np.inf,
    )  # the row that would be left alone, and the path's length then
    column = -1
    while True:
        if so_far + max(0.0, alone - u[row]) < length:
            last, length = row, so_far + max(0.0, alone - u[row])
        for at in range(ends[row], ends[row + 1]):
            j = columns[at]
            way = so_far + max(0.0, cost[at] - u[row] - v[j])
            if not settled[j] and way < distance[j]:
                if distance[j] == np.inf:
                    seen.append(j)
                distance[j], before[j] = way, row
                heappush(heap, (way, j))
        column = _nearest(heap, settled)
        if column < 0 or distance[column] >= length:
            column = -1
            break
        if owner[column] < 0:
            length = distance[column]
            break
        settled[column], so_far, row = True, distance[column], owner[column]
    found = length < np.inf
    if found:
        _reprice(source, length, seen, owner, u, v, distance, settled)
        _pass_on(source, column, last, partner, owner, before)
    for j in seen:
        distance[j], settled[j] = np.inf, False
    return found


@njit(cache=True, nogil=True)
def _nearest(heap, settled):
    """The nearest column that is not settled, -1 when there is none; columns may be in the heap several times."""
    while len(heap):
        column = heappop(heap)[1]
        if not settled[column]:
            return column
    return -1


@njit(cache=True, nogil=True)
def _reprice(source, length, seen, owner, u, v, distance, settled):
    """Prices under which the path's edges cost nothing, and no other edge less than nothing."""
    u[source] += length
    for j in seen:
        if settled[j]:
            u[owner[j]] += length - distance[j]
            v[j] -= length - distance[j]


@njit(cache=True, nogil=True)
def _pass_on(source, column, last, partner, owner, before):
    """Every row on the path takes the next column. Its end is ``column``, or row ``last``, which gives up its own."""
    if column < 0:
        column, partner[last] = partner[last], -1
    while column >= 0:
        row = before[column]
        owner[column] = row
        column, partner[row] = partner[row], column
