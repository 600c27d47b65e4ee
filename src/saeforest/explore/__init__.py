"""Exploring a forest: the index of a run, queries on it, and the view in the terminal."""

from .build import build_index
from .cards import ContextCard, EdgeCard, FamilyCard, FeatureCard, OverviewCard, SearchResult
from .families import ChosenFamilies, Family, telling_families
from .index import Index
from .opening import open_explorer
from .queries import Explorer
from .run import index_run
from .show import show_families, show_feature

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
