"""What a measure declares for the evaluation and the report: its needs, settings and columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from ..saes import SAE
from .columns import Column
from .measure import Measure
from .needs import Need
from .record import Record
from .subject import Subject

#: Whose settings to use: those we recommend (docs/spec), SAEBench 0.6.0's, or those of the Tree SAE's published code.
Reading = Literal["recommended", "saebench_0.6", "ref_tree_sae"]
READINGS: tuple[Reading, ...] = get_args(Reading)
#: Named sets of measures.
Set = Literal["fast", "paper", "saebench", "truth"]
SET_NAMES: tuple[Set, ...] = get_args(Set)
# The field that a measure's settings must have for a need.
_FIELD_OF: dict[Need, str] = {"judge": "judge", "labeled_texts": "texts"}


class Size(NamedTuple):
    """Sizes that decide how much memory a measure takes.

    d_sae, d_in: numbers of features and of activation coordinates.
    n_tokens:    number of measured tokens.
    n_firings:   number of firings of all features on them.
    n_probes:    upper limit for the number of features that get probes.
    """

    d_sae: int
    d_in: int
    n_tokens: int
    n_firings: int
    n_probes: int

    @property
    def decoder(self) -> int:
        """Bytes of the decoder's rows in float32."""
        return 4 * self.d_sae * self.d_in


@dataclass(frozen=True, kw_only=True)
class MeasureSpec:
    """What a measure declares. A measure is either `Streaming` or a `Study`.

    name:     name of the measure, of its file in this folder, its records and its settings.
    needs:    all the data that it is given besides the SAE. They also decide whether an older record still applies.
    sets:     the sets that it belongs to.
    config:   dataclass of its settings; None if it has none.
    readings: its settings in readings that differ from the recommended one.
    columns:  the columns that a report shows.
    memory:   bytes that it needs beyond the data it is given.
    transcoders: whether it applies to a transcoder too, whose decoder writes to another site than it reads.
    forest_free: given an SAE without a gate, those of `nulls` that are the same whatever its forest, so that a shuffled
              one is no control for them.
    nulls:    the values that say something about a hierarchy, which are therefore measured again on its nulls.
    of_nulls: its settings for the nulls, given its settings: without what takes time and is not among these values.
    detail_of_nulls: entries of a record's detail that it holds of its nulls too, as `detail["of_nulls"]`.
    files:    files and folders that its settings name and that it reads, besides those of its needs. A record is taken
              anew when they have changed.
    version:  increased when the meaning of the measure changes, so that older records are replaced.

    Raises TypeError if the declaration contradicts itself.
    """

    name: str
    needs: frozenset[Need]
    sets: tuple[Set, ...] = ()
    config: type[Any] | None = None
    readings: Mapping[Reading, Any] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()
    memory: Callable[[Size], int] = lambda _: 0
    transcoders: bool = True
    nulls: tuple[str, ...] = ()
    forest_free: Callable[[SAE], tuple[str, ...]] = lambda _: ()
    of_nulls: Callable[[Any], Any] = lambda config: config
    detail_of_nulls: tuple[str, ...] = ()
    files: Callable[[Any], tuple[Path, ...]] = lambda _: ()
    version: int = 1

    def __post_init__(self) -> None:
        known = [] if self.config is None else [f.name for f in fields(self.config)]
        for need in self.needs & _FIELD_OF.keys():
            if _FIELD_OF[need] not in known:
                raise TypeError(
                    f"measure {self.name}: needs '{need}', so its settings must have '{_FIELD_OF[need]}'"
                )


@dataclass(frozen=True, kw_only=True)
class Streaming(MeasureSpec):
    """A measure that sees the measured text batch by batch. `make(subject, config)` returns it."""

    make: Callable[[Subject, Any], Measure]

    def __post_init__(self) -> None:
        super().__post_init__()
        if "text" not in self.needs:
            raise TypeError(f"measure {self.name}: a Streaming measure must need 'text'")


@dataclass(frozen=True, kw_only=True)
class Study(MeasureSpec):
    """A measure that is computed in one go. `run(subject, config)` returns its record."""

    run: Callable[[Subject, Any], Record]

    def __post_init__(self) -> None:
        super().__post_init__()
        if "losses" in self.needs:
            raise TypeError(f"measure {self.name}: only a Streaming measure can need 'losses'")
