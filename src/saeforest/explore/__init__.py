"""Looking at a forest: the index of a run, its most telling families, and the view in the terminal."""

from .build import build_index
from .families import Families, Family, telling_families
from .index import Index
from .run import index_run
from .show import show_families, show_feature

__all__ = [
    "Families",
    "Family",
    "Index",
    "build_index",
    "index_run",
    "show_families",
    "show_feature",
    "telling_families",
]
