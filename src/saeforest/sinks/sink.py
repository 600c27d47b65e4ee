"""What a sink is, and how a line of the training log becomes numbers with names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

#: The project, experiment or the like that runs go to, unless the tool's own environment names another.
PROJECT = "saeforest"
# Lists by layer whose sum means something, too.
_SUMMED = ("l0", "dead")
_NOT_NUMBERS = ("event", "step", "layer")


@dataclass(frozen=True)
class Start:
    """What a sink is opened with.

    name:   of the run for a reader: RUN, or RUN/NAME for one of several SAEs. group: RUN, for all SAEs of a run.
    id:     of the remote run that an earlier process of this training opened; None for a new one.
    fresh:  an id for a new run that no other run has, for tools that let us choose it.
    config: the configuration of the SAE as plain values.
    folder: RUN/sinks, where a sink may keep files in a folder of its own. sae: NAME of one of several SAEs, or empty.
    """

    name: str
    group: str
    id: str | None
    fresh: str
    config: dict[str, Any]
    folder: Path
    sae: str


@runtime_checkable
class Sink(Protocol):
    """A run of a tool, for one SAE. Any of its methods may raise any Exception, or take long: a `Feed` sees to that."""

    id: str
    """The id by which the same run is opened again."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add numbers to a step."""
        ...

    def close(self, finished: bool) -> None:
        """Send what waits, and end the run: as finished, or as one that may go on."""
        ...


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """The numbers in a line of log.jsonl, by name: `loss`, `l0/layer_0`, `l0/total`, `seconds/lm`, and of an event
    `reallocation/layer_1/moved`."""
    event = line.get("event")
    prefix = "" if event is None else f"{event}/"
    if "layer" in line:
        prefix += f"layer_{line['layer']}/"
    return {prefix + name: value for name, value in _numbers(line)}


def _numbers(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        if key in _NOT_NUMBERS:
            continue
        match value:
            case bool() | str() | None:
                continue
            case int() | float():
                yield key, float(value)
            case list():
                by_layer = [
                    (f"{key}/layer_{i}", x) for i, x in enumerate(value) if isinstance(x, int | float)
                ]
                yield from ((name, float(x)) for name, x in by_layer)
                if key in _SUMMED and by_layer:
                    yield f"{key}/total", float(sum(x for _, x in by_layer))
            case dict():
                yield from ((f"{key}/{name}", x) for name, x in _numbers(value))
