"""Hooks at sites of a language model: functions that are called with the activation and may replace it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saeforest.errors import InputError
from saeforest.lm.sites import Site

Hook = Callable[[Tensor], Tensor | None]
"""A function from the activation `[batch, ctx, d]` at a site to its replacement, or None to leave it as it is."""
Hooks = Mapping[Site, Hook] | Mapping[str, Hook] | Mapping[Site | str, Hook]


@contextmanager
def hooked(model: nn.Module, hooks: Iterable[tuple[Site, Hook]]) -> Iterator[None]:
    """Context in which every forward pass of the model calls each hook with the activation at its site.

    See `LanguageModel.hooked`. The hooks are removed on leaving, also after an exception.
    """
    now = _Pass()
    placed = [_Placed(site, hook, now) for site, hook in hooks]
    with ExitStack() as handles:
        handles.enter_context(model.register_forward_pre_hook(now.begin, with_kwargs=True))
        for one in placed:
            one.register(model, handles)
        yield
    for one in placed:
        if now.begun and not one.reached:
            raise InputError(
                f"site {one.site.name!r}: {one.site.module_path} is not used in the forward pass"
            )


@dataclass
class _Pass:
    """The current forward pass."""

    shape: torch.Size = field(default_factory=torch.Size)
    """`[batch, ctx]`. With a key-value cache, ctx counts the new tokens only."""
    begun: bool = False

    def begin(self, _model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = args[0] if args else kwargs.get("input_ids")
        if tokens is None:
            tokens = kwargs["inputs_embeds"]
        self.shape, self.begun = tokens.shape[:2], True


@dataclass(eq=False)
class _Placed:
    """A hook registered at its site."""

    site: Site
    hook: Hook
    now: _Pass
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
