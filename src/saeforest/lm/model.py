"""A causal language model with its tokenizer: reading and replacing the activations at its sites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import overload

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

from saeforest.errors import InputError
from saeforest.hf_types import PreTrainedModel, PreTrainedTokenizerBase
from saeforest.lm.hooks import ForwardPass, Hooks, Prompt, generating, hooked
from saeforest.lm.identity import ModelIdentity
from saeforest.lm.limits import embedding_rows, longest_text
from saeforest.lm.sites import Site, resolve

# Batch and context differ from each other and from 1, so that no wrong shape passes by accident.
_SHORT = torch.zeros(2, 3, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A frozen causal language model in evaluation mode, with its tokenizer.

    Token ids `[batch, ctx]` contain no padding, so no attention mask is used. Sites are named as in `lm.sites`.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    origin: ModelIdentity | None = None
    """The identity of a model that was loaded from files; None for one made in memory."""

    @property
    def identity(self) -> ModelIdentity:
        """The identity of the model; for one made in memory, only its name."""
        return self.origin or ModelIdentity(self.name)

    @property
    def device(self) -> torch.device:
        """The device of the model's weights."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's weights and activations."""
        return self.model.dtype

    @cached_property
    def n_layers(self) -> int:
        """The number of transformer blocks."""
        return self.model.config.get_text_config().num_hidden_layers

    @cached_property
    def vocab_size(self) -> int:
        """The number of tokens that the model has an embedding for; the tokenizer may have more or fewer."""
        return embedding_rows(self.model)

    @cached_property
    def max_context(self) -> int | None:
        """The longest text, in tokens, that the model can read; None if there is no limit."""
        return longest_text(self.model)

    def check_context(self, context: int, what: str) -> None:
        """Raises InputError if `context` tokens are more than the model can read; `what` names the setting."""
        if self.max_context is not None and context > self.max_context:
            raise InputError(
                f"{what} = {context}: {self.name} can read at most {self.max_context} tokens; give fewer"
            )

    def check_ids(self, ids: Int[Tensor, "..."]) -> None:
        """Raises InputError if a token has no row in the model's embedding."""
        if not ids.numel():
            return
        smallest, largest = int(ids.min()), int(ids.max())
        if smallest < 0 or largest >= self.vocab_size:
            bad = largest if largest >= self.vocab_size else smallest
            token = self.tokenizer.convert_ids_to_tokens(bad) if bad >= 0 else None
            raise InputError(
                f"model {self.name!r}: token {bad} ({token!r}) has no row in its embedding of {self.vocab_size}; "
                "use the tokenizer the model was trained with, or resize the embedding and train it"
            )

    @cached_property
    def eos_id(self) -> int:
        """The id of the token that ends a text: EOS or, if the tokenizer has none, BOS, SEP or PAD.

        Raises InputError if the tokenizer has none of them.
        """
        tokens = self.tokenizer
        for name in ("eos_token_id", "bos_token_id", "sep_token_id", "pad_token_id"):
            token_id = getattr(tokens, name, None)
            if token_id is not None:
                return int(token_id)
        raise InputError(
            f"model {self.name!r}: its tokenizer has no eos, bos, sep or pad token; give it an eos_token"
        )

    @cached_property
    def end_ids(self) -> list[int]:
        """The ids of tokens that end generation: `eos_id` and those in the model's generation config."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        return sorted({self.eos_id, *(ends if isinstance(ends, list) else [ends])} - {None})

    @cached_property
    def special_ids(self) -> Int64[Tensor, " n"]:
        """The ids of all special tokens (named ones and those added as special), ascending, on the CPU."""
        added = self.tokenizer.added_tokens_decoder.items()
        ids = {*self.tokenizer.all_special_ids, *(i for i, token in added if token.special)}
        return torch.tensor(sorted(ids), dtype=torch.int64)

    def site(self, name: str) -> Site:
        """The site of a hook name such as `blocks.15.hook_resid_post`, or of a module path: see `lm.sites`.

        Raises InputError if there is no such hook or module.
        """
        return resolve(self.model, self.n_layers, name, lambda site: self.activations(_SHORT, site))

    def _site(self, site: Site | str) -> Site:
        return self.site(site) if isinstance(site, str) else site

    def site_width(self, site: Site) -> int:
        """The width d of the activation at a site, found by a forward pass on a few tokens.

        Raises InputError if the site has no activation of shape [batch, ctx, d].
        """
        return self.activations(_SHORT, site).shape[-1]

    @contextmanager
    def hooked(self, hooks: Hooks) -> Iterator[ForwardPass]:
        """Context in which every forward pass calls each hook with the activation x: [batch, ctx, d] at its site.

        What a hook returns replaces x, cast to x's dtype and device; if it returns None, x stays. In `generate`, ctx is
        the length of the prompt in the first pass and then, with the key-value cache, 1. Gradients flow through the
        hooks if the caller enables them.

            with lm.hooked({"blocks.3.hook_resid_post": lambda x: x + direction}):
                logits = lm.logits(ids)

        The context gives a `ForwardPass`, which tells hooks the positions of the tokens that are being read.

        Raises InputError if there is no such site, if it has no activation of shape [batch, ctx, d], or, on leaving, if
        no forward pass reached it; InputError if a hook changes the shape.
        """
        with hooked(self.model, [(self._site(site), hook) for site, hook in hooks.items()]) as now:
            yield now

    @overload
    def activations(
        self, ids: Int[Tensor, "batch ctx"], sites: Site | str
    ) -> Float[Tensor, "batch ctx d"]: ...
    @overload
    def activations(self, ids: Int[Tensor, "batch ctx"], sites: Sequence[Site]) -> dict[str, Tensor]: ...
    @torch.no_grad()
    def activations(
        self, ids: Int[Tensor, "batch ctx"], sites: Site | str | Sequence[Site]
    ) -> Tensor | dict[str, Tensor]:
        """The activations `[batch, ctx, d]` at a site, or a dict of them by the names of several sites.

        They have the model's dtype and device. Takes one forward pass, which stops at the last of the sites. Raises
        InputError as `hooked` does.
        """
        wanted = [self._site(sites)] if isinstance(sites, Site | str) else list(sites)
        found: dict[str, Tensor] = {}

        def keep(name: str, x: Tensor) -> None:
            if len(found) + 1 == len(wanted):
                found[name] = x
                raise _AllFound
            found[name] = x.clone()  # later modules may change it in place

        try:
            with self.hooked({site: partial(keep, site.name) for site in wanted}):
                self.logits(ids)
        except _AllFound:
            pass
        return found[wanted[0].name] if isinstance(sites, Site | str) else found

    @torch.no_grad()
    def embed(self, ids: Int[Tensor, "*n"]) -> Float32[Tensor, "*n d"]:
        """The vector with which the model begins for each token, whatever its context and position; on the CPU."""
        self.check_ids(ids)
        return self.model.get_input_embeddings()(ids.to(self.device)).float().cpu()

    def logits(
        self, ids: Int[Tensor, "batch ctx"], hooks: Hooks | None = None
    ) -> Float[Tensor, "batch ctx vocab"]:
        """Logits of the next token, in the model's dtype and on its device; `hooks` as in `hooked`."""
        if hooks:
            with self.hooked(hooks):
                return self.logits(ids)
        self.check_ids(ids)
        if self.max_context is not None and ids.shape[1] > self.max_context:
            raise InputError(
                f"a text of {ids.shape[1]} tokens: {self.name} can read at most {self.max_context}; give shorter texts"
            )
        return self.model(input_ids=ids.to(self.device), use_cache=False).logits

    def token_losses(
        self, ids: Int[Tensor, "batch ctx"], hooks: Hooks | None = None
    ) -> Float32[Tensor, "batch ctx-1"]:
        """Cross-entropy, in nats, of each token after the first, given those before it; `hooks` as in `hooked`."""
        return next_token_losses(self.logits(ids, hooks), ids)

    @overload
    def generate(
        self, prompt: str, n_tokens: int, *, temperature: float = ..., seed: int = ..., use_cache: bool = ...
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: Int[Tensor, "batch ctx"],
        n_tokens: int,
        *,
        temperature: float = ...,
        seed: int = ...,
        use_cache: bool = ...,
    ) -> Int64[Tensor, "batch new"]: ...
    @torch.no_grad()
    def generate(
        self,
        prompt: str | Int[Tensor, "batch ctx"],
        n_tokens: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        use_cache: bool = True,
    ) -> str | Tensor:
        """Generate a continuation of a prompt: text for a text, new ids `[batch, new]` (on the CPU) for ids.

        Generates at most `n_tokens` tokens. A text ends after one of `end_ids` and is padded with `eos_id` while others
        in the batch continue.

        temperature: 0 for the most likely token at each step; above 0, tokens are sampled with random seed `seed`.
        """
        from transformers import GenerationConfig

        from saeforest.lm.pretrained import quiet_transformers

        ids = prompt if isinstance(prompt, Tensor) else torch.tensor([self.tokenizer(prompt)["input_ids"]])
        if n_tokens < 1 or ids.numel() == 0:
            raise InputError("generate: expected a prompt of at least one token, and n_tokens of 1 or more")
        if temperature < 0:
            raise InputError(f"temperature = {temperature}: expected 0 or more")
        self.check_ids(ids)
        self.check_context(ids.shape[1] + n_tokens, "tokens of the prompt and n_tokens")
        ids = ids.to(self.device, torch.int64)
        drawn = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        settings = GenerationConfig(
            do_sample=temperature > 0,
            max_new_tokens=n_tokens,
            use_cache=use_cache,
            repetition_penalty=1.0,
            eos_token_id=self.end_ids,
            pad_token_id=self.eos_id,
            **drawn,
        )
        devices = [self.device] if self.device.type == "cuda" else []
        prompt_read = generating(Prompt(ids.shape[1]))
        with quiet_transformers(), torch.random.fork_rng(devices), prompt_read:
            torch.manual_seed(seed)
            out = self.model.generate(  # pyright: ignore[reportCallIssue]
                ids, attention_mask=torch.ones_like(ids), generation_config=settings
            )
        new = out[:, ids.shape[1] :].cpu()
        if isinstance(prompt, Tensor):
            return new
        text = self.tokenizer.decode(new[0], skip_special_tokens=True)
        assert isinstance(text, str)
        return text


