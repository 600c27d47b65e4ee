"""Exploring a forest: the index of a run, queries on it, and the view in the terminal."""

from .index import Index
from .measuring.build import build_index
from .measuring.run import index_run
from .opening import open_explorer
from .queries.cards import ContextCard, EdgeCard, FamilyCard, FeatureCard, OverviewCard, SearchResult
from .queries.explorer import Explorer
from .queries.families import ChosenFamilies, Family, telling_families
from .views.terminal import show_families, show_feature

__all__ = [
    "ChosenFamilies",
    "ContextCard",
    "EdgeCard",
    "Explorer",
    "Family",
    "FamilyCard",
    "FeatureCard",
    "Index",
    "OverviewCard",
    "SearchResult",
    "build_index",
    "index_run",
    "open_explorer",
    "show_families",
    "show_feature",
    "telling_families",
]
