"""Names of places in a language model: TransformerLens hook names, or the path of any module.

A decoder is read by its structure, not by its architecture's name: the list of blocks is the outermost
`ModuleList` with as many entries as the model has layers, and a block's attention and MLP go by one of a
handful of names.
"""

from __future__ import annotations

import difflib
import inspect
import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

from saeforest.errors import UserError

HOOKS = ("resid_pre", "attn_out", "mlp_out", "resid_post")

_HOOK_NAME = re.compile(r"blocks\.(\d+)\.hook_(\w+)")
# In order of preference. The norms come first: where a block has them behind its attention or MLP
# (Gemma 2 and 3, OLMo 2, GLM 4), it is their output that is added to the residual stream.
_MLP_NORMS = ("post_mlp_layernorm", "post_feedforward_layernorm")
_ATTENTION_NORMS = ("post_self_attn_layernorm", "post_attention_layernorm")
_MLPS = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc2")
_ATTENTIONS = ("self_attn", "attn", "attention", "self_attention", "linear_attn")


@dataclass(frozen=True)
class Site:
    """A place whose activation is read or replaced.

    `name` is what the user wrote, `module_path` the module that is hooked, and `kind` says whether the
    activation is that module's first input or its (first) output, times `scale`.
    """

    name: str
    module_path: str
    kind: Literal["input", "output"]
    scale: float = 1.0
    """What the block multiplies that output by before it adds it to the residual stream."""


def resolve(model: nn.Module, n_layers: int, name: str) -> Site:
    """The site called `name`: `blocks.{i}.hook_{resid_pre,attn_out,mlp_out,resid_post}` or a module path.

    Raises UserError, with what would have been right, when there is no such place.
    """
    paths = [path for path, _ in model.named_modules() if path]
    if name in paths:
        return Site(name, name, "output")
    match = _HOOK_NAME.fullmatch(name)
    if match is None or match[2] not in HOOKS:
        raise UserError(f"site {name!r}: no such hook or module; {_expected(paths, n_layers, name)}")
    index, hook = int(match[1]), match[2]
    if index >= n_layers:
        raise UserError(f"site {name!r}: block {index} is out of range; the blocks are 0..{n_layers - 1}")

    list_path, blocks = _block_list(model, n_layers, name)
    path = f"{list_path}.{index}"
    if hook == "resid_pre":
        return Site(name, path, "input")
    if hook == "resid_post":
        return Site(name, path, "output")
    child = _component(blocks[index], hook)
    if child is None:
        children = ", ".join(f"{path}.{child}" for child, _ in blocks[index].named_children())
        raise UserError(f"site {name!r}: block {index} has no part known for it; give one of {children}")
    return Site(name, f"{path}.{child}", "output", _multiplier(blocks[index], hook))


def _multiplier(block: nn.Module, hook: str) -> float:
    """Granite's residual_multiplier, and Falcon H1's for its attention."""
    names = ("residual_multiplier", "attn_out_multiplier") if hook == "attn_out" else ("residual_multiplier",)
    for name in names:
        if isinstance(value := getattr(block, name, None), int | float):
            return float(value)
    return 1.0


def _expected(paths: list[str], n_layers: int, name: str) -> str:
    hooks = [f"blocks.{i}.hook_{hook}" for i in range(n_layers) for hook in HOOKS]
    close = difflib.get_close_matches(name, hooks + paths, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    example = next((path for path in paths if path.endswith(_MLPS)), paths[-1])
    return (
        f"{hint}expected blocks.I.hook_H with I in 0..{n_layers - 1} and H one of {', '.join(HOOKS)}, "
        f"or a module path such as {example}"
    )


def _block_list(model: nn.Module, n_layers: int, name: str) -> tuple[str, nn.ModuleList]:
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise UserError(f"site {name!r}: {type(model).__name__} has no list of blocks; give a module path")
    # The outermost: a mixture of experts may well have as many experts as layers.
    return min(lists, key=lambda found: found[0].count("."))


def _component(block: nn.Module, hook: str) -> str | None:
    """The child (a path within the block) whose output is added to the residual stream, if one is known."""
    children = dict(block.named_children())
    # A plain `post_attention_layernorm` usually feeds the MLP. It closes the attention only in a block that
    # has a norm behind its MLP too.
    if hook == "mlp_out":
        names = _MLP_NORMS + _MLPS
    elif any(norm in children for norm in _MLP_NORMS):
        names = _ATTENTION_NORMS + _ATTENTIONS
    else:
        names = _ATTENTIONS
    found = next((name for name in names if name in children), None)
    if found is None or "residual" not in inspect.signature(children[found].forward).parameters:
        return found
    # BLOOM and MPT add the residual stream inside: what is added is the output of the last linear layer.
    linears = [path for path, module in children[found].named_modules() if isinstance(module, nn.Linear)]
    return f"{found}.{linears[-1]}" if linears else None
