"""Packing data and the page into files that a browser opens without a server.

Everything that varies stands in blocks of data, which a browser does not run: base64 of compressed JSON, or JSON whose
"<" is escaped. What does run are the bundle's own script and style, whose hashes are all that the page's
Content-Security-Policy allows.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import require
from ...output import printable

BUNDLE = Path(__file__).parent / "page"
STYLE_LINE, DATA_LINE = '<link rel="stylesheet" href="page.css">', "<!--saeforest:data-->"
SCRIPT_LINE = '<script src="page.js" defer></script>'
_TITLE = "<title>saeforest</title>"


class Bundle(NamedTuple):
    """The built page: a template, its style and its script."""

    html: str
    css: str
    js: str

    @classmethod
    def load(cls) -> Bundle:
        """The bundle that is shipped with the package."""
        return cls(
            *((BUNDLE / name).read_text(encoding="utf-8") for name in ("index.html", "page.css", "page.js"))
        )


def packed(data: Any) -> str:
    """Data as base64 of compressed JSON. The same data always give the same text."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("ascii"), 9, mtime=0)).decode("ascii")


def block(attributes: Mapping[str, str], data: Any) -> str:
    """A block of data in a page, as JSON; a "<" in it is escaped, so that nothing in it can end the block."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" {_attributes(attributes)}>{text}</script>'


def packed_block(attributes: Mapping[str, str], data: Any) -> str:
    """The same, compressed."""
    return f'<script type="application/json" {_attributes(attributes)} data-encoding="gzip">{packed(data)}</script>'


def _attributes(attributes: Mapping[str, str]) -> str:
    return " ".join(f'{name}="{html.escape(value)}"' for name, value in attributes.items())


def shard_script(name: str, data: Any) -> str:
    """A script with part of the data; it is plain JavaScript, and runs on file:// too."""
    require(re.fullmatch(r"[a-z0-9-]+", name) is not None, name, "a shard's name of plain characters")
    return f'saeforest.shard("{name}","{packed(data)}");\n'


def page(bundle: Bundle, title: str, blocks: list[str], *, shards: bool) -> str:
    """The page with its style, script and blocks of data in one file.

    shards: whether it loads scripts from the folder it lies in.
    """
    for line in (STYLE_LINE, DATA_LINE, SCRIPT_LINE, _TITLE):
        require(bundle.html.count(line) == 1, "explore/serving/page/index.html", f"'{line}' once")
    css, js = bundle.css, _inert(bundle.js)
    require("</style" not in css.lower(), "explore/serving/page/page.css", "no end of a style")
    policy = (
        "default-src 'none'; "
        f"script-src {_hash(js)}{' ' + _SHARDS if shards else ''}; style-src {_hash(css)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    parts = {
        _TITLE: f"{head}\n    <title>{html.escape(printable(title))}</title>",
        STYLE_LINE: f"<style>{css}</style>",
        DATA_LINE: "\n".join(blocks),
        SCRIPT_LINE: f"<script>{js}</script>",
    }
    pattern = "|".join(map(re.escape, parts))
    return re.sub(pattern, lambda line: parts[line[0]], bundle.html)


# On file://, 'self' stands for no file in some browsers.
_SHARDS = "'self' file:"


def _inert(js: str) -> str:
    """A script that cannot end its element, nor open another inside it: what is replaced stands in strings alone."""
    return re.sub(r"<(?=/script|script|!--)", r"\\x3C", js, flags=re.IGNORECASE)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
