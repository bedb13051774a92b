"""CPU kernels for (row, component) pairs; each works on a range of the rows or components."""

import numpy as np

from pyro_mixtures.ops.kernels.jit import Array, fast_kernel, inlined, kernel
from pyro_mixtures.ops.kernels.simd import (
    RANK,
    ROWS,
    VECTOR_BYTES,
    prefetch_row,
    sum_lanes,
    tile_sums,
    tile_update,
)

# Sums over this many rows are kept in the data's dtype, then flushed to float64.
_ROWS_PER_FLUSH = 256
# A block of rows is copied to whole cache lines before it is read if it has at most this size and
# at least this many slots.
_COPIED_BYTES = 1 << 20
_COPIED_SLOTS = 16


@kernel
def sort_pairs(z: Array, components: int) -> tuple[Array, Array] | None:
    """Sort the flat component numbers ``z`` (-1 is padding) by counting.

    :returns: positions in ``z`` by component, and where each component's positions start; None if a
        component number is out of range.
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


@inlined
def _aligned(size: int, like: Array) -> Array:
    """Allocate scratch memory (size,) that begins at a cache line.

    Reading a vector across two cache lines takes twice as long.
    """
    wide = np.empty(size + VECTOR_BYTES // like.itemsize, like.dtype)
    shift = -(wide.ctypes.data % VECTOR_BYTES - VECTOR_BYTES) // like.itemsize
    return wide[shift : shift + size]


@inlined
def _tile_sums(
    x: Array,
    n0: int,
    n1: int,
    n2: int,
    n3: int,
    loc: Array,
    precision: Array,
    projection: Array,
    c: int,
    first: int,
    out: Array,
    tile: int,
    size: int,
    squares: bool,
) -> None:
    """Call :func:`tile_sums` with ``size`` and ``squares`` known at run time only."""
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


@inlined
def _tile_update(
    x: Array,
    n0: int,
    n1: int,
    n2: int,
    n3: int,
    loc: Array,
    c: int,
    weights: Array,
    lane: int,
    sums: Array,
    first: int,
    size: int,
    squares: bool,
) -> None:
    """Call :func:`tile_update` with ``size`` and ``squares`` known at run time only."""
    if squares:
        if size == 5:
            tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, sums, first, 5, 1)
        elif size == 4:
            tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, sums, first, 4, 1)
        elif size == 3:
            tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, sums, first, 3, 1)
        elif size == 2:
            tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, sums, first, 2, 1)
        elif size == 1:
            tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, sums, first, 1, 1)
        else:
            tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, sums, first, 0, 1)
    elif size == 5:
        tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, sums, first, 5, 0)
    elif size == 4:
        tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, sums, first, 4, 0)
    elif size == 3:
        tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, sums, first, 3, 0)
    elif size == 2:
        tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, sums, first, 2, 0)
    else:
        tile_update(x, n0, n1, n2, n3, loc, c, weights, lane, sums, first, 1, 0)


@inlined
def _sort_block(
    z: Array,
    slot_stride: int,
    row_stride: int,
    slots: int,
    shift: int,
    begin: int,
    end: int,
    starts: Array,
    stops: Array,
    pairs: Array,
    flat: Array,
) -> bool:
    """Sort the slots of rows ``begin`` to ``end`` by counting.

    Pair (n, s) is stored in ``pairs`` as ``(n - begin) << shift | s``. Padding gets its -inf in
    ``flat`` (B * slots,).

    :returns: False if a component number is out of range.
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
                pairs[starts[c]] = (n - begin) << shift | s
                starts[c] += 1
            else:
                flat[n * slots + s] = -np.inf
        flat[n * slots + stop : (n + 1) * slots] = -np.inf
    # Each start has moved to the start of the next component.
    for c in range(components, 0, -1):
        starts[c] = starts[c - 1]
    starts[0] = 0
    return True


@inlined
def _is_worth_a_copy(x: Array, begin: int, end: int) -> bool:
    """Return whether the rows begin within cache lines and fit the cache.

    NumPy aligns its memory to 16 bytes only.
    """
    return (
        x.ctypes.data % VECTOR_BYTES != 0
        and (end - begin) * x.shape[1] * x.itemsize <= _COPIED_BYTES
    )


@inlined
def _aligned_copy(x: Array, begin: int, end: int) -> Array:
    """Copy the rows ``begin`` to ``end`` into memory that begins at a cache line."""
    copy = _aligned((end - begin) * x.shape[1], x).reshape(end - begin, x.shape[1])
    copy[:] = x[begin:end]
    return copy


