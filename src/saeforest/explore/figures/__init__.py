"""Figures of one parent, for papers and talks: its concept tree, and the geometry of its children."""

from .draw import KINDS, SUFFIXES, draw

__all__ = ["KINDS", "SUFFIXES", "draw"]
