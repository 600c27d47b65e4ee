"""Encoding text as the language model reads it: token ids, and whether BOS comes first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from saeforest.errors import InputError
from saeforest.hf_types import PreTrainedTokenizerBase

_PROBE = "a"


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool = False
) -> list[list[int]]:
    """The token ids of each text, with no special tokens added before or after it.

    special: whether special tokens spelled out in a text become special tokens, as in a rendered chat, or plain text.
    """
    encoding = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=not special,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # or it warns of every document that is longer than the model's context
    )
    return encoding["input_ids"]


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer by itself puts BOS before a text, and nothing else before or after it.

    If so, the language model was trained that way. A tokenizer that adds [CLS] before the text or EOS after it doesn't
    count, even if EOS and BOS are the same token.
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        return False
    plain = tokenizer(_PROBE, add_special_tokens=False, verbose=False)["input_ids"]
    added = tokenizer(_PROBE, add_special_tokens=True, verbose=False)["input_ids"]
    return list(added[: 1 + len(plain)]) == [bos, *plain]


def bos_before(
    tokenizer: PreTrainedTokenizerBase, bos: Literal["auto", "yes", "no"], model: str
) -> int | None:
    """The id of the token that comes before every text under the setting `text.bos`; None if there is none.

    Raises InputError if BOS is requested and the tokenizer has no BOS.
    """
    if bos == "no" or (bos == "auto" and not adds_bos(tokenizer)):
        return None
    bos_id = tokenizer.bos_token_id
    if not isinstance(bos_id, int):
        raise InputError(f"text.bos = yes: the tokenizer of {model} has no BOS token; set text.bos to no")
    return bos_id