@fast_kernel
def pair_log_density(
    begin: int,
    end: int,
    x: Array,
    loc: Array,
    precision: Array,
    projection: Array,
    offset: Array,
    sign: float,
    z: Array,
    slot_stride: int,
    row_stride: int,
    slots: int,
    rows: Array,
    lanes: int,
    flat: Array,
) -> bool:
    """Evaluate ``-(offset + sum_d w (x - m)^2 + sign |V (x - m)|^2) / 2`` for a block of rows.

    The value of row n and component ``z[s, n]`` is written to ``flat[n * slots + s]``. ``rows``
    maps n to the row of ``x``; if it is empty, that is n itself. The rows ``begin`` to ``end`` are
    sorted by component; they should be few enough to stay in the cache.

    :returns: False if a component number is out of range.
    """
    components = loc.shape[0]
    rank = projection.shape[1]
    passes = max(1, (rank + RANK - 1) // RANK)
    shift = 0
    while 1 << shift < slots:
        shift += 1
    starts = np.empty(components + 1, np.int32)
    stops = np.empty(end - begin, np.int32)
    pairs = np.empty((end - begin) * slots, np.int32)
    if not _sort_block(
        z, slot_stride, row_stride, slots, shift, begin, end, starts, stops, pairs, flat
    ):
        return False
    start = 0
    if rows.size == 0 and slots >= _COPIED_SLOTS and _is_worth_a_copy(x, begin, end):
        x, start = _aligned_copy(x, begin, end), begin
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
            count = min(lanes, last + 1 - p)
            for j in range(lanes):
                n = begin + (pairs[min(p + j, last)] >> shift)
                numbers[j] = rows[n] if rows.size else n - start
            for j in range(lanes):
                total[j] = offset[c]
            for b in range(passes):
                first = b * rank // passes
                size = (b + 1) * rank // passes - first
                for j in range(0, count, ROWS):
                    _tile_sums(
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
            for j in range(count):
                n = begin + (pairs[p + j] >> shift)
                s = pairs[p + j] & ((1 << shift) - 1)
                flat[n * slots + s] = -0.5 * total[j]
    return True


@inlined
def _prefetch(loc: Array, precision: Array, projection: Array, c: int) -> None:
    """Prefetch the parameters of component ``c``, which is next."""
    prefetch_row(loc, c)
    prefetch_row(precision, c)
    flat = projection.reshape(projection.shape[0], projection.shape[1] * projection.shape[2])
    prefetch_row(flat, c)


@fast_kernel
def pair_moments(
    begin: int,
    end: int,
    x: Array,
    loc: Array,
    projection: Array,
    weight: Array,
    rows: Array,
    order: Array,
    starts: Array,
    lanes: int,
    count: Array,
    first: Array,
    second: Array,
    projected: Array,
) -> None:
    """Add up q, q d, q d^2 and q (P d) d^T over the pairs of the components ``begin`` to ``end``.

    d = x - loc, and q = weight[order]; P is the ``projection``. Adds to ``count``, ``first``,
    ``second`` and ``projected`` in place.
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
    sums = _aligned((2 + rank) * width, loc).reshape(2 + rank, width)
    sums[:] = 0.0
    total = np.zeros((2 + rank, width), np.float64)
    for c in range(begin, end):
        stop = starts[c + 1]
        if starts[c] == stop:
            continue
        mass = 0.0
        for p in range(starts[c], stop, lanes):
            vector_rows = min(lanes, stop - p)
            for j in range(lanes):
                numbers[j] = rows[min(p + j, stop - 1)]
                q[j] = weight[order[p + j]] if j < vector_rows else 0.0
                mass += q[j]
                if p + lanes + j < stop:
                    prefetch_row(x, rows[p + lanes + j])
            _add_rows(x, loc, projection, c, numbers, q, vector_rows, tiles, weights, sums)
            if (p - starts[c]) % _ROWS_PER_FLUSH + lanes >= _ROWS_PER_FLUSH or p + lanes >= stop:
                for i in range(2 + rank):
                    for d in range(features):
                        total[i, d] += sums[i, d]
                        sums[i, d] = 0.0
        count[c] += mass
        for d in range(features):
            first[c, d] += total[0, d]
            second[c, d] += total[1, d]
        for r in range(rank):
            for d in range(features):
                projected[c, r, d] += total[2 + r, d]
        total[:] = 0.0


@inlined
def _add_rows(
    x: Array,
    loc: Array,
    projection: Array,
    c: int,
    numbers: Array,
    q: Array,
    vector_rows: int,
    tiles: Array,
    weights: Array,
    sums: Array,
) -> None:
    """Add one vector of rows to ``sums``, with at most RANK projections per pass."""
    rank = projection.shape[1]
    passes = max(1, (rank + RANK - 1) // RANK)
    for b in range(passes):
        first = b * rank // passes
        size = (b + 1) * rank // passes - first
        if size:
            for j in range(0, vector_rows, ROWS):
                _tile_sums(
                    x, numbers[j], numbers[j + 1], numbers[j + 2], numbers[j + 3],
                    loc, loc, projection, c, first, tiles, j // ROWS, size, False,
                )  # fmt: skip
        for k in range(1, size + 1):
            sum_lanes(tiles, k, weights)
            for j in range(q.size):
                weights[k, j] *= q[j]
        for j in range(q.size):
            weights[0, j] = q[j]
        for j in range(0, vector_rows, ROWS):
            _tile_update(
                x, numbers[j], numbers[j + 1], numbers[j + 2], numbers[j + 3],
                loc, c, weights, j, sums, first, size, b == 0,
            )  # fmt: skip
