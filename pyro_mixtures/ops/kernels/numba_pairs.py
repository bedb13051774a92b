"""CPU kernels of the (row, component) pairs in numba, each for some of the rows or components."""

import numpy as np
from numba import njit

from pyro_mixtures.ops.kernels.simd import (
    RANK,
    ROWS,
    VECTOR_BYTES,
    prefetch_row,
    sum_lanes,
    tile_sums,
    tile_update,
)

# "fast" without nnan/ninf: NaN in the data must reach the caller, who turns it into a typed error.
FAST = {"reassoc", "contract", "arcp", "nsz"}
# Sums over rows are kept in the data's dtype for so many rows, then flushed to float64.
_ROWS_PER_FLUSH = 256
# Blocks of rows that are copied to whole cache lines before they are read: up to this size, for so
# many slots.
_COPIED_BYTES = 1 << 20
_COPIED_SLOTS = 16


@njit(cache=True, nogil=True)
def sort_pairs(z, components):
    """Counting sort of flat component numbers ``z`` (-1 = padding): positions by component, and their starts.

    None when a component number is out of range.
    """
    starts = np.zeros(components + 1, np.int64)
    for i in range(z.size):
        if z[i] < -1 or z[i] >= components:
            return None
        if z[i] >= 0:
            starts[z[i] + 1] += 1
    for c in range(components):
        starts[c + 1] += starts[c]
    order = np.empty(starts[components], np.int64)
    cursor = starts[:-1].copy()
    for i in range(z.size):
        c = z[i]
        if c >= 0:
            order[cursor[c]] = i
            cursor[c] += 1
    return order, starts


@njit(inline="always")
def _aligned(size, like):
    """Scratch memory (size,) that begins at a cache line: vectors across two lines cost twice."""
    wide = np.empty(size + VECTOR_BYTES // like.itemsize, like.dtype)
    shift = -(wide.ctypes.data % VECTOR_BYTES - VECTOR_BYTES) // like.itemsize
    return wide[shift : shift + size]


@njit(inline="always")
def _sums(x, n0, n1, n2, n3, loc, precision, projection, c, first, out, tile, size, squares):
    """:func:`tile_sums` with ``size`` and ``squares`` known at run time only."""
    if squares:
        if size == 5:
            tile_sums(x, n0, n1, n2, n3, loc, precision, projection, c, first, out, tile, 5, 1)
        elif size == 4:
            tile_sums(x, n0, n1, n2, n3, loc, precision, projection, c, first, out, tile, 4, 1)
        elif size == 3:
            tile_sums(x, n0, n1, n2, n3, loc, precision, projection, c, first, out, tile, 3, 1)
        elif size == 2:
            tile_sums(x, n0, n1, n2, n3, loc, precision, projection, c, first, out, tile, 2, 1)
        elif size == 1:
            tile_sums(x, n0, n1, n2, n3, loc, precision, projection, c, first, out, tile, 1, 1)
        else:
            tile_sums(x, n0, n1, n2, n3, loc, precision, projection, c, first, out, tile, 0, 1)
    elif size == 5:
        tile_sums(x, n0, n1, n2, n3, loc, precision, projection, c, first, out, tile, 5, 0)
    elif size == 4:
        tile_sums(x, n0, n1, n2, n3, loc, precision, projection, c, first, out, tile, 4, 0)
    elif size == 3:
        tile_sums(x, n0, n1, n2, n3, loc, precision, projection, c, first, out, tile, 3, 0)
    elif size == 2:
        tile_sums(x, n0, n1, n2, n3, loc, precision, projection, c, first, out, tile, 2, 0)
    else:
        tile_sums(x, n0, n1, n2, n3, loc, precision, projection, c, first, out, tile, 1, 0)


@njit(inline="always")
def _update(x, n0, n1, n2, n3, loc, c, weights, lane, parts, first, size, squares):
    """:func:`tile_update` with ``size`` and ``squares`` known at run time only."""
    if squares:
        if size == 5:
            tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, parts, first, 5, 1)
        elif size == 4:
            tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, parts, first, 4, 1)
        elif size == 3:
            tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, parts, first, 3, 1)
        elif size == 2:
            tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, parts, first, 2, 1)
        elif size == 1:
            tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, parts, first, 1, 1)
        else:
            tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, parts, first, 0, 1)
    elif size == 5:
        tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, parts, first, 5, 0)
    elif size == 4:
        tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, parts, first, 4, 0)
    elif size == 3:
        tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, parts, first, 3, 0)
    elif size == 2:
        tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, parts, first, 2, 0)
    else:
        tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, parts, first, 1, 0)


