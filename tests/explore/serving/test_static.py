"""Exports of the page as files: what they hold, that nothing runs but the bundle, and what is never replaced."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from figure_cases import PARENTS, UNGATED, words_explorer
from saeforest.errors import InputError
from saeforest.explore.api import Api
from saeforest.explore.labels.annotations import Annotations
from saeforest.explore.serving import packing
from saeforest.explore.serving.packing import Bundle, block, packed, page, shard_script
from saeforest.explore.serving.static import check_file, check_folder, export_everything, export_subtree

HOSTILE = "<script>alert(1)</script><!--<script>\u2028\u202e\x07</style>"
TEMPLATE = """<!doctype html>
<html><head><title>saeforest</title>
<link rel="stylesheet" href="page.css">
</head><body>
<!--saeforest:data-->
<script src="page.js" defer></script>
</body></html>
"""
BUNDLE = Bundle(TEMPLATE, "body{color:red}", 'var a="</script><!--<script>";/* \\x3C */')


class Reader(HTMLParser):
    """The elements of a page: scripts and styles with their text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.policy = ""
        self._open: tuple[str, dict[str, str | None]] | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert not [name for name in given if name.startswith("on") or name == "style"]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        self._open = (tag, given)
        if tag == "script":
            self.scripts.append((given, ""))
        if tag == "style":
            self.styles.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open and self._open[0] == "script":
            given, text = self.scripts[-1]
            self.scripts[-1] = (given, text + data)
        if self._open and self._open[0] == "style":
            self.styles[-1] += data

    @property
    def settings(self) -> dict[str, Any]:
        return next(json.loads(text) for given, text in self.scripts if given.get("id") == "saeforest")

    @property
    def data(self) -> dict[str, Any]:
        return next(unpacked(text) for given, text in self.scripts if given.get("data-path") == "*")


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def numbers(array: dict[str, Any]) -> list[float]:
    dtype = {"float32": "<f4", "int32": "<i4", "uint8": "u1"}[array["dtype"]]
    return np.frombuffer(base64.b64decode(array["data"]), dtype).reshape(array["shape"]).tolist()


