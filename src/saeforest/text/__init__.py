"""Text: where documents come from (`corpora`) and how they become windows of tokens (`tokens`)."""

from saeforest.text.corpora import documents, is_hub_source
from saeforest.text.document import Document
from saeforest.text.fields import Reading, chat_renderer
from saeforest.text.hub import hub_name, pinned
from saeforest.text.ids import adds_bos, bos_before, encode
from saeforest.text.tokens import Tokens, tokenize

__all__ = [
    "Document",
    "Reading",
    "Tokens",
    "adds_bos",
    "bos_before",
    "chat_renderer",
    "documents",
    "encode",
    "hub_name",
    "is_hub_source",
    "pinned",
    "tokenize",
]
