"""How the forest came about: which features hung from which parents in the course of training, from the run's logs.

log.jsonl says when parents were chosen anew, allocations.jsonl which features moved. From the parents at the end and
the moves, those at every earlier time follow. An HSAE's log has no single moves, only what `hierarchy` events count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from ...structure.forest import ROOT, Forest
from ...training.log import Moves
from ..answers.whole import AllocationHistory, LayerHistory, ParentHistory
from ..labels.labels import Labels

#: Events of the log after which features have other parents.
KINDS = ("reallocation", "root_reset", "parents", "hierarchy", "promoted")
_PARENTS = 24
Parents = Int64[np.ndarray, "d_sae"]
Line = Mapping[str, Any]


class _Log(NamedTuple):
    """What the logs say. steps: after which parents were chosen anew. events: by step and layer, in order.
    start: the parents at the start; None if the single moves are not known."""

    steps: list[int]
    events: dict[tuple[int, int | None], list[Line]]
    moves: Sequence[Moves]
    start: Parents | None


def allocation_history(
    lines: Sequence[Line], moves: Sequence[Moves], forest: Forest, labels: Labels
) -> AllocationHistory | None:
    """The history of a forest; None if the log has no event that chooses parents.

    lines: of log.jsonl. moves: of allocations.jsonl. forest: as it is at the end of training.
    """
    events: dict[tuple[int, int | None], list[Line]] = {}
    kinds: dict[int, dict[str, None]] = {}
    counted, moved = Counter[int](), Counter[int]()
    for line in lines:
        if line.get("event") in KINDS:
            step = line["step"]
            events.setdefault((step, line.get("layer")), []).append(line)
            kinds.setdefault(step, {})[line["event"]] = None
            counted[step] += _number(line, "moved") or 0
    for line in moves:
        moved[line.step] += len(line.moves)
    if not events:
        return None
    start = before(moves, forest.parent.numpy()) if counted == moved else None
    log = _Log(sorted(kinds), events, moves, start)
    return AllocationHistory(
        steps=(0, *log.steps),
        kinds=("start", *(" + ".join(kinds[step]) for step in log.steps)),
        layers=tuple(_layer(log, layer, forest) for layer in range(1, len(forest.layer_sizes))),
        parents=_parents(log, labels),
    )


def before(moves: Sequence[Moves], final: Parents) -> Parents | None:
    """The parents at the start, from those at the end; None if the moves do not lead there."""
    parent = final.astype(np.int64, copy=True)
    for line in reversed(moves):
        for feature, old, new in reversed(line.moves):
            if parent[feature] != new:
                return None
            parent[feature] = old
    return parent


def states(steps: Sequence[int], moves: Sequence[Moves], start: Parents) -> Iterator[Parents]:
    """The parents at the start and after each step. Each array is valid until the next one."""
    parent = start.copy()
    yield parent
    done = 0
    for step in steps:
        while done < len(moves) and moves[done].step <= step:
            for feature, _, new in moves[done].moves:
                parent[feature] = new
            done += 1
        yield parent


def _layer(log: _Log, layer: int, forest: Forest) -> LayerHistory:
    first = sum(forest.layer_sizes[:layer])
    own = range(first, first + forest.layer_sizes[layer])
    if log.start is None:
        return _as_counted(log, layer, len(own))
    moved: dict[int, list[tuple[int, int]]] = {step: [] for step in log.steps}
    for line in log.moves:
        moved[line.step] += [(old, new) for feature, old, new in line.moves if feature in own]
    children = [
        _children(parent[first : own.stop], forest.d_sae)
        for parent in states(log.steps, log.moves, log.start)
    ]
    return LayerHistory(
        layer=layer,
        moved=(0, *map(len, moved.values())),
        from_root=(0, *(sum(old == ROOT for old, _ in found) for found in moved.values())),
        to_root=(0, *(sum(new == ROOT for _, new in found) for found in moved.values())),
        **_as_logged(log, layer),
        with_parent=tuple(int(n.sum()) / len(own) for n in children),
        families=tuple(int(np.count_nonzero(n)) for n in children),
        largest=tuple(int(n.max(initial=0)) for n in children),
    )


def _as_logged(log: _Log, layer: int) -> dict[str, Any]:
    """What the events of a layer say and the single moves do not."""
    return {
        "dead": (None, *(_logged(log, step, layer, "dead") for step in log.steps)),
        "excess": (None, *(_share(log, step, layer, "excess") for step in log.steps)),
        "excess_null": (None, *(_share(log, step, layer, "excess_null") for step in log.steps)),
    }


def _as_counted(log: _Log, layer: int, size: int) -> LayerHistory:
    """What the events of a layer count. In those of an HSAE, `to_root` is the number of features without a parent."""
    rootless = [_logged(log, step, layer, "to_root", "hierarchy") for step in log.steps]
    nothing = (None,) * (1 + len(log.steps))
    return LayerHistory(
        layer=layer,
        moved=(0, *(sum(_all_logged(log, step, layer, "moved")) for step in log.steps)),
        from_root=nothing,
        to_root=nothing,
        **_as_logged(log, layer),
        with_parent=(None, *(None if n is None else 1 - n / size for n in rootless)),
        families=(None, *(_logged(log, step, layer, "parents", "hierarchy") for step in log.steps)),
        largest=nothing,
    )


def _parents(log: _Log, labels: Labels) -> tuple[ParentHistory, ...]:
    """The parents with the most children gained and lost; of equals, those with lower numbers first."""
    if log.start is None:
        return ()
    gained, lost = Counter[int](), Counter[int]()
    for line in log.moves:
        lost.update(old for _, old, new in line.moves if ROOT != old != new)
        gained.update(new for _, old, new in line.moves if ROOT != new != old)
    changed = gained + lost
    chosen = sorted(changed, key=lambda parent: (-changed[parent], parent))[:_PARENTS]
    counts = [_children(parent, len(parent))[chosen] for parent in states(log.steps, log.moves, log.start)]
    children = np.stack(counts, axis=1).tolist()
    return tuple(
        ParentHistory(parent, labels.of(parent), tuple(found), gained[parent], lost[parent])
        for parent, found in zip(chosen, children, strict=True)
    )


def _children(parent: Int64[np.ndarray, "n"], d_sae: int) -> Int64[np.ndarray, "d_sae"]:
    """The number of children of every feature."""
    return np.bincount(parent[parent != ROOT], minlength=d_sae)


def _all_logged(log: _Log, step: int, layer: int, key: str, kind: str | None = None) -> list[int]:
    """The numbers under a key in the events of a step and a layer, of one kind if it is given."""
    lines = [line for line in log.events.get((step, layer), ()) if kind in (None, line["event"])]
    return [number for line in lines if (number := _number(line, key)) is not None]


def _logged(log: _Log, step: int, layer: int, key: str, kind: str | None = None) -> int | None:
    """The last of these numbers."""
    found = _all_logged(log, step, layer, key, kind)
    return found[-1] if found else None


def _share(log: _Log, step: int, layer: int, key: str) -> float | None:
    """The last number under a key in the events of a step and a layer."""
    found = [line[key] for line in log.events.get((step, layer), ()) if isinstance(line.get(key), float)]
    return found[-1] if found else None


def _number(line: Line, key: str) -> int | None:
    value = line.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
