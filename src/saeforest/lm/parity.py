"""Whether a loaded model behaves like a trained language model: its loss on a known text, and its residual stream.

If a model is read wrongly (wrong weights, wrong tokenizer, missing BOS), its loss is near or above that of guessing.
The result is stored with a run. No model is refused, since it may be untrained on purpose.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from saeforest.errors import InputError
from saeforest.lm.model import LanguageModel

TEXT = (
    "The sun rises in the east and sets in the west. When it rains, people open their umbrellas and walk a little "
    "faster. In the morning, the baker takes the bread out of the oven, and the smell of it fills the whole street. "
    "There are seven days in a week and twelve months in a year. After winter comes the spring, and then the summer."
)
_MOST = 96  # maximum number of tokens to read
# The ratio of a model's loss to that of guessing is below 0.7 for trained models, even with a few million parameters,
# and near 1 for untrained ones.
TRAINED_BELOW = 0.75


@torch.no_grad()
def parity(lm: LanguageModel, *, bos: bool = False) -> dict[str, Any]:
    """Check a model on a short English text. The result is stored with a run.

    Keys: `loss` in nats per token, the `loss_of_guessing`, and whether the model seems `trained`; the relative
    difference between resid_pre + attn_out + mlp_out and resid_post in some blocks (`sums`), and whether the sums hold
    (`sums_hold`; None if no block has just these parts); `vocab_size`, `max_context`, and `warnings` for the user.

    bos: whether BOS comes before the text. Raises InputError if the loss is NaN or infinite.
    """
    ids = _ids(lm, bos)
    loss = float(lm.token_losses(ids).mean())
    if not math.isfinite(loss):
        raise InputError(
            f"model {lm.name!r}: its loss on a short English text is {loss}; its weights are damaged"
        )
    guess = math.log(lm.vocab_size)
    sums = _sums(lm, ids)
    warnings = []
    if loss > TRAINED_BELOW * guess:
        warnings.append(
            f"{lm.name} predicts a plain English text badly: its loss is {loss:.2f} nats per token, that of guessing "
            f"among its {lm.vocab_size} tokens {guess:.2f}; it is untrained, not made for English, or read differently "
            "from how it was trained"
        )
    worst = max(sums.values(), default=None)
    holds = None if worst is None else worst < _tolerance(lm)
    if holds is False:
        warnings.append(
            f"in {lm.name}, a block adds more to the residual stream than attn_out and mlp_out (they differ by "
            f"{worst:.1%} of what it adds)"
        )
    return {
        "text_tokens": ids.numel(),
        "bos": bos,
        "loss": loss,
        "loss_of_guessing": guess,
        "trained": loss <= TRAINED_BELOW * guess,
        "sums": {str(block): error for block, error in sums.items()},
        "sums_hold": holds,
        "vocab_size": lm.vocab_size,
        "max_context": lm.max_context,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "warnings": warnings,
    }


def _ids(lm: LanguageModel, bos: bool) -> Tensor:
    read = lm.tokenizer(TEXT, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    first: list[Any] = [lm.tokenizer.bos_token_id] if bos and lm.tokenizer.bos_token_id is not None else []
    ids = (first + [i for i in read if i < lm.vocab_size])[: min(_MOST, lm.max_context or _MOST)]
    if len(ids) < 2:
        raise InputError(
            f"model {lm.name!r}: its tokenizer gives only {len(ids)} tokens for a text of {len(TEXT)} characters"
        )
    return torch.tensor([ids])


def _sums(lm: LanguageModel, ids: Tensor) -> dict[int, float]:
    """|pre + attn + mlp - post| / |post - pre| in the first, a middle and the last block."""
    found = {}
    for block in sorted({0, lm.n_layers // 2, lm.n_layers - 1}):
        hooks = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        try:
            sites = [lm.site(f"blocks.{block}.hook_{hook}") for hook in hooks]
            there = lm.activations(ids, sites)
        except InputError:  # a block with other parts
            continue
        pre, attn, mlp, post = (there[site.name].double() for site in sites)
        added = (post - pre).norm()
        if added > 0:
            found[block] = float((pre + attn + mlp - post).norm() / added)
    return found


def _tolerance(lm: LanguageModel) -> float:
    """Rounding error: the residual stream may be much larger than what a block adds, and has the model's dtype."""
    return 1e-2 if lm.dtype == torch.float32 else 0.3
