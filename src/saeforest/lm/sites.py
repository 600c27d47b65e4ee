"""Names of places in a language model: TransformerLens hook names, or the path of any module.

A decoder is read by its structure, not by its architecture's name: the list of blocks is the outermost
`ModuleList` with as many entries as the model has layers, and a block's attention and MLP go by one of a
handful of names. In block I = 0, 1, ... these are the places, all of them `[batch, ctx, width]`:

    blocks.I.hook_resid_pre        the residual stream before the block
    blocks.I.ln1.hook_normalized   what the attention reads; also blocks.I.attn.hook_in
    blocks.I.attn.hook_z           what the attention's output projection reads: the heads one after another
                                   (TransformerLens: [batch, ctx, heads, d_head])
    blocks.I.hook_attn_out         what the attention adds to the residual stream
    blocks.I.hook_resid_mid        the residual stream between attention and MLP; blocks where the two work in parallel
                                   (GPT-NeoX, GPT-J, Falcon, Phi, Cohere) have none
    blocks.I.ln2.hook_normalized   what the MLP reads; also blocks.I.mlp.hook_in
    blocks.I.hook_mlp_out          what the MLP adds to the residual stream
    blocks.I.hook_resid_post       the residual stream behind the block

The two `hook_normalized` are activations exactly as attention and MLP receive them: the normalized residual stream
times the norm's weight (and, in blocks without a norm in that place, the residual stream itself). TransformerLens
takes RMS norms before their weight, unless it was folded into the layers behind them; its `hook_mlp_in` and
`hook_attn_in` are the stream before the norm, and are no names here.

Any other module goes by its path, such as `model.layers.3.mlp.up_proj` for its output and
`model.layers.3.mlp.up_proj:input` for its first input.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from saeforest.errors import InputError

HOOKS = (
    "hook_resid_pre",
    "ln1.hook_normalized",
    "attn.hook_in",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_normalized",
    "mlp.hook_in",
    "hook_mlp_out",
    "hook_resid_post",
)

_HOOK_NAME = re.compile(r"blocks\.(\d+)\.([\w.]+)")
_SUM = ("resid_pre", "attn_out", "mlp_out", "resid_post")
_INPUT = ":input"
# In order of preference. The norms come first: where a block has them behind its attention or MLP
# (Gemma 2 and 3, OLMo 2, GLM 4), it is their output that is added to the residual stream.
_MLP_NORMS = ("post_mlp_layernorm", "post_feedforward_layernorm")
_ATTENTION_NORMS = ("post_self_attn_layernorm", "post_attention_layernorm")
_MLPS = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
_ATTENTIONS = ("self_attn", "attn", "attention", "self_attention", "linear_attn")
_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "output")
# How far two ways to the same sum may be apart, relative to a summand: nearly always they agree to the last bit.
_ROUNDING = 1e-3


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
    around: str | None = None
    """The module, if any, that adds the same activation to its output by another way: a replacement has to take that
    way too."""


Read = Callable[[Site], Tensor]
"""Gives the activation at a site on a short text. Raises InputError where there is none."""


def resolve(model: nn.Module, n_layers: int, name: str, read: Read) -> Site:
    """The site called `name`; `read` serves to tell sequential blocks from others for `hook_resid_mid`.

    Raises InputError, with what would have been right, when there is no such place.
    """
    paths = [path for path, _ in model.named_modules() if path]
    if name.removesuffix(_INPUT) in paths:
        path = name.removesuffix(_INPUT)
        return Site(name, path, "output" if name == path else "input")
    match = _HOOK_NAME.fullmatch(name)
    if match is None or match[2] not in HOOKS:
        raise InputError(f"site {name!r}: no such hook or module; {_expected(paths, n_layers, name)}")
    index, hook = int(match[1]), match[2]
    if index >= n_layers:
        raise InputError(f"site {name!r}: block {index} is out of range; the blocks are 0..{n_layers - 1}")

    list_path, blocks = _block_list(model, n_layers, name)
    path, block = f"{list_path}.{index}", blocks[index]
    if hook == "hook_resid_pre":
        return Site(name, path, "input")
    if hook == "hook_resid_post":
        return Site(name, path, "output")
    if hook == "hook_resid_mid":
        parts = {part: resolve(model, n_layers, f"blocks.{index}.hook_{part}", read) for part in _SUM}
        return _resid_mid(name, path, block, {part: read(site) for part, site in parts.items()}, read)
    child = _component(block, hook)
    if child is None:
        children = ", ".join(f"{path}.{child}" for child, _ in block.named_children())
        raise InputError(f"site {name!r}: block {index} has no part known for it; give one of {children}")
    if hook in ("hook_attn_out", "hook_mlp_out"):
        return Site(name, f"{path}.{child}", "output", _multiplier(block, hook))
    return Site(name, f"{path}.{child}", "input")


def _resid_mid(name: str, path: str, block: nn.Module, x: dict[str, Tensor], read: Read) -> Site:
    """The input of the part of the block that reads pre + attn_out, where that plus mlp_out is post.

    It is looked for on a short text: no name tells what a norm called `post_attention_layernorm` reads.
    """
    mid = x["resid_pre"] + x["attn_out"]
    if _equal(mid + x["mlp_out"], x["resid_post"], x["mlp_out"]):
        for child, _ in block.named_children():
            site = Site(name, f"{path}.{child}", "input", around=path)
            try:
                there = read(site)
            except InputError:  # it reads something else than an activation, or takes no part
                continue
            if there.shape == mid.shape and _equal(there, mid, x["attn_out"]):
                return site
    raise InputError(
        f"site {name!r}: no part of {path} reads resid_pre + attn_out: its attention and MLP work in parallel, or are "
        "not all that it adds; choose resid_pre or resid_post"
    )


def _equal(a: Tensor, b: Tensor, summand: Tensor) -> bool:
    return bool((a - b).float().norm() <= _ROUNDING * summand.float().norm())


def _multiplier(block: nn.Module, hook: str) -> float:
    """Granite's residual_multiplier, and Falcon H1's for its attention."""
    names = (
        ("residual_multiplier", "attn_out_multiplier")
        if hook == "hook_attn_out"
        else ("residual_multiplier",)
    )
    for name in names:
        if isinstance(value := getattr(block, name, None), int | float):
            return float(value)
    return 1.0


def _expected(paths: list[str], n_layers: int, name: str) -> str:
    hooks = [f"blocks.{i}.{hook}" for i in range(n_layers) for hook in HOOKS]
    close = difflib.get_close_matches(name, hooks + paths, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    example = next((path for path in paths if path.endswith((*_MLPS, "fc2"))), paths[-1])
    return (
        f"{hint}expected blocks.I.H with I in 0..{n_layers - 1} and H one of {', '.join(HOOKS)}, "
        f"or a module path such as {example} (its output) or {example}{_INPUT}"
    )


def _block_list(model: nn.Module, n_layers: int, name: str) -> tuple[str, nn.ModuleList]:
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise InputError(f"site {name!r}: {type(model).__name__} has no list of blocks; give a module path")
    # The outermost: a mixture of experts may well have as many experts as layers.
    return min(lists, key=lambda found: found[0].count("."))


def _component(block: nn.Module, hook: str) -> str | None:
    """The module (a path within the block) at whose input or output a hook is, if one is known."""
    children = dict(block.named_children())
    closed = any(
        norm in children for norm in _MLP_NORMS
    )  # a norm behind the MLP, and so behind the attention
    if hook == "hook_mlp_out":
        found = _first(children, (*_MLP_NORMS, *_MLPS, "fc2"))
    elif hook == "hook_attn_out":
        # A plain `post_attention_layernorm` usually feeds the MLP. It closes the attention only in a block that
        # has a norm behind its MLP too.
        found = _first(children, (*_ATTENTION_NORMS, *_ATTENTIONS) if closed else _ATTENTIONS)
    elif hook in ("ln2.hook_normalized", "mlp.hook_in"):
        return _first(children, (*_MLPS, "fc1"))
    else:
        found = _first(children, _ATTENTIONS)
        if found is None or hook != "attn.hook_z":
            return found
        inner = dict(children[found].named_modules())
        projection = next((path for path in inner if path.split(".")[-1] in _PROJECTIONS), None)
        return projection and f"{found}.{projection}"
    if found is None or "residual" not in inspect.signature(children[found].forward).parameters:
        return found
    # BLOOM and MPT add the residual stream inside: what is added is the output of the last linear layer.
    linears = [path for path, module in children[found].named_modules() if isinstance(module, nn.Linear)]
    return f"{found}.{linears[-1]}" if linears else None


def _first(children: Container[str], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in children), None)
