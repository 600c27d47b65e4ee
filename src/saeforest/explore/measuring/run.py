"""Making the index of a run from its text; continues where an earlier process was stopped."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ...activations import ActivationBatch, ActivationReader
from ...errors import InputError
from ...evaluation import MeasureOptions
from ...evaluation.forests import infer_into
from ...files import (
    CHECKSUMS,
    listed_checksum,
    read_json,
    read_tensors,
    remove_leftovers,
    write_json,
    write_tensors,
)
from ...output import note
from ...run_folder import RunFolder
from ...saes import SAE
from ...schema import without
from ...session import read_tokens
from ...stopping import Stop, stopping
from ...structure.forest import Forest
from ...text import Tokens
from ...training.unfinished import tidy
from ..index import Index, fingerprint
from ..subject import INDEX_TOKENS, Subject
from .build import build_index
from .counts import Counts
from .firings import remove_shards

_STATE, _TENSORS = "state.json", "counts.safetensors"
_KEEP_EVERY_S = 60.0


def index_run(
    run: RunFolder | Path, tokens: int | None = None, sae: str | None = None, device: str | None = None
) -> Index:
    """Make the index of an SAE of a run (see `make_index`).

    tokens: number of tokens of the training text; None for as many as the run's, but at most `INDEX_TOKENS`.
    sae:    which SAE of a run that trained several.
    device: device for language model and SAE; None for the one it was trained on.

    Raises InputError if the folder is not a run with a trained SAE, or the SAE does not fit the run's model and site.
    """
    return make_index(Subject.of_run(run, sae, device), tokens)


def make_index(subject: Subject, tokens: int | None = None) -> Index:
    """Make the index of an SAE by running its language model on the first `tokens` tokens of its training text.

    The edges are those of the SAE's own forest or of the one that was inferred for it. For a flat SAE without a run,
    one is inferred first, unless there is one in its place.

    Counts are saved every minute in a folder beside the index; the same call continues from there, with identical
    results. Raises InputError if another process is making this index, Interrupted if a signal stops it.
    """
    if subject.run is not None:
        tidy(subject.run)
    sae, config, place, reader = subject.sae, subject.config, subject.place, subject.reader
    with place.claimed():
        if subject.run is None and not sae.has_forest:
            _infer(subject)
        text = read_tokens(config, reader, "train", tokens or min(INDEX_TOKENS, config.tokens))
        forest, _ = subject.forest
        with stopping("what was counted") as stop:
            place.unfinished.mkdir(parents=True, exist_ok=True)
            try:
                remove_leftovers(place.unfinished)
                unfinished = _Unfinished(place.unfinished, _key(sae, forest, reader, text), text, stop)
                index = build_index(
                    sae,
                    forest,
                    unfinished.batches(reader),
                    text,
                    total=text.n_tokens,
                    lm=reader.lm,
                    begin=unfinished.begin,
                )
                index.save(place.index)
                unfinished.remove()
            finally:
                several = subject.run is not None and subject.run.several
                for empty in (place.unfinished, place.unfinished.parent) if several else (place.unfinished,):
                    with suppress(OSError):
                        empty.rmdir()
    return index


def _infer(subject: Subject) -> None:
    """Infer the forest of a flat SAE, unless it has one."""
    if subject.has_inferred:
        if subject.forest[1] == "none":
            raise InputError(f"{subject.place.forest}: the forest of another SAE; choose another folder")
        return
    note(f"{subject.name} has learned no forest; inferring one, once")
    defaults = MeasureOptions()
    infer_into(
        subject.place.forest,
        subject.sae,
        subject.config,
        subject.reader,
        defaults.infer,
        defaults.infer_tokens,
    )


def _key(sae: SAE, forest: Forest, reader: ActivationReader, tokens: Tokens) -> dict[str, Any]:
    """Everything that an index depends on."""
    return {
        "sae": fingerprint(sae, forest),
        "text": hashlib.blake2b(tokens.ids.numpy().tobytes(), digest_size=16).hexdigest(),
        "model": reader.lm.name,
        "site": reader.site.name,
        "dtype": str(reader.lm.dtype),
        "batch_size": reader.batch_size,
        "positions": [reader.exclude_first, reader.exclude_special, reader.max_norm],
        "device": [reader.lm.device.type, sae.device.type],
    }


class _Unfinished:
    """The saved counts of an unfinished index."""

    def __init__(self, folder: Path, key: dict[str, Any], tokens: Tokens, stop: Stop) -> None:
        self._folder, self._key, self._tokens, self._stop = folder, key, tokens, stop
        self._windows, self._kept, self._kept_at = 0, 0, time.monotonic()
        self._counts: Counts | None = None

    def begin(self, counts: Counts) -> None:
        """Restore the counts of an earlier process, if it was making the same index."""
        self._counts, counts.firings.folder = counts, self._folder
        try:
            state = read_json(self._folder / _STATE)
            if state["key"] != self._key or not 0 <= state["windows"] <= len(self._tokens.ids):
                return
            tensors = read_tensors(self._folder / _TENSORS, listed_checksum(state, _TENSORS))
            counts.firings.restore(self._folder, without(state[CHECKSUMS], _TENSORS))
            try:
                counts.restore(tensors)
            except (KeyError, ValueError):
                counts.firings.checksums = {}
                raise
            self._windows = self._kept = int(state["windows"])
        except (InputError, AttributeError, KeyError, TypeError, ValueError):  # missing or incomplete
            return
        note(f"{self._folder}: continuing after {self._windows * self._tokens.context:,} tokens")

    def batches(self, reader: ActivationReader) -> Iterator[ActivationBatch]:
        """The batches not counted yet. On a signal to stop, saves the counts and raises Interrupted."""
        rest = torch.arange(self._windows, len(self._tokens.ids))
        for batch, n_read in reader.batches(self._tokens, rest) if len(rest) else ():
            yield batch  # it has been counted when the next one is requested
            self._windows += n_read // self._tokens.context
            if self._stop() or time.monotonic() - self._kept_at > _KEEP_EVERY_S:
                self._keep()
            if self._stop():
                done = self._windows * self._tokens.context
                raise self._stop.interrupted(
                    f"stopped after {done:,} of {self._tokens.n_tokens:,} tokens; give the same command to go on"
                )
        if self._windows > self._kept:
            self._keep()
        # What comes next takes a while, and looks at no signals.
        self._stop.at_once("stopped after reading; give the same command to go on")

    def _keep(self) -> None:
        assert self._counts is not None
        self._counts.firings.close()
        checksum = write_tensors(self._folder / _TENSORS, self._counts.tensors())
        checksums = self._counts.firings.checksums | {_TENSORS: checksum}
        state = {"key": self._key, "windows": self._windows, CHECKSUMS: checksums}
        write_json(self._folder / _STATE, state)
        self._kept_at, self._kept = time.monotonic(), self._windows

    def remove(self) -> None:
        """Delete the saved counts."""
        for name in (_STATE, _TENSORS):
            (self._folder / name).unlink(missing_ok=True)
        remove_shards(self._folder)
