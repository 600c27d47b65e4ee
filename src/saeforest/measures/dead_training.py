"""Dead features over training (Tree SAE paper, App. G and Figure 14), from the training log.

    rate_l(t) = dead features of layer l at step t / features of layer l

A feature is dead once it has been silent for the number of steps set in the run's configuration. `reallocations` lists
the steps at which dead children of a Tree SAE moved to other parents. `almost_zero_from` is the paper's "almost zero
from 40k steps", in tokens: the training tokens after which no layer's rate exceeds `almost_zero`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..files import parse_json, read_bytes
from ..schema import Count, Schema, checked
from ..training.log import LOG, check_log
from .record import Record
from .spec import Study
from .subject import Subject

# Events of the log in which children move to other parents.
_MOVES = ("reallocation", "root_reset", "parents")


@dataclass(frozen=True)
class DeadTrainingConfig:
    """How dead features are read from the training log."""

    almost_zero: float = 0.01
    """Largest fraction of dead features at which a layer counts as having almost none."""

    def __post_init__(self) -> None:
        if not 0 <= self.almost_zero < 1:
            raise InputError(
                f"dead_training.almost_zero = {self.almost_zero}: expected a fraction, at least 0 and below 1"
            )


class _Logged(Schema):
    """The fields that are read from a logged step."""

    step: Count
    tokens: Count
    dead: list[Count]


class DeadRates(NamedTuple):
    """Dead features in a log, with one entry for each logged step, ascending.

    rate: for each layer, the fraction of its features that were dead.
    all:  the fraction of all features that were dead.
    reallocations: steps at which children moved to other parents.
    """

    steps: list[int]
    tokens: list[int]
    rate: list[list[float]]
    all: list[float]
    reallocations: list[int]


def read_dead_rates(folder: Path, layer_sizes: Sequence[int]) -> DeadRates:
    """Read the log.jsonl in a folder. Raises InputError if it is missing, damaged, or another SAE's."""
    path = folder / LOG
    found = DeadRates([], [], [[] for _ in layer_sizes], [], [])
    moves: set[int] = set()
    check_log(path)
    for number, text in enumerate(read_bytes(path).splitlines(), 1):
        line = _parse(path, number, text)
        if "event" in line:
            if line["event"] in _MOVES and line.get("moved"):
                moves.add(line["step"])
            continue
        logged = checked(_Logged, line, f"{path}, line {number}", "the file is damaged")
        step, tokens, dead = logged.step, logged.tokens, logged.dead
        if len(dead) != len(layer_sizes) or not all(
            0 <= n <= size for n, size in zip(dead, layer_sizes, strict=True)
        ):
            raise InputError(
                f"{path}, line {number}: dead features {dead}, but the layers have {list(layer_sizes)}; "
                "the log belongs to another SAE"
            )
        found.steps.append(step)
        found.tokens.append(tokens)
        found.all.append(sum(dead) / sum(layer_sizes))
        for rates, n, size in zip(found.rate, dead, layer_sizes, strict=True):
            rates.append(n / size)
    return found._replace(reallocations=sorted(moves))


def _parse(path: Path, number: int, text: bytes) -> dict[str, Any]:
    line = parse_json(text, f"{path}, line {number}")
    if not isinstance(line, dict) or ("event" in line and type(line.get("step")) is not int):
        raise InputError(f"{path}, line {number}: not a line that training wrote; the file is damaged")
    return line


def dead_training(subject: Subject, config: DeadTrainingConfig) -> Record:
    """The record "dead_training"; all values are undefined for an SAE without a log.

    Raises InputError if the log is damaged or another SAE's.
    """
    sizes = subject.sae.forest.layer_sizes
    why = "the SAE was loaded without the log of its training"
    found = DeadRates([], [], [[] for _ in sizes], [], [])
    if subject.log is not None and (subject.log / LOG).is_file():
        found = read_dead_rates(subject.log, sizes)
        why = "training logged no step"
    value: dict[str, float | None] = {
        "end": found.all[-1] if found.all else None,
        "peak": max(found.all, default=None),
        "almost_zero_from": _almost_zero_from(found, config.almost_zero),
    }
    for layer, rates in enumerate(found.rate):
        value[f"end_layer_{layer}"] = rates[-1] if rates else None
        value[f"peak_layer_{layer}"] = max(rates, default=None)
    null = {name: why for name, found_value in value.items() if found_value is None}
    if found.steps and "almost_zero_from" in null:
        null["almost_zero_from"] = (
            f"a layer ends with more than {config.almost_zero:.2%} of its features dead"
        )
    return Record(
        "dead_training",
        value,
        dict.fromkeys(value),
        unit="fraction",
        tokens=found.tokens[-1] if found.tokens else 0,
        settings={
            **subject.settings,
            "config": asdict(config),
            "interval_method": "none: counts over all features, as training logged them",
            "tokens": "of training; a token counts anew in every epoch",
        },
        detail={
            "null": null,
            "units": {"almost_zero_from": "tokens of training"},
            "steps": found.steps,
            "tokens": found.tokens,
            "rate": found.rate,
            "rate_all": found.all,
            "reallocations": found.reallocations,
        },
    )


def _almost_zero_from(found: DeadRates, limit: float) -> int | None:
    """Tokens at the first logged step from which no layer's rate exceeds the limit; None if there is none."""
    settled = None
    worst = [max(rates) for rates in zip(*found.rate, strict=True)]
    for tokens, rate in zip(reversed(found.tokens), reversed(worst), strict=True):
        if rate > limit:
            break
        settled = tokens
    return settled


SPEC = Study(
    name="dead_training",
    needs=frozenset({"training_log"}),
    sets=("paper",),
    config=DeadTrainingConfig,
    run=dead_training,
)
