"""The loops that Numba compiles, for all kernels but selections (`select.py`) and Adam (`moments.py`).

They are in one file because they call each other, and because Numba's cache is valid until the file changes.
`threads.py` compiles and runs them. Loops whose last arguments are `low, high` process that range of rows. None of them
checks its arguments.
"""

from __future__ import annotations

import numpy as np
from numba.core import types
from numba.extending import overload

from .threads import OPTIONS, jit

# -- rows of weights, which may be in bfloat16, given by its bits (uint16)


@jit
def _widened(half, out):
    bits = out.view(np.uint32)
    for i in range(len(half)):
        bits[i] = np.uint32(half[i]) << np.uint32(16)
    return out


def _row(weight, f, out):
    """Row `f`. One in bfloat16 is written to `out` as float32."""
    raise NotImplementedError


@overload(_row, jit_options=OPTIONS)
def _row_of(weight, f, out):
    if weight.dtype == types.uint16:
        return lambda weight, f, out: _widened(weight[f], out)
    return lambda weight, f, out: weight[f]


# -- sparse products: four rows at a time, so that their common input is read once


@jit
def add_rows(out, weight, ids, values, n, spare):
    """`out += sum of values[i] weight[ids[i]]` over the first n entries.

    spare: room for four rows.
    """
    i = 0
    while i + 4 <= n:
        a, b, c, d = values[i], values[i + 1], values[i + 2], values[i + 3]
        p, q = _row(weight, ids[i], spare[0]), _row(weight, ids[i + 1], spare[1])
        r, s = _row(weight, ids[i + 2], spare[2]), _row(weight, ids[i + 3], spare[3])
        for x in range(len(out)):
            out[x] += a * p[x] + b * q[x] + c * r[x] + d * s[x]
        i += 4
    while i < n:
        a, p = values[i], _row(weight, ids[i], spare[0])
        for x in range(len(out)):
            out[x] += a * p[x]
        i += 1


@jit
def dot_rows(out, x, weight, ids, n, spare):
    """`out[i] = x . weight[ids[i]]` for the first n entries."""
    i = 0
    while i + 4 <= n:
        a = b = c = d = x.dtype.type(0)
        p, q = _row(weight, ids[i], spare[0]), _row(weight, ids[i + 1], spare[1])
        r, s = _row(weight, ids[i + 2], spare[2]), _row(weight, ids[i + 3], spare[3])
        for j in range(len(x)):
            y = x[j]
            a += y * p[j]
            b += y * q[j]
            c += y * r[j]
            d += y * s[j]
        out[i], out[i + 1], out[i + 2], out[i + 3] = a, b, c, d
        i += 4
    while i < n:
        a, p = x.dtype.type(0), _row(weight, ids[i], spare[0])
        for j in range(len(x)):
            a += x[j] * p[j]
        out[i] = a
        i += 1


@jit
def by_id(ids, used, n_ids):
    """The positions of the entries in use, stably sorted by id, and where the entries of each id begin."""
    first = np.zeros(n_ids + 1, np.int64)
    for i in range(len(ids)):
        if used[i]:
            first[ids[i] + 1] += 1
    for i in range(n_ids):
        first[i + 1] += first[i]
    place = first[:-1].copy()
    order = np.empty(first[-1], np.int64)
    for i in range(len(ids)):
        if used[i]:
            order[place[ids[i]]] = i
            place[ids[i]] += 1
    return order, first


@jit
def weighted_rows(out, values, ids, first, weight, low, high):
    spare = np.empty((4, out.shape[1]), out.dtype)
    for t in range(low, high):
        begin, end = first[t], first[t + 1]
        row = out[t]
        for j in range(len(row)):
            row[j] = 0
        add_rows(row, weight, ids[begin:end], values[begin:end], end - begin, spare)


@jit
def gather_dot(out, x, rows, ids, weight, low, high):
    spare = np.empty((4, x.shape[1]), x.dtype)
    # The entries of a row are always summed together, so that the result does not depend on the range.
    while 0 < low < high and rows[low] == rows[low - 1]:
        low += 1
    while low < high:
        end = low + 1
        while end < len(rows) and rows[end] == rows[low]:
            end += 1
        dot_rows(out[low:end], x[rows[low]], weight, ids[low:end], end - low, spare)
        low = end


