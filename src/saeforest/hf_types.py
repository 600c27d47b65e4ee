"""Types of transformers for annotations. Importing transformers takes seconds, so it is imported only where needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
else:  # at run time, where tests check annotations, any type is accepted
    PreTrainedConfig = PreTrainedModel = PreTrainedTokenizerBase = Any

__all__ = ["PreTrainedConfig", "PreTrainedModel", "PreTrainedTokenizerBase"]
