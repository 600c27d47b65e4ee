"""Models of the Hub: found in its cache, or downloaded into it; from there on they are folders like others."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from saeforest.errors import InputError
from saeforest.lm.identity import EMBEDDED, hub_folder, split_revision
from saeforest.lm.weights import weight_files

_PATIENCE_S = 10.0
# Of the root of a repository: settings, tokenizers, and the weights in the form and under the names that are read.
_TOKENIZER = re.compile(r"[^/]+\.(json|model|txt|jinja|tiktoken)")
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


def fetch(name: str, *, weights: bool = True) -> Path:
    """The folder of a Hub model, `org/name` or `org/name@revision`; downloaded if the cache does not have all of it.

    weights: False to be content with configuration and tokenizer. Raises InputError where there is no such model, or
    it cannot be had.
    """
    hub_name, revision = split_revision(name)
    folder = hub_folder(hub_name, revision)
    lacking = "it was never downloaded" if folder is None else _lacking(folder, weights)
    if folder is not None and lacking is None:
        return folder
    try:
        # Asked once here, since a download itself would try again and again for half a minute.
        found = HfApi().model_info(hub_name, revision=revision, timeout=_PATIENCE_S)
    except Exception as error:
        raise InputError(_unreachable(name, folder, lacking, error)) from error
    files = [file.rfilename for file in found.siblings or ()]
    wanted = [f for f in files if _TOKENIZER.fullmatch(f) or (weights and _WEIGHTS.fullmatch(f))]
    return Path(snapshot_download(hub_name, revision=found.sha or revision, allow_patterns=wanted))


def _lacking(folder: Path, weights: bool) -> str | None:
    """Why a folder of the cache does not do; None where it does."""
    if weights:
        try:
            weight_files(folder)
        except ValueError as error:
            return str(error)
    return None


def _unreachable(name: str, folder: Path | None, lacking: str | None, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        why = "the Hub does not let you read it: log in with `hf auth login`, and accept its conditions there"
    elif status == 404 or type(error).__name__ == "HFValidationError":
        why = "the Hub has no such model or revision"
    else:
        why = f"the Hub cannot be reached ({first_line(error)})"
    if folder is not None:
        return f"model {name!r}: the copy in the Hub's cache does not do: {lacking}; and {why}"
    return (
        f"model {name!r}: not a local folder or .gguf file, and {why}; give a Hub name, a folder, a .gguf file "
        f"or {EMBEDDED!r}"
    )


def first_line(error: Exception) -> str:
    """What an error says, on one line, with the kind of error where that would say too little."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, (KeyError, IndexError, AttributeError, TypeError, AssertionError)):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= 600 else f"{text[:600]} ..."
