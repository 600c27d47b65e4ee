"""Packing documents into windows of tokens, and finding the document of a token."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from saeforest.errors import InputError
from saeforest.files import parse_json, read_tensors, write_tensors
from saeforest.hf_types import PreTrainedTokenizerBase
from saeforest.output import note
from saeforest.progress import progress
from saeforest.text.corpora import documents
from saeforest.text.document import Document
from saeforest.text.fields import Reading
from saeforest.text.held_out import fraction, split_of
from saeforest.text.ids import bos_before, encode

_PLAIN = Reading()


@dataclass(frozen=True, eq=False)
class Tokens:
    """Documents one after another, each closed by an end-of-text token, cut into windows of `context` tokens.

    A token's row is its index in the flattened `ids`: `sequence * context + position`. A BOS at the start of a window
    belongs to no document; `document_of` gives the document of the token after it.
    """

    ids: Int[Tensor, "seq ctx"]
    """int32 token ids."""
    document_starts: Int[Tensor, " doc"]
    """int64 row of each document's first token, ascending; the first is 0 (1 with BOS)."""
    names: tuple[str, ...]
    """The name of each document."""
    prepend_bos: bool = False
    """Whether each window begins with BOS, followed by `context - 1` tokens of text."""

    @property
    def n_tokens(self) -> int:
        """Number of tokens in all windows together, BOS included."""
        return self.ids.numel()

    @property
    def context(self) -> int:
        """Number of tokens in a window."""
        return self.ids.shape[1]

    def first(self, n_windows: int) -> Tokens:
        """The first windows, with the documents that begin in them."""
        ids = self.ids[:n_windows]
        n_documents = int((self.document_starts < ids.numel()).sum())
        return replace(
            self,
            ids=ids,
            document_starts=self.document_starts[:n_documents],
            names=self.names[:n_documents],
        )

    def document_of(self, rows: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The index into `names` of each row's document. The token that closes a document belongs to it."""
        starts = self.document_starts.to(rows.device)
        return torch.searchsorted(starts, self._of_text(rows).contiguous(), right=True) - 1

    def _of_text(self, rows: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Each row, or the row after it if it is a BOS."""
        rows = rows.long()
        return rows + (rows % self.context == 0) if self.prepend_bos else rows

    def context_position(self, rows: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The position of each row within its window, from 0."""
        return rows.long() % self.context

    def document_position(self, rows: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The position of each row within its document, from 0; a BOS within the document is not counted."""
        text, starts = self._of_text(rows), self.document_starts.to(rows.device)[self.document_of(rows)]
        if not self.prepend_bos:
            return text - starts
        return text - starts - (text // self.context - starts // self.context)

    def save(self, path: Path) -> str:
        """Write one safetensors file atomically. Returns its checksum."""
        return write_tensors(path, self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that `save` writes."""
        names = np.frombuffer(json.dumps(self.names).encode(), np.uint8).copy()
        tensors = {
            "ids": self.ids,
            "document_starts": self.document_starts,
            "names": torch.from_numpy(names),
        }
        if self.prepend_bos:  # left out otherwise, so that files without BOS are as in older versions
            tensors["prepend_bos"] = torch.ones(1, dtype=torch.uint8)
        return tensors

    @classmethod
    def load(cls, path: Path, expected: str | None = None) -> Tokens:
        """Load a file written by `save`; `expected` is its checksum, if known.

        Raises:
            InputError: the file is missing, damaged, or was not written by `save`.
        """
        return cls.of_tensors(read_tensors(path, expected), path)

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], path: object) -> Tokens:
        """The inverse of `tensors`. Raises InputError, which names `path`, if they are of another kind."""
        try:
            names = tuple(parse_json(tensors["names"].numpy().tobytes(), str(path)))
            tokens = cls(tensors["ids"], tensors["document_starts"], names, "prepend_bos" in tensors)
            _check(tokens)
        except InputError:  # a ValueError, but it says more
            raise
        except (KeyError, ValueError, TypeError):
            raise InputError(
                f"{path}: expected a saeforest tokens file, but it is damaged or of another kind; "
                "delete it and tokenize the text again"
            ) from None
        return tokens


def _check(tokens: Tokens) -> None:
    ids, starts = tokens.ids, tokens.document_starts
    sound = (
        (ids.dtype, ids.ndim, starts.dtype) == (torch.int32, 2, torch.int64)
        and starts.shape == (len(tokens.names),)
        and len(starts) > 0
        and starts[0] == int(tokens.prepend_bos)
        and bool((starts.diff() > 0).all())
        and starts[-1] < ids.numel()
    )
    if sound and tokens.prepend_bos:
        sound = bool((starts % tokens.context > 0).all()) and len(ids[:, 0].unique()) == 1
    if not sound:
        raise ValueError("the tensors don't fit each other")


def tokenize(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    eos_id: int,
    *,
    n_tokens: int,
    context: int,
    split: Literal["train", "held_out"],
    held_out: float,
    seed: int = 0,
    bos: Literal["auto", "yes", "no"] = "auto",
    reading: Reading = _PLAIN,
) -> Tokens:
    """Read up to `n_tokens` tokens of one split of `source` (see `documents`), in windows of `context` tokens.

    Each document's tokens are followed by `eos_id`; all are concatenated and cut into windows, and an incomplete last
    window is dropped. Special tokens spelled out in a text are encoded as plain text, except in a rendered chat. A
    source that ends early gives fewer tokens: see `Tokens.n_tokens`.

    held_out: fraction of the documents held out from training (see the module `held_out`). The two splits have no text
        in common.
    seed: random seed for the order of the packaged corpus.
    bos: whether each window is BOS and `context - 1` tokens of text; auto: if the tokenizer adds BOS (see `adds_bos`).
    reading: how records become documents.

    Raises:
        InputError: the source can't be read (see `documents`), or the split does not fill one window.
    """
    bos_id = bos_before(tokenizer, bos, "the model")
    step = context - (bos_id is not None)
    if step < 1 or n_tokens < context:
        raise InputError(
            f"n_tokens = {n_tokens}: expected at least one window of {context} tokens; increase n_tokens"
        )
    target = n_tokens // context * step
    arrays: list[NDArray[np.int32]] = []
    starts: list[int] = []
    names: list[str] = []
    total = 0
    repeats = _Repeats()
    chosen = repeats.counted(split_of(documents(source, seed=seed, reading=reading), split, held_out, source))
    with progress("tokenize", target, "tokens") as advance:
        for piece, ids in _encoded(_pieces(chosen), tokenizer, eos_id):
            if piece.first:
                starts.append(total)
                names.append(piece.name)
            arrays.append(ids)
            advance(min(len(ids), target - total))
            total += len(ids)
            if total >= target:
                break
    whole = min(total, target) // step * step
    if whole == 0:
        raise InputError(
            f"text source '{source}': its {split} split (held_out {held_out:g}) has {total:,} tokens in "
            f"{len(names):,} documents, less than one window of {context} tokens; give more text, a smaller "
            f"text.context or a {'larger' if split == 'held_out' else 'smaller'} text.held_out"
        )
    repeats.say(source, split)
    kept = sum(start < whole for start in starts)
    ids = torch.from_numpy(np.concatenate(arrays)[:whole]).view(-1, step)
    document_starts = torch.tensor(starts[:kept], dtype=torch.int64)
    if bos_id is not None:
        ids = torch.cat([torch.full_like(ids[:, :1], bos_id), ids], 1)
        document_starts += document_starts // step + 1
    return Tokens(ids, document_starts, tuple(names[:kept]), prepend_bos=bos_id is not None)


class _Repeats:
    """Counts documents that repeat an earlier one: with many of them, there is less text than the tokens suggest."""

    _MOST, _WORTH_A_WORD = 1_000_000, 0.1

    def __init__(self) -> None:
        self._seen: set[float] = set()
        self._documents = self._repeated = 0

    def counted(self, found: Iterator[Document]) -> Iterator[Document]:
        for document in found:
            if len(self._seen) < self._MOST:
                known = len(self._seen)
                self._seen.add(fraction(document.text))
                self._documents += 1
                self._repeated += len(self._seen) == known
            yield document

    def say(self, source: str, split: str) -> None:
        if self._repeated > self._WORTH_A_WORD * self._documents:
            note(
                f"text source '{source}': {self._repeated:,} of the {self._documents:,} documents of its {split} text "
                "are exact duplicates"
            )


# Encoding. A tokenizer's output takes about a hundred bytes per token, so this bounds what it encodes at once.
_BATCH_CHARACTERS = 2**18


@dataclass(frozen=True)
class _Piece:
    """A document, or part of a document that is too long to encode at once."""

    text: str
    name: str
    first: bool
    last: bool
    chat: bool


def _pieces(found: Iterator[Document]) -> Iterator[_Piece]:
    for document in found:
        text, start = document.text, 0
        while start < len(text):
            end = _piece_end(text, start)
            last = end == len(text)
            yield _Piece(text[start:end], document.name, first=start == 0, last=last, chat=document.chat)
            start = end


def _piece_end(text: str, start: int) -> int:
    """The end of a piece: after the last line end within reach, where a cut changes few tokens."""
    limit = start + _BATCH_CHARACTERS
    if limit >= len(text):
        return len(text)
    return text.rfind("\n", start, limit) + 1 or limit


def _encoded(
    pieces: Iterator[_Piece], tokenizer: PreTrainedTokenizerBase, eos_id: int
) -> Iterator[tuple[_Piece, NDArray[np.int32]]]:
    for batch in _batches(pieces):
        found = encode(tokenizer, [piece.text for piece in batch], special=batch[0].chat)
        for piece, ids in zip(batch, found, strict=True):
            closed = piece.chat and ids[-1:] == [eos_id]  # the chat template already ends with it
            yield piece, np.asarray([*ids, eos_id] if piece.last and not closed else ids, dtype=np.int32)


def _batches(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    characters = 0
    for piece in pieces:
        if batch and (characters + len(piece.text) > _BATCH_CHARACTERS or piece.chat != batch[0].chat):
            yield batch
            batch, characters = [], 0
        batch.append(piece)
        characters += len(piece.text)
    if batch:
        yield batch
