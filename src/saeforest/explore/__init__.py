"""Looking at a forest: the index of a run, what can be asked of it, and the view in the terminal."""

from .build import build_index
from .cards import ContextCard, EdgeCard, FamilyCard, FeatureCard, OverviewCard, SearchResult
from .families import Families, Family, telling_families
from .index import Index
from .queries import Explorer
from .run import index_run
from .show import show_families, show_feature

__all__ = [
    "ContextCard",
    "EdgeCard",
    "Explorer",
    "Families",
    "Family",
    "FamilyCard",
    "FeatureCard",
    "Index",
    "OverviewCard",
    "SearchResult",
    "build_index",
    "index_run",
    "show_families",
    "show_feature",
    "telling_families",
]
