"""Windows of text that show what a feature fires on (docs/spec/judges.md#windows), as a judge can read them.

A window is a token, its centre, with `buffer` tokens on either side, all within one context window. Excluded positions
may be part of a window, but the feature's value on them counts as 0.

    top      the centres with the largest values; none lies within `buffer` of a larger one in its context window
    sampled  other centres, drawn without replacement with probability proportional to value^power
    silent   centres in whose window the feature does not fire at all
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray as Array

from ..hf_types import PreTrainedTokenizerBase
from ..output import printable
from .subject import Subject

# A token is marked where its value is above this share of the largest in the feature's top windows.
_MARKED_SHARE = 0.01


def fires_enough(subject: Subject, min_fired: int) -> Bool[Array, "d_sae"]:
    """Which features fire on more than `min_fired` of the measured activations."""
    return (subject.pairs.marginals.n > min_fired).numpy()


class FeatureWindows:
    """The windows of one feature. Centres are flat positions in `subject.tokens`."""

    def __init__(self, subject: Subject, feature: int, buffer: int) -> None:
        self.tokens, self.tokenizer, self.buffer = subject.tokens, subject.tokenizer, buffer
        index, value = subject.pairs.firings(feature)
        row = subject.rows[index.long()].numpy()
        self.values: Float64[Array, "n_tokens"] = np.zeros(subject.tokens.n_tokens)
        self.values[row] = value.double().numpy()
        """Of the feature, on every token."""
        position = row % subject.tokens.context
        self.centres: Int64[Array, "m"] = row[
            (position >= buffer) & (position < subject.tokens.context - buffer)
        ]
        """The tokens on which it fires that have a whole window round them, ascending."""

    def top(self, n: int) -> Int64[Array, "n_found"]:
        """The centres of up to `n` top windows, strongest first; of equals the earlier."""
        found: list[int] = []
        context = self.tokens.context
        for row in self.centres[np.argsort(-self.values[self.centres], kind="stable")].tolist():
            if len(found) == n:
                break
            if all(abs(row - f) > self.buffer or row // context != f // context for f in found):
                found.append(row)
        return np.array(found, dtype=np.int64)

    def sampled(
        self, n: int, below: float, power: float, rng: np.random.Generator
    ) -> Int64[Array, "n_found"]:
        """`n` centres with values less than `below`, or all where there are fewer, in the order they were drawn."""
        centres = self.centres[self.values[self.centres] < below]
        if len(centres) == 0:
            return centres
        weight = self.values[centres] ** power
        return rng.choice(centres, min(n, len(centres)), replace=False, p=weight / weight.sum())

    def silent(self, n: int, rng: np.random.Generator) -> Int64[Array, "n_found"]:
        """`n` centres with silent windows, or all where there are fewer, drawn uniformly without replacement."""
        width = 2 * self.buffer + 1
        fires = self.values.reshape(-1, self.tokens.context) > 0
        before = np.pad(fires.cumsum(1), ((0, 0), (1, 0)))
        window, first = np.nonzero(before[:, width:] == before[:, :-width])
        centres = window * self.tokens.context + first + self.buffer
        return rng.choice(centres, min(n, len(centres)), replace=False)

    def anywhere(self, n: int, rng: np.random.Generator) -> Int64[Array, "n"]:
        """`n` centres drawn uniformly with replacement, whatever the feature does there."""
        window = rng.integers(len(self.tokens.ids), size=n)
        return window * self.tokens.context + rng.integers(
            self.buffer, self.tokens.context - self.buffer, size=n
        )

    def around(self, centres: Int64[Array, "n"]) -> Float64[Array, "n window"]:
        """The feature's values in windows."""
        return self.values[self._rows(centres)]

    def level(self, top: Int64[Array, "n"]) -> float:
        """The value above which a token is marked, and a window counts as one in which the feature is active."""
        return _MARKED_SHARE * float(self.around(top).max())

    def texts(self, centres: Int64[Array, "n"], mark_above: float = np.inf) -> list[str]:
        """The text of windows, tokens with larger values between << and >>."""
        rows = self._rows(centres)
        ids = self.tokens.ids.flatten().numpy()[rows]
        marked = self.around(centres) > mark_above
        # A BOS at the start of a window is not of the text.
        text = (rows % self.tokens.context > 0) | (not self.tokens.prepend_bos)
        return [
            window_text(i[t].tolist(), m[t], self.tokenizer)
            for i, m, t in zip(ids, marked, text, strict=True)
        ]

    def _rows(self, centres: Int64[Array, "n"]) -> Int64[Array, "n window"]:
        return centres[:, None] + np.arange(-self.buffer, self.buffer + 1)


def window_text(ids: list[int], marked: Bool[Array, "n"], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of `ids` on one printable line, runs of marked tokens between << and >>.

    Marks stand between whole characters, though tokens may be parts of one.
    """

    def decode(n: int) -> str:
        text = tokenizer.decode(ids[:n], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    whole = decode(len(ids))
    spans: list[tuple[int, int]] = []
    for start, stop in _runs(marked):
        left = next(len(t) for n in range(start, -1, -1) if whole.startswith(t := decode(n) if n else ""))
        right = next(len(t) for n in range(stop, len(ids) + 1) if whole.startswith(t := decode(n)))
        if spans and left <= spans[-1][1]:  # two runs share a character
            left = spans.pop()[0]
        spans.append((left, right))
    parts, done = "", 0
    for left, right in spans:
        parts += f"{printable(whole[done:left])}<<{printable(whole[left:right])}>>"
        done = right
    return parts + printable(whole[done:])


def _runs(marked: Bool[Array, "n"]) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marked, [0]])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def numbered(texts: list[str]) -> str:
    return "\n".join(f"{i}. {text}" for i, text in enumerate(texts, 1))
