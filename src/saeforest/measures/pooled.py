"""Labeled texts as sparse probing and TPP use them: one vector for each text (docs/spec/probing.md).

With T the measured tokens of a text, x_t an activation, f_t its code and s_t the scale that normalization divided by,

    pooled(x) = mean over T of x_t     pooled(f) = mean over T of f_t     effective(f) = mean over T of s_t f_t

The effective code is in the units of x: ablating a set S of features takes sum_{i in S} effective(f)_i d_i away from
pooled(x). There is no padding: texts of equal length are read together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array, vstack
from torch import Tensor

from ..activations import ActivationReader
from ..errors import InputError
from ..progress import progress
from ..saes import SAE
from ..text import Tokens, encode
from ..text.labeled import LabeledText, labeled
from .bootstrap import FloatArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

#: Minimum number of texts of a class.
MIN_TEXTS = 10
# Maximum number of tokens of the texts that are pooled at once, to bound memory.
_SLICE_TOKENS = 8192


@dataclass(frozen=True)
class LabeledTextConfig:
    """Which labeled texts are read."""

    source: str = "packaged:topics"
    """Labeled texts: packaged:topics (Wikipedia introductions by topic), a .jsonl or .csv file with text and label, or
    a folder with a subfolder of .txt files for each label."""
    classes: tuple[str, ...] = ()
    """Labels to classify. By default, the `n_classes` labels with the most texts."""
    n_classes: int = 5
    """Number of labels if `classes` is empty; fewer if the source has fewer."""
    train: int = 2000
    """Number of texts to train probes on, the same for every class; fewer if a class has too few texts."""
    test: int = 500
    """Number of texts to test probes on, the same for every class; fewer if a class has too few texts."""
    context: int = 128
    """Number of tokens to read from the start of each text, including BOS if the run's texts start with it."""
    seed: int = 42
    """Random seed for choosing the texts and splitting them into training and test texts."""

    def __post_init__(self) -> None:
        for name, least in (("n_classes", 2), ("train", 1), ("test", 1), ("context", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"texts.{name} = {getattr(self, name)}: expected {least} or more")
        if len(self.classes) == 1 or len(set(self.classes)) < len(self.classes):
            raise InputError(f"texts.classes = {list(self.classes)}: expected two or more different labels")

    def read(self) -> list[LabeledText]:
        """The texts of the source. Raises InputError if it can't be read."""
        return labeled(self.source)

    def usual(self, texts: list[LabeledText]) -> tuple[str, ...]:
        """The classes if `classes` is empty."""
        count = Counter(text.label for text in texts)
        return tuple(label for label in _ranked(count) if count[label] >= MIN_TEXTS)[: self.n_classes]


@dataclass(frozen=True, eq=False)
class ReadTexts:
    """Texts of C classes, and their activations at a reader's site.

    config:   the settings that chose the texts.
    classes:  C labels, in the order of the settings or the most frequent in the source first.
    x:        `[m, d]` activations of the measured tokens, text by text, on the CPU in the model's dtype.
    count:    `[n]` number of measured tokens of each text, 1 or more.
    train:    `[C, a]` indices of each class's training texts.
    test:     `[C, b]` indices of each class's test texts.
    n_tokens: number of tokens that the model read, measured or not.
    """

    config: LabeledTextConfig
    classes: tuple[str, ...]
    x: Float[Tensor, "m d"]
    count: IntArray
    train: IntArray
    test: IntArray
    n_tokens: int

    @cached_property
    def pooled(self) -> FloatArray:
        """The mean of each text's activations, `[n, d]`."""
        sums = [np.add.reduceat(x.double().numpy(), np.cumsum(n) - n) for x, n in self.batches()]
        return np.concatenate(sums) / self.count[:, None]

    def batches(self) -> Iterator[tuple[Float[Tensor, "b d"], IntArray]]:
        """Activations of several whole texts at a time, and the number of tokens of each text."""
        ends = np.cumsum(self.count)
        first = 0
        while first < len(ends):
            start = ends[first] - self.count[first]
            last = max(int(np.searchsorted(ends, start + _SLICE_TOKENS, side="right")), first + 1)
            yield self.x[start : ends[last - 1]], self.count[first:last]
            first = last

    @property
    def settings(self) -> dict[str, object]:
        """Settings for records."""
        return {
            "data": self.config.source,
            "context": self.config.context,
            "batch": "texts of one length",
            "split": "all texts of the source, also those that the SAE was trained on: it has not seen the labels",
            "classes": list(self.classes),
            "train_texts": self.train.size,
            "test_texts": self.test.size,
            "pooling": "mean over the measured tokens of a text",
            "tokens_read": self.n_tokens,
        }


class PooledCode(NamedTuple):
    """The mean code of each text, `[n, d_sae]`: as the SAE returns it, and in the units of the activations."""

    raw: csr_array
    effective: csr_array


class LabeledCodes(NamedTuple):
    """Labeled texts and their pooled codes."""

    texts: ReadTexts
    code: PooledCode


# Choosing, reading and dividing texts


def choose(found: list[LabeledText], config: LabeledTextConfig) -> tuple[tuple[str, ...], list[LabeledText]]:
    """Choose the classes, and equally many random texts of each.

    Raises InputError for a class with fewer than 10 texts.
    """
    # Drop duplicates, which could be in both the training and the test texts.
    texts = list({(text.text, text.label): text for text in found}.values())
    count = Counter(text.label for text in texts)
    classes = config.classes or config.usual(texts)
    if len(classes) < 2:
        most = ", ".join(f"{label} ({count[label]})" for label in _ranked(count)[:3])
        raise InputError(
            f"labeled texts '{config.source}': expected two or more labels with {MIN_TEXTS} or more texts each; "
            f"the most frequent are {most}"
        )
    _check_enough(classes, [text.label for text in texts], config)
    generator = np.random.default_rng(config.seed)
    wanted = max(-(-(config.train + config.test) // len(classes)), MIN_TEXTS)
    wanted = min(wanted, *(count[label] for label in classes))
    chosen: list[LabeledText] = []
    for label in classes:
        mine = [text for text in texts if text.label == label]
        chosen += [mine[i] for i in generator.permutation(len(mine))[:wanted]]
    return classes, chosen


def _ranked(count: Counter[str]) -> list[str]:
    """Labels, the most frequent first; ties in alphabetical order."""
    return sorted(count, key=lambda label: (-count[label], label))


def _check_enough(classes: tuple[str, ...], labels: list[str], config: LabeledTextConfig) -> None:
    count = Counter(labels)
    for label in classes:
        if count[label] < MIN_TEXTS:
            raise InputError(
                f"labeled texts '{config.source}': {count[label]} different texts with tokens to measure have the "
                f"label '{label}'; expected {MIN_TEXTS} or more"
            )


def read_texts(reader: ActivationReader, config: LabeledTextConfig) -> ReadTexts:
    """Read the configured texts at the reader's site, at the positions that the reader keeps.

    The result holds m * d numbers in the model's dtype (0.3 GB for 2,500 texts at d = 576 in bfloat16).

    Raises InputError if the source cannot be read, or has too few texts of a class.
    """
    reader.lm.check_context(
        config.context, "sparse_probing.texts.context, tpp.texts.context, scr.texts.context"
    )
    classes, texts = choose(config.read(), config)
    encoded = encode(reader.lm.tokenizer, [text.text for text in texts])
    bos = [] if reader.bos_id is None else [reader.bos_id]
    tokenized = [
        ((bos + ids)[: config.context], text) for ids, text in zip(encoded, texts, strict=True) if ids
    ]
    tokenized.sort(key=lambda pair: len(pair[0]))
    _check_enough(classes, [text.label for _, text in tokenized], config)
    parts: list[Tensor] = []
    text: list[Tensor] = []
    read = 0
    n_tokens = sum(len(ids) for ids, _ in tokenized)
    with progress("read labeled texts", n_tokens, "tokens") as advance:
        for length, group in groupby(tokenized, key=lambda pair: len(pair[0])):
            rows, same = zip(*group, strict=True)
            starts, names = torch.arange(len(rows)) * length + len(bos), tuple(one.name for one in same)
            window = torch.tensor(rows, dtype=torch.int32)
            for batch, n in reader.batches(Tokens(window, starts, names, prepend_bos=bool(bos))):
                parts.append(batch.x)
                text.append(read + batch.rows // length)
                advance(n)
            read += len(rows)
    count = np.bincount(torch.cat(text).numpy(), minlength=read)
    measured = count > 0
    labels = [one.label for (_, one), some in zip(tokenized, measured, strict=True) if some]
    _check_enough(classes, labels, config)
    train, test = divide(np.array([classes.index(label) for label in labels]), config)
    return ReadTexts(config, classes, torch.cat(parts), count[measured], train, test, n_tokens)


def divide(label: IntArray, config: LabeledTextConfig) -> tuple[IntArray, IntArray]:
    """Split texts into training and test texts, equally many of every class: `[C, a]` and `[C, b]` indices."""
    generator = np.random.default_rng((config.seed, 1))
    mine = [generator.permutation(np.flatnonzero(label == c)) for c in range(label.max() + 1)]
    n = min(len(texts) for texts in mine)
    # A class needs two training texts, one of them for validation.
    n_test = min(max(round(n * config.test / (config.train + config.test)), 1), n - 2)
    same = np.stack([texts[:n] for texts in mine])
    return same[:, n_test:], same[:, :n_test]


def check_share(key: str, share: float) -> None:
    """Raise InputError unless `share` is a fraction of the training texts that leaves some for both parts."""
    if not 0 < share < 1:
        raise InputError(f"{key} = {share}: expected a fraction of the training texts, above 0 and below 1")


def apart(texts: IntArray, share: float) -> tuple[IntArray, IntArray]:
    """Split each class's texts `[C, n]` into the rest and a `share` of them, at least one text each."""
    n = min(max(round(share * texts.shape[1]), 1), texts.shape[1] - 1)
    return texts[:, n:], texts[:, :n]


def one_vs_rest(texts: IntArray, seed: int) -> tuple[IntArray, BoolArray]:
    """For each class, its `n` texts and as many drawn evenly from the other classes.

    Returns the texts, `[C, 2n]`, and which of them belong to the class, `[2n]`.
    """
    n_classes, n = texts.shape
    generator = np.random.default_rng((seed, 2))
    rows = []
    for own in range(n_classes):
        others = generator.permuted(np.delete(texts, own, axis=0), axis=1)
        # Column by column, so that every class gives one text before any class gives a second.
        rows.append(np.concatenate([texts[own], generator.permutation(others).T.ravel()[:n]]))
    return np.stack(rows), np.arange(2 * n) < n


def mean_difference(x: FloatArray | csr_array, own: BoolArray) -> FloatArray:
    """The mean of the rows of `x [n, d]` that belong to the class minus the mean of the others: `[d]`."""
    return np.where(own, 1 / own.sum(), -1 / (~own).sum()) @ x


def by_text(rows: IntArray, values: FloatArray, test: IntArray) -> FloatArray:
    """Spread `values [..., C, m]` of the texts `rows [C, m]` over all test texts, `[..., C, n]`; 0 for other texts."""
    place = np.zeros(test.max() + 1, dtype=np.int64)
    place[test.ravel()] = np.arange(test.size)
    out = np.zeros((*values.shape[:-1], test.size))
    np.put_along_axis(out, np.broadcast_to(place[rows], values.shape), values, axis=-1)
    return out


# Encoding


@torch.no_grad()
def pooled_code(sae: SAE, texts: ReadTexts) -> PooledCode:
    """An SAE's codes, pooled over each text. Every positive value counts, as in decoding."""
    raw: list[csr_array] = []
    effective: list[csr_array] = []
    with progress("encode labeled texts", len(texts.x), "tokens") as advance:
        for x, count in texts.batches():
            code, stats = sae.encode_with_stats(x.to(sae.device).float())
            values = code.values.double()
            raw.append(_means(values.cpu(), code.ids.cpu(), count, sae.d_sae))
            effective.append(_means((values * stats.std.double()).cpu(), code.ids.cpu(), count, sae.d_sae))
            advance(len(x))
    return PooledCode(csr_array(vstack(raw, format="csr")), csr_array(vstack(effective, format="csr")))


def _means(values: Float64[Tensor, "b k"], ids: Int[Tensor, "b k"], count: IntArray, d_sae: int) -> csr_array:
    """The mean code of each text, `[texts, d_sae]`. A text has `count` tokens."""
    text = torch.from_numpy(np.repeat(np.arange(len(count)), count))[:, None].expand_as(ids)
    on = values > 0
    rows = text[on].numpy()
    entries = (values[on].numpy() / count[rows], (rows, ids[on].numpy()))
    # Entries at the same place add up, here in float64.
    summed = coo_array(entries, shape=(len(count), d_sae)).tocsr()
    return csr_array((summed.data.astype(np.float32), summed.indices, summed.indptr), shape=summed.shape)
