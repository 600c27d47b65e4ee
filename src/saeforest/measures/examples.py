"""Windows of text that show a judge what a feature fires on (docs/spec/judges.md#windows).

A window is a center token with `buffer` tokens on either side, all within one context window. Excluded positions
may be part of a window, but the feature's value on them counts as 0.

    top      the centers with the largest values; none lies within `buffer` of a larger one in its context window
    sampled  other centers, drawn without replacement with probability proportional to value^power
    silent   centers in whose window the feature does not fire at all
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray as Array

from ..hf_types import PreTrainedTokenizerBase
from ..output import printable
from .subject import Subject

# A token is marked if its value exceeds this fraction of the largest value in the feature's top windows.
_MARKED_SHARE = 0.01


def fires_enough(subject: Subject, min_fired: int) -> Bool[Array, "d_sae"]:
    """Which features fire on more than `min_fired` of the measured activations."""
    return (subject.pairs.marginals.n > min_fired).numpy()


class FeatureWindows:
    """The windows of one feature. Centers are flat positions in `subject.tokens`."""

    def __init__(self, subject: Subject, feature: int, buffer: int) -> None:
        self.tokens, self.tokenizer, self.buffer = subject.tokens, subject.tokenizer, buffer
        index, value = subject.pairs.firings(feature)
        row = subject.rows[index.long()].numpy()
        self.values: Float64[Array, "n_tokens"] = np.zeros(subject.tokens.n_tokens)
        self.values[row] = value.double().numpy()
        """The feature's value on every token."""
        position = row % subject.tokens.context
        self.centers: Int64[Array, "m"] = row[
            (position >= buffer) & (position < subject.tokens.context - buffer)
        ]
        """The tokens on which the feature fires and around which a whole window fits, ascending."""

    def top(self, n: int) -> Int64[Array, "n_found"]:
        """The centers of up to `n` top windows, strongest first; ties go to the earlier token."""
        found: list[int] = []
        context = self.tokens.context
        for row in self.centers[np.argsort(-self.values[self.centers], kind="stable")].tolist():
            if len(found) == n:
                break
            if all(abs(row - f) > self.buffer or row // context != f // context for f in found):
                found.append(row)
        return np.array(found, dtype=np.int64)

    def sampled(
        self, n: int, below: float, power: float, rng: np.random.Generator
    ) -> Int64[Array, "n_found"]:
        """Up to `n` centers with values less than `below`, in the order they were drawn."""
        centers = self.centers[self.values[self.centers] < below]
        if len(centers) == 0:
            return centers
        weight = self.values[centers] ** power
        return rng.choice(centers, min(n, len(centers)), replace=False, p=weight / weight.sum())

    def silent(self, n: int, rng: np.random.Generator) -> Int64[Array, "n_found"]:
        """Up to `n` centers with silent windows, drawn uniformly without replacement."""
        width = 2 * self.buffer + 1
        fires = self.values.reshape(-1, self.tokens.context) > 0
        before = np.pad(fires.cumsum(1), ((0, 0), (1, 0)))
        window, first = np.nonzero(before[:, width:] == before[:, :-width])
        centers = window * self.tokens.context + first + self.buffer
        return rng.choice(centers, min(n, len(centers)), replace=False)

    def anywhere(self, n: int, rng: np.random.Generator) -> Int64[Array, "n"]:
        """`n` centers drawn uniformly with replacement, whether or not the feature fires there."""
        window = rng.integers(len(self.tokens.ids), size=n)
        return window * self.tokens.context + rng.integers(
            self.buffer, self.tokens.context - self.buffer, size=n
        )

    def around(self, centers: Int64[Array, "n"]) -> Float64[Array, "n window"]:
        """The feature's values in the windows around `centers`."""
        return self.values[self._rows(centers)]

    def level(self, top: Int64[Array, "n"]) -> float:
        """The value above which a token is marked and the feature counts as active in a window."""
        return _MARKED_SHARE * float(self.around(top).max())

    def texts(self, centers: Int64[Array, "n"], mark_above: float = np.inf) -> list[str]:
        """The text of each window, with tokens whose value exceeds `mark_above` between << and >>."""
        rows = self._rows(centers)
        ids = self.tokens.ids.flatten().numpy()[rows]
        marked = self.around(centers) > mark_above
        # BOS at the start of a context window is not text.
        text = (rows % self.tokens.context > 0) | (not self.tokens.prepend_bos)
        return [
            window_text(i[t].tolist(), m[t], self.tokenizer)
            for i, m, t in zip(ids, marked, text, strict=True)
        ]

    def _rows(self, centers: Int64[Array, "n"]) -> Int64[Array, "n window"]:
        return centers[:, None] + np.arange(-self.buffer, self.buffer + 1)


def window_text(ids: list[int], marked: Bool[Array, "n"], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of `ids` on one printable line, with runs of marked tokens between << and >>.

    Marks never split a character, although a token may be part of one.
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
    """One line for each text, with its number from 1 in front."""
    return "\n".join(f"{i}. {text}" for i, text in enumerate(texts, 1))