@njit(inline="always")
def _sort_block(z, slot_stride, row_stride, slots, shift, begin, end, starts, stops, place, flat):
    """Counting sort of the slots of rows ``begin`` to ``end``: pair (n, s) becomes ``(n - begin) << shift | s``.

    Padding gets its -inf in ``flat`` (B * slots,). False when a component number is out of range.
    """
    components = starts.size - 1
    starts[:] = 0
    for n in range(begin, end):
        stop = 0
        for s in range(slots):
            c = z[s * slot_stride + n * row_stride]
            if c >= 0:
                if c >= components:
                    return False
                starts[c + 1] += 1
                stop = s + 1
            elif c < -1:
                return False
        stops[n - begin] = stop
    for c in range(components):
        starts[c + 1] += starts[c]
    for n in range(begin, end):
        stop = stops[n - begin]
        for s in range(stop):
            c = z[s * slot_stride + n * row_stride]
            if c >= 0:
                place[starts[c]] = (n - begin) << shift | s
                starts[c] += 1
            else:
                flat[n * slots + s] = -np.inf
        flat[n * slots + stop : (n + 1) * slots] = -np.inf
    # Each start has moved to the next one.
    for c in range(components, 0, -1):
        starts[c] = starts[c - 1]
    starts[0] = 0
    return True


@njit(inline="always")
def _is_worth_a_copy(x, begin, end):
    """Whether the rows begin within cache lines (NumPy aligns to 16 bytes) and fit the cache."""
    return (
        x.ctypes.data % VECTOR_BYTES != 0
        and (end - begin) * x.shape[1] * x.itemsize <= _COPIED_BYTES
    )


@njit(inline="always")
def _whole_lines(x, begin, end):
    """A copy of some rows that begins at a cache line: vectors across two lines cost two reads, each time."""
    copy = _aligned((end - begin) * x.shape[1], x).reshape(end - begin, x.shape[1])
    copy[:] = x[begin:end]
    return copy


