"""The training log of a run, for drawing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...output import printable
from ...run_folder import RunFolder
from ...structure.forest import Forest
from ...training.log import has_log, read_log, read_moves
from ..answers.whole import LayerSeries, TrainingAnswer
from ..errors import Unavailable
from ..labels.labels import Labels
from .allocation import allocation_history

_NOT_SERIES = {"step", "tokens", "l0", "dead", "seconds", "tokens_per_s", "peak_memory_mb", "event", "lr"}


def training_answer(run: RunFolder, name: str, forest: Forest, labels: Labels) -> TrainingAnswer:
    """`training`. Raises Unavailable if the run has no log, InputError if it is damaged."""
    folder = run.logs(name)
    if not has_log(folder):
        raise Unavailable(f"{run}: no training log; it is written by `saeforest train`")
    lines = read_log(folder)
    steps = [line for line in lines if "event" not in line]
    series: dict[str, list[float | None]] = {}
    for i, line in enumerate(steps):
        for key, value in _series_of(line):
            series.setdefault(key, [None] * len(steps))[i] = value
    return TrainingAnswer(
        steps=tuple(line["step"] for line in steps),
        series={key: tuple(values) for key, values in series.items()},
        layers=LayerSeries(
            dead_share=tuple(
                tuple(n / size for n, size in zip(_numbers(line, "dead"), forest.layer_sizes, strict=False))
                for line in steps
            ),
            l0=tuple(tuple(_numbers(line, "l0")) for line in steps),
        ),
        moves=tuple(_event(line) for line in lines if line.get("event") == "reallocation"),
        allocation=allocation_history(lines, read_moves(folder, forest.d_sae), forest, labels),
    )


def _series_of(line: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    for key, value in line.items():
        if key in _NOT_SERIES:
            continue
        if isinstance(value, list):
            for layer, part in enumerate(value):
                if part is None or _is_number(part):
                    yield printable(f"{key}, layer {layer}" if len(value) > 1 else key), part
        elif value is None or _is_number(value):
            yield printable(key), value


def _numbers(line: dict[str, Any], key: str) -> list[float]:
    value = line.get(key)
    return [float(x) for x in value if _is_number(x)] if isinstance(value, list) else []


def _event(line: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in line.items() if _is_number(v) or (isinstance(v, str) and k != "event")}
    return {printable(k): printable(v) if isinstance(v, str) else v for k, v in kept.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
