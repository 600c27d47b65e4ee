"""Sites: places in a language model, named by TransformerLens hook names or by the path of any module.

A model is read by its structure, not by the name of its architecture: the list of blocks is the outermost
`ModuleList` with as many entries as the model has layers, and a block's attention and MLP have one of a handful of
names. Block I = 0, 1, ... has these sites, all of shape `[batch, ctx, width]`:

    blocks.I.hook_resid_pre        the residual stream before the block
    blocks.I.ln1.hook_normalized   what the attention reads; also blocks.I.attn.hook_in
    blocks.I.attn.hook_z           what the attention's output projection reads: the heads concatenated
                                   (TransformerLens: [batch, ctx, heads, d_head])
    blocks.I.hook_attn_out         what the attention adds to the residual stream
    blocks.I.hook_resid_mid        the residual stream between attention and MLP; blocks that run the two in parallel
                                   (GPT-NeoX, GPT-J, Falcon, Phi, Cohere) have none
    blocks.I.ln2.hook_normalized   what the MLP reads; also blocks.I.mlp.hook_in
    blocks.I.hook_mlp_out          what the MLP adds to the residual stream
    blocks.I.hook_resid_post       the residual stream after the block

The two `hook_normalized` are activations exactly as attention and MLP receive them: the normalized residual stream
times the norm's weight (or, in blocks without such a norm, the residual stream itself). TransformerLens reads an RMS
norm before its weight, unless the weight was folded into the next layers. Its `hook_mlp_in` and `hook_attn_in` are the
residual stream before the norm; these names are not available here.

Any other module is named by its path: `model.layers.3.mlp.up_proj` for its output, `model.layers.3.mlp.up_proj:input`
for its first input.
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
# In order of preference. Norms come first: if a block has a norm after its attention or MLP (Gemma 2 and 3, OLMo 2,
# GLM 4), the norm's output is what is added to the residual stream.
_MLP_NORMS = ("post_mlp_layernorm", "post_feedforward_layernorm")
_ATTENTION_NORMS = ("post_self_attn_layernorm", "post_attention_layernorm")
_MLPS = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
_ATTENTIONS = ("self_attn", "attn", "attention", "self_attention", "linear_attn")
_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "output")
# Tolerance for two computations of the same sum, relative to a summand. They nearly always agree to the last bit.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Site:
    """A place in a language model whose activation is read or replaced.

    name: as the user gave it.
    module_path: the module that is hooked.
    kind: whether the activation is that module's first input or its (first) output, times `scale`.
    """

    name: str
    module_path: str
    kind: Literal["input", "output"]
    scale: float = 1.0
    """Factor by which the block multiplies the output before adding it to the residual stream."""
    around: str | None = None
    """The module, if any, whose skip connection adds the same activation to its output; a replacement is then added
    there too."""

    @property
    def place(self) -> str:
        """The module's path as transformers names it, with `:input` behind it where its input is meant: the site's
        name without TransformerLens."""
        return f"{self.module_path}{_INPUT if self.kind == 'input' else ''}"


Read = Callable[[Site], Tensor]
"""A function that returns the activation at a site on a short text. Raises InputError if there is none."""


def resolve(model: nn.Module, n_layers: int, name: str, read: Read) -> Site:
    """The site called `name`. `read` is used to find `hook_resid_mid`.

    Raises InputError, listing valid names, if there is no such site.
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

    list_path, blocks = block_list(model, n_layers, name)
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
        raise InputError(
            f"site {name!r}: block {index} has no module known for this hook; give one of {children}"
        )
    if hook in ("hook_attn_out", "hook_mlp_out"):
        return Site(name, f"{path}.{child}", "output", _multiplier(block, hook))
    return Site(name, f"{path}.{child}", "input")


def _resid_mid(name: str, path: str, block: nn.Module, x: dict[str, Tensor], read: Read) -> Site:
    """The input of the module in the block that reads pre + attn_out, if that plus mlp_out is post.

    It is found by running a short text, since names are ambiguous: `post_attention_layernorm` may come before the MLP
    or after the attention.
    """
    mid = x["resid_pre"] + x["attn_out"]
    if _equal(mid + x["mlp_out"], x["resid_post"], x["mlp_out"]):
        for child, _ in block.named_children():
            site = Site(name, f"{path}.{child}", "input", around=path)
            try:
                there = read(site)
            except InputError:  # its input is not an activation, or it is not used
                continue
            if there.shape == mid.shape and _equal(there, mid, x["attn_out"]):
                return site
    raise InputError(
        f"site {name!r}: no module of {path} reads resid_pre + attn_out: its attention and MLP run in parallel, or it "
        "adds something else too; choose resid_pre or resid_post"
    )


def _equal(a: Tensor, b: Tensor, summand: Tensor) -> bool:
    return bool((a - b).float().norm() <= _ROUNDING * summand.float().norm())


def _multiplier(block: nn.Module, hook: str) -> float:
    """The factor of the block's output: Granite's residual_multiplier or Falcon H1's attn_out_multiplier; else 1."""
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


def block_list(model: nn.Module, n_layers: int, name: str) -> tuple[str, nn.ModuleList]:
    """The path of the list of the model's blocks, and the list. Raises InputError if there is none."""
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise InputError(f"site {name!r}: {type(model).__name__} has no list of blocks; give a module path")
    # Take the outermost, since a mixture of experts may have as many experts as layers.
    return min(lists, key=lambda found: found[0].count("."))


def _component(block: nn.Module, hook: str) -> str | None:
    """The path, within the block, of the module at whose input or output the hook is; None if unknown."""
    children = dict(block.named_children())
    # Whether there is a norm after the MLP, and hence one after the attention.
    closed = any(norm in children for norm in _MLP_NORMS)
    if hook == "hook_mlp_out":
        found = _first(children, (*_MLP_NORMS, *_MLPS, "fc2"))
    elif hook == "hook_attn_out":
        # A `post_attention_layernorm` usually comes before the MLP. It belongs to the attention only in a block that
        # also has a norm after its MLP.
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
    # BLOOM and MPT add the residual stream inside this module: what it adds is the output of its last linear layer.
    linears = [path for path, module in children[found].named_modules() if isinstance(module, nn.Linear)]
    return f"{found}.{linears[-1]}" if linears else None


def _first(children: Container[str], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in children), None)
