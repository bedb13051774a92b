"""CPU kernels of the search for candidates; each works on a range of the rows or components."""

import math

import numpy as np

from pyro_mixtures.ops.kernels.jit import Array, kernel


@kernel
def search_space(
    begin: int, end: int, candidates: Array, neighbors: Array, explore: Array, out: Array
) -> None:
    """Write the union of the candidates' neighborhoods and of ``explore`` for each row.

    Rows are padded with -1.
    """
    # stamp[c] == n means that row n has c already, so nothing is cleared between rows.
    stamp = np.full(neighbors.shape[0], -1, np.int64)
    # Every component is written, and the size grows if it is new: the processor could not predict
    # a branch.
    row = np.empty(out.shape[1] + 1, out.dtype)
    for n in range(begin, end):
        size = 0
        for i in range(candidates.shape[1]):
            c = candidates[n, i]
            for g in range(neighbors.shape[1]):
                k = neighbors[c, g]
                row[size] = k
                size += stamp[k] != n
                stamp[k] = n
        for e in range(explore.shape[1]):
            k = explore[n, e]
            row[size] = k
            size += stamp[k] != n
            stamp[k] = n
        for s in range(out.shape[1]):
            out[n, s] = row[s] if s < size else -1


@kernel
def keep_best(
    begin: int,
    end: int,
    search: Array,
    log_joint: Array,
    best: Array,
    best_log_joint: Array,
    log_evidence: Array,
) -> int:
    """Keep the components of largest log joint in each row's search space, best first.

    ``log_evidence`` becomes the log of the sum of their joints.

    :returns: the number of components in all search spaces.
    """
    slots = search.shape[1]
    keep = best.shape[1]
    count = 0
    for n in range(begin, end):
        size = 0
        for s in range(slots):
            k = search[n, s]
            if k < 0:
                continue
            count += 1
            value = log_joint[n, s]
            if size == keep and not value > best_log_joint[n, keep - 1]:
                continue
            place = min(size, keep - 1)
            while place > 0 and value > best_log_joint[n, place - 1]:
                best_log_joint[n, place] = best_log_joint[n, place - 1]
                best[n, place] = best[n, place - 1]
                place -= 1
            best_log_joint[n, place] = value
            best[n, place] = k
            size = min(size + 1, keep)
        for s in range(size, keep):
            best[n, s] = -1
            best_log_joint[n, s] = -np.inf
        log_evidence[n] = best_log_joint[n, 0]
        if np.isfinite(best_log_joint[n, 0]):
            total = 0.0
            for s in range(size):
                total += math.exp(best_log_joint[n, s] - best_log_joint[n, 0])
            log_evidence[n] += math.log(total)
    return count


@kernel
def add_with_best(begin: int, end: int, a: Array, b: Array, total: Array, best: Array) -> None:
    """Add ``a`` and ``b``, and find the largest sum of each row; NaN counts as the largest."""
    for n in range(begin, end):
        largest = -np.inf
        for s in range(a.shape[1]):
            value = a[n, s] + b[n, s]
            total[n, s] = value
            if value > largest or value != value:
                largest = value
        best[n] = largest


@kernel
def count_weights(index: Array, weight: Array, counts: Array) -> None:
    """Add ``weight[i]`` to ``counts[index[i]]``; -1 pads."""
    for i in range(index.size):
        if index[i] >= 0:
            counts[index[i]] += weight[i]


@kernel
def divergence_sums(
    begin: int,
    end: int,
    search: Array,
    log_density: Array,
    order: Array,
    starts: Array,
    offsets: Array,
    columns: Array,
    totals: Array,
    counts: Array,
    sizes: Array,
) -> None:
    """Sum log p(x|c) - log p(x|k) over the rows whose best component is c.

    There is an entry for every k that was evaluated on such a row. The entries of c begin at
    ``offsets[c]``; ``sizes[c]`` becomes their number.
    """
    components = starts.shape[0] - 1
    total = np.zeros(components, np.float64)
    count = np.zeros(components, np.int32)
    touched = np.empty(components, np.int64)
    for c in range(begin, end):
        distinct = 0
        for p in range(starts[c], starts[c + 1]):
            n = order[p]
            log_density_c = 0.0
            for s in range(search.shape[1]):
                if search[n, s] == c:
                    log_density_c = log_density[n, s]
                    break
            for s in range(search.shape[1]):
                k = search[n, s]
                if k < 0:
                    continue
                if count[k] == 0:
                    touched[distinct] = k
                    distinct += 1
                count[k] += 1
                total[k] += log_density_c - log_density[n, s]
        for i in range(distinct):
            k = touched[i]
            columns[offsets[c] + i] = k
            totals[offsets[c] + i] = total[k]
            counts[offsets[c] + i] = count[k]
            total[k] = 0.0
            count[k] = 0
        sizes[c] = distinct