class _AllFound(Exception):
    """Ends a forward pass when all sites have been reached."""


def next_token_losses(
    logits: Float[Tensor, "batch ctx vocab"], ids: Int[Tensor, "batch ctx"]
) -> Float32[Tensor, "batch ctx-1"]:
    """Cross-entropy, in nats, of each token after the first, given those before it."""
    # One text at a time: a float32 copy of all logits may not fit in memory.
    ids = ids.to(logits.device, torch.int64)
    losses = [
        F.cross_entropy(row[:-1].float(), target[1:], reduction="none")
        for row, target in zip(logits, ids, strict=True)
    ]
    return torch.stack(losses)


def losses_and_divergences(
    logits: Float[Tensor, "batch ctx vocab"],
    ids: Int[Tensor, "batch ctx"],
    clean: Float[Tensor, "batch ctx vocab"],
) -> tuple[Float32[Tensor, "batch ctx-1"], Float32[Tensor, "batch ctx"]]:
    """`next_token_losses(logits, ids)`, and KL(clean || logits), in nats, of the prediction at each position."""
    losses, found = [], []
    for row, target, unchanged in zip(logits, ids.to(logits.device, torch.int64), clean, strict=True):
        log_p, log_q = unchanged.float().log_softmax(-1), row.float().log_softmax(-1)
        losses.append(F.nll_loss(log_q[:-1], target[1:], reduction="none"))
        found.append((log_p.exp() * log_p.sub_(log_q)).sum(-1))
    return torch.stack(losses), torch.stack(found)
