"""Forward passes that share their start: the blocks before a site run once for all passes over the same texts.

Where only the activation at a site is replaced, nothing before the site changes. In such a pass these blocks compute
nothing: each returns what the last of them returned in the first pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saeforest.lm.hooks import Hooks
from saeforest.lm.model import LanguageModel
from saeforest.lm.sites import Site, block_list

_SHORT = torch.tensor([[0, 1, 1], [1, 0, 1]])


@dataclass(eq=False)
class SharedStart:
    """Passes over the same texts that differ only from a site on.

    blocks: the blocks before the site (see `blocks_before`); without any, every pass is a whole one.

        start = SharedStart(lm, blocks_before(lm, site))
        with start.first_pass():
            clean = lm.logits(ids)
        ablated = start.logits(ids, {site: torch.zeros_like})
    """

    lm: LanguageModel
    blocks: Sequence[nn.Module]
    _output: Any = None

    @contextmanager
    def first_pass(self) -> Iterator[None]:
        """Context in which a whole pass over all texts keeps what the last of the blocks returns."""
        if not self.blocks:
            yield
            return

        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            self._output = _copy(output)  # later modules may change it in place

        with self.blocks[-1].register_forward_hook(keep, prepend=True):
            yield

    def logits(self, ids: Int[Tensor, "batch ctx"], hooks: Hooks) -> Float[Tensor, "batch ctx vocab"]:
        """Logits `[batch, ctx, vocab]` as of `LanguageModel.logits`; `ids` are the first of the texts of the first
        pass, and `hooks` are at the site or behind it."""
        if self._output is None:
            return self.lm.logits(ids, hooks)
        with _returning(self.blocks, _copy(self._output, len(ids))):
            return self.lm.logits(ids, hooks)


@torch.no_grad()
def blocks_before(lm: LanguageModel, site: Site) -> tuple[nn.Module, ...]:
    """The blocks that need not run again where only the activation at `site` is replaced.

    None of them where a pass without them differs from a whole one, as in models that hand something else than the
    residual stream from block to block. This is tried on two short texts, with and without zeros at the site.
    """
    path, blocks = block_list(lm.model, lm.n_layers, site.name)
    start = SharedStart(lm, _before(path, blocks, site))
    if not start.blocks:
        return ()
    with start.first_pass():
        clean = lm.logits(_SHORT)
    lm.logits(_SHORT.flip(0))  # what an earlier pass has left behind may not stand in for what is missing
    unchanged = start.logits(_SHORT, {site: lambda x: None})
    ablated = start.logits(_SHORT, {site: torch.zeros_like})
    whole = lm.logits(_SHORT, {site: torch.zeros_like})
    return tuple(start.blocks) if torch.equal(clean, unchanged) and torch.equal(whole, ablated) else ()


def _before(path: str, blocks: nn.ModuleList, site: Site) -> Sequence[nn.Module]:
    """The blocks that end before the site or at it."""
    if not site.module_path.startswith(f"{path}."):
        return ()
    index, _, inner = site.module_path.removeprefix(f"{path}.").partition(".")
    return list(blocks)[: int(index) + (not inner and site.kind == "output")]


@contextmanager
def _returning(blocks: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Context in which the blocks return `output` and compute nothing; their hooks are called."""
    own = [vars(block).get("forward") for block in blocks]  # set where a model is spread over devices
    try:
        for block in blocks:
            block.forward = lambda *_, **__: output
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _copy(output: Any, texts: int | None = None) -> Any:
    """A copy of a block's output, for the first `texts` of its texts."""
    if isinstance(output, tuple | list):
        return type(output)(_copy(part, texts) for part in output)
    return output[:texts].clone() if isinstance(output, Tensor) else output
