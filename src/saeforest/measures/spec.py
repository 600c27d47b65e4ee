"""How a measure introduces itself to the frame and to the report: its needs, settings, columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_args

from .columns import Column
from .measure import Measure
from .needs import Need
from .record import Record
from .subject import Subject

#: Whose way to measure: the specification's recommendation, SAEBench 0.6.0's, or that of the Tree SAE's published code.
Reading = Literal["recommended", "saebench_0.6", "ref_tree_sae"]
READINGS: tuple[Reading, ...] = get_args(Reading)
#: Measures that are taken together.
Set = Literal["fast", "paper", "saebench"]
SET_NAMES: tuple[Set, ...] = get_args(Set)
# What a measure's settings must have for some of its needs.
_FIELD_OF: dict[Need, str] = {"judge": "judge", "labeled_texts": "texts"}


class Size(NamedTuple):
    """What a measure of an SAE looks at: its memory depends on these.

    n_probes: the features whose directions are asked for, at most.
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
    """What a measure declares. Its kind says how it is taken: `Streaming` or `Study`.

    name:     of the measure, its file here, its records and its settings.
    needs:    all that it is given beside the SAE, and what decides whether a record answers the same question.
    sets:     the sets that it belongs to.
    config:   the dataclass of its settings; None: it has none.
    readings: its settings in readings that differ from the recommended one.
    columns:  what a report shows of it.
    memory:   bytes that it takes beyond what it is given.
    transcoders: whether it means the same of a transcoder, whose decoder writes at another site than it reads.
    version:  raised when the measure comes to mean something else, so that older records are taken anew.

    Raises TypeError where the declaration contradicts itself.
    """

    name: str
    needs: frozenset[Need]
    sets: tuple[Set, ...] = ()
    config: type[Any] | None = None
    readings: Mapping[Reading, Any] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()
    memory: Callable[[Size], int] = lambda _: 0
    transcoders: bool = True
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
    """A measure that is fed the measured text batch by batch: `make(subject, config)`."""

    make: Callable[[Subject, Any], Measure]

    def __post_init__(self) -> None:
        super().__post_init__()
        if "text" not in self.needs:
            raise TypeError(f"measure {self.name}: fed batch by batch, so it needs 'text'")


@dataclass(frozen=True, kw_only=True)
class Study(MeasureSpec):
    """A measure of an SAE as a whole: `run(subject, config)`."""

    run: Callable[[Subject, Any], Record]

    def __post_init__(self) -> None:
        super().__post_init__()
        if "losses" in self.needs:
            raise TypeError(f"measure {self.name}: 'losses' come with batches, to a Streaming measure")
