"""What of a run is golden: a few numbers to read, and hashes of all that must keep its bits."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

# Times, versions, and what is a checksum of files that are looked at themselves. `key` tells measurements apart, `text`
# their texts, and intervals are made of `replicates`.
_PASSING = {
    "seconds", "tokens_per_s", "peak_memory_mb", "version", "torch", "checksum", "checksums", "key", "text",
    "replicates",
}  # fmt: skip
_LOSSES = 5
# Other roundings, as of another PyTorch or processor, soon lead training to other choices: losses part by some percent,
# and so few dead features or moves may differ by more. The loss of a single late batch can part by a fifth where the
# system draws features at random; the mean of several does not.
_FIRST, _LATER = 1e-3, 0.1
_START = "step 1"


def values_of(run: Path, name: str, world: Path) -> dict[str, Any]:
    """Of the SAE of that name; the only one of a run has no folders of its own."""
    name = name if (run / "logs").is_dir() else ""
    places = {str(run): "RUN", str(world): "WORLD"}
    log = run / "logs" / name if name else run
    lines = _lines(log / "log.jsonl")
    moves = _lines(log / "allocations.jsonl")
    steps, events = ([line for line in lines if ("event" in line) == event] for event in (False, True))
    records = {
        path.stem: json.loads(path.read_text()) for path in sorted((run / "eval" / name).glob("*.json"))
    }
    index = run / "index" / name
    return {
        "numbers": {
            "steps": steps[-1]["step"],
            "loss": {f"step {line['step']}": line["loss"] for line in _spread(steps)},
            "fve": steps[-1]["fve"],
            "l0": steps[-1]["l0"],
            "dead": steps[-1]["dead"],
            "moved": sum(line.get("moved", 0) for line in events),
            "fve on held-out text": records["reconstruction"]["value"]["fve"],
        },
        "hashes": {
            "cfg.json": _digest(json.loads((run / "sae" / name / "cfg.json").read_text()), places),
            "weights": _tensors(run / "sae" / name / "sae_weights.safetensors"),
            "log.jsonl": {
                "steps": _digest(steps, places),
                "events": _digest([line for line in events if line["event"] != "finished"], places),
            },
            "allocations.jsonl": _digest(moves, places),
            "eval": {
                measure: {
                    "found": _digest({k: v for k, v in record.items() if k != "settings"}, places),
                    "settings": _digest(record["settings"], places),
                }
                for measure, record in records.items()
            },
            "index": {path.name: _tensors(path) for path in sorted(index.glob("*.safetensors"))},
        },
    }


def differences(golden: dict[str, Any], found: dict[str, Any], *, exact: bool) -> list[str]:
    """A line for each value that is another one, numbers first. Not exact: only losses and FVE, to a tolerance."""
    if not exact:
        golden, found = _rough(golden), _rough(found)
    old, new = dict(_leaves(golden)), dict(_leaves(found))
    lines = []
    for place in sorted(old.keys() | new.keys(), key=lambda place: (place[0] != "numbers", place)):
        a, b = old.get(place), new.get(place)
        if a == b or not (exact or _differ(place, a, b)):
            continue
        if place[0] == "numbers":
            lines.append(f"{_said(place)}: {b}, was {a}")
        else:
            how = "is new" if a is None else "is missing" if b is None else "has other bits"
            lines.append(f"{_said(place)} {how}")
    return lines


def _rough(values: dict[str, Any]) -> dict[str, Any]:
    """What other roundings hardly change: the first loss, the mean of the others, and FVE."""
    numbers = values["numbers"]
    later = [loss for step, loss in numbers["loss"].items() if step != _START]
    losses = {_START: numbers["loss"][_START], "later, mean": sum(later) / len(later)}
    return {"numbers": {"loss": losses, **{k: v for k, v in numbers.items() if k.startswith("fve")}}}


def _differ(place: tuple[str, ...], a: float | None, b: float | None) -> bool:
    """Whether two values differ by more than roundings explain."""
    return a is None or b is None or not math.isclose(a, b, rel_tol=_FIRST if place[-1] == _START else _LATER)


def _said(place: tuple[str, ...]) -> str:
    return " ".join(place[1:])


def _leaves(tree: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    match tree:
        case dict():
            for key, value in tree.items():
                yield from _leaves(value, (*place, key))
        case list():
            for i, value in enumerate(tree):
                yield from _leaves(value, (*place, f"layer {i}"))
        case _:
            yield place, tree


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _spread(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first, the last, and some in between."""
    return [steps[round(i * (len(steps) - 1) / (_LOSSES - 1))] for i in range(_LOSSES)]


def _digest(data: Any, places: dict[str, str]) -> str:
    text = json.dumps(_lasting(data), sort_keys=True)
    for place, name in places.items():
        text = text.replace(place, name)
    return _hash(text.encode())


def _lasting(data: Any) -> Any:
    match data:
        case dict():
            return {key: _lasting(value) for key, value in data.items() if key not in _PASSING}
        case list():
            return [_lasting(value) for value in data]
        case _:
            return data


def _tensors(path: Path) -> dict[str, str]:
    return {name: _hash(_bytes(tensor)) for name, tensor in sorted(load_file(path).items())}


def _bytes(tensor: torch.Tensor) -> bytes:
    about = f"{tensor.dtype} {list(tensor.shape)} "
    return about.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
