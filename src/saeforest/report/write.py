"""Writing the report: a self-contained HTML page, the same in Markdown, the figures, and all values as JSON."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..errors import InputError
from ..files import atomic_file, atomic_folder, write_json
from ..run_folder import RunFolder
from ..training.unfinished import claim_empty
from .files import FIGURES, MARKDOWN, PAGE, VALUES
from .gallery import closer_looks, compare_figures
from .load import load_runs
from .page import build_page
from .panel import Panel
from .papers import papers
from .seed_groups import seed_groups
from .style import render
from .values import to_json


class Shown(NamedTuple):
    """A panel for the templates. svg: the figure as a data URI."""

    key: str
    title: str
    caption: str
    svg: str


def compare(runs: Sequence[Path], out: Path) -> None:
    """Write report.html, report.md, report.json and figures/ into the folder `out`, atomically.

    Raises InputError if a folder is not a run, nothing was measured, a record is damaged, or `out` is in use or inside
    a run.
    """
    claim_empty(out)
    for folder in out.resolve().parents:
        if (run := RunFolder(folder)).config_file.is_file() and run.has_results():
            raise InputError(f"{out}: is inside the run {folder}; choose a folder outside of it")
    entries = load_runs(runs)
    gallery = compare_figures(seed_groups(entries))
    closer = closer_looks(entries)
    page, results = build_page(entries, runs, out)
    with atomic_folder(out) as folder:
        figures = [_save(panel, folder / FIGURES) for panel in gallery.panels]
        looks = [_save(panel, folder / FIGURES) for panel in closer]
        about: dict[str, Any] = {
            "page": page,
            "figures": figures,
            "skipped": gallery.skipped,
            "looks": looks,
            "links": {paper.name: paper.link for paper in papers().values()},
        }
        for name, escape in ((PAGE, True), (MARKDOWN, False)):
            text = _environment(escape).get_template(f"{name}.j2").render(about)
            with atomic_file(folder / name) as temporary:
                temporary.write_text(
                    text, encoding="utf-8", errors="replace"
                )  # file names may not be valid UTF-8
        files = [f"{FIGURES}/{shown.key}.{kind}" for shown in (*figures, *looks) for kind in ("png", "svg")]
        write_json(folder / VALUES, to_json(entries, results, files))


def _save(panel: Panel, folder: Path) -> Shown:
    images = {kind: render(panel.figure, kind) for kind in ("png", "svg")}
    for kind, image in images.items():
        with atomic_file(folder / f"{panel.key}.{kind}") as temporary:
            temporary.write_bytes(image)
    svg = "data:image/svg+xml;base64," + base64.b64encode(images["svg"]).decode("ascii")
    return Shown(panel.key, panel.title, panel.caption, svg)


def _environment(escape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("saeforest.report"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = markdown
    environment.filters["code"] = code
    environment.filters["breakable"] = breakable
    return environment


def markdown(text: str) -> str:
    """Escape text so that Markdown shows it as it is, also in a table."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#$!@])", _entity, line)


def _entity(sign: re.Match[str]) -> str:
    # An entity is never markup, whereas a backslash is shown in code and in some tables.
    return f"&#{ord(sign[1])};"


def code(text: str) -> str:
    """Text as a line in a fenced code block of Markdown, which it can't end."""
    return " ".join(text.split()).replace("```", "'''")


def breakable(text: str) -> Markup:
    """A long name in HTML, with possible line breaks after each of its parts."""
    return Markup(re.sub(r"([/_.])", r"\1<wbr>", str(Markup.escape(text))))
