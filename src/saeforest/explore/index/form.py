"""The tensors of an index: which there are, their types, shapes and bounds, checked before they are used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...schema import FLOATS, INTEGERS

#: Places for the strongest contexts, and for samples: `EACH` of each of `INTERVALS` equal parts of the range of values.
CONTEXTS, INTERVALS, EACH = 12, 5, 4
SAMPLES = INTERVALS * EACH
#: Tokens before a context's token that its window holds; as many from that token on.
REACH = 32
WINDOW = 2 * REACH
#: Bins of the histogram, tokens of logits, neighbors, telling tokens.
BINS, LOGITS, NEIGHBORS, TELLING = 32, 10, 8, 5


class Form(NamedTuple):
    """The form of a tensor.

    kind:  "int" and "float" for any width; floats must be finite, unless they may be NaN ("nan").
    shape: numbers, or letters, each of which stands for the same number in all tensors (F: features).
    low, high: bounds of its numbers, both included; high may be "tokens" (measured), "rows" (of the text, from 0), "F"
           (number of features), "id" (a feature) or "vocab" (any token).
    """

    kind: Literal["int", "float", "nan", "uint8"]
    shape: tuple[int | str, ...]
    low: float = -float("inf")
    high: float | str = float("inf")


_P, _G = ("P", "W", WINDOW), ("G", "N")
#: The tensors of every index.
FORMS = {
    "n_fired": Form("int", ("F",), 0, "tokens"),
    "n_with_parent": Form("int", ("F",), 0, "tokens"),
    "value_sum": Form("float", ("F",)),
    "value_max": Form("float", ("F",)),
    "top_value": Form("float", ("F", "C")),
    "top_row": Form("int", ("F", "C"), -1, "rows"),
    "cos_child": Form("nan", ("F",)),
    "cos_parent": Form("nan", ("F",)),
    "rank_child": Form("int", ("F",), 0, "F"),
    "rank_parent": Form("int", ("F",), 0, "F"),
    "histogram": Form("int", ("F", BINS), 0, "tokens"),
    "sample_row": Form("int", ("F", SAMPLES), -1, "rows"),
    "sample_value": Form("float", ("F", SAMPLES)),
    "window_values": Form("uint8", ("F", "W", WINDOW)),
    "parents": Form("int", ("P",), 0, "id"),
    "window_child": Form("int", _P, -1, "id"),
    "near_id": Form("int", ("F", NEIGHBORS), -1, "id"),
    "near_cos": Form("nan", ("F", NEIGHBORS)),
    "over_id": Form("int", ("F", NEIGHBORS), -1, "id"),
    "over_p": Form("nan", ("F", NEIGHBORS), 0, 1),
    "under_id": Form("int", ("F", NEIGHBORS), -1, "id"),
    "under_p": Form("nan", ("F", NEIGHBORS), 0, 1),
    "child_tokens": Form("int", ("F", TELLING), -1, "vocab"),
    "child_tokens_lift": Form("nan", ("F", TELLING)),
    "null_parent": Form("int", ("M",), 0, "id"),
    "null_child": Form("int", ("M",), 0, "id"),
    "geometry.parent": Form("int", ("G",), 0, "id"),
    "geometry.points": Form("nan", (*_G, 2)),
    "geometry.child": Form("int", _G, -1, "id"),
    "geometry.row": Form("int", _G, -1, "rows"),
    "geometry.explained": Form("float", ("G", 2), 0, 1),
    "geometry.direction": Form("nan", ("F", 2)),
}
#: The tensors that an index has if the language model was there when it was made.
LOGIT_FORMS = {
    "logits.up_id": Form("int", ("F", LOGITS), -1, "vocab"),
    "logits.up": Form("nan", ("F", LOGITS)),
    "logits.down_id": Form("int", ("F", LOGITS), -1, "vocab"),
    "logits.down": Form("nan", ("F", LOGITS)),
}
COLUMN, PLACE, NULL = "column.", "place.", "null."


def column_forms(names: Iterable[str]) -> dict[str, Form]:
    """The tensors of the columns of edges with these names."""
    return {
        prefix + name: Form("nan", (size,), low, high)
        for name in names
        for prefix, size, low, high in (
            (COLUMN, "F", -float("inf"), float("inf")),
            (PLACE, "F", 0, 1),
            (NULL, "M", -float("inf"), float("inf")),
        )
    }


def unused(
    d_sae: int, n_contexts: int, columns: Sequence[str] = (), *, n_parents: int = 0, n_null: int = 0
) -> dict[str, Tensor]:
    """The tensors of an index of which nothing was measured: ids and rows are -1, counts 0, other numbers NaN or 0."""
    sizes = {
        "F": d_sae,
        "C": n_contexts,
        "W": n_contexts + SAMPLES,
        "P": n_parents,
        "M": n_null,
        "G": 0,
        "N": 0,
    }
    found: dict[str, Tensor] = {}
    for name, form in (FORMS | column_forms(columns)).items():
        shape = [sizes[size] if isinstance(size, str) else size for size in form.shape]
        fill = {
            "nan": torch.nan,
            "float": 0.0,
            "uint8": 0,
            "int": int(form.low) if form.kind == "int" else 0,
        }[form.kind]
        dtype = {"int": torch.int32, "uint8": torch.uint8}.get(form.kind, torch.float32)
        found[name] = torch.full(shape, fill, dtype=dtype)
    return found


def flaw(
    tensors: Mapping[str, Tensor], columns: Sequence[str], d_sae: int, n_rows: int, n_tokens: int
) -> str | None:
    """What is wrong with the tensors of an index; None if they are valid.

    columns: names of its columns of edges. n_rows: tokens of the text. n_tokens: activations measured.
    """
    if n_tokens > n_rows:
        return f"{n_tokens:,} tokens measured in a text of only {n_rows:,}"
    forms = FORMS | column_forms(columns)
    if any(name in tensors for name in LOGIT_FORMS):
        forms |= LOGIT_FORMS
    sizes = {"F": d_sae}
    bounds = {"tokens": n_tokens, "rows": n_rows - 1, "F": d_sae, "id": d_sae - 1, "vocab": 2**31 - 1}
    for name, form in forms.items():
        if name not in tensors:
            return f"no tensor '{name}'"
        tensor = tensors[name]
        if wrong := _wrong(tensor, form, sizes):
            return f"'{name}' has {wrong}"
        high = bounds[form.high] if isinstance(form.high, str) else form.high
        if wrong := _out_of_bounds(tensor, form, high):
            return f"'{name}' has {wrong}"
    if sizes["W"] != sizes["C"] + SAMPLES:
        return f"'window_values' has {sizes['W']} windows for each feature, expected {sizes['C'] + SAMPLES}"
    return None


def _wrong(tensor: Tensor, form: Form, sizes: dict[str, int]) -> str | None:
    """What is wrong with the type or the shape of a tensor; notes what the letters of its shape stand for."""
    types = {"int": INTEGERS, "uint8": (torch.uint8,)}.get(form.kind, FLOATS)
    if tensor.dtype not in types:
        return f"dtype {tensor.dtype}"
    if tensor.ndim != len(form.shape):
        return f"shape {list(tensor.shape)}"
    for found, expected in zip(tensor.shape, form.shape, strict=True):
        size = sizes.setdefault(expected, found) if isinstance(expected, str) else expected
        if found != size:
            return f"shape {list(tensor.shape)}"
    return None


def _out_of_bounds(tensor: Tensor, form: Form, high: float) -> str | None:
    if form.kind == "uint8" or not tensor.numel():
        return None
    if form.kind == "int":
        low, most = (int(x) for x in tensor.aminmax())
        return None if form.low <= low <= most <= high else f"numbers outside {form.low:g} to {high:,g}"
    undefined = tensor.isnan()
    if bool(tensor.isinf().any()) or (form.kind == "float" and bool(undefined.any())):
        return "NaN or infinite values"
    outside = ((tensor < form.low) | (tensor > high)) & ~undefined
    return f"numbers outside {form.low:g} to {high:g}" if bool(outside.any()) else None
