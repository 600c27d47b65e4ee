"""One prompt continued twice: by the language model as it is, and steered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..lm import LanguageModel
from ..saes import SAE
from ..text.ids import encode
from .edits import Edit
from .steer import Where, reader_of, steer

_DIGITS = 6


@dataclass(frozen=True)
class NextToken:
    """A token that may come next, with its probability in the clean model and in the steered one."""

    token: str
    clean: float
    steered: float


@dataclass(frozen=True)
class SideBySide:
    """A prompt continued by the clean model and by the steered one.

    clean, steered: the two continuations.
    next: the tokens whose probability of coming right after the prompt changes most, the largest change first.
    kl: divergence KL(clean || steered) of these probabilities, in nats.
    read, changed: number of positions of the prompt that were steered, and of those where the code changed.
    """

    prompt: str
    clean: str
    steered: str
    next: tuple[NextToken, ...]
    kl: float
    read: int
    changed: int

    def to_json(self) -> dict[str, Any]:
        """As in a JSON document."""
        return asdict(self)


@torch.no_grad()
def side_by_side(
    lm: LanguageModel,
    sae: SAE,
    edits: Sequence[Edit],
    prompt: str,
    where: Where | None = None,
    *,
    n_tokens: int = 40,
    error: bool = True,
    closed: bool | None = None,
    site: str | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    shown: int = 10,
) -> SideBySide:
    """Continue a prompt with and without steering. BOS comes before it if the SAE was trained so.

    n_tokens, temperature, seed: as in `LanguageModel.generate`, the same for both continuations.
    shown: number of next tokens to list.

    Other arguments, and what is raised, as in `saeforest.steer`. Raises InputError for an empty prompt.
    """
    reader = reader_of(lm, sae, site)
    own = encode(lm.tokenizer, [prompt], special=True)[0]
    if not own:
        raise InputError("prompt: expected some text")
    ids = torch.tensor([[*([] if reader.bos_id is None else [reader.bos_id]), *own]])

    def text() -> str:
        new = lm.generate(ids, n_tokens, temperature=temperature, seed=seed)
        return str(lm.tokenizer.decode(new[0], skip_special_tokens=True))

    clean, before = text(), lm.logits(ids)[0, -1]
    with steer(lm, sae, edits, where, error=error, closed=closed, site=site) as done:
        after = lm.logits(ids)[0, -1]
        read, changed = done.read, done.changed
        steered = text()
    p, q = (logits.float().softmax(-1) for logits in (before, after))
    kl = float((p * (before.float().log_softmax(-1) - after.float().log_softmax(-1))).sum())
    return SideBySide(prompt, clean, steered, _moved(lm, p, q, shown), round(kl, _DIGITS), read, changed)


def _moved(
    lm: LanguageModel, clean: Float[Tensor, "vocab"], steered: Float[Tensor, "vocab"], n: int
) -> tuple[NextToken, ...]:
    """The tokens whose probability changes most."""
    most = (steered - clean).abs().topk(min(n, len(clean))).indices.tolist()
    return tuple(
        NextToken(
            str(lm.tokenizer.decode([i])), round(float(clean[i]), _DIGITS), round(float(steered[i]), _DIGITS)
        )
        for i in most
    )
