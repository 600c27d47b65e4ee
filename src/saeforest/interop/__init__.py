"""SAEs that other tools wrote, or are to read."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loading import load, load_folder
    from .saelens_flat import for_saelens

__all__ = ["for_saelens", "load", "load_folder"]

# Imported when asked for: the command line needs a format's options alone, and quickly.
_MODULES = {"for_saelens": ".saelens_flat", "load": ".loading", "load_folder": ".loading"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'saeforest.interop' has no attribute '{name}'")
    found = globals()[name] = getattr(import_module(_MODULES[name], __name__), name)
    return found
