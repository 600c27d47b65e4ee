"""The loops that Numba compiles for selections: the largest of each row, and the best closed set of a tree.

They are in one file because they call each other, and because Numba's cache is valid until the file changes. Loops
whose last arguments are `low, high` process that range of rows. None of them checks its arguments. A count that is
given to another loop begins as `np.int64(0)`: for a literal 0, Numba would compile that loop once more.
"""

from __future__ import annotations

import numpy as np

from .threads import jit

# -- the k largest entries of rows, without sorting them
#
# A row is divided into blocks. At least k entries reach the k-th largest of the blocks' maxima, so only blocks that
# reach this bound are searched, and few of their entries are above it. Numbers are compared by their bits as integers,
# which have the same order for positive numbers, and bounds are found by bisection, so no branch depends on the data.
# NaN, with bits above those of infinity, is never selected.


@jit
def kth_largest(entries, n, k):
    """The k-th largest of the first n entries, none of which is negative; 0 if there are fewer than k."""
    low, high = np.int64(0), np.int64(0)
    for i in range(n):
        high = max(high, np.int64(entries[i]))
    high += 1
    while high - low > 1:
        middle = low + (high - low) // 2
        bound = entries.dtype.type(middle)
        count = 0
        for i in range(n):
            count += entries[i] >= bound
        if count >= k:
            low = middle
        else:
            high = middle
    return low


@jit
def _reaching(row, begin, end, bound, infinity, found, n):
    """Append the positions of entries that reach the bound to the n found so far."""
    for i in range(begin, end):
        found[n] = i  # kept if the entry reaches the bound, otherwise overwritten by the next one
        n += (row[i] >= bound) & (row[i] <= infinity)
    return n


@jit
def top_positive(ids, used, h, k, block, infinity, low, high):
    width = h.shape[1]
    n_blocks = (width + block - 1) // block
    maxima = np.empty(n_blocks, h.dtype)
    found, entries = np.empty(width + 1, np.int64), np.empty(width, h.dtype)
    for t in range(low, high):
        row = h[t]
        for b in range(n_blocks):
            part = row[b * block : (b + 1) * block]
            largest = h.dtype.type(0)
            for i in range(len(part)):
                entry = part[i] if part[i] <= infinity else h.dtype.type(0)
                largest = entry if entry > largest else largest
            maxima[b] = largest
        bound = h.dtype.type(max(kth_largest(maxima, n_blocks, k), 1))
        n = np.int64(0)
        for b in range(n_blocks):
            if maxima[b] >= bound:
                n = _reaching(row, b * block, min((b + 1) * block, width), bound, infinity, found, n)
        for i in range(n):
            entries[i] = row[found[i]]
        least = h.dtype.type(max(kth_largest(entries, n, k), 1))
        room = k  # the number of entries equal to the bound that may be selected
        for i in range(n):
            room -= entries[i] > least
        size = 0
        for i in range(n):
            if entries[i] > least or (entries[i] == least and room > 0):
                room -= entries[i] == least
                ids[t, size] = found[i]
                size += 1
        ids[t, size:] = 0
        used[t] = size


# -- the closed selection: its candidates, their scores, and the best of them


@jit
def best_children(values, ids, scores, bits, begin, active, first, children, low, high):
    """The same as `top_children`, in the order in which children are found: faster if k is large.

    `children` ends with three more entries than there are children, because four are copied at a time.
    """
    k, widest = values.shape[1], 0
    for t in range(low, high):
        widest = max(widest, begin[t, -1] - begin[t, 0])
    found = np.empty(widest + 1, bits.dtype)
    at, which = np.empty(widest + 1, np.int64), np.empty(widest + 4, np.int64)
    for t in range(low, high):
        start, end = begin[t, 0], begin[t, -1]
        for j in range(active.shape[1]):
            to, child = begin[t, j] - start, first[max(active[t, j], 0)]
            for c in range(0, max(begin[t, j + 1] - begin[t, j], 1), 4):  # most parents have few children
                for i in range(c, c + 4):
                    which[to + i] = children[child + i]
        n = np.int64(0)
        for i in range(start, end):  # kept if positive, otherwise overwritten by the next one
            found[n], at[n] = bits[i], i
            n += scores[i] > 0
        least = found.dtype.type(kth_largest(found, n, k)) if n > k else found.dtype.type(0)
        room, size = k, 0
        for i in range(n):
            room -= found[i] > least
        for i in range(n):
            if found[i] > least or (found[i] == least and room > 0):
                room -= found[i] == least
                values[t, size], ids[t, size] = scores[at[i]], which[at[i] - start]
                size += 1
        values[t, size:] = 0
        ids[t, size:] = 0


@jit
def kept_slots(values, ids, all_values, all_ids, kept, low, high):
    k, width = ids.shape[1], kept.shape[1]
    at = np.empty(width + 1, np.int64)
    for t in range(low, high):
        n = 0
        for j in range(width):
            at[n] = j
            n += kept[t, j]
        for i in range(n):
            values[t, i], ids[t, i] = all_values[t, at[i]], all_ids[t, at[i]]
        values[t, n:k] = 0
        ids[t, n:k] = 0


@jit
def closed_scores(scores, values, ids, parent, pull, low, high):
    # Where a row has a feature, if it has it: entries of other rows are never read, as parents come first.
    place, above = np.zeros(len(parent), np.int64), np.empty(ids.shape[1], np.int64)
    half = scores.dtype.type(0.5)
    for t in range(low, high):
        m, h, row = scores[t], values[t], ids[t]
        for j in range(len(row)):
            m[j] = max(h[j], scores.dtype.type(0))
            above[j] = -1
            if h[j] > 0:
                place[row[j]] = j
                if parent[row[j]] >= 0:
                    above[j] = place[parent[row[j]]]
        if pull:
            for j in range(len(row) - 1, -1, -1):
                p = above[j]
                if p >= 0:
                    m[p] = max(m[p], half * (h[p] + m[j]))
        for j in range(len(row)):
            if above[j] >= 0:
                m[j] = min(m[j], m[above[j]])


@jit
def _comes_first(a, b, values, ids, starts):
    """Whether slot a is selected before slot b of the same score."""
    layers = 0
    for start in starts[1:-1]:
        layers += np.int64(ids[a] >= start) - np.int64(ids[b] >= start)
    if layers != 0:
        return layers < 0
    return values[a] > values[b] or (values[a] == values[b] and ids[a] < ids[b])


@jit
def closed_best(slots, used, scores, values, ids, starts, low, high):
    """`scores` are the bits of scores that are not negative, as integers."""
    width, k = scores.shape[1], slots.shape[1]
    found, at = np.empty(width + 1, scores.dtype), np.empty(width + 1, np.int64)
    for t in range(low, high):
        n = np.int64(0)
        for j in range(width):
            found[n], at[n] = scores[t, j], j
            n += scores[t, j] > 0
        least = found.dtype.type(kth_largest(found, n, k)) if n > k else found.dtype.type(0)
        size = equal = 0
        for i in range(n):  # those that reach the bound exactly move to the front of the list
            if found[i] > least:
                slots[t, size] = at[i]
                size += 1
            elif found[i] == least:
                at[equal] = at[i]
                equal += 1
        for done in range(min(k - size, equal)):
            best = done
            for i in range(done + 1, equal):
                if _comes_first(at[i], at[best], values[t], ids[t], starts):
                    best = i
            at[done], at[best] = at[best], at[done]
            slots[t, size + done] = at[done]
        size += min(k - size, equal)
        slots[t, size:] = 0
        used[t] = size
