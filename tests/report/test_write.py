"""What a report writes is whole, escaped and of the right numbers."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from saeforest.report import claims, compare
from saeforest.report.numbers import number
from saeforest.report.papers import papers
from saeforest.report.write import markdown


class Seen(HTMLParser):
    """Tags, attributes that load or link, and the text of a page; fails where tags are not closed in order."""

    VOID = ("meta", "img", "br", "wbr", "link", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loads: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [(tag, value or "") for key, value in attrs if key in ("src", "href", "srcset", "data")]
        self.ids += [value or "" for key, value in attrs if key == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def test_the_page_needs_nothing_beside_it(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    seen = Seen()
    seen.feed(page)
    assert not seen.open
    assert not {"script", "link", "iframe", "object"} & set(seen.tags)
    links = [value for _, value in seen.loads if not value.startswith(("data:image/svg+xml;base64,", "#"))]
    assert links == [paper.link for paper in papers().values()]
    assert "url(" not in page
    assert "@import" not in page
    anchors = [value[1:] for _, value in seen.loads if value.startswith("#")]
    assert set(anchors) <= set(seen.ids)
    assert len(seen.ids) == len(set(seen.ids))


def test_names_are_data(out: Path) -> None:
    hostile = "<script>alert(1)<script> & `x` | $y$"
    seen = Seen()
    seen.feed((out / "report.html").read_text(encoding="utf-8"))
    assert f"{hostile}/tree" in seen.text
    text = (out / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"```.*?```", "", text, flags=re.S)
    assert "<script" not in outside
    assert "alert(1)" in outside
    assert markdown("a|b\n<i> `c` *d* [e](f) $g$") == (
        "a&#124;b &lt;i&gt; &#96;c&#96; &#42;d&#42; &#91;e&#93;(f) &#36;g&#36;"
    )
    values = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert "<script>alert(1)<script> & `x` | $y$/tree" in values["saes"]


def test_markdown_is_well_formed(out: Path) -> None:
    lines = (out / "report.md").read_text(encoding="utf-8").splitlines()
    tables = 0
    for i, line in enumerate(lines):
        if not line.startswith("|"):
            continue
        assert line.endswith("|")
        if not lines[i - 1].startswith("|"):  # a table's head: with a blank line before it, dashes beneath it
            assert lines[i - 1] == ""
            assert re.fullmatch(r"\|(---:?\|)+", lines[i + 1])
            tables += 1
        else:
            assert line.count("|") == lines[i - 1].count("|"), line
    assert tables > 8
    images = [name for line in lines for name in re.findall(r"!\[.*?\]\((.*?)\)", line)]
    assert len(images) >= 6
    assert all((out / name).is_file() for name in images)
    assert all("](http" not in line for line in lines if not line.startswith("The papers: "))


def test_the_json_holds_every_value(out: Path) -> None:
    written = json.loads((out / "report.json").read_text(encoding="utf-8"))
    tree = next(sae for label, sae in written["saes"].items() if label.endswith("/tree"))
    found = tree["measures"]["hierarchy"]["tree"]
    assert found == {
        "value": 0.8,
        "interval": [0.75, pytest.approx(0.85)],
        "tokens": 1000,
        "unit": "fraction",
    }
    topk = next(sae for label, sae in written["saes"].items() if label.endswith("/topk"))
    assert topk["measures"]["hierarchy"]["tree"]["null"] == "flat"
    assert all((out / name).is_file() for name in written["figures"])
    on_disk = {f"figures/{path.name}" for path in (out / "figures").iterdir()}
    assert set(written["figures"]) == on_disk
    assert len(written["claims"]) == len(claims.claims())


def test_undefined_values_are_dashes_with_a_footnote(out: Path) -> None:
    seen = Seen()
    seen.feed((out / "report.html").read_text(encoding="utf-8"))
    assert "flat" in seen.text
    assert "note-1" in seen.ids
    assert "Not measured: fast." in seen.text  # in the block on hierarchy


def test_reports_repeat_bit_for_bit(tmp_path: Path, run: Path, fast_run: Path, out: Path) -> None:
    again = tmp_path / "elsewhere" / "out"
    compare([run, fast_run], again)
    for path in (out / "figures").iterdir():
        assert path.read_bytes() == (again / "figures" / path.name).read_bytes(), path.name


def test_numbers_have_as_many_decimals_as_others_of_their_size() -> None:
    shown = [number(x) for x in (None, 0.09, -0.12345, 3.14159, 32.0, 128.26, 12345.6, 7, 0.0, 2e-5)]
    assert shown == ["–", "0.0900", "-0.1235", "3.142", "32.00", "128.3", "12,346", "7", "0.0000", "2.0e-05"]
