"""SAEs that other tools wrote, or are to read."""

from __future__ import annotations

from pathlib import Path

from ..saes import SAE, load_sae
from .saelens import for_saelens
from .tree_sae import is_released, load_released

__all__ = ["for_saelens", "is_released", "load", "load_released"]


def load(source: str | Path) -> SAE:
    """The SAE in a folder that this library wrote (a run, or its `sae`), or one that the Tree SAE's authors released:
    see `load_released`.

    Raises InputError where there is none, or where a file, a key, a tensor or a shape is missing or wrong.
    """
    return load_released(source) if is_released(source) else load_sae(source)
