"""GGUF files: unpacked by transformers once, and kept as safetensors, which load some thirty times faster."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from safetensors import SafetensorError
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import GgufConfig, PreTrainedTokenizerBase

from saeforest.lm.pretrained import Pretrained, read_pretrained
from saeforest.output import note

# Raise it when the same file is to be unpacked differently: copies made before are then no longer used.
_RECIPE = b"1"

# Vocabularies whose merges were learned on digits taken one by one, by the name that GGUF files give to
# their way of splitting text. transformers splits them as GPT-2 does, which is wrong before digits.
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}


def load_gguf(path: Path, dtype: torch.dtype) -> Pretrained:
    """The model in a GGUF file, dequantized, on the CPU, in `dtype`, and its tokenizer.

    The first time, a float32 copy goes to `$SAEFOREST_CACHE/models` (by default `~/.cache/saeforest/models`),
    which a line on the standard error says, since it takes some 20 s for 100 million parameters.
    Where it cannot be written, the file itself is read every time.
    """
    copy = _cache() / f"{path.stem}-{_fingerprint(path)}"
    if not os.path.isdir(copy) and not _store(path, copy):
        return _unpack(path, dtype)
    try:
        return read_pretrained(str(copy), dtype)
    except Exception:  # a damaged copy, whatever the damage is: the next call makes a new one
        shutil.rmtree(copy, ignore_errors=True)
        return _unpack(path, dtype)


def _cache() -> Path:
    folder = os.environ.get("SAEFOREST_CACHE") or "~/.cache/saeforest"
    return Path(folder).expanduser() / "models"


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha256(_RECIPE)).hexdigest()[:16]


def _store(path: Path, copy: Path) -> bool:
    """Unpacks the file into the folder `copy`, which appears complete or not at all. False if it cannot."""
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        note(f"unpacking {path.name} into {copy.parent}, once")
        with tempfile.TemporaryDirectory(
            dir=copy.parent, prefix=".partial-", ignore_cleanup_errors=True
        ) as partial:
            for part in _unpack(path, torch.float32):
                part.save_pretrained(partial)
            os.rename(partial, copy)
    except (OSError, SafetensorError):
        return os.path.isdir(copy)  # another process may have been faster
    return True


def _unpack(path: Path, dtype: torch.dtype) -> Pretrained:
    dense = GgufConfig(dequantize=True)
    with redirect_stderr(io.StringIO()):  # one progress bar of transformers heeds none of its settings
        model, tokenizer = read_pretrained(str(path.parent), dtype, dense, gguf_file=path.name)
    _mend(tokenizer, path)
    return model, tokenizer


def _mend(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    field = GGUFReader(path).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() in _SINGLE_DIGITS:
        digits_first = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        backend: Any = tokenizer.backend_tokenizer
        backend.pre_tokenizer = Sequence(digits_first)
