"""A local judge: any causal language model that `load_lm` can load, with greedy decoding."""

from __future__ import annotations

import torch
from transformers import GenerationConfig

from ..errors import InputError
from ..lm import LanguageModel
from ..lm.pretrained import quiet_transformers


class LocalJudge:
    """A judge that is a language model run locally.

    Questions are rendered with the tokenizer's chat template; without one, system and user prompt are concatenated.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.name, self.workers = f"{lm.name} in {str(lm.dtype).removeprefix('torch.')}", 1
        self._lm = lm
        specials = lm.tokenizer.convert_ids_to_tokens(lm.special_ids.tolist())
        self._specials = [token for token in specials if len(token) > 1]

    @torch.no_grad()
    def ask(self, system: str, user: str, *, max_tokens: int) -> str:
        """The reply to a question. Raises InputError if the question is longer than the model can read."""
        ids = self._question(system, user)
        room = self._lm.max_context
        if room is not None and len(ids) + max_tokens > room:
            raise InputError(
                f"judge {self.name}: a question of {len(ids)} tokens and a reply of {max_tokens} exceed the model's "
                f"context of {room} tokens; choose another judge.model"
            )
        inputs = torch.tensor([ids], device=self._lm.device)
        greedy = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=self._lm.end_ids,
            pad_token_id=self._lm.eos_id,
        )
        with quiet_transformers():  # it would warn about sampling settings that come with the model
            out = self._lm.model.generate(  # pyright: ignore[reportCallIssue]
                inputs, attention_mask=torch.ones_like(inputs), generation_config=greedy
            )
        reply = self._lm.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
        assert isinstance(reply, str)
        return reply.strip()

    def _question(self, system: str, user: str) -> list[int]:
        """The token ids of a question."""
        tokenizer = self._lm.tokenizer
        for token in self._specials:
            # A special token spelled out in the text must not end the question or begin a reply.
            user = user.replace(token, f"{token[0]} {token[1:]}")
        if not tokenizer.chat_template:
            return tokenizer(f"{system}\n\n{user}\n")["input_ids"]
        try:
            text = self._chat([{"role": "system", "content": system}, {"role": "user", "content": user}])
        except Exception:  # some templates (Gemma 2's, for instance) refuse system messages
            text = self._chat([{"role": "user", "content": f"{system}\n\n{user}"}])
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def _chat(self, messages: list[dict[str, str]]) -> str:
        # Models that reason first would not reach an answer within a few tokens.
        text = self._lm.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert isinstance(text, str)
        return text
