"""The measures by name. A new one is one file and one line here; with settings, a line in `options` too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import UserError
from ..measures.absorption import absorption
from ..measures.autointerp import autointerp
from ..measures.composition import composition
from ..measures.cooccurrence import Cooccurrence
from ..measures.coverage import Coverage
from ..measures.cross_entropy import CrossEntropy
from ..measures.dead import Dead
from ..measures.dead_training import dead_training
from ..measures.geometry import geometry
from ..measures.hierarchy import hierarchy
from ..measures.hsae import HSAELinks
from ..measures.mcs import mcs
from ..measures.measure import Measure
from ..measures.pair_judge import pair_judge
from ..measures.reconstruction import Reconstruction
from ..measures.reconstruction_score import reconstruction_score
from ..measures.record import Record
from ..measures.sparse_probing import sparse_probing
from ..measures.sparsity import Sparsity
from ..measures.tpp import tpp
from ..saes import SAE
from ..structure.forest import Forest


class Streaming(NamedTuple):
    """A measure that is fed batch by batch: `make(sae, forest)`."""

    make: Callable[[SAE, Forest], Measure]
    forest: bool = False
    """Whether it measures the forest."""


class Study(NamedTuple):
    """A measure of an SAE as a whole: `function(subject, config)`."""

    function: Callable[[Any, Any], Record]
    sees: bool = False
    """Whether it is given a `Seen`: a subject with all that a pass over the measured text has shown."""
    forest: bool = False
    probes: bool = False
    """Whether it takes directions from the probes."""


MEASURES: dict[str, Streaming | Study] = {
    "reconstruction": Streaming(Reconstruction),
    "cross_entropy": Streaming(CrossEntropy),
    "sparsity": Streaming(Sparsity),
    "dead": Streaming(Dead),
    "dead_training": Study(dead_training),
    "composition": Study(composition, sees=True),
    "coverage": Streaming(Coverage, forest=True),
    "cooccurrence": Streaming(Cooccurrence, forest=True),
    "hsae": Streaming(HSAELinks, forest=True),
    "mcs": Study(mcs, sees=True, forest=True),
    "hierarchy": Study(hierarchy, sees=True, forest=True, probes=True),
    "reconstruction_score": Study(reconstruction_score, sees=True, forest=True, probes=True),
    "geometry": Study(geometry, sees=True, forest=True),
    "absorption": Study(absorption),
    "sparse_probing": Study(sparse_probing),
    "tpp": Study(tpp),
    "autointerp": Study(autointerp, sees=True, forest=True),
    "pair_judge": Study(pair_judge, sees=True, forest=True),
}

_FAST = ("reconstruction", "cross_entropy", "sparsity", "dead", "coverage", "cooccurrence")
SETS: dict[str, tuple[str, ...]] = {
    "fast": _FAST,
    "paper": (
        *(*_FAST, "dead_training", "composition", "hsae", "mcs", "hierarchy", "reconstruction_score"),
        *("geometry", "absorption", "autointerp", "pair_judge"),
    ),
    "saebench": (
        *("reconstruction", "cross_entropy", "sparsity", "composition"),
        *("absorption", "sparse_probing", "tpp", "autointerp"),
    ),
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
