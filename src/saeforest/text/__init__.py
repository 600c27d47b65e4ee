"""Text: where documents come from (`corpora`) and how they become windows of tokens (`tokens`)."""

from saeforest.text.corpora import Document, documents
from saeforest.text.tokens import Tokens, tokenize

__all__ = ["Document", "Tokens", "documents", "tokenize"]
