"""SAEs that other tools wrote, or are to read."""

from .loading import load, load_folder
from .saelens import for_saelens

__all__ = ["for_saelens", "load", "load_folder"]
