"""The layouts of SAEs that are written for other tools: one line each.

To add one, write `interop/NAME.py` with a function from an SAE to a folder, and add its line to `WRITERS` and its name
to the formats of `saeforest export`. Formats that need a run's text (delphi, Neuronpedia) have functions of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from ..saes import SAE
from .exports import Exported
from .saebench import write_saebench
from .saelens_flat import write_saelens
from .sparsify import write_sparsify
from .tree_sae import write_tree_sae


@runtime_checkable
class Writer(Protocol):
    """Writes an SAE to a folder, new or empty; with `force`, over an earlier export.

    Raises InputError for an SAE that has no counterpart in the layout.
    """

    def __call__(self, sae: SAE, out: Path, *, force: bool = False) -> Exported: ...


WRITERS: Mapping[str, Writer] = {
    "saebench": write_saebench,
    "saelens": write_saelens,
    "sparsify": write_sparsify,
    "tree-sae": write_tree_sae,
}
