"""CPU kernels in numba: parallel over components or rows, the same result for any number of threads."""

import numba
import numpy as np
from numba import njit, prange

# "fast" without nnan/ninf: NaN in the data must reach the caller, who turns it into a typed error.
FAST = {"reassoc", "contract", "arcp", "nsz"}
ROWS_PER_PASS = 4
# Sums over rows are kept in the data's dtype for so many passes, then flushed to float64.
PASSES_PER_FLUSH = 64


@njit(cache=True, nogil=True)
def sort_pairs(z, components):
    """Counting sort of flat component numbers ``z`` (-1 = padding): positions by component, and their starts."""
    starts = np.zeros(components + 1, np.int64)
    for i in range(z.size):
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


@njit(parallel=True, fastmath=FAST, cache=True, nogil=True)
def pair_log_density(x, loc, precision, projection, offset, sign, rows, order, starts, out):
    """``out[order[p]] = -(offset + sum_d w (x - m)^2 + sign |V (x - m)|^2) / 2`` for the pairs sorted by component."""
    components, features = loc.shape
    rank = projection.shape[1]
    for c in prange(components):
        stop = starts[c + 1]
        if starts[c] == stop:
            continue
        diff = np.empty((ROWS_PER_PASS, features), x.dtype)
        for p in range(starts[c], stop, ROWS_PER_PASS):
            for j in range(ROWS_PER_PASS):
                n = rows[min(p + j, stop - 1)]
                for d in range(features):
                    diff[j, d] = x[n, d] - loc[c, d]
            a0 = offset[c]
            a1 = offset[c]
            a2 = offset[c]
            a3 = offset[c]
            for d in range(features):
                w = precision[c, d]
                a0 += w * diff[0, d] * diff[0, d]
                a1 += w * diff[1, d] * diff[1, d]
                a2 += w * diff[2, d] * diff[2, d]
                a3 += w * diff[3, d] * diff[3, d]
            zero = offset[c] - offset[c]
            for r in range(rank):
                s0 = zero
                s1 = zero
                s2 = zero
                s3 = zero
                for d in range(features):
                    v = projection[c, r, d]
                    s0 += v * diff[0, d]
                    s1 += v * diff[1, d]
                    s2 += v * diff[2, d]
                    s3 += v * diff[3, d]
                a0 += sign * s0 * s0
                a1 += sign * s1 * s1
                a2 += sign * s2 * s2
                a3 += sign * s3 * s3
            left = stop - p
            out[order[p]] = -0.5 * a0
            if left > 1:
                out[order[p + 1]] = -0.5 * a1
            if left > 2:
                out[order[p + 2]] = -0.5 * a2
            if left > 3:
                out[order[p + 3]] = -0.5 * a3


