"""The layouts of SAEs that are read: one line each, in the order in which a folder is tried.

To add one, write `interop/NAME.py` with a function from a folder to an SAE, and add its line to `READERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..saes import SAE, load_sae
from ..saes.files import CFG, SAE_FOLDER, WEIGHTS
from . import dictionary_learning, gemma_scope, sparsify, tree_sae
from .saelens_folder import SCALER, is_saelens, load_saelens


class Reader(NamedTuple):
    """A layout that is read.

    files: those of one SAE; of several sets of files, each is enough.
    is_in: whether a folder, whose files have these names, has this layout, be it damaged.
    """

    who: str
    files: tuple[tuple[str, ...], ...]
    is_in: Callable[[Path, set[str]], bool]
    load: Callable[[Path], SAE]


def _any(*names: str) -> Callable[[Path, set[str]], bool]:
    return lambda folder, found: not found.isdisjoint(names)


SAELENS = "SAELens"
READERS = (
    Reader(
        "sparsify",
        ((CFG, sparsify.WEIGHTS),),
        lambda folder, found: {CFG, sparsify.WEIGHTS} <= found and WEIGHTS not in found,
        sparsify.load_sparsify,
    ),
    Reader(SAELENS, ((CFG, WEIGHTS),), lambda folder, found: is_saelens(folder), load_saelens),
    Reader("saeforest", ((CFG, WEIGHTS),), _any(CFG, SAE_FOLDER), load_sae),
    Reader(
        "dictionary_learning",
        ((dictionary_learning.WEIGHTS, dictionary_learning.CONFIG),),
        _any(dictionary_learning.WEIGHTS),
        dictionary_learning.load_dictionary_learning,
    ),
    Reader(
        "Gemma Scope",
        ((gemma_scope.NPZ,), (gemma_scope.SAFETENSORS,)),
        _any(gemma_scope.NPZ, gemma_scope.SAFETENSORS),
        gemma_scope.load_gemma_scope,
    ),
    Reader(
        "the Tree SAE's authors",
        ((tree_sae.CONFIG, tree_sae.WEIGHTS),),
        _any(tree_sae.CONFIG, tree_sae.WEIGHTS),
        tree_sae.load_tree_sae,
    ),
)
#: The files of an SAE, for each of the layouts.
LAYOUTS = tuple(dict.fromkeys(files for reader in READERS for files in reader.files))
#: Read where they are there.
OPTIONAL = (SCALER, tree_sae.CONFIG)


def reader_of(folder: Path) -> Reader | None:
    """The reader for what is in a folder; None if it holds no SAE. Raises InputError where that cannot be told."""
    found = {path.name for path in folder.iterdir()}
    return next((reader for reader in READERS if reader.is_in(folder, found)), None)


def below(folder: Path) -> set[str]:
    """The folders in `folder` that hold an SAE."""
    telling = {WEIGHTS, CFG, *(files[-1] for files in LAYOUTS if len(files) == 1)}
    telling |= {tree_sae.WEIGHTS, dictionary_learning.WEIGHTS}
    return {path.parent.name for file in telling for path in folder.glob(f"*/{file}")}


def expected() -> str:
    """What a folder should hold, in words."""
    known: dict[str, list[str]] = {}
    for reader in READERS:
        files = " or ".join(" and ".join(files) for files in reader.files)
        known.setdefault(files, []).append(reader.who)
    return "expected a run, or " + ", or ".join(
        f"{files} ({' or '.join(who)})" for files, who in known.items()
    )
