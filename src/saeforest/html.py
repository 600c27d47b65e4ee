"""HTML fragments that notebooks display.

A fragment has no scripts and loads nothing. Its colors are translucent or inherited, so that it reads on light and dark
pages alike. Text is escaped, and control characters and direction overrides are shown as signs, never obeyed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .output import printable

_STYLE = """
.saeforest{font:13px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;max-width:60em;color:inherit}
.saeforest table{border-collapse:collapse;margin:.4em 0;font-size:inherit;color:inherit}
.saeforest th,.saeforest td{padding:.15em .8em .15em 0;text-align:left;vertical-align:baseline;background:none;border:0}
.saeforest th,.saeforest td{color:inherit;white-space:normal}
.saeforest th{font-weight:600;opacity:.75;border-bottom:1px solid rgba(128,128,128,.4)}
.saeforest .n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.saeforest .q{opacity:.75}
.saeforest .t{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:12px}
.saeforest mark{background:rgba(234,138,0,.3);color:inherit;font-weight:700;text-decoration:underline;border-radius:2px}
.saeforest h4{font-size:14px;margin:.3em 0;color:inherit}
.saeforest p{margin:.3em 0}
.saeforest ul{margin:.1em 0;padding-left:1.4em}
.saeforest summary{cursor:pointer}
""".strip()


def shown(text: object) -> str:
    """Text as it is written into HTML."""
    return escape(printable(str(text)))


def fragment(*parts: str) -> str:
    """A fragment for a notebook from parts that are HTML already."""
    return f'<div class="saeforest"><style>{_STYLE}</style>{"".join(parts)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[bool]) -> str:
    """A table of cells that are HTML already. numbers: which columns hold numbers."""
    classes = [' class="n"' if number else "" for number in numbers]
    top = "".join(f"<th{kind}>{cell}</th>" for kind, cell in zip(classes, head, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(classes, row, strict=True))}</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