@jit
def take(values, rows, order):
    chosen_values, chosen_rows = np.empty(len(order), values.dtype), np.empty(len(order), rows.dtype)
    for i in range(len(order)):
        chosen_values[i], chosen_rows[i] = values[order[i]], rows[order[i]]
    return chosen_values, chosen_rows


# -- the pre-activations of children of active features: for every parent, its tokens times its children
#
# The pre-activation of a child matters only where its parent is active, on a few percent of tokens. The tokens on which
# a parent is active, times the parent's children, is a small dense product. It is computed in tiles of four by four
# without copying rows, and every score is written to the place where the search for its token expects it.


@jit
def active_pairs(active, first):
    """The slots of active features with children, as (feature, token), and where the scores of each begin."""
    n, slots = active.shape
    begin = np.empty((n, slots + 1), np.int64)
    features, tokens, offsets = np.empty((3, n * slots + 1), np.int64)
    n_pairs = total = 0
    for t in range(n):
        for j in range(slots):  # kept if there are children, otherwise overwritten by the next one
            begin[t, j] = total
            p = max(active[t, j], 0)
            size = (first[p + 1] - first[p]) * (active[t, j] >= 0)
            features[n_pairs], tokens[n_pairs], offsets[n_pairs] = p, t, total
            n_pairs += size > 0
            total += size
        begin[t, slots] = total
    return features[:n_pairs], tokens[:n_pairs], offsets[:n_pairs], begin, total


@jit
def _four_by_four(u, encoder, tokens, children, scores, offsets, spare):
    a = b = c = d = e = f = g = h = u.dtype.type(0)
    i = j = k = m = n = o = p = q = u.dtype.type(0)
    u0, u1, u2, u3 = u[tokens[0]], u[tokens[1]], u[tokens[2]], u[tokens[3]]
    w0, w1 = _row(encoder, children[0], spare[0]), _row(encoder, children[1], spare[1])
    w2, w3 = _row(encoder, children[2], spare[2]), _row(encoder, children[3], spare[3])
    for x in range(u.shape[1]):
        r, s, t, v = u0[x], u1[x], u2[x], u3[x]
        y0, y1, y2, y3 = w0[x], w1[x], w2[x], w3[x]
        a += r * y0
        b += r * y1
        c += r * y2
        d += r * y3
        e += s * y0
        f += s * y1
        g += s * y2
        h += s * y3
        i += t * y0
        j += t * y1
        k += t * y2
        m += t * y3
        n += v * y0
        o += v * y1
        p += v * y2
        q += v * y3
    at = offsets[0]
    scores[at], scores[at + 1], scores[at + 2], scores[at + 3] = a, b, c, d
    at = offsets[1]
    scores[at], scores[at + 1], scores[at + 2], scores[at + 3] = e, f, g, h
    at = offsets[2]
    scores[at], scores[at + 1], scores[at + 2], scores[at + 3] = i, j, k, m
    at = offsets[3]
    scores[at], scores[at + 1], scores[at + 2], scores[at + 3] = n, o, p, q


@jit
def _four_by_one(u, encoder, tokens, t, child, scores, offsets, c, spare):
    """`dot_rows` of a child and four tokens; most parents have few children, and slices take long."""
    a = b = d = e = u.dtype.type(0)
    x, p, q, r, s = (
        _row(encoder, child, spare[0]),
        u[tokens[t]],
        u[tokens[t + 1]],
        u[tokens[t + 2]],
        u[tokens[t + 3]],
    )
    for j in range(len(x)):
        y = x[j]
        a += y * p[j]
        b += y * q[j]
        d += y * r[j]
        e += y * s[j]
    scores[offsets[t] + c], scores[offsets[t + 1] + c] = a, b
    scores[offsets[t + 2] + c], scores[offsets[t + 3] + c] = d, e


