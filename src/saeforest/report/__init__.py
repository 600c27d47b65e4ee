"""`saeforest compare`: a report that compares the SAEs of several runs, from their records on disk."""

from .write import compare

__all__ = ["compare"]
