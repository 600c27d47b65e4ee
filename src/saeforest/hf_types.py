"""Types of transformers for signatures. Importing transformers takes seconds, so it is imported where it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
else:  # at run time, where tests check types, anything will do
    PreTrainedConfig = PreTrainedModel = PreTrainedTokenizerBase = Any

__all__ = ["PreTrainedConfig", "PreTrainedModel", "PreTrainedTokenizerBase"]