@kernel
def compact(
    begin: int,
    end: int,
    offsets: Array,
    starts: Array,
    sparse_columns: Array,
    sparse_totals: Array,
    sparse_counts: Array,
    columns: Array,
    totals: Array,
    counts: Array,
) -> None:
    """Copy each component's entries from ``offsets[c]`` to ``starts[c]``, which leaves no gaps."""
    for c in range(begin, end):
        for i in range(starts[c + 1] - starts[c]):
            columns[starts[c] + i] = sparse_columns[offsets[c] + i]
            totals[starts[c] + i] = sparse_totals[offsets[c] + i]
            counts[starts[c] + i] = sparse_counts[offsets[c] + i]


@kernel
def merge(
    begin: int,
    end: int,
    starts: Array,
    shift: Array,
    columns: Array,
    totals: Array,
    counts: Array,
    offsets: Array,
    out_columns: Array,
    out_totals: Array,
    out_counts: Array,
    sizes: Array,
) -> None:
    """Add up the sparse matrices of several batches.

    Row c of batch p begins at ``shift[p] + starts[p, c]``; row c of the sum begins at
    ``offsets[c]``, and ``sizes[c]`` becomes the number of its entries.
    """
    batches = starts.shape[0]
    place = np.full(starts.shape[1] - 1, -1, np.int64)
    for c in range(begin, end):
        distinct = 0
        for p in range(batches):
            for i in range(shift[p] + starts[p, c], shift[p] + starts[p, c + 1]):
                k = columns[i]
                if place[k] < offsets[c]:
                    place[k] = offsets[c] + distinct
                    out_columns[place[k]] = k
                    out_totals[place[k]] = 0.0
                    out_counts[place[k]] = 0
                    distinct += 1
                out_totals[place[k]] += totals[i]
                out_counts[place[k]] += counts[i]
        sizes[c] = distinct


@kernel
def nearest(
    begin: int,
    end: int,
    starts: Array,
    columns: Array,
    totals: Array,
    counts: Array,
    old: Array,
    out: Array,
) -> None:
    """Write each component, then the others of smallest mean divergence from it.

    Components of ``old`` whose divergence was not measured come last.
    """
    components, width = old.shape
    mean = np.empty(width, np.float64)
    taken = np.full(components, -1, np.int64)
    for c in range(begin, end):
        out[c, 0] = c
        size = 1
        for i in range(starts[c], starts[c + 1]):
            k = columns[i]
            value = totals[i] / counts[i]
            if k == c or (size == width and not value < mean[width - 1]):
                continue
            place = min(size, width - 1)
            if place == 0:
                continue
            while place > 1 and value < mean[place - 1]:
                mean[place] = mean[place - 1]
                out[c, place] = out[c, place - 1]
                place -= 1
            mean[place] = value
            out[c, place] = k
            size = min(size + 1, width)
        for i in range(size):
            taken[out[c, i]] = c
        for g in range(1, width):
            if size < width and taken[old[c, g]] != c:
                out[c, size] = old[c, g]
                size += 1


@kernel
def component_order(neighbors: Array, place: Array) -> None:
    """Number the components in the order of a depth-first search, nearest neighbors first."""
    components, width = neighbors.shape
    place[:] = -1
    stack = np.empty(components, np.int64)
    tried = np.ones(components, np.int64)
    count = 0
    for first in range(components):
        if place[first] >= 0:
            continue
        place[first] = count
        count += 1
        stack[0] = first
        depth = 1
        while depth:
            c = stack[depth - 1]
            if tried[c] == width:
                depth -= 1
                continue
            k = neighbors[c, tried[c]]
            tried[c] += 1
            if place[k] < 0:
                place[k] = count
                count += 1
                stack[depth] = k
                depth += 1


@kernel
def take(begin: int, end: int, table: Array, index: Array, out: Array) -> bool:
    """Read the entries ``table[index]``, -inf where the index is -1.

    :returns: False if an index is out of range.
    """
    for i in range(begin, end):
        c = index[i]
        if c >= table.size or c < -1:
            return False
        out[i] = table[c] if c >= 0 else -np.inf
    return True
