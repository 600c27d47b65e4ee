"""The built page is of its sources, and asks for nothing outside."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES, BUNDLE = ROOT / "page", ROOT / "src/saeforest/explore/serving/page"
REBUILD = "the bundle is stale: `make page` (needs node) and commit src/saeforest/explore/serving/page"


def test_the_bundle_is_built_from_its_sources() -> None:
    names = ["build.mjs", "package.json", "package-lock.json"]
    for folder in ("css", "src"):
        names += [str(path.relative_to(SOURCES)) for path in (SOURCES / folder).rglob("*") if path.is_file()]
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode() + b"\0" + (SOURCES / name).read_bytes() + b"\0")
    stated = json.loads((BUNDLE / "page.sources.json").read_text())
    assert stated["sources"] == digest.hexdigest(), REBUILD
    for name, expected in stated["built"].items():
        assert hashlib.sha256((BUNDLE / name).read_bytes()).hexdigest() == expected, REBUILD


def test_the_bundle_names_no_address_and_no_inline_script() -> None:
    html = (BUNDLE / "index.html").read_text()
    script, style = ((BUNDLE / name).read_text() for name in ("page.js", "page.css"))
    assert not re.search(r"https?://(?!www\.w3\.org/)", html + style)
    assert set(re.findall(r"https?://[\w.]+", script)) <= {"http://www.w3.org"}  # names of SVG, no addresses
    assert not re.search(r"@import|url\(", style)
    assert not re.search(r"<script(?![^>]*src=)[^>]*>\s*\S", html)
    assert " style=" not in html
    assert "innerHTML" not in "".join(path.read_text() for path in (SOURCES / "src").rglob("*.js"))
    for line in (
        '<link rel="stylesheet" href="page.css">',
        "<!--saeforest:data-->",
        '<script src="page.js" defer></script>',
    ):
        assert html.count(line) == 1


def test_packages_have_exact_versions_and_no_registry() -> None:
    manifest = json.loads((SOURCES / "package.json").read_text())
    for version in (manifest["dependencies"] | manifest["devDependencies"]).values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert '"resolved"' not in (SOURCES / "package-lock.json").read_text()
