"""SAEs on the Hugging Face Hub: found in its cache or downloaded into it, and then folders like others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, snapshot_download

from ..errors import InputError
from ..saes.files import CFG, WEIGHTS
from ..schema import listed
from .gemma_scope import NPZ, SAFETENSORS
from .saelens_folder import SCALER
from .tree_sae import CONFIG as TREE_CONFIG
from .tree_sae import WEIGHTS as TREE_WEIGHTS

_NAME = re.compile(
    r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[^:@\s]+))?(:(?P<folder>[\w-][\w.+=,/-]*))?"
)
_PATIENCE_S = 10.0
#: The files of an SAE, for each of the layouts that are read.
_LAYOUTS = ((CFG, WEIGHTS), (NPZ,), (SAFETENSORS,), (TREE_CONFIG, TREE_WEIGHTS))
#: Read where they are there.
_OPTIONAL = (SCALER, TREE_CONFIG)


class HubSAE(NamedTuple):
    """`org/repo@revision:folder`, the last two where they are given."""

    repo: str
    revision: str | None
    folder: str

    def path(self, file: str) -> str:
        """A file of the SAE, as the repository names it."""
        return f"{self.folder}/{file}" if self.folder else file

    def complete(self, files: set[str]) -> bool:
        """Whether these files of the repository hold the SAE, in one of the layouts."""
        return any(all(self.path(file) in files for file in layout) for layout in _LAYOUTS)


def hub_sae(source: str) -> HubSAE | None:
    """The SAE that a name on the Hub stands for; None where it is no such name."""
    found = _NAME.fullmatch(source)
    if found is None or ".." in (found["folder"] or "").split("/"):
        return None
    return HubSAE(found["repo"], found["revision"], (found["folder"] or "").rstrip("/"))


def fetch(sae: HubSAE) -> Path:
    """The folder of an SAE in the Hub's cache, downloaded unless it is there.

    Raises InputError where the Hub has no such SAE, or it cannot be had.
    """
    every = {file for layout in _LAYOUTS for file in layout} | set(_OPTIONAL)
    patterns = sorted(map(sae.path, every))
    try:
        copy = Path(
            snapshot_download(sae.repo, revision=sae.revision, allow_patterns=patterns, local_files_only=True)
        )
    except Exception:  # never downloaded
        pass
    else:
        if sae.complete({file for file in patterns if (copy / file).exists()}):
            return copy / sae.folder
    revision = _commit(sae)
    try:
        return Path(snapshot_download(sae.repo, revision=revision, allow_patterns=patterns)) / sae.folder
    except Exception as error:  # the Hub's client has no common base of its many errors
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{sae.repo}: the download from the Hub failed ({reason}); try again") from error


def _commit(sae: HubSAE) -> str | None:
    """The commit that the revision stands for. Raises InputError where the Hub has no such SAE there."""
    try:
        # Asked once here, since the download itself would try again and again for half a minute.
        found = HfApi().model_info(sae.repo, revision=sae.revision, timeout=_PATIENCE_S)
    except Exception as error:
        raise InputError(
            f"{sae.repo}: no such folder, and the Hub has no such model or cannot be reached; give a folder, or a "
            "name on the Hub such as org/repo:folder"
        ) from error
    files = {file.rfilename for file in found.siblings or ()}
    if not sae.complete(files):
        others = {
            f"{sae.repo}:{folder}"
            for file in files
            if (folder := file.rpartition("/")[0]) and HubSAE(sae.repo, None, folder).complete(files)
        }
        where = f"the folder {sae.folder}" if sae.folder else "its root"
        hint = f"; it holds {listed(others)}" if others else ""
        raise InputError(f"{sae.repo}: no SAE in {where} on the Hub ({_expected()}){hint}")
    return found.sha or sae.revision


def _expected() -> str:
    return "expected " + ", or ".join(" and ".join(layout) for layout in _LAYOUTS)
