"""Text in a figure whose axes are in inches: its widths are known before it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from rich.cells import cell_len

from ...text.passages import ELLIPSIS

INK, QUIET, SIGNAL, PAPER, LINE, SOFT, MARK, NULL, RULE = (
    "#1f2933", "#5b6773", "#b45309", "#ffffff", "#0f766e", "#f0fdfa", "#fde7c7", "#c3c9d0", "#dfe3e8",
)  # fmt: skip
SANS, MONO = "DejaVu Sans", "DejaVu Sans Mono"
# Width of a character of the monospaced font, in its own size.
_ADVANCE = 0.602
_POINTS = 72


class Lettering:
    """Draws text on axes in inches, y downwards; `y` is the baseline."""

    axes: Axes

    def text(self, x: float, y: float, content: str, size: float, **style: Any) -> None:
        """Draw a line of text."""
        style = {"color": INK, "family": SANS, "va": "baseline", **style}
        self.axes.text(x, y, content, fontsize=size, **style)

    def columns(self, width: float, size: float) -> int:
        """Number of monospaced characters in a width in inches."""
        return int(width * _POINTS / (_ADVANCE * size))

    def marked(self, x: float, y: float, before: str, token: str, after: str, size: float) -> None:
        """Draw a line of monospaced text with a token in it that is marked."""
        step = _ADVANCE * size / _POINTS
        at, wide = x + step * cell_len(before), step * cell_len(token)
        height = 1.32 * size / _POINTS
        self.axes.add_patch(
            Rectangle((at - 0.01, y - 0.78 * height), wide + 0.02, height, facecolor=MARK, edgecolor="none")
        )
        for left, part, style in (
            (x, before, {}),
            (at, token, {"color": SIGNAL, "weight": "bold"}),
            (at + wide, after, {}),
        ):
            if part:
                self.text(left, y, part, size, family=MONO, **style)

    def joined(self, words: Sequence[str], width: float, size: float) -> str:
        """As many words as fit, with dots between them; the first is cut if it has to be."""
        shown = self.cut(words[0], width, size, "bold") if words else ""
        for word in words[1:]:
            longer = f"{shown} · {word}"
            if _width(longer, size, "bold") > width:
                break
            shown = longer
        return shown

    def cut(self, content: str, width: float, size: float, weight: str = "normal") -> str:
        """The text with an ellipsis where it was cut to fit a width in inches."""
        if _width(content, size, weight) <= width:
            return content
        low, high = 0, len(content)
        while low < high:
            middle = (low + high + 1) // 2
            if _width(content[:middle] + ELLIPSIS, size, weight) <= width:
                low = middle
            else:
                high = middle - 1
        return content[:low].rstrip() + ELLIPSIS

    def wrapped(self, content: str, width: float, size: float) -> list[str]:
        """The text in lines that fit a width in inches."""
        lines = [""]
        for word in content.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and _width(longer, size, "normal") > width:
                lines.append(word)
            else:
                lines[-1] = longer
        return lines


@cache
def _width(content: str, size: float, weight: str) -> float:
    """The width of a line of text in inches."""
    if not content:
        return 0
    font = FontProperties(family=SANS, weight=weight, size=size)
    return float(TextPath((0, 0), content, prop=font).get_extents().x1) / _POINTS