@pytest.fixture
def bundle(monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr(packing.Bundle, "load", classmethod(lambda cls: BUNDLE))
    return BUNDLE


@pytest.fixture(scope="module")
def answers() -> Api:
    noted = Annotations(None)
    live = Api(words_explorer(), noted)
    live.put("annotations/2", {"label": HOSTILE, "note": HOSTILE})
    live.put("annotations/3", {"note": "elsewhere"})
    return Api(words_explorer(), noted, name=HOSTILE, static=True)


# -- packing


def test_only_the_bundle_runs_and_its_hashes_are_all_that_is_allowed() -> None:
    text = page(BUNDLE, HOSTILE, [block({"id": "saeforest"}, {"x": HOSTILE})], shards=False)
    read = Reader(text)
    (settings, code), (script, js) = read.scripts
    assert settings["type"] == "application/json"
    assert json.loads(code) == {"x": HOSTILE}
    assert script == {}
    assert "<" not in js
    assert read.styles == [BUNDLE.css]
    digest = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (js, BUNDLE.css)]
    assert read.policy == (
        f"default-src 'none'; script-src 'sha256-{digest[0]}'; style-src 'sha256-{digest[1]}'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    assert text.index("http-equiv") < text.index("<style>")
    assert "<title>&lt;script&gt;alert(1)" in text
    for c in "\u2028\u202e\x07":
        assert c not in text
    assert " 'self' file:; style-src" in Reader(page(BUNDLE, "x", [], shards=True)).policy


def test_a_block_holds_any_text() -> None:
    assert "<" not in block({"a": "b"}, {"k": HOSTILE}).removeprefix("<script").removesuffix("</script>")
    assert unpacked(packed({"k": HOSTILE})) == {"k": HOSTILE}
    assert packed({"k": 1}) == packed({"k": 1})
    with pytest.raises(ValueError, match="Out of range"):
        packed({"k": math.nan})
    assert shard_script("feature-0", {"a": 1}) == f'saeforest.shard("feature-0","{packed({"a": 1})}");\n'


def test_a_template_without_its_lines_is_an_error_of_ours() -> None:
    with pytest.raises(RuntimeError, match=r"index\.html"):
        page(BUNDLE._replace(html="<html></html>"), "x", [], shards=False)


# -- one subtree


def test_a_subtree_is_one_file(answers: Api, bundle: Bundle, tmp_path: Path) -> None:
    done = export_subtree(answers, 1, tmp_path / "new" / "family.html")
    text = done.path.read_text("utf-8")
    assert (done.n_features, done.n_files, done.size) == (3, 1, len(text.encode()))
    read = Reader(text)
    assert read.settings["start"] == "#/family/1"
    assert read.settings["shards"] is None
    data = read.data
    assert data["overview"]["export"] == {"root": 1, "ids": [0, 1, 4]}
    assert (data["overview"]["static"], data["overview"]["writes"]) == (True, False)
    assert data["overview"]["has"]["prompt"] is False
    assert [p for p in data if p.startswith("feature/")] == ["feature/0", "feature/1", "feature/4"]
    for path in ("feature/1", "feature/4", "edge/1", "edge/4", "family/0", "family/1", "geometry/0"):
        assert data[path] == answers.get(path), path
    for path in ("edge/0", "family/4", "geometry/1", "feature/2", "training", "nulls"):
        assert path not in data
    forest = data["forest"]
    # The siblings' rows too: of the family of 0, of which only one child is held, nothing is said that is of a part.
    known = [0, 1, 2, 3, 4, 6]
    assert numbers(forest["ids"]) == known
    assert numbers(forest["held"]) == [0, 1, 4]
    assert numbers(forest["size"]) == [7, 2, 2, 1, 1, 1]
    assert numbers(forest["parent"]) == [PARENTS[i] for i in known]
    assert numbers(forest["columns"]["ungated"])[1:] == pytest.approx(
        [UNGATED[i] for i in known[1:]], nan_ok=True
    )
    assert math.isnan(numbers(forest["columns"]["ungated"])[0])
    assert len(numbers(forest["features"]["density"])) == len(known)
    assert set(data["labels"]["labels"]) <= {str(i) for i in known}
    assert data["annotations"]["annotations"] == {}
    assert data["tokens"]["tokens"]["1"] == list(answers.get("feature/1")["tokens"])
    again = export_subtree(answers, 1, tmp_path / "again.html")
    assert again.path.read_bytes() == done.path.read_bytes()


def test_a_leaf_opens_at_its_feature(answers: Api, bundle: Bundle, tmp_path: Path) -> None:
    export_subtree(answers, 5, tmp_path / "leaf.html")
    read = Reader((tmp_path / "leaf.html").read_text("utf-8"))
    assert read.settings["start"] == "#/feature/5"
    assert read.data["overview"]["export"]["ids"] == [0, 2, 5]
    assert read.data["annotations"]["annotations"]["2"]["note"]


# -- everything


def test_everything_is_a_folder(answers: Api, bundle: Bundle, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("saeforest.explore.serving.static.SHARD", 3)
    done = export_everything(answers, tmp_path / "pages")
    assert done.n_features == len(PARENTS)
    files = {p.relative_to(done.path).as_posix() for p in done.path.rglob("*") if p.is_file()}
    assert done.n_files == len(files)
    assert done.size == sum((done.path / name).stat().st_size for name in files)
    assert {
        "index.html",
        "data/feature-0.js",
        "data/feature-2.js",
        "data/family-0.js",
        "data/geometry-0.js",
    } < files
    read = Reader((done.path / "index.html").read_text("utf-8"))
    assert read.settings["shards"]["size"] == 3
    assert {"overview", "forest", "labels", "nulls", "annotations", "tokens"} <= set(read.data)
    assert read.data["forest"] == answers.get("forest")
    found: dict[str, Any] = {}
    for name in files - {"index.html"}:
        script = (done.path / name).read_text("ascii")
        call = re.fullmatch(r'saeforest\.shard\("([a-z-]+-\d)","([A-Za-z0-9+/=]+)"\);\n', script)
        assert call is not None
        assert name == f"data/{call[1]}.js"
        kind, _, number = call[1].rpartition("-")
        part = unpacked(call[2])
        assert {(p.split("/")[0], int(p.split("/")[1]) // 3) for p in part} == {(kind, int(number))}
        found |= part
    for i in range(len(PARENTS)):
        assert found[f"feature/{i}"] == answers.get(f"feature/{i}")
    assert found["edge/4"] == answers.get("edge/4")


# -- where


def test_what_is_never_replaced(answers: Api, bundle: Bundle, tmp_path: Path) -> None:
    file, folder = tmp_path / "x.html", tmp_path / "folder"
    file.write_text("mine")
    with pytest.raises(InputError, match=r"x\.html: exists; choose another name, or replace it with `force`"):
        check_file(file, force=False)
    check_file(file, force=True)
    with pytest.raises(InputError, match="a folder; expected the name of a file"):
        check_file(tmp_path, force=True)
    folder.mkdir()
    check_folder(folder, force=False)
    (folder / "mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(InputError, match="exists and is not empty"):
            check_folder(folder, force=force)
    with pytest.raises(InputError, match="a file; expected a folder"):
        check_folder(file, force=True)
    export_everything(answers, tmp_path / "pages")
    with pytest.raises(InputError, match="holds an export already"):
        export_everything(answers, tmp_path / "pages")
    export_everything(answers, tmp_path / "pages", force=True)
    with pytest.raises(InputError, match="feature 7: expected 0 to 6"):
        export_subtree(answers, 7, tmp_path / "y.html")
    assert not (tmp_path / "y.html").exists()


def test_an_export_that_fails_leaves_nothing(answers: Api, bundle: Bundle, tmp_path: Path) -> None:
    class Broken:
        def get(self, path: str) -> Any:
            if path == "feature/4":
                raise OSError("broken")
            return answers.get(path)

    with pytest.raises(OSError, match="broken"):
        export_everything(Broken(), tmp_path / "a")
    with pytest.raises(OSError, match="broken"):
        export_subtree(Broken(), 1, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