@jit
def child_scores(scores, u, encoder, tokens, offsets, group, first, children, wide, low, high):
    """The scores of all children but those of parents that are `wide`."""
    spare = np.empty((4, u.shape[1]), u.dtype)
    for p in range(low, high):
        mine = children[first[p] : first[p + 1]]
        whole = len(mine) - len(mine) % 4
        t, last = group[p], group[p + 1]
        if len(mine) == 0 or wide[p]:
            continue
        while t + 4 <= last:
            for c in range(0, whole, 4):
                _four_by_four(u, encoder, tokens[t : t + 4], mine[c:], scores, offsets[t : t + 4] + c, spare)
            for c in range(whole, len(mine)):
                _four_by_one(u, encoder, tokens, t, mine[c], scores, offsets, c, spare)
            t += 4
        while t < last:
            dot_rows(scores[offsets[t] :], u[tokens[t]], encoder, mine, len(mine), spare)
            t += 1


@jit
def place_rows(scores, rows, offsets, low, high):
    """Write rows of numbers in bfloat16, given by their bits, to where their scores are expected."""
    bits = np.empty(rows.shape[1], np.uint32)
    numbers = bits.view(np.float32)
    for t in range(low, high):
        row, at = rows[t], offsets[t]
        for i in range(len(row)):
            bits[i] = np.uint32(row[i]) << np.uint32(16)
        for i in range(len(row)):
            scores[at + i] = numbers[i]


@jit
def _offer(values, ids, size, value, i):
    """Offer an entry to a heap that keeps the largest ones, with the smallest on top; of equals, the first stay.

    The heap keeps as many entries as `values` and `ids` have places. Returns how many it has now.
    """
    at = size
    if len(values) == 0:
        return 0
    if size < len(values):
        while at and values[(at - 1) >> 1] > value:
            values[at], ids[at] = values[(at - 1) >> 1], ids[(at - 1) >> 1]
            at = (at - 1) >> 1
        values[at], ids[at] = value, i
        return size + 1
    if value <= values[0]:
        return size
    at, below = 0, 1
    while below < size:
        if below + 1 < size and values[below + 1] < values[below]:
            below += 1
        if values[below] >= value:
            break
        values[at], ids[at] = values[below], ids[below]
        at, below = below, 2 * below + 1
    values[at], ids[at] = value, i
    return size


@jit
def top_children(values, ids, scores, begin, active, first, children, low, high):
    for t in range(low, high):
        size = np.int64(0)  # a literal would have `_offer` compiled twice
        for j in range(active.shape[1]):
            start = begin[t, j]
            for i in range(start, begin[t, j + 1]):
                if scores[i] > 0:
                    child = children[first[active[t, j]] + i - start]
                    size = _offer(values[t], ids[t], size, scores[i], child)
        values[t, size:] = 0
        ids[t, size:] = 0


# -- the reconstruction errors of all layers and their gradients, one token at a time while its rows are in the cache


@jit
def _of_layer(ids, values, begin, end, its_slots, its_ids, its_values):
    """Find the slots in use with features `begin` to `end - 1`. Returns their number."""
    n = 0
    for j in range(len(ids)):
        if begin <= ids[j] < end:
            its_slots[n], its_ids[n], its_values[n] = j, ids[j], values[j]
            n += 1
    return n


