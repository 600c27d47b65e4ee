"""GGUF files: dequantized by transformers once and cached as safetensors, which load about thirty times faster."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from saeforest.errors import InputError
from saeforest.files import atomic_folder, checksum, read_json, remove_leftovers, write_json
from saeforest.lm import gguf_splits
from saeforest.lm.identity import file_fingerprint
from saeforest.lm.pretrained import Pretrained, read_gguf_model, read_pretrained
from saeforest.lm.tokenizer import SPECIALS, set_bos, wrap
from saeforest.output import note

# To be increased whenever the same file is unpacked differently: older copies are then no longer used.
_RECIPE = 2
_MANIFEST = "saeforest.json"
# Temporary folders that version 0.1 left behind if it was killed.
_OLD_LEFTOVERS, _OLD_AFTER_S = ".partial-*", 3600.0


def load_gguf(path: Path, dtype: torch.dtype) -> Pretrained:
    """Load the model in a GGUF file, dequantized, on the CPU, in `dtype`, and its tokenizer.

    The first time, a float32 copy is written to `$SAEFOREST_CACHE/models` (by default `~/.cache/saeforest/models`)
    and a line on standard error says so, since this takes some 10 s for 100 million parameters. The copy has
    checksums; a damaged one is replaced. If it can't be written, the GGUF file itself is read every time.
    """
    cache = _cache()
    if cache is None:
        return _unpack(path, dtype)
    _clean(cache)
    copy = cache / f"{path.stem}-{file_fingerprint(path).removeprefix('xxh3:')[:16]}-{_RECIPE}"
    if copy.is_dir() and (damaged := _damaged(copy)):
        note(f"{damaged} in the unpacked copy of {path.name} is damaged; unpacking again")
        shutil.rmtree(copy, ignore_errors=True)
    if not copy.is_dir() and not _store(path, copy):
        return _unpack(path, dtype)
    try:
        return read_pretrained(copy, dtype)
    except Exception:  # removed or replaced by another process meanwhile
        return _unpack(path, dtype)


def _cache() -> Path | None:
    """The folder for copies; None if there is no home directory."""
    folder = os.path.expanduser(os.environ.get("SAEFOREST_CACHE") or "~/.cache/saeforest")
    return None if folder.startswith("~") else Path(os.path.abspath(folder)) / "models"


def _clean(cache: Path) -> None:
    """Remove what killed processes left in the cache."""
    try:
        remove_leftovers(cache)
        for old in cache.glob(_OLD_LEFTOVERS):
            if time.time() - old.stat().st_mtime > _OLD_AFTER_S:
                shutil.rmtree(old, ignore_errors=True)
    except OSError:  # a cache that cannot be read is none
        return


def _damaged(copy: Path) -> str | None:
    """The first file of a copy that differs from what was written; None if all are intact."""
    try:
        checksums = read_json(copy / _MANIFEST)["checksums"]
        for name, expected in checksums.items():
            if checksum(copy / name) != expected:
                return name
    except (InputError, OSError, KeyError, TypeError, AttributeError):
        return _MANIFEST
    return None


def _store(path: Path, copy: Path) -> bool:
    """Unpack the file into the folder `copy`, atomically. Returns whether the copy exists."""
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        note(f"unpacking {path.name} into {copy.parent}, once")
        with atomic_folder(copy) as partial:
            for part in _unpack(path, torch.float32):
                part.save_pretrained(partial)
            files = sorted(file.name for file in partial.iterdir())
            write_json(partial / _MANIFEST, {"checksums": {name: checksum(partial / name) for name in files}})
    except (OSError, SafetensorError):
        return copy.is_dir()  # another process may have written it meanwhile
    return True


def _unpack(path: Path, dtype: torch.dtype) -> Pretrained:
    with _parsed_once():
        with redirect_stderr(io.StringIO()):  # one progress bar of transformers can't be switched off
            tokenizer = AutoTokenizer.from_pretrained(
                str(path.parent), gguf_file=path.name, local_files_only=True, trust_remote_code=False
            )
            model = read_gguf_model(path, dtype)
        return model, as_the_file_says(tokenizer, path)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Context in which a file's metadata are parsed once, and the names of tensors listed once.

    transformers does the one three times, which takes seconds for a long vocabulary, and the other for every module.
    """
    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    read = cache(reader)
    try:
        gguf.GGUFReader = lambda path, *_: read(str(path))
        gguf.get_tensor_name_map = cache(names)
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names


def as_the_file_says(tokenizer: PreTrainedTokenizerBase, path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer with the pre-tokenization, the tokens and the BOS that the GGUF file specifies.

    Raises ValueError if the pre-tokenization is unknown.
    """
    reader = gguf.GGUFReader(path)

    def value(key: str) -> Any:
        field = reader.get_field(f"tokenizer.ggml.{key}")
        return None if field is None else field.contents()

    made: Any = tokenizer.backend_tokenizer
    backend = json.loads(made.to_str())
    tokens = reader.get_field("tokenizer.ggml.tokens")
    n_tokens = len(tokens.data) if tokens is not None else 0
    # The tokenizer class may add tokens of its own, for which the model has no embedding.
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["id"] < n_tokens]
    name, adds_bos = value("pre"), value("add_bos_token")
    if by_bytes := value("model") == "gpt2":
        if not name:
            name = "default"
            note(
                f"{path.name} does not say how text is pre-tokenized (tokenizer.ggml.pre); using llama.cpp's default, "
                "which may differ from how the model was trained"
            )
        if name in gguf_splits.WHOLE_PIECES and backend["model"]["type"] == "BPE":
            backend["model"]["ignore_merges"] = True
    own = Tokenizer.from_str(json.dumps(backend))
    if by_bytes:
        own.pre_tokenizer = gguf_splits.pre_tokenizer(name)  # pyright: ignore[reportAttributeAccessIssue]
    specials = {key: getattr(tokenizer, key, None) for key in SPECIALS}
    known = {
        key: str(token)
        for key, token in specials.items()
        if token is not None and own.token_to_id(str(token)) is not None
    }
    wrapped = wrap(own, known, tokenizer.chat_template)
    bos = known.get("bos_token")
    if bos is not None and (adds_bos is not None or name in gguf_splits.BOS):
        set_bos(wrapped, bos if adds_bos or adds_bos is None else None)
    return wrapped
