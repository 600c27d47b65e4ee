"""`saeforest compare`: a report on some runs, from what is on disk alone."""

from .write import compare

__all__ = ["compare"]
