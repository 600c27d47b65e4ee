"""SAEs on the Hugging Face Hub: found in its cache or downloaded into it, and then folders like others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from ..errors import InputError
from ..saes.files import SAE_FOLDER
from ..schema import listed
from .readers import LAYOUTS, OPTIONAL

_NAME = re.compile(
    r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[^:@\s]+))?(:(?P<folder>[\w-][\w.+=,/-]*))?"
)
_PATIENCE_S = 10.0
#: The file at the root of a repository by which the Hub counts its downloads; in a release, it lists what is there.
COUNTED = "config.json"


class HubSAE(NamedTuple):
    """`org/repo@revision:folder`, the last two where they are given."""

    repo: str
    revision: str | None
    folder: str

    def places(self) -> tuple[str, ...]:
        """The folders where it may be: as given, or among the SAEs of a run that was pushed (`sae` or `sae/NAME`)."""
        return self.folder, f"{SAE_FOLDER}/{self.folder}".rstrip("/")

    def place(self, files: set[str]) -> str | None:
        """The folder among these files of the repository that holds the SAE; None if there is none."""
        return next((place for place in self.places() if _complete(place, files)), None)


def hub_sae(source: str, revision: str | None = None) -> HubSAE | None:
    """The SAE that a name on the Hub stands for, at a revision; None where it is no such name.

    Raises InputError if the name has a revision too.
    """
    found = _NAME.fullmatch(source)
    if found is None or ".." in (found["folder"] or "").split("/"):
        return None
    if revision is not None and found["revision"] is not None:
        raise InputError(f"revision = {revision}: {source} has a revision already; give one of them")
    return HubSAE(found["repo"], revision or found["revision"], (found["folder"] or "").rstrip("/"))


def fetch(sae: HubSAE) -> Path:
    """The folder of an SAE in the Hub's cache, downloaded unless it is there.

    Raises InputError where the Hub has no such SAE, or it cannot be had.
    """
    every = {file for layout in LAYOUTS for file in layout} | set(OPTIONAL)
    patterns = sorted({_path(place, file) for place in sae.places() for file in every} | {COUNTED})
    try:
        copy = Path(
            snapshot_download(sae.repo, revision=sae.revision, allow_patterns=patterns, local_files_only=True)
        )
    except Exception:  # never downloaded
        pass
    else:
        place = sae.place({file for file in patterns if (copy / file).exists()})
        if place is not None:
            return copy / place
    place = _found(sae)
    wanted = [*(_path(place, file) for file in every), COUNTED]
    try:
        return Path(snapshot_download(sae.repo, revision=sae.revision, allow_patterns=wanted)) / place
    except Exception as error:  # the Hub's client has no common base of its many errors
        raise InputError(
            f"{sae.repo}: the download from the Hub failed ({reason(error)}); try again"
        ) from error


def reason(error: BaseException) -> str:
    """What an error of the Hub's client says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _found(sae: HubSAE) -> str:
    """The folder of the SAE in its repository. Raises InputError where the Hub has no such SAE there."""
    try:
        # Asked once here, since the download itself would try again and again for half a minute.
        found = HfApi().model_info(sae.repo, revision=sae.revision, timeout=_PATIENCE_S)
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{sae.repo}: no such folder, and the Hub has no such model, or a private one that needs a token (run "
            "`hf auth login`, or set HF_TOKEN); give a folder, or a name on the Hub such as org/repo:folder"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"{sae.repo}: no revision {sae.revision} on the Hub; expected a branch, tag or commit"
        ) from error
    except Exception as error:
        raise InputError(
            f"{sae.repo}: no such folder, and the Hub cannot be reached ({reason(error)}); give a folder, or a name on "
            "the Hub such as org/repo:folder"
        ) from error
    files = {file.rfilename for file in found.siblings or ()}
    place = sae.place(files)
    if place is None:
        folders = {file.rpartition("/")[0] for file in files}
        others = {
            f"{sae.repo}:{folder.removeprefix(f'{SAE_FOLDER}/')}"
            for folder in folders - {""}
            if _complete(folder, files)
        }
        where = f"the folder {sae.folder}" if sae.folder else "its root"
        hint = f"; it holds {listed(others)}" if others else ""
        raise InputError(f"{sae.repo}: no SAE in {where} on the Hub ({_expected()}){hint}")
    return place


def _path(folder: str, file: str) -> str:
    """A file in a folder, as the repository names it."""
    return f"{folder}/{file}" if folder else file


def _complete(folder: str, files: set[str]) -> bool:
    """Whether these files of a repository hold an SAE in the folder, in one of the layouts."""
    return any(all(_path(folder, file) in files for file in layout) for layout in LAYOUTS)


def _expected() -> str:
    return "expected " + ", or ".join(" and ".join(layout) for layout in LAYOUTS)
