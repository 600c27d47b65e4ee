"""Exporting the explorer: the same page and the same answers as files, which need no server.

One file holds a subtree; a folder holds everything, in shards that the page loads as it needs them. Both open from
file:// and from any server of files. What a person noted goes along.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ...errors import InputError
from ...files import atomic_file, atomic_folder
from ...progress import progress
from ...run_folder import check_export_folder
from .packing import Bundle, block, packed_block, page, shard_script

INDEX, DATA = "index.html", "data"
#: Kinds of answers about one feature.
KINDS = ("feature", "family", "edge", "tree-data", "geometry")
#: Features in one shard.
SHARD = 100
_DTYPES = {"float32": "<f4", "int32": "<i4", "uint8": "u1"}
_ABSENT = "this file holds one subtree: `saeforest explore RUN` shows it"


@runtime_checkable
class Answers(Protocol):
    """What an export asks: `Api`."""

    def get(self, path: str) -> Any:
        """The answer to a path, ready for JSON. Raises InputError if there is none."""
        ...


@dataclass(frozen=True)
class Exported:
    """What was written. path: the file or the folder; size: bytes of all its files."""

    path: Path
    n_features: int
    n_files: int
    size: int


def export_subtree(answers: Answers, root: int, out: Path, *, force: bool = False) -> Exported:
    """Write a feature, all below it and its ancestors as one self-contained HTML file.

    force: whether a file at `out` is replaced.

    Raises InputError if there is no such feature, or `out` exists.
    """
    check_file(out, force)
    text, n_features = subtree_page(answers, root)
    with atomic_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Exported(out, n_features, 1, out.stat().st_size)


def subtree_page(answers: Answers, root: int, *, most: int | None = None) -> tuple[str, int]:
    """The HTML of `export_subtree`, and how many features it holds.

    Raises InputError if there is no such feature, or there are more than `most`.
    """
    forest = answers.get("forest")
    parent = _numbers(forest["parent"])
    ids, below = _subtree(parent, root)
    if most is not None and len(ids) > most:
        raise InputError(
            f"feature {root} has {below:,} features below it; expected at most {most:,} in a file made here: "
            f"run `saeforest export html RUN --root {root} --out FILE`"
        )
    overview = answers.get("overview")
    held = set(ids)
    # The rows of their children too: what is said of a family is said of all of it, also where only one child is held.
    children = _children(parent)
    known = sorted(held.union(*(children.get(feature, ()) for feature in ids)))
    kind = "family" if below else "feature"
    overview |= {
        "static": True,
        "writes": False,
        "export": {"root": root, "ids": ids},
        "families": [family for family in overview["families"] if family["parent"] in held],
        "has": _has(overview["has"], {"prompt", "training", "compare"}),
    }
    data = {
        "overview": overview,
        "forest": {
            **_part_of(forest, known),
            "held": _int32(ids),
            "size": _int32(_sizes(children, known)),
        },
        "labels": _of_known(answers.get("labels"), set(known)),
        "annotations": _of_known(answers.get("annotations"), held),
    }
    parents = set(parent)
    for feature in ids:
        data |= _about(answers, feature, feature in parents)
    data["tokens"] = {"tokens": {str(i): data[f"feature/{i}"].get("tokens", []) for i in ids}}
    note = f"It holds feature {root}, the {_count(below)} below it, and its ancestors."
    settings = {"transport": "static", "shards": None, "note": note, "start": f"#/{kind}/{root}"}
    blocks = [block({"id": "saeforest"}, settings), packed_block({"data-path": "*"}, data)]
    return page(Bundle.load(), f"Feature {root} · {overview['title']}", blocks, shards=False), len(ids)


def export_everything(answers: Answers, out: Path, *, force: bool = False) -> Exported:
    """Write everything as a folder: a page, and scripts with the answers about 100 features each.

    force: whether an earlier export at `out` is replaced.

    Raises InputError if `out` is not empty and no earlier export, or lies in a run.
    """
    check_folder(out, force)
    overview, forest = answers.get("overview"), answers.get("forest")
    overview |= {
        "static": True,
        "writes": False,
        "export": None,
        "has": _has(overview["has"], {"prompt", "compare"}),
    }
    data: dict[str, Any] = {"overview": overview, "forest": forest}
    for path in ("labels", "nulls", "annotations", "training"):
        with suppress(InputError):  # a run without a log
            data[path] = answers.get(path)
    parent = _numbers(forest["parent"])
    n, parents = len(parent), set(parent)
    tokens: dict[str, list[str]] = {}
    n_files = size = 0
    with atomic_folder(out) as folder, progress("export", n, "features") as advance:
        (folder / DATA).mkdir()
        for first in range(0, n, SHARD):
            features = range(first, min(first + SHARD, n))
            shards: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
            for feature in features:
                for path, answer in _about(answers, feature, feature in parents).items():
                    shards[path.partition("/")[0]][path] = answer
                tokens[str(feature)] = shards["feature"][f"feature/{feature}"].get("tokens", [])
            for kind, answers_of_kind in shards.items():
                if answers_of_kind:
                    name = f"{kind}-{first // SHARD}"
                    script = shard_script(name, answers_of_kind)
                    (folder / DATA / f"{name}.js").write_text(script, encoding="ascii")
                    n_files, size = n_files + 1, size + len(script)
            advance(len(features))
        data["tokens"] = {"tokens": tokens}
        shards_at = {"folder": DATA, "size": SHARD, "kinds": list(KINDS)}
        settings = {"transport": "static", "shards": shards_at, "note": "", "start": "#/"}
        blocks = [block({"id": "saeforest"}, settings), packed_block({"data-path": "*"}, data)]
        text = page(Bundle.load(), overview["title"], blocks, shards=True)
        (folder / INDEX).write_text(text, encoding="utf-8")
    return Exported(out, n, n_files + 1, size + len(text.encode()))


# -- where an export may be written


def check_file(out: Path, force: bool) -> None:
    """Raise InputError if a file cannot be written to `out`."""
    if out.is_dir():
        raise InputError(
            f"{out}: a folder; expected the name of a file for one subtree, such as {out / 'family.html'}"
        )
    if out.exists() and not force:
        raise InputError(f"{out}: exists; choose another name, or replace it with `force`")


def check_folder(out: Path, force: bool) -> None:
    """Raise InputError if a folder cannot be written to `out`. Nothing but an earlier export is ever replaced."""
    check_export_folder(out, _is_export, force=force)


def _is_export(folder: Path) -> bool:
    if {path.name for path in folder.iterdir()} != {INDEX, DATA}:
        return False
    with suppress(OSError), (folder / INDEX).open("rb") as file:
        return b'id="saeforest"' in file.read(1 << 20)
    return False


# -- parts of answers


def _about(answers: Answers, feature: int, has_children: bool) -> dict[str, Any]:
    """The answers about a feature, by path; those that do not apply to it are left out."""
    found = {f"feature/{feature}": answers.get(f"feature/{feature}")}
    for kind in KINDS[1:]:
        if kind == "family" and not has_children:
            continue
        with suppress(InputError):  # a root has no edge, few features have a geometry
            found[f"{kind}/{feature}"] = answers.get(f"{kind}/{feature}")
    return found


def _has(has: Mapping[str, Any], lost: set[str]) -> dict[str, Any]:
    """What an export has: not what needs a server."""
    gone = {name: False for name in lost if name in has}
    missing = {**dict.fromkeys(gone, _ABSENT), **has.get("missing", {})}
    return {**has, **gone, "missing": missing}


def _subtree(parent: Sequence[int], root: int) -> tuple[list[int], int]:
    """The numbers of a feature, of those below it and of its ancestors, ascending; and how many are below it."""
    if not 0 <= root < len(parent):
        raise InputError(f"feature {root}: expected 0 to {len(parent) - 1}")
    children = _children(parent)
    found, stack = [], [root]
    while stack:
        found.append(feature := stack.pop())
        stack += children.get(feature, ())
    below = len(found) - 1
    above = parent[root]
    while above >= 0:
        found.append(above)
        above = parent[above]
    return sorted(found), below


def _children(parent: Sequence[int]) -> dict[int, list[int]]:
    """The children of every feature that has some; of -1: the roots."""
    found: dict[int, list[int]] = {}
    for child, above in enumerate(parent):
        found.setdefault(above, []).append(child)
    return found


def _sizes(children: Mapping[int, Sequence[int]], ids: Sequence[int]) -> list[int]:
    """How many features each of these and all below it are."""
    found = []
    for feature in ids:
        below = [feature]
        for at in below:  # grows as it is walked
            below += children.get(at, ())
        found.append(len(below))
    return found


def _int32(numbers: Sequence[int]) -> dict[str, Any]:
    data = base64.b64encode(np.asarray(numbers, dtype="<i4").tobytes()).decode("ascii")
    return {"dtype": "int32", "shape": [len(numbers)], "data": data}


def _numbers(array: Mapping[str, Any]) -> list[int]:
    return np.frombuffer(base64.b64decode(array["data"]), _DTYPES[array["dtype"]]).tolist()


def _is_array(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"dtype", "shape", "data"}


def _rows(array: Mapping[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """The array with these of its rows."""
    numbers = np.frombuffer(base64.b64decode(array["data"]), _DTYPES[array["dtype"]]).reshape(array["shape"])
    kept = numbers[np.asarray(ids, dtype=np.int64)]
    data = base64.b64encode(np.ascontiguousarray(kept).tobytes()).decode("ascii")
    return {"dtype": array["dtype"], "shape": list(kept.shape), "data": data}


def _part_of(forest: Mapping[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """The forest's arrays with the rows of these features, whose numbers are `ids`."""
    n = forest["parent"]["shape"][0]

    def part(value: Any) -> Any:
        if _is_array(value):
            return _rows(value, ids) if value["shape"][:1] == [n] or value["shape"][:1] == (n,) else value
        return {key: part(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value

    return part(forest) | {"ids": _int32(ids)}


def _of_known(answer: Mapping[str, Any], known: set[int]) -> dict[str, Any]:
    """An answer of dicts by feature, with the features that are exported."""
    return {
        name: {i: value for i, value in part.items() if int(i) in known}
        if isinstance(part, Mapping)
        else part
        for name, part in answer.items()
    }


def _count(n: int) -> str:
    return f"{n:,} feature{'' if n == 1 else 's'}"
