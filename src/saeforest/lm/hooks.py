"""Hooks at sites of a language model: functions that are called with the activation and may replace it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saeforest.errors import InputError
from saeforest.lm.sites import Site

Hook = Callable[[Tensor], Tensor | None]
"""A function from the activation `[batch, ctx, d]` at a site to its replacement, or None to leave it as it is."""
Hooks = Mapping[Site, Hook] | Mapping[str, Hook] | Mapping[Site | str, Hook]


@dataclass(eq=False)
class Prompt:
    """The prompt of a text that is being generated. tokens: its length."""

    tokens: int


_PROMPT: ContextVar[Prompt | None] = ContextVar("prompt", default=None)


@contextmanager
def generating(prompt: Prompt) -> Iterator[None]:
    """Context in which forward passes generate text: each adds a token to those of the prompt."""
    token = _PROMPT.set(prompt)
    try:
        yield
    finally:
        _PROMPT.reset(token)


@contextmanager
def hooked(model: nn.Module, hooks: Iterable[tuple[Site, Hook]]) -> Iterator[ForwardPass]:
    """Context in which every forward pass of the model calls each hook with the activation at its site.

    See `LanguageModel.hooked`. The hooks are removed on leaving, also after an exception.
    """
    now = ForwardPass()
    placed = [_Placed(site, hook, now) for site, hook in hooks]
    with ExitStack() as handles:
        handles.enter_context(model.register_forward_pre_hook(now.begin, with_kwargs=True))
        for one in placed:
            one.register(model, handles)
        yield now
    for one in placed:
        if now.begun and not one.reached:
            raise InputError(
                f"site {one.site.name!r}: {one.site.module_path} is not used in the forward pass"
            )


@dataclass
class ForwardPass:
    """The current forward pass: which tokens of the texts it reads. Without a key-value cache, all of them."""

    ids: Tensor | None = None
    """The ids `[batch, ctx]` of these tokens; None if the model is given embeddings."""
    shape: torch.Size = field(default_factory=torch.Size)
    """`[batch, ctx]`."""
    start: int = 0
    """Position in its text of the first of these tokens."""
    prompt: int = 0
    """Number of tokens of the prompt that `LanguageModel.generate` continues; outside it, all tokens are the prompt."""
    begun: bool = False
    _of: Prompt | None = None
    _passes: int = 0

    def begin(self, _model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called at the start of a pass with the model's arguments."""
        self.ids = args[0] if args else kwargs.get("input_ids")
        tokens = kwargs["inputs_embeds"] if self.ids is None else self.ids
        self.shape, self.begun = tokens.shape[:2], True
        prompt, ctx = _PROMPT.get(), self.shape[1]
        if prompt is None:
            self.start = _cached(kwargs)
            self.prompt = self.start + ctx
            return
        # Counted, because caches differ: the pass number i of a generation ends with token prompt + i.
        self._passes = self._passes + 1 if prompt is self._of else 0
        self._of, self.prompt = prompt, prompt.tokens
        self.start = prompt.tokens + self._passes - ctx


def _cached(kwargs: dict[str, Any]) -> int:
    """Number of tokens in the key-value cache."""
    length = getattr(kwargs.get("past_key_values"), "get_seq_length", None)
    return 0 if length is None else int(length())


@dataclass(eq=False)
class _Placed:
    """A hook registered at its site."""

    site: Site
    hook: Hook
    now: ForwardPass
    reached: bool = False
    around: Tensor | None = None
    """The change made at the site, kept until it is also added to the output of `site.around`."""

    def register(self, model: nn.Module, handles: ExitStack) -> None:
        module = model.get_submodule(self.site.module_path)
        if self.site.kind == "input":
            handles.enter_context(module.register_forward_pre_hook(self._before, with_kwargs=True))
        else:
            handles.enter_context(module.register_forward_hook(self._after))
        if self.site.around is not None:
            around = model.get_submodule(self.site.around)
            # Prepended, so that hooks at that output see the change.
            handles.enter_context(around.register_forward_hook(self._behind, prepend=True))

    def _before(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        old: Any = args[0] if args else kwargs.get("hidden_states")
        new = self._new(old)
        if new is None:
            return None
        if self.site.around is not None:
            self.around = new - old
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

    def _after(self, _module: Any, _args: Any, output: Any) -> Any:
        return _with_first(output, self._new(_first(output)))

    def _behind(self, _module: Any, _args: Any, output: Any) -> Any:
        change, self.around = self.around, None
        x = _first(output)
        return _with_first(output, None if change is None else x + change.view_as(x))

    def _new(self, x: Any) -> Tensor | None:
        """The replacement of x; None to leave x as it is."""
        shape = self.now.shape
        if isinstance(x, Tensor) and x.ndim == 2 and len(x) == shape.numel():
            # OPT's MLP and some mixtures of experts take the tokens of all texts as one list.
            new = self._new(x.unflatten(0, shape))
            return None if new is None else new.flatten(0, 1)
        if not (isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 3 and x.shape[:2] == shape):
            raise InputError(
                f"site {self.site.name!r}: expected a floating-point tensor [batch, ctx, width] for ids "
                f"{list(shape)}, but {self.site.module_path} has {_describe(x)}; give another site"
            )
        self.reached = True
        scale = self.site.scale
        seen = x if scale == 1 else x * scale
        new = self.hook(seen)
        if new is None:
            return None
        if new.shape != x.shape:
            raise InputError(
                f"the hook at {self.site.name} returned shape {tuple(new.shape)}: expected that of the activation, "
                f"{tuple(x.shape)}"
            )
        new = new.to(x)
        return new if scale == 1 else new / scale


def _first(output: Any) -> Any:
    """The activation in a module's output: its first element if it is a tuple or list."""
    if isinstance(output, tuple | list):  # a list occurs only in the first GPT
        return output[0] if output else None
    return output


def _with_first(output: Any, new: Tensor | None) -> Any:
    """A module's output with its activation replaced by `new`; None (leave the output as it is) if `new` is None."""
    if new is None or isinstance(output, Tensor):
        return new
    return type(output)((new, *output[1:]))


def _describe(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
    return f"a {type(x).__name__}"
