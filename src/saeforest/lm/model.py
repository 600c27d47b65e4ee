"""A causal language model with its tokenizer: activations at a site, and losses with a site replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saeforest.errors import UserError
from saeforest.lm.identity import ModelIdentity
from saeforest.lm.limits import embedding_rows, longest_text
from saeforest.lm.parity import parity
from saeforest.lm.sites import Site, resolve

Replace = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A frozen decoder in evaluation mode. Token ids never contain padding, so no attention mask is used."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    origin: ModelIdentity | None = None
    """Which model it is, where it comes from files."""

    @property
    def identity(self) -> ModelIdentity:
        """Which model it is; of one that was made in memory, only its name."""
        return self.origin or ModelIdentity(self.name)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @cached_property
    def n_layers(self) -> int:
        return self.model.config.get_text_config().num_hidden_layers

    @cached_property
    def vocab_size(self) -> int:
        """The number of tokens that the model has an embedding for; the tokenizer may have more or fewer."""
        return embedding_rows(self.model)

    @cached_property
    def max_context(self) -> int | None:
        """The longest text in tokens that the model reads, None where nothing limits it."""
        return longest_text(self.model)

    def check_context(self, context: int, what: str) -> None:
        """Raises UserError, with `what` as the name of the setting, where the model cannot read so many tokens."""
        if self.max_context is not None and context > self.max_context:
            raise UserError(
                f"{what} = {context}: {self.name} reads at most {self.max_context} tokens; give fewer"
            )

    def check_ids(self, ids: Int[Tensor, "..."]) -> None:
        """Raises UserError where a token has no row in the model's embedding."""
        if not ids.numel():
            return
        smallest, largest = int(ids.min()), int(ids.max())
        if smallest < 0 or largest >= self.vocab_size:
            bad = largest if largest >= self.vocab_size else smallest
            token = self.tokenizer.convert_ids_to_tokens(bad) if bad >= 0 else None
            raise UserError(
                f"model {self.name!r}: token {bad} ({token!r}) has no row in its embedding of {self.vocab_size}; "
                "resize the embedding to the tokenizer and train it, or use the tokenizer the model was trained with"
            )

    def parity(self, *, bos: bool = False) -> dict[str, Any]:
        """How the model fares on a short English text, to be stored with a run; found once and kept.

        Keys: `loss` in nats a token beside the `loss_of_guessing`, and whether it is that of a `trained` model; how far
        pre + attn + mlp is from post in some blocks (`sums`, `sums_hold`, None where a block has other parts);
        `vocab_size`, `max_context`, and the `warnings` that a user should see. bos: whether BOS stands before the text.
        Raises UserError where the loss is no number.
        """
        if bos not in self._parities:
            self._parities[bos] = parity(self, bos=bos)
        return self._parities[bos]

    @cached_property
    def _parities(self) -> dict[bool, dict[str, Any]]:
        return {}

    @cached_property
    def eos_id(self) -> int:
        """The id that ends a text: the tokenizer's EOS or, where it has none, its BOS, SEP or PAD.

        Raises UserError when the tokenizer has none of them.
        """
        tokens = self.tokenizer
        for name in ("eos_token_id", "bos_token_id", "sep_token_id", "pad_token_id"):
            token_id = getattr(tokens, name, None)
            if token_id is not None:
                return int(token_id)
        raise UserError(
            f"model {self.name!r}: its tokenizer has no eos, bos, sep or pad token; give it an eos_token"
        )

    @cached_property
    def special_ids(self) -> Int64[Tensor, " n"]:
        """The ids of all special tokens, ascending, on the CPU: the named ones and those added as special."""
        added = self.tokenizer.added_tokens_decoder.items()
        ids = {*self.tokenizer.all_special_ids, *(i for i, token in added if token.special)}
        return torch.tensor(sorted(ids), dtype=torch.int64)

    def site(self, name: str) -> Site:
        """Resolves a hook name such as `blocks.15.hook_resid_post`, or a module path.

        Raises UserError when there is no such place.
        """
        return resolve(self.model, self.n_layers, name)

    def site_width(self, site: Site) -> int:
        """The number of features at the site, measured on a few tokens.

        Raises UserError when the site holds no activation of shape [batch, ctx, d].
        """
        # Batch and context differ from one another and from 1, so that no other shape passes by accident.
        return self.activations(torch.zeros(2, 3, dtype=torch.int64), site).shape[-1]

    @torch.no_grad()
    def activations(self, ids: Int[Tensor, "batch ctx"], site: Site) -> Float[Tensor, "batch ctx d"]:
        """The activations at the site, in the model's dtype and on its device. Nothing behind it is computed.

        Raises UserError when the site holds no activation of shape [batch, ctx, d], or is never reached.
        """
        found: list[Tensor] = []

        def keep(x: Tensor) -> Tensor:
            found.append(x)
            raise _Reached

        try:
            with self._hooked(site, ids, keep):
                self.logits(ids)
        except _Reached:
            return found[0]
        raise UserError(f"site {site.name!r}: {site.module_path} takes no part in the forward pass")

    @torch.no_grad()
    def logits(
        self, ids: Int[Tensor, "batch ctx"], site: Site | None = None, replace: Replace | None = None
    ) -> Float[Tensor, "batch ctx vocab"]:
        """The scores of the next token, in the model's dtype and on its device.

        With `site` and `replace`, the activation x: [batch, ctx, d] at the site becomes `replace(x)`, of the
        same shape, which is cast to x's dtype and device. Raises UserError as `activations` does.
        """
        if replace is None:
            self.check_ids(ids)
            if self.max_context is not None and ids.shape[1] > self.max_context:
                raise UserError(
                    f"a text of {ids.shape[1]} tokens: {self.name} reads at most {self.max_context}; give shorter ones"
                )
            return self.model(input_ids=ids.to(self.device), use_cache=False).logits
        if site is None:
            raise ValueError("replace needs a site")
        calls = 0

        def count(x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            new = replace(x)
            if new.shape != x.shape:
                raise ValueError(f"replace turned {tuple(x.shape)} into {tuple(new.shape)}")
            return new.to(x)

        with self._hooked(site, ids, count):
            logits = self.logits(ids)
        if calls == 0:
            raise UserError(f"site {site.name!r}: {site.module_path} takes no part in the forward pass")
        return logits

    def token_losses(
        self, ids: Int[Tensor, "batch ctx"], site: Site | None = None, replace: Replace | None = None
    ) -> Float32[Tensor, "batch ctx-1"]:
        """Cross-entropy, in nats, of each token but the first given those before it; `site`, `replace` as `logits`."""
        return next_token_losses(self.logits(ids, site, replace), ids)

    @contextmanager
    def _hooked(self, site: Site, ids: Tensor, change: Replace) -> Iterator[None]:
        """Within, the activation at the site passes through `change`."""

        def checked(x: Any) -> Tensor:
            if isinstance(x, Tensor) and x.ndim == 2 and x.shape[0] == ids.numel():
                # OPT's MLP and some mixtures of experts see the tokens of all texts as one list.
                return checked(x.unflatten(0, ids.shape)).flatten(0, 1)
            if not _is_activation(x, ids):
                raise UserError(
                    f"site {site.name!r}: expected a floating-point tensor [batch, ctx, width] for ids "
                    f"{list(ids.shape)}, but {site.module_path} has {_describe(x)}; give another site"
                )
            return change(x) if site.scale == 1 else change(x * site.scale) / site.scale

        def after(_module: Any, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple | list):  # a list in the first GPT alone
                return type(output)((checked(output[0] if output else None), *output[1:]))
            return checked(output)

        def before(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (checked(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": checked(kwargs.get("hidden_states"))}

        module = self.model.get_submodule(site.module_path)
        if site.kind == "input":
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = module.register_forward_hook(after)
        with handle:  # leaving removes the hook, whatever happened
            yield


class _Reached(Exception):
    """Ends a forward pass at the site."""


def _is_activation(x: Any, ids: Tensor) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 3 and x.shape[:2] == ids.shape


def _describe(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
    return f"a {type(x).__name__}"


def next_token_losses(
    logits: Float[Tensor, "batch ctx vocab"], ids: Int[Tensor, "batch ctx"]
) -> Float32[Tensor, "batch ctx-1"]:
    """Cross-entropy, in nats, of each token but the first given those before it."""
    # Text by text: a float32 copy of all the logits may not fit in memory.
    ids = ids.to(logits.device, torch.int64)
    losses = [
        F.cross_entropy(row[:-1].float(), target[1:], reduction="none")
        for row, target in zip(logits, ids, strict=True)
    ]
    return torch.stack(losses)


def divergences(
    clean: Float[Tensor, "batch ctx vocab"], logits: Float[Tensor, "batch ctx vocab"]
) -> Float32[Tensor, "batch ctx"]:
    """KL(clean || logits), in nats, of the prediction at each position."""
    found = []
    for a, b in zip(clean, logits, strict=True):
        log_p = a.float().log_softmax(-1)
        found.append((log_p.exp() * (log_p - b.float().log_softmax(-1))).sum(-1))
    return torch.stack(found)