@njit(parallel=True, fastmath=FAST, cache=True, nogil=True)
def pair_moments(x, loc, projection, weight, rows, order, starts, count, first, second, projected):
    """Per component: sums over its pairs of q, q d, q d^2 and q (P d) d^T, where d = x - loc and q = weight[order]."""
    components, features = loc.shape
    rank = projection.shape[1]
    for c in prange(components):
        start, stop = starts[c], starts[c + 1]
        if start == stop:
            continue
        diff = np.empty((ROWS_PER_PASS, features), x.dtype)
        q = np.empty(ROWS_PER_PASS, x.dtype)
        part1 = np.zeros(features, x.dtype)
        part2 = np.zeros(features, x.dtype)
        partp = np.zeros((rank, features), x.dtype)
        sum0 = 0.0
        sum1 = np.zeros(features, np.float64)
        sum2 = np.zeros(features, np.float64)
        sump = np.zeros((rank, features), np.float64)
        passes = 0
        for p in range(start, stop, ROWS_PER_PASS):
            for j in range(ROWS_PER_PASS):
                n = rows[min(p + j, stop - 1)]
                q[j] = weight[order[p + j]] if p + j < stop else 0.0
                sum0 += q[j]
                for d in range(features):
                    diff[j, d] = x[n, d] - loc[c, d]
            for d in range(features):
                t0 = q[0] * diff[0, d]
                t1 = q[1] * diff[1, d]
                t2 = q[2] * diff[2, d]
                t3 = q[3] * diff[3, d]
                part1[d] += (t0 + t1) + (t2 + t3)
                part2[d] += (t0 * diff[0, d] + t1 * diff[1, d]) + (t2 * diff[2, d] + t3 * diff[3, d])
            for r in range(rank):
                s0 = q[0] - q[0]
                s1 = s0
                s2 = s0
                s3 = s0
                for d in range(features):
                    v = projection[c, r, d]
                    s0 += v * diff[0, d]
                    s1 += v * diff[1, d]
                    s2 += v * diff[2, d]
                    s3 += v * diff[3, d]
                s0 *= q[0]
                s1 *= q[1]
                s2 *= q[2]
                s3 *= q[3]
                for d in range(features):
                    partp[r, d] += (s0 * diff[0, d] + s1 * diff[1, d]) + (s2 * diff[2, d] + s3 * diff[3, d])
            passes += 1
            if passes == PASSES_PER_FLUSH or p + ROWS_PER_PASS >= stop:
                passes = 0
                for d in range(features):
                    sum1[d] += part1[d]
                    sum2[d] += part2[d]
                    part1[d] = 0.0
                    part2[d] = 0.0
                for r in range(rank):
                    for d in range(features):
                        sump[r, d] += partp[r, d]
                        partp[r, d] = 0.0
        count[c] = sum0
        for d in range(features):
            first[c, d] = sum1[d]
            second[c, d] = sum2[d]
        for r in range(rank):
            for d in range(features):
                projected[c, r, d] = sump[r, d]


@njit(parallel=True, cache=True, nogil=True)
def search_space(candidates, neighbors, explore, chunks, components, out, sizes):
    """Distinct members of the candidates' neighbourhoods and of ``explore``, row by row; returns how many each has."""
    rows = candidates.shape[0]
    for chunk in prange(chunks):
        # stamp[c] == n marks that row n has c already: cleared for free from row to row.
        stamp = np.full(components, -1, np.int64)
        for n in range(chunk * rows // chunks, (chunk + 1) * rows // chunks):
            size = 0
            for i in range(candidates.shape[1]):
                c = candidates[n, i]
                for g in range(neighbors.shape[1]):
                    k = neighbors[c, g]
                    if stamp[k] != n:
                        stamp[k] = n
                        out[size, n] = k
                        size += 1
            for e in range(explore.shape[1]):
                k = explore[n, e]
                if stamp[k] != n:
                    stamp[k] = n
                    out[size, n] = k
                    size += 1
            sizes[n] = size
            for s in range(size, out.shape[0]):
                out[s, n] = -1


@njit(parallel=True, cache=True, nogil=True)
def divergence_sums(search, log_density, order, starts, slots, chunks, columns, totals, counts, used):
    """Sums over rows won by c of log p(x|c) - log p(x|k), for every k evaluated there; slot ranges are ``slots``."""
    components = starts.shape[0] - 1
    for chunk in prange(chunks):
        total = np.zeros(components, np.float64)
        count = np.zeros(components, np.int64)
        touched = np.empty(components, np.int64)
        for c in range(chunk * components // chunks, (chunk + 1) * components // chunks):
            distinct = 0
            for p in range(starts[c], starts[c + 1]):
                n = order[p]
                own = 0.0
                for s in range(search.shape[0]):
                    if search[s, n] == c:
                        own = log_density[s, n]
                for s in range(search.shape[0]):
                    k = search[s, n]
                    if k < 0:
                        continue
                    if count[k] == 0:
                        touched[distinct] = k
                        distinct += 1
                    count[k] += 1
                    total[k] += own - log_density[s, n]
            for i in range(distinct):
                k = touched[i]
                columns[slots[c] + i] = k
                totals[slots[c] + i] = total[k]
                counts[slots[c] + i] = count[k]
                total[k] = 0.0
                count[k] = 0
            used[c] = distinct


def chunks_for(items: int) -> int:
    """How many chunks to cut ``items`` rows into: some per thread, each worth its scratch memory."""
    return max(1, min(8 * numba.get_num_threads(), items // 256))
