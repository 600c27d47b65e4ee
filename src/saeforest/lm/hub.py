"""Models of the Hugging Face Hub: found in its cache or downloaded into it, then read like any local folder."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from saeforest.errors import InputError
from saeforest.lm.identity import EMBEDDED, hub_folder, split_revision
from saeforest.lm.weights import weight_files

_PATIENCE_S = 10.0
# Files at the root of a repository that are downloaded: configuration, tokenizers, and safetensors weights.
_TOKENIZER = re.compile(r"[^/]+\.(json|model|txt|jinja|tiktoken)")
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


def fetch(name: str, *, weights: bool = True) -> Path:
    """The local folder of a Hub model, `org/name` or `org/name@revision`, downloaded unless it is in the cache.

    weights: whether the weights are needed, or only configuration and tokenizer. Raises InputError if there is no such
    model or it can't be downloaded.
    """
    hub_name, revision = split_revision(name)
    folder = hub_folder(hub_name, revision)
    lacking = "it was never downloaded" if folder is None else _lacking(folder, weights)
    if folder is not None and lacking is None:
        return folder
    try:
        # A single request here, since a download would retry for half a minute.
        found = HfApi().model_info(hub_name, revision=revision, timeout=_PATIENCE_S)
    except Exception as error:
        raise InputError(_unreachable(name, folder, lacking, error)) from error
    files = [file.rfilename for file in found.siblings or ()]
    wanted = [f for f in files if _TOKENIZER.fullmatch(f) or (weights and _WEIGHTS.fullmatch(f))]
    return Path(snapshot_download(hub_name, revision=found.sha or revision, allow_patterns=wanted))


def _lacking(folder: Path, weights: bool) -> str | None:
    """What the folder in the cache lacks; None if it is complete."""
    if weights:
        try:
            weight_files(folder)
        except ValueError as error:
            return str(error)
    return None


def _unreachable(name: str, folder: Path | None, lacking: str | None, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        why = (
            "you have no access to it on the Hub: log in with `hf auth login` and accept its conditions there"
        )
    elif status == 404 or type(error).__name__ == "HFValidationError":
        why = "the Hub has no such model or revision"
    else:
        why = f"the Hub can't be reached ({first_line(error)})"
    if folder is not None:
        return f"model {name!r}: the copy in the Hub's cache is incomplete: {lacking}; and {why}"
    return (
        f"model {name!r}: not a local folder or .gguf file, and {why}; give a Hub name, a folder, a .gguf file "
        f"or {EMBEDDED!r}"
    )


def first_line(error: Exception) -> str:
    """The message of an error on one line, with the type of error if the message alone would say too little."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, (KeyError, IndexError, AttributeError, TypeError, AssertionError)):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= 600 else f"{text[:600]} ..."
