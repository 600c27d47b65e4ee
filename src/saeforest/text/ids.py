"""Text as the language model reads it: the token ids of a text, and the BOS before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from saeforest.errors import InputError
from saeforest.hf_types import PreTrainedTokenizerBase

_PROBE = "a"


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool = False
) -> list[list[int]]:
    """The ids of each text, with nothing put before or behind it.

    special: read special tokens that are spelled out as what they are, as in a rendered chat; else they are plain text.
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
    """Whether the tokenizer puts its BOS before a text, as the language model was then trained to read it.

    A tokenizer that adds other tokens ([CLS], or EOS behind the text) does not, even where EOS and BOS are one token.
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
    """The id that stands before every text under the setting `text.bos`; None where nothing does.

    Raises InputError where BOS is asked for and the tokenizer has none.
    """
    if bos == "no" or (bos == "auto" and not adds_bos(tokenizer)):
        return None
    bos_id = tokenizer.bos_token_id
    if not isinstance(bos_id, int):
        raise InputError(f"text.bos = yes: the tokenizer of {model} has no BOS token; set text.bos to no")
    return bos_id
