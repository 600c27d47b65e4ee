"""The registry of measures. A new measure is a file in `measures` that ends with its `SPEC`, and a line here."""

from __future__ import annotations

from importlib import import_module

from ..errors import InputError
from ..measures.spec import SET_NAMES, Streaming, Study

# In the order in which a report shows them.
_FILES = (
    "reconstruction",
    "cross_entropy",
    "sparsity",
    "dead",
    "dead_training",
    "coverage",
    "hierarchy",
    "reconstruction_score",
    "geometry",
    "absorption",
    "composition",
    "cooccurrence",
    "mcs",
    "edges",
    "graph",
    "autointerp",
    "relatedness",
    "steering",
    "attribution",
    "pair_judge",
    "sparse_probing",
    "tpp",
    "scr",
    "ravel",
    "unlearning",
    "hsae",
)

MEASURES: dict[str, Streaming | Study] = {
    spec.name: spec for file in _FILES for spec in [import_module(f"..measures.{file}", __package__).SPEC]
}
SETS: dict[str, tuple[str, ...]] = {
    name: tuple(measure for measure, spec in MEASURES.items() if name in spec.sets) for name in SET_NAMES
}


def measure_names(text: str) -> list[str]:
    """The measures named by text like "fast" or "NAME,NAME", each once, in that order. Raises InputError if unknown."""
    names: list[str] = []
    for word in map(str.strip, text.split(",")):
        if word not in SETS and word not in MEASURES:
            owner = next((m for m, s in MEASURES.items() if word in [c.value for c in s.columns]), None)
            hint = "" if owner is None else f"; {word} is a value of {owner}"
            raise InputError(
                f"measure '{word}': no such measure{hint}; expected {', '.join(SETS)}, or any of {', '.join(MEASURES)}"
            )
        names += SETS.get(word, (word,))
    return list(dict.fromkeys(names))
