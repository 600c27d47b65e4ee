"""Text: where documents come from (`corpora`) and how they become windows of tokens (`tokens`)."""

from saeforest.text.corpora import Document, documents
from saeforest.text.ids import adds_bos, bos_before, encode
from saeforest.text.tokens import Tokens, tokenize

__all__ = ["Document", "Tokens", "adds_bos", "bos_before", "documents", "encode", "tokenize"]
