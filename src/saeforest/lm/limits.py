"""Limits of a language model: the rows of its embedding, and the longest text it can read."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from saeforest.hf_types import PreTrainedConfig, PreTrainedModel

# Keys of configurations that give the maximum context.
_CONTEXT = (
    *(
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_seq_len",
        "max_seq_length",
        "max_sequence_length",
    ),
    *(
        "seq_length",
        "seq_len",
        "context_length",
        "max_context_length",
        "model_max_length",
        "max_target_positions",
    ),
)
_POSITIONS = re.compile(
    r"(^|[._])(wpe|embed_positions?|position_embeddings?|positions?_embed\w*|pos_emb\w*)$"
)
_NO_TEXT = re.compile(r"vis(ion|ual)|image|audio|speech|perceiver|projector")
# Kinds of rotary scaling in which max_position_embeddings is the length before scaling.
_STRETCHED = ("linear", "dynamic", "yarn", "deepseek_yarn")


def embedding_rows(model: PreTrainedModel) -> int:
    """The number of token ids that the model has an embedding for."""
    try:
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (NotImplementedError, AttributeError):
        rows = None
    return int(rows if rows is not None else model.config.get_text_config().vocab_size)


def longest_text(model: PreTrainedModel) -> int | None:
    """The longest text, in tokens, by the configuration and by learned positions; None if neither limits it."""
    config = model.config.get_text_config()
    stated = [value for name in _CONTEXT if (value := _length(config, name)) is not None]
    found = [_stretched(config, min(stated))] if stated else []
    found += [rows for name, module in model.named_modules() if (rows := _learned(name, module)) is not None]
    return min(found, default=None)


def _length(config: PreTrainedConfig, name: str) -> int | None:
    value = getattr(config, name, None)
    sound = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40
    return value if sound else None


def _stretched(config: PreTrainedConfig, length: int) -> int:
    """The length after the rotary scaling of `rope_scaling` or `rope_parameters`."""
    rope: Any = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    kinds = [rope] if isinstance(rope, dict) and not any(isinstance(v, dict) for v in rope.values()) else []
    for kind in kinds:
        factor, original = kind.get("factor"), kind.get("original_max_position_embeddings")
        if (kind.get("rope_type") or kind.get("type")) in _STRETCHED and isinstance(factor, int | float):
            length = max(length, int(factor * (original if isinstance(original, int) else length)))
    return length


def _learned(name: str, module: nn.Module) -> int | None:
    """The number of learned positions, without reserved rows (OPT and BioGPT reserve two); None for other modules."""
    if not isinstance(module, nn.Embedding) or not _POSITIONS.search(name) or _NO_TEXT.search(name):
        return None
    offset = getattr(module, "offset", 0)
    return module.num_embeddings - (offset if isinstance(offset, int) else 0)