@jit
def _without_tail(values, n):
    """How many of the first n entries are left without zeros at the end. These are left out in fours, as they would be
    added, so that the others are rounded as before."""
    used = n
    while used > 0 and values[used - 1] == 0:
        used -= 1
    return min(n, (used + 3) // 4 * 4)


@jit
def layer_errors(errors, squared, values, ids, starts, decoder, bias, x, mean, std, low, high):
    k = ids.shape[1]
    slots, mine, amounts = np.empty(k, np.int64), np.empty(k, np.int64), np.empty(k, values.dtype)
    z = np.empty_like(bias)
    spare = np.empty((4, len(bias)), bias.dtype)
    for t in range(low, high):
        for i in range(len(z)):  # an assignment to a slice takes Numba two seconds more to compile
            z[i] = bias[i]
        row = x[t]
        for layer in range(len(errors)):
            n = _of_layer(ids[t], values[t], starts[layer], starts[layer + 1], slots, mine, amounts)
            add_rows(z, decoder, mine, amounts, _without_tail(amounts, n), spare)
            error, m, s = errors[layer, t], mean[t, 0], std[t, 0]
            total = x.dtype.type(0)
            for i in range(len(z)):
                e = s * z[i] + (m - row[i])
                error[i] = e
                total += e * e
            squared[layer, t] = total


@jit
def layer_gradients(
    grads, to_values, errors, factors, extra, which, std, values, padded, ids, starts, decoder, low, high
):
    k = ids.shape[1]
    slots, mine = np.empty(k, np.int64), np.empty(k, np.int64)
    dots = np.empty(k, errors.dtype)
    total = np.empty(decoder.shape[1], errors.dtype)
    spare = np.empty((4, len(total)), errors.dtype)
    for t in range(low, high):
        total[:] = 0
        for layer in range(len(errors) - 1, -1, -1):
            error, grad, factor, s = errors[layer, t], grads[layer, t], factors[layer], std[t, 0]
            if which[layer] >= 0:
                more = extra[which[layer], t]
                for i in range(len(total)):
                    total[i] += factor * error[i] + more[i]
                    grad[i] = s * total[i]
            else:
                for i in range(len(total)):
                    total[i] += factor * error[i]
                    grad[i] = s * total[i]
            n = _of_layer(ids[t], values[t], starts[layer], starts[layer + 1], slots, mine, dots)
            n = _without_tail(dots, n) if padded else n
            dot_rows(dots, grad, decoder, mine, n, spare)
            for j in range(n):
                to_values[t, slots[j]] = dots[j]


# -- matching pursuit


@jit
def choose_atoms(ids, taken, products, bits, residual, atoms, gram, tolerance, block, low, high):
    """`bits` is a view of `products` as integers, because the compiler vectorizes the maximum of integers."""
    n, k = products.shape[1], ids.shape[1]
    n_blocks = (n + block - 1) // block
    best = np.empty(n_blocks, bits.dtype)
    for t in range(low, high):
        p, b, r = products[t], bits[t], residual[t]
        amount, g = p.dtype.type(0), gram[0]
        for i in range(k):
            for c in range(n_blocks):
                first, last = c * block, min((c + 1) * block, n)
                for j in range(first, last):
                    p[j] -= amount * g[j]
                m = b[first]
                for j in range(first, last):
                    m = max(m, b[j])
                best[c] = m
            where = 0
            for c in range(n_blocks):
                if best[c] > best[where]:
                    where = c
            if best[where] <= 0:  # no atom has a positive product with the residual
                break
            atom = where * block
            while b[atom] != best[where]:
                atom += 1
            amount, g = p[atom], gram[atom]
            again = False
            for j in range(i):
                again |= ids[t, j] == atom
            ids[t, i], taken[t, i] = atom, True
            row, left = atoms[atom], r.dtype.type(0)
            for x in range(len(r)):
                r[x] -= amount * row[x]
                left += r[x] * r[x]
            if again or np.sqrt(left) < tolerance:
                break


@jit
def take_atoms(amounts, residual, ids, taken, atoms, low, high):
    zero = residual.dtype.type(0)
    for t in range(low, high):
        r = residual[t]
        for i in range(ids.shape[1]):
            if not taken[t, i]:
                continue
            row, amount = atoms[ids[t, i]], zero
            for x in range(len(r)):
                amount += r[x] * row[x]
            amounts[t, i] = amount = max(amount, zero)
            for x in range(len(r)):
                r[x] -= amount * row[x]


@jit
def put_back_atoms(grad, shares, residual, amounts, ids, atoms, low, high):
    for t in range(low, high):
        r, g = residual[t], grad[t]
        for i in range(ids.shape[1] - 1, -1, -1):
            a = amounts[t, i]
            if a == 0:
                continue
            row, share, along = atoms[ids[t, i]], shares[t, i], g.dtype.type(0)
            for x in range(len(r)):
                r[x] += a * row[x]
                along += g[x] * row[x]
            for x in range(len(r)):
                share[x] = -(a * g[x] + along * r[x])
                g[x] -= along * row[x]
