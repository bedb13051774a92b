"""CPU kernel of the sparse linear assignment: successive shortest paths."""

from heapq import heappop, heappush

import numpy as np

from pyro_mixtures.ops.kernels.jit import Array, kernel


@kernel
def match(starts: Array, columns: Array, cost: Array, unmatched_cost: float) -> Array:
    """Match n rows with n columns at the least total cost.

    The matrix is in compressed row form: row i can be matched with
    ``columns[starts[i] : starts[i + 1]]`` at these costs, or stay unmatched at ``unmatched_cost``.
    If a row can do neither (``unmatched_cost`` = inf), it and all later rows stay unmatched.

    Each row in turn takes the shortest path (Dijkstra) to a free column, or to a row that is best
    left unmatched, over the reduced costs c - u - v. These are never negative except for rounding.
    No column is settled twice in a search, so the algorithm ends for any costs, after at most n
    searches of all entries.

    :returns: the column (n,) of each row, -1 for unmatched rows.
    """
    rows = len(starts) - 1
    partner, owner = np.full(rows, -1), np.full(rows, -1)
    u, v = np.empty(rows), np.zeros(rows)
    for i in range(rows):
        u[i] = unmatched_cost
        for entry in range(starts[i], starts[i + 1]):
            u[i] = min(u[i], cost[entry])
    distance, before = np.full(rows, np.inf), np.full(rows, -1)
    settled = np.zeros(rows, np.bool_)
    for i in range(rows):
        if u[i] < np.inf and not _augment(
            i,
            starts,
            columns,
            cost,
            unmatched_cost,
            partner,
            owner,
            u,
            v,
            distance,
            before,
            settled,
        ):
            break
    return partner


@kernel
def _augment(
    source: int,
    starts: Array,
    columns: Array,
    cost: Array,
    unmatched_cost: float,
    partner: Array,
    owner: Array,
    u: Array,
    v: Array,
    distance: Array,
    before: Array,
    settled: Array,
) -> bool:
    """Match row ``source``, or leave it unmatched, and re-match the rows that this affects.

    :returns: False if there is no path.
    """
    # Lists whose element types numba infers although they are empty.
    seen = [source for _ in range(0)]
    heap = [(0.0, source) for _ in range(0)]
    row, so_far = source, 0.0
    # The row that the best path so far would leave unmatched, and the length of that path.
    last_row, length = -1, np.inf
    column = -1
    while True:
        if so_far + max(0.0, unmatched_cost - u[row]) < length:
            last_row = row
            length = so_far + max(0.0, unmatched_cost - u[row])
        for entry in range(starts[row], starts[row + 1]):
            j = columns[entry]
            path_length = so_far + max(0.0, cost[entry] - u[row] - v[j])
            if not settled[j] and path_length < distance[j]:
                if distance[j] == np.inf:
                    seen.append(j)
                distance[j], before[j] = path_length, row
                heappush(heap, (path_length, j))
        column = _nearest(heap, settled)
        if column < 0 or distance[column] >= length:
            column = -1
            break
        if owner[column] < 0:
            length = distance[column]
            break
        settled[column], so_far, row = True, distance[column], owner[column]
    path_exists = length < np.inf
    if path_exists:
        _reprice(source, length, seen, owner, u, v, distance, settled)
        _shift(column, last_row, partner, owner, before)
    for j in seen:
        distance[j], settled[j] = np.inf, False
    return path_exists


@kernel
def _nearest(heap: list[tuple[float, int]], settled: Array) -> int:
    """Pop the nearest column that is not settled, -1 if there is none.

    A column may be in the heap several times.
    """
    while len(heap):
        column = heappop(heap)[1]
        if not settled[column]:
            return column
    return -1


@kernel
def _reprice(
    source: int,
    length: float,
    seen: list[int],
    owner: Array,
    u: Array,
    v: Array,
    distance: Array,
    settled: Array,
) -> None:
    """Update the prices: reduced costs are zero on the path, and nowhere negative."""
    u[source] += length
    for j in seen:
        if settled[j]:
            u[owner[j]] += length - distance[j]
            v[j] -= length - distance[j]


@kernel
def _shift(column: int, last_row: int, partner: Array, owner: Array, before: Array) -> None:
    """Give every row on the path the next column.

    The path ends in ``column``, or, if that is -1, in ``last_row``, which becomes unmatched.
    """
    if column < 0:
        column, partner[last_row] = partner[last_row], -1
    while column >= 0:
        row = before[column]
        owner[column] = row
        column, partner[row] = partner[row], column
