"""CPU kernels of the search for candidates in numba, each for some of the rows or components."""

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def search_space(candidates, neighbors, explore, begin, end, out):
    """Distinct members of the candidates' neighbourhoods and of ``explore``, row by row, padded with -1."""
    # stamp[c] == n marks that row n has c already: cleared for free from row to row.
    stamp = np.full(neighbors.shape[0], -1, np.int64)
    # Every component is written, and stays if it is new: nobody could predict a branch.
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


@njit(cache=True, nogil=True)
def keep_best(search, log_joint, begin, end, kept, log_kept, log_evidence):
    """Of each row's search space the components of largest log joint, best first, and the log of their sum.

    Returns the number of components in all search spaces.
    """
    slots = search.shape[1]
    keep = kept.shape[1]
    count = 0
    for n in range(begin, end):
        size = 0
        for s in range(slots):
            k = search[n, s]
            if k < 0:
                continue
            count += 1
            value = log_joint[n, s]
            if size == keep and not value > log_kept[n, keep - 1]:
                continue
            at = min(size, keep - 1)
            while at > 0 and value > log_kept[n, at - 1]:
                log_kept[n, at] = log_kept[n, at - 1]
                kept[n, at] = kept[n, at - 1]
                at -= 1
            log_kept[n, at] = value
            kept[n, at] = k
            size = min(size + 1, keep)
        for s in range(size, keep):
            kept[n, s] = -1
            log_kept[n, s] = -np.inf
        log_evidence[n] = log_kept[n, 0]
        if np.isfinite(log_kept[n, 0]):
            total = 0.0
            for s in range(size):
                total += math.exp(log_kept[n, s] - log_kept[n, 0])
            log_evidence[n] += math.log(total)
    return count


@njit(cache=True, nogil=True)
def add_with_best(a, b, total, best, begin, end):
    """Sums, and the largest of each row; a NaN counts as larger than everything."""
    for n in range(begin, end):
        most = -np.inf
        for s in range(a.shape[1]):
            value = a[n, s] + b[n, s]
            total[n, s] = value
            if value > most or value != value:
                most = value
        best[n] = most


@njit(cache=True, nogil=True)
def count_weights(index, weight, counts):
    """Adds ``weight[i]`` to ``counts[index[i]]``; -1 pads."""
    for i in range(index.size):
        if index[i] >= 0:
            counts[index[i]] += weight[i]


@njit(cache=True, nogil=True)
def divergence_sums(
    search, log_density, order, starts, slots, begin, end, columns, totals, counts, used
):
    """Sums over rows won by c of log p(x|c) - log p(x|k), for every k evaluated there; slot ranges are ``slots``."""
    components = starts.shape[0] - 1
    total = np.zeros(components, np.float64)
    count = np.zeros(components, np.int32)
    touched = np.empty(components, np.int64)
    for c in range(begin, end):
        distinct = 0
        for p in range(starts[c], starts[c + 1]):
            n = order[p]
            own = 0.0
            for s in range(search.shape[1]):
                if search[n, s] == c:
                    own = log_density[n, s]
                    break
            for s in range(search.shape[1]):
                k = search[n, s]
                if k < 0:
                    continue
                if count[k] == 0:
                    touched[distinct] = k
                    distinct += 1
                count[k] += 1
                total[k] += own - log_density[n, s]
        for i in range(distinct):
            k = touched[i]
            columns[slots[c] + i] = k
            totals[slots[c] + i] = total[k]
            counts[slots[c] + i] = count[k]
            total[k] = 0.0
            count[k] = 0
        used[c] = distinct


@njit(cache=True, nogil=True)
def compact(
    slots, starts, begin, end, wide_columns, wide_totals, wide_counts, columns, totals, counts
):
    """Copy each component's entries from its roomy range to its own place."""
    for c in range(begin, end):
        for i in range(starts[c + 1] - starts[c]):
            columns[starts[c] + i] = wide_columns[slots[c] + i]
            totals[starts[c] + i] = wide_totals[slots[c] + i]
            counts[starts[c] + i] = wide_counts[slots[c] + i]


@njit(cache=True, nogil=True)
def merge(
    starts,
    shift,
    columns,
    totals,
    counts,
    slots,
    begin,
    end,
    out_columns,
    out_totals,
    out_counts,
    used,
):
    """Add up sparse rows of several parts: part p's row c begins at ``shift[p] + starts[p, c]``."""
    parts = starts.shape[0]
    place = np.full(starts.shape[1] - 1, -1, np.int64)
    for c in range(begin, end):
        distinct = 0
        for p in range(parts):
            for i in range(shift[p] + starts[p, c], shift[p] + starts[p, c + 1]):
                k = columns[i]
                if place[k] < slots[c]:
                    place[k] = slots[c] + distinct
                    out_columns[place[k]] = k
                    out_totals[place[k]] = 0.0
                    out_counts[place[k]] = 0
                    distinct += 1
                out_totals[place[k]] += totals[i]
                out_counts[place[k]] += counts[i]
        used[c] = distinct


@njit(cache=True, nogil=True)
def nearest(starts, columns, totals, counts, old, begin, end, out):
    """Each component, then the others of smallest mean divergence from it; unmeasured ones of ``old`` come last."""
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
            at = min(size, width - 1)
            if at == 0:
                continue
            while at > 1 and value < mean[at - 1]:
                mean[at] = mean[at - 1]
                out[c, at] = out[c, at - 1]
                at -= 1
            mean[at] = value
            out[c, at] = k
            size = min(size + 1, width)
        for i in range(size):
            taken[out[c, i]] = c
        for g in range(1, width):
            if size < width and taken[old[c, g]] != c:
                out[c, size] = old[c, g]
                size += 1


@njit(cache=True, nogil=True)
def component_order(neighbors, place):
    """Numbers the components in the order of a depth-first walk: nearest neighbour not yet seen first."""
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


@njit(cache=True, nogil=True)
def take(table, index, begin, end, out):
    """Entries ``table[index]``, -inf where the index is -1. False when one is out of range."""
    for i in range(begin, end):
        c = index[i]
        if c >= table.size or c < -1:
            return False
        out[i] = table[c] if c >= 0 else -np.inf
    return True