@njit(fastmath=FAST, cache=True, nogil=True)
def pair_log_density(
    x,
    loc,
    precision,
    projection,
    offset,
    sign,
    z,
    slot_stride,
    row_stride,
    slots,
    rows,
    lanes,
    begin,
    end,
    flat,
):
    """``-(offset + sum_d w (x - m)^2 + sign |V (x - m)|^2) / 2`` for row n, component ``z[s, n]``: flat[n * slots + s].

    ``rows`` maps n to the row of ``x``; empty means n itself. The rows ``begin`` to ``end`` are
    sorted by component; they should be so few that they stay in the cache. False when a component
    number is out of range.
    """
    components = loc.shape[0]
    rank = projection.shape[1]
    passes = max(1, (rank + RANK - 1) // RANK)
    shift = 0
    while 1 << shift < slots:
        shift += 1
    starts = np.empty(components + 1, np.int32)
    stops = np.empty(end - begin, np.int32)
    place = np.empty((end - begin) * slots, np.int32)
    if not _sort_block(
        z, slot_stride, row_stride, slots, shift, begin, end, starts, stops, place, flat
    ):
        return False
    start = 0
    if rows.size == 0 and slots >= _COPIED_SLOTS and _is_worth_a_copy(x, begin, end):
        x, start = _whole_lines(x, begin, end), begin
    tiles = _aligned((1 + RANK) * lanes // ROWS * lanes, loc).reshape(
        1 + RANK, lanes // ROWS, lanes
    )
    sums = _aligned((1 + RANK) * lanes, loc).reshape(1 + RANK, lanes)
    total = np.empty(lanes, loc.dtype)
    numbers = np.empty(lanes, np.int64)
    for c in range(components):
        last = starts[c + 1] - 1
        if c + 1 < components:
            _prefetch(loc, precision, projection, c + 1)
        for p in range(starts[c], last + 1, lanes):
            some = min(lanes, last + 1 - p)
            for j in range(lanes):
                n = begin + (place[min(p + j, last)] >> shift)
                numbers[j] = rows[n] if rows.size else n - start
            for j in range(lanes):
                total[j] = offset[c]
            for b in range(passes):
                first = b * rank // passes
                size = (b + 1) * rank // passes - first
                for j in range(0, some, ROWS):
                    _sums(
                        x, numbers[j], numbers[j + 1], numbers[j + 2], numbers[j + 3],
                        loc, precision, projection, c, first, tiles, j // ROWS, size, b == 0,
                    )  # fmt: skip
                if b == 0:
                    sum_lanes(tiles, 0, sums)
                    for j in range(lanes):
                        total[j] += sums[0, j]
                for k in range(1, size + 1):
                    sum_lanes(tiles, k, sums)
                    for j in range(lanes):
                        total[j] += sign * sums[k, j] * sums[k, j]
            for j in range(some):
                at = place[p + j]
                flat[(begin + (at >> shift)) * slots + (at & ((1 << shift) - 1))] = -0.5 * total[j]
    return True


@njit(inline="always")
def _prefetch(loc, precision, projection, c):
    """Ask for the parameters of component ``c``, which is next."""
    prefetch_row(loc, c)
    prefetch_row(precision, c)
    flat = projection.reshape(projection.shape[0], projection.shape[1] * projection.shape[2])
    prefetch_row(flat, c)


@njit(fastmath=FAST, cache=True, nogil=True)
def pair_moments(
    x,
    loc,
    projection,
    weight,
    rows,
    order,
    starts,
    lanes,
    begin,
    end,
    count,
    first,
    second,
    projected,
):
    """Per component: adds sums over its pairs of q, q d, q d^2 and q (P d) d^T, where d = x - loc, q = weight[order].

    For the components ``begin`` to ``end``.
    """
    features = loc.shape[1]
    rank = projection.shape[1]
    width = (features + lanes - 1) // lanes * lanes
    tiles = _aligned((1 + RANK) * lanes // ROWS * lanes, loc).reshape(
        1 + RANK, lanes // ROWS, lanes
    )
    weights = _aligned((1 + RANK) * lanes, loc).reshape(1 + RANK, lanes)
    tiles[:] = 0.0
    weights[:] = 0.0
    q = np.zeros(lanes, loc.dtype)
    numbers = np.empty(lanes, np.int64)
    parts = _aligned((2 + rank) * width, loc).reshape(2 + rank, width)
    parts[:] = 0.0
    total = np.zeros((2 + rank, width), np.float64)
    for c in range(begin, end):
        stop = starts[c + 1]
        if starts[c] == stop:
            continue
        mass = 0.0
        for p in range(starts[c], stop, lanes):
            some = min(lanes, stop - p)
            for j in range(lanes):
                numbers[j] = rows[min(p + j, stop - 1)]
                q[j] = weight[order[p + j]] if j < some else 0.0
                mass += q[j]
                if p + lanes + j < stop:
                    prefetch_row(x, rows[p + lanes + j])
            _add_rows(x, loc, projection, c, numbers, q, some, tiles, weights, parts)
            if (p - starts[c]) % _ROWS_PER_FLUSH + lanes >= _ROWS_PER_FLUSH or p + lanes >= stop:
                for i in range(2 + rank):
                    for d in range(features):
                        total[i, d] += parts[i, d]
                        parts[i, d] = 0.0
        count[c] += mass
        for d in range(features):
            first[c, d] += total[0, d]
            second[c, d] += total[1, d]
        for r in range(rank):
            for d in range(features):
                projected[c, r, d] += total[2 + r, d]
        total[:] = 0.0


@njit(inline="always")
def _add_rows(x, loc, projection, c, numbers, q, some, tiles, weights, parts):
    """Add one vector of rows to ``parts``, projections in passes of at most RANK."""
    rank = projection.shape[1]
    passes = max(1, (rank + RANK - 1) // RANK)
    for b in range(passes):
        first = b * rank // passes
        size = (b + 1) * rank // passes - first
        if size:
            for j in range(0, some, ROWS):
                _sums(
                    x, numbers[j], numbers[j + 1], numbers[j + 2], numbers[j + 3],
                    loc, loc, projection, c, first, tiles, j // ROWS, size, False,
                )  # fmt: skip
        for k in range(1, size + 1):
            sum_lanes(tiles, k, weights)
            for j in range(q.size):
                weights[k, j] *= q[j]
        for j in range(q.size):
            weights[0, j] = q[j]
        for j in range(0, some, ROWS):
            _update(
                x, numbers[j], numbers[j + 1], numbers[j + 2], numbers[j + 3],
                loc, c, weights, j, parts, first, size, b == 0,
            )  # fmt: skip
