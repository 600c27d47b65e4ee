"""Documents packed into windows of tokens, and the way back from a token to its document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
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

    A token's row is its flat position in `ids`: `sequence * context + position`. Where each window begins with BOS,
    that token is no part of any document; it counts with the document of the token behind it.
    """

    ids: Int[Tensor, "seq ctx"]
    """int32 token ids."""
    document_starts: Int[Tensor, " doc"]
    """int64 row of each document's first token, ascending; the first is 0."""
    names: tuple[str, ...]
    """The name of each document."""
    prepend_bos: bool = False
    """Whether each window begins with BOS, followed by `context - 1` tokens of text."""

    @property
    def n_tokens(self) -> int:
        """Tokens in all windows together, BOS included."""
        return self.ids.numel()

    @property
    def context(self) -> int:
        """Tokens in a window."""
        return self.ids.shape[1]

    def document_of(self, rows: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The index into `names` of the document that each row belongs to; its closing token is its own."""
        starts = self.document_starts.to(rows.device)
        return torch.searchsorted(starts, self._of_text(rows).contiguous(), right=True) - 1

    def _of_text(self, rows: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Each row, or for a BOS the row behind it."""
        rows = rows.long()
        return rows + (rows % self.context == 0) if self.prepend_bos else rows

    def context_position(self, rows: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The position of each row within its window, in tokens from 0."""
        return rows.long() % self.context

    def document_position(self, rows: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The distance of each row from the first token of its document, in tokens of the document."""
        text, starts = self._of_text(rows), self.document_starts.to(rows.device)[self.document_of(rows)]
        if not self.prepend_bos:
            return text - starts
        return text - starts - (text // self.context - starts // self.context)

    def save(self, path: Path) -> str:
        """Writes one safetensors file, whole or not at all; returns its checksum."""
        names = np.frombuffer(json.dumps(self.names).encode(), np.uint8).copy()
        tensors = {
            "ids": self.ids,
            "document_starts": self.document_starts,
            "names": torch.from_numpy(names),
        }
        if self.prepend_bos:  # left out otherwise, so that files without BOS are those of older versions
            tensors["prepend_bos"] = torch.ones(1, dtype=torch.uint8)
        return write_tensors(path, tensors)

    @classmethod
    def load(cls, path: Path, expected: str | None = None) -> Tokens:
        """What `save` wrote; `expected` is its checksum, where one is known.

        Raises:
            InputError: the file is missing, damaged, or not one that `save` wrote.
        """
        try:
            tensors = read_tensors(path, expected)
            names = tuple(parse_json(tensors["names"].numpy().tobytes(), str(path)))
            tokens = cls(tensors["ids"], tensors["document_starts"], names, "prepend_bos" in tensors)
            _check(tokens)
        except (KeyError, ValueError, TypeError):
            raise InputError(
                f"{path}: expected a saeforest tokens file, this one is damaged or another kind; "
                "delete it and tokenise the text again"
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
    """Up to `n_tokens` tokens of one split of `source` (see `documents`), in windows of `context` tokens.

    Each document's tokens, with no special tokens among them (one that is spelled out is read as plain text, but in
    a chat), are followed by `eos_id`; all are joined and cut into windows, and what fills no window is dropped. A
    source that ends early gives fewer tokens: see `Tokens.n_tokens`. With `bos` (auto: where the tokenizer puts it
    before a text, see `adds_bos`), each window is the BOS token and `context - 1` tokens of text.

    `held_out` is the share of documents that is kept from training (see `held_out`): the two splits have no text in
    common. `seed` orders the packaged corpus; `reading` says how records become documents.

    Raises:
        InputError: the source can't be read (see `documents`), or the split fills no window.
    """
    bos_id = bos_before(tokenizer, bos, "the model")
    step = context - (bos_id is not None)
    if step < 1 or n_tokens < context:
        raise InputError(
            f"n_tokens is {n_tokens}: expected at least one window of context {context}; raise it"
        )
    target = n_tokens // context * step
    arrays: list[NDArray[np.int32]] = []
    starts: list[int] = []
    names: list[str] = []
    total = 0
    repeats = _Repeats()
    chosen = repeats.counted(split_of(documents(source, seed=seed, reading=reading), split, held_out, source))
    with progress("tokenise", target, "tokens") as advance:
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
            f"text source '{source}': its {split} split (held_out {held_out:g}) holds {total:,} tokens in "
            f"{len(names):,} documents, less than one window of {context}; give more text, a smaller text.context or "
            f"a {'larger' if split == 'held_out' else 'smaller'} text.held_out"
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
    """How many documents repeat one before: as many as a source has, its number of tokens says less than it seems."""

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
                "repeat another word for word"
            )


# Encoding. A tokenizer's answer takes some hundred bytes a token, so it never gets more than this at once.
_BATCH_CHARACTERS = 2**18


@dataclass(frozen=True)
class _Piece:
    """A document, or a stretch of one that is too long to encode at once."""

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
    """After the last line end in reach, where a cut changes at most the tokens next to it."""
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
            closed = piece.chat and ids[-1:] == [eos_id]  # by its own last message
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
