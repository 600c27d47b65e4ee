"""The measures by name. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import UserError
from ..forest import Forest
from ..saes import SAE
from .cooccurrence import Cooccurrence
from .coverage import Coverage
from .cross_entropy import CrossEntropy
from .dead import Dead
from .hsae import HSAELinks
from .measure import Measure
from .reconstruction import Reconstruction
from .sparsity import Sparsity

#: name -> what makes the measure of an SAE and a forest of its features (its own, or one inferred for it)
MEASURES: dict[str, Callable[[SAE, Forest], Measure]] = {
    "reconstruction": Reconstruction,
    "cross_entropy": CrossEntropy,
    "sparsity": Sparsity,
    "dead": Dead,
    "coverage": Coverage,
    "cooccurrence": Cooccurrence,
    "hsae": HSAELinks,
}

SETS: dict[str, tuple[str, ...]] = {
    "fast": ("reconstruction", "cross_entropy", "sparsity", "dead", "coverage", "cooccurrence"),
}


def measure_names(text: str) -> list[str]:
    """The measures of "fast" or of "NAME,NAME", each once, in the order given. Raises UserError for others."""
    names: list[str] = []
    for word in map(str.strip, text.split(",")):
        if word not in SETS and word not in MEASURES:
            raise UserError(
                f"measure '{word}': no such measure; expected {', '.join(SETS)}, or any of {', '.join(MEASURES)}"
            )
        names += SETS.get(word, (word,))
    return list(dict.fromkeys(names))
