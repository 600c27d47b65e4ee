"""A language model of Llama's architecture, from a local folder, as the HookedTransformer that SAEBench asks for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

_TOLERANCE = 1e-4


def load(folder: Path, name: str, n_layers: int | None = None) -> HookedTransformer:
    """The model without processing of its weights, in float32; where `n_layers` is given, its first blocks only, with a
    single number in place of logits.

    Raises RuntimeError unless the residual stream behind its last block, and the logits of a whole model, are those
    of transformers to a relative 1e-4.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    of = theirs.config
    d_vocab_out = 1 if n_layers else of.vocab_size
    n_layers = n_layers or of.num_hidden_layers
    config = HookedTransformerConfig(
        model_name=name,
        original_architecture="LlamaForCausalLM",
        d_model=of.hidden_size,
        d_head=of.head_dim,
        n_heads=of.num_attention_heads,
        n_key_value_heads=of.num_key_value_heads,
        d_mlp=of.intermediate_size,
        n_layers=n_layers,
        n_ctx=1024,
        d_vocab=of.vocab_size,
        d_vocab_out=d_vocab_out,
        eps=of.rms_norm_eps,
        act_fn=of.hidden_act,
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=of.head_dim,
        rotary_base=int(of.rope_parameters["rope_theta"]),
        default_prepend_bos=True,
        dtype=torch.float32,
        device="cpu",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # SAEBench 0.6 knows no successor of this class
        model = HookedTransformer(config, tokenizer=tokenizer)
    weights = convert_llama_weights(theirs, config)
    for name in ("unembed.W_U", "unembed.b_U"):
        weights[name] = weights[name][..., :d_vocab_out]
    model.load_state_dict(weights, strict=False)
    model.eval().requires_grad_(False)
    _check(model, theirs)
    return model


@torch.no_grad()
def _check(model: HookedTransformer, theirs: Any) -> None:
    last, whole = model.cfg.n_layers - 1, model.cfg.d_vocab_out == model.cfg.d_vocab
    ids = torch.randint(100, model.cfg.d_vocab, (2, 32), generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    block = theirs.model.layers[last]
    handle = block.register_forward_hook(
        lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    logits = theirs(input_ids=ids, use_cache=False).logits
    handle.remove()
    hook = f"blocks.{last}.hook_resid_post"
    mine, cache = model.run_with_cache(ids, prepend_bos=False, names_filter=[hook])
    errors = {"residual stream": _distance(cache[hook], seen[0])}
    if whole:
        errors["logits"] = _distance(mine, logits)
    print(", ".join(f"{name} of block {last} differ by {e:.1e}" for name, e in errors.items()), flush=True)
    if max(errors.values()) > _TOLERANCE:
        raise RuntimeError(f"the HookedTransformer is not the model of transformers: {errors}")


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of a token's vectors, as a share of its norm."""
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max())
