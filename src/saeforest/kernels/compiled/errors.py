"""The reconstruction errors of all layers and their gradients, one token at a time while its rows are at hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .sparse import add_rows, arrays, dot_rows
from .threads import jit, over_rows


@jit
def _of_layer(ids, values, begin, end, its_slots, its_ids, its_values):
    """The slots in use whose features lie from `begin` up to `end`; returns how many."""
    n = 0
    for j in range(len(ids)):
        if begin <= ids[j] < end:
            its_slots[n], its_ids[n], its_values[n] = j, ids[j], values[j]
            n += 1
    return n


@jit
def _errors(errors, squared, values, ids, starts, decoder, bias, x, mean, std, low, high):
    k = ids.shape[1]
    slots, mine, amounts = np.empty(k, np.int64), np.empty(k, np.int64), np.empty(k, values.dtype)
    z = np.empty_like(bias)
    for t in range(low, high):
        z[:] = bias
        row = x[t]
        for layer in range(len(errors)):
            n = _of_layer(ids[t], values[t], starts[layer], starts[layer + 1], slots, mine, amounts)
            add_rows(z, decoder, mine, amounts, n)
            error, m, s = errors[layer, t], mean[t, 0], std[t, 0]
            total = x.dtype.type(0)
            for i in range(len(z)):
                e = s * z[i] + (m - row[i])
                error[i] = e
                total += e * e
            squared[layer, t] = total


@jit
def _gradients(grads, to_values, errors, factors, extra, which, std, ids, starts, decoder, low, high):
    k = ids.shape[1]
    slots, mine = np.empty(k, np.int64), np.empty(k, np.int64)
    dots = np.empty(k, errors.dtype)
    total = np.empty_like(decoder[0])
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
            n = _of_layer(ids[t], to_values[t], starts[layer], starts[layer + 1], slots, mine, dots)
            dot_rows(dots, grad, decoder, mine, n)
            for j in range(n):
                to_values[t, slots[j]] = dots[j]


def layer_errors(
    values: Tensor,
    ids: Tensor,
    starts: tuple[int, ...],
    decoder: Tensor,
    bias: Tensor,
    x: Tensor,
    mean: Tensor,
    std: Tensor,
) -> tuple[Tensor, Tensor]:
    errors = x.new_empty(len(starts) - 1, *x.shape)
    squared = x.new_empty(errors.shape[:2])
    errors_, squared_, values_, ids_ = arrays(errors, squared, values, ids)
    rest = arrays(decoder, bias, x, mean, std)
    over_rows(_errors, len(x), errors_, squared_, values_, ids_, np.array(starts), *rest)
    return errors, squared.sum(1)


def layer_gradients(
    errors: Tensor,
    factors: Tensor,
    extra: list[Tensor | None],
    std: Tensor,
    ids: Tensor,
    starts: tuple[int, ...],
    decoder: Tensor,
) -> tuple[Tensor, Tensor]:
    grads, to_values = torch.empty_like(errors), torch.zeros_like(ids, dtype=errors.dtype)
    given = [e for e in extra if e is not None]
    which = np.cumsum([e is not None for e in extra]) - 1
    which[[e is None for e in extra]] = -1
    stacked = given[0][None] if len(given) == 1 else torch.stack(given) if given else errors[:0]
    grads_, to_values_, errors_, factors_, stacked_ = arrays(grads, to_values, errors, factors, stacked)
    std_, ids_, decoder_ = arrays(std, ids, decoder)
    over_rows(
        _gradients,
        len(ids),
        grads_,
        to_values_,
        errors_,
        factors_,
        stacked_,
        which,
        std_,
        ids_,
        np.array(starts),
        decoder_,
    )
    return grads, to_values
