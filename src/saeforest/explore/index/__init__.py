"""The index: measurements of every feature and edge, kept in RUN/index."""

from .index import About, ColumnAbout, Geometry, Index, Logits, fingerprint

__all__ = ["About", "ColumnAbout", "Geometry", "Index", "Logits", "fingerprint"]
