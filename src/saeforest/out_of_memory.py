"""Errors for lack of memory in one line: which part of the work needed it, and which setting to lower."""

from __future__ import annotations

import re
import traceback

import torch

from .errors import InputError

# The messages of PyTorch and NumPy for lack of memory, including those for sizes that no machine has.
_SAID = re.compile(
    r"out of memory|can't allocate memory|not enough memory|Unable to allocate|Storage size calculation overflowed"
    r"|integer multiplication overflow",
    re.IGNORECASE,
)
_AMOUNT = re.compile(r"allocate:? (?P<number>[\d.]+) ?(?P<unit>bytes|[KMGT]iB)", re.IGNORECASE)
_UNITS = {"bytes": 0, "kib": 10, "mib": 20, "gib": 30, "tib": 40}
#: What to lower, by the part of the library that needed memory. The innermost part on the stack counts.
_LOWER = (
    ("saeforest.lm", "the language model", "lm.batch_size or text.context"),
    (
        "saeforest.judges",
        "the judge",
        "the number of features that are judged, or choose a smaller judge.model",
    ),
    ("saeforest.activations.reader", "the language model", "lm.batch_size or text.context"),
    ("saeforest.activations", "the activations", "tokens, or set activations.store to disk or live"),
    ("saeforest.worlds", "the synthetic world", "size, batch_size or held_out"),
    ("saeforest.explore", "the index", "lm.batch_size, or index a smaller SAE"),
    ("saeforest.measures", "a measure", "the tokens measured, or leave that measure out"),
    ("saeforest.evaluation", "a measure", "the tokens measured, or leave that measure out"),
    ("saeforest.structure", "the pairs of features", "the tokens measured, or the number of features"),
    ("saeforest.infer", "the inference of a forest", "infer_tokens"),
    ("saeforest.report", "the report", "the number of runs compared"),
    ("saeforest.text", "the text", "tokens"),
    ("saeforest.saes", "the SAE", "sae.layer_sizes or optim.batch_size"),
    ("saeforest.training", "the SAE's training", "sae.layer_sizes or optim.batch_size"),
    ("saeforest.optim", "the SAE's training", "sae.layer_sizes or optim.batch_size"),
)
# In these parts the SAE is already trained, so its sizes cannot be changed.
_TRAINED = ("saeforest.measures.", "saeforest.evaluation.", "saeforest.explore.", "saeforest.infer.")


def explained(error: BaseException) -> str | None:
    """The message for an error that is due to lack of memory; None for any other error."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    from_a_library = isinstance(error, RuntimeError | ValueError) and not isinstance(error, InputError)
    if not known and not (from_a_library and _SAID.search(str(error))):
        return None
    amount = f" ({size} more)" if (size := _size(str(error))) else ""
    what, lower = _asked(error)
    return f"not enough memory for {what}{amount}; lower {lower}, or use a machine with more"


def _size(text: str) -> str:
    found = _AMOUNT.search(text)
    if found is None:
        return ""
    size = float(found["number"]) * 2 ** _UNITS[found["unit"].lower()]
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20)):
        if size >= 2**power:
            return f"{size / 2**power:,.1f} {unit}"
    return f"{size:,.0f} bytes"


def _asked(error: BaseException) -> tuple[str, str]:
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    for module in reversed(frames):
        for part, what, lower in _LOWER:
            if f"{module}.".startswith(f"{part}."):
                if part == "saeforest.saes" and any(f"{m}.".startswith(_TRAINED) for m in frames):
                    return what, "lm.batch_size, the number of windows read at a time"
                return what, lower
    return "this", "sae.layer_sizes, optim.batch_size, lm.batch_size or tokens"
