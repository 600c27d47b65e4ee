"""The upload of a release to the Hugging Face Hub: everything in one commit, or nothing.

Large files are sent first, and the Hub keeps those that arrived whole. They belong to no commit until the last step,
so an upload that breaks publishes nothing, and the same call goes on with what is missing. A new repository is private,
and becomes public, if that is wanted, only once everything is there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    hf_hub_download,
)
from huggingface_hub import logging as hub_logging
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from pydantic import Field

from ..errors import InputError
from ..files import checksum, read_json, write_json
from ..interop.hub import COUNTED, reason
from ..output import note
from ..run_folder import RunFolder
from ..saes.files import CFG
from ..schema import Checksum, Name, Schema, checked, listed
from .card import card
from .contents import CARD, LIBRARY, OWNED, Release, read_release
from .preview import Preview, make_preview

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_PATIENCE_S = 10.0
# The Hub adds this file to every repository.
_ALWAYS = ".gitattributes"


@dataclass(frozen=True)
class Pushed:
    """A release on the Hub.

    saes:   name of each SAE -> what `saeforest.load` takes for it.
    commit: the commit that holds it. changed: whether this call made that commit; False if all was there already.
    files:  path in the repository -> size in bytes.
    """

    repo: str
    url: str
    saes: dict[str, str]
    commit: str
    private: bool
    changed: bool
    files: dict[str, int]


@dataclass(frozen=True)
class Staged:
    """A release as files. card: the text of the model card."""

    release: Release
    files: dict[str, Path]
    card: str

    @property
    def sizes(self) -> dict[str, int]:
        """Path in the repository -> size in bytes."""
        return {name: path.stat().st_size for name, path in sorted(self.files.items())}


class _Named(Schema):
    """An SAE in the config.json of a release."""

    weights: Checksum = ""


class _There(Schema):
    """What is read of the config.json of a release on the Hub."""

    library_name: Name = ""
    model_name: Name = ""
    hook_name: Name = ""
    saes: dict[Name, _Named] = Field(default_factory=dict)
    card: Checksum = ""


def push(
    run: str | Path | RunFolder,
    repo: str,
    *,
    public: bool = False,
    license_id: str | None = None,
    force: bool = False,
) -> Pushed:
    """Upload a run to the Hugging Face Hub as a repository of models, in one commit.

    The token is that of the environment (HF_TOKEN) or of the Hub's own login (`hf auth login`). The repository holds
    the SAEs, their forests, records, logs and index, a config.json, a model card and a picture of a family; notes and
    labels of a person, checkpoints and activations stay here. If the upload breaks, nothing is published, and the same
    call goes on where it stopped. A release of the same SAEs is brought up to date; its model card stays if a person
    has changed it.

    run:        the folder of a finished run.
    repo:       `org/name`; made, and private, if there is none.
    public:     whether everybody may see it, from the moment when all is there.
    license_id: the license of these weights by the Hub's identifier, such as mit or apache-2.0.
    force:      whether a release of other SAEs, other files of the same names and a changed model card are replaced.

    Raises InputError if the run is not finished or a file in it is damaged, the name is taken by something else, there
    is no token or it may not write there, or the connection breaks.

    Example:
        >>> saeforest.push("runs/demo", "my-org/demo-tree", license_id="mit")  # doctest: +SKIP
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    check_names(repo, license_id)
    with staged(folder, repo, license_id) as found, _quiet():
        return _upload(found, repo, public=public, force=force)


def check_names(repo: str, license_id: str | None) -> None:
    """Raise InputError unless these can be the name of a repository and the identifier of a license."""
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo or len(repo) > 96 or repo.endswith(".git"):
        raise InputError(
            f"{repo[:200]}: expected a name on the Hub, org/name, of letters, digits, dots and dashes"
        )
    if license_id is not None and not _LICENSE.fullmatch(license_id):
        raise InputError(
            f"license {license_id[:100]}: expected an identifier of the Hub, such as mit or apache-2.0"
        )


@contextmanager
def staged(run: RunFolder, repo: str, license_id: str | None) -> Iterator[Staged]:
    """Within, everything that a release holds as files, on this machine. Raises InputError as `push` does."""
    release = read_release(run)
    with TemporaryDirectory(prefix="saeforest-push-") as place:
        folder = Path(place)
        preview: Preview | None = make_preview(release, folder)
        text = card(release, repo, license_id, preview)
        (folder / CARD).write_text(text, encoding="utf-8")
        write_json(folder / COUNTED, release.to_json(checksum(folder / CARD)))
        own = {CARD: folder / CARD, COUNTED: folder / COUNTED}
        files = {**release.files, **own, **(preview.files if preview else {})}
        yield Staged(release, files, text)


def _upload(found: Staged, repo: str, *, public: bool, force: bool) -> Pushed:
    if get_token() is None:
        raise InputError(
            f"{repo}: no token for the Hub; run `hf auth login`, or set HF_TOKEN to one that may write"
        )
    api = HfApi(library_name=LIBRARY)
    for path in found.release.local_paths():
        note(f"{path}: a path of this machine, which the release shows in {CFG} and config.yaml")
    with _told(repo, "nothing was published"):
        there = _there(api, repo)
        if there is None:
            api.create_repo(repo, private=True)
            there = api.model_info(repo, timeout=_PATIENCE_S)
        on_hub = {file.rfilename for file in there.siblings or ()}
        keep = _checked(found.release, repo, on_hub, there.sha, force=force)
        adds = [
            CommitOperationAdd(name, path) for name, path in sorted(found.files.items()) if name not in keep
        ]
        stale = [
            name for name in sorted(on_hub - found.files.keys() - keep) if name.partition("/")[0] in OWNED
        ]
    with _told(repo, "nothing of this was published; the same command goes on where it stopped"):
        api.preupload_lfs_files(repo, adds)
    with _told(repo, "either all of this was published or nothing; the same command finds out, and goes on"):
        done = api.create_commit(
            repo,
            [*adds, *(CommitOperationDelete(name) for name in stale)],
            commit_message=f"{LIBRARY}: {', '.join(found.release.members)}",
            parent_commit=there.sha,
        )
    private = bool(there.private)
    if public and private:
        with _told(repo, "everything is there, but still private; the same command goes on"):
            api.update_repo_settings(repo, private=False)
        private = False
    url = f"{constants.ENDPOINT}/{repo}"
    names = found.release.load_names(repo)
    return Pushed(repo, url, names, done.oid, private, done.oid != there.sha, found.sizes)


def _there(api: HfApi, repo: str):  # the type of what it returns has no stable name
    """What the Hub says of the repository; None if there is none, or none that the token may see."""
    try:
        return api.model_info(repo, timeout=_PATIENCE_S)
    except RepositoryNotFoundError:
        return None


def _checked(release: Release, repo: str, on_hub: set[str], commit: str | None, *, force: bool) -> set[str]:
    """The files on the Hub that are to stay as they are. Raises InputError if the name is taken by something else."""
    others = on_hub - {_ALWAYS}
    if force or not others:
        return set()
    there = _There()
    if COUNTED in others:
        local = hf_hub_download(repo, COUNTED, revision=commit)
        try:
            there = checked(_There, read_json(Path(local)), COUNTED)
        except InputError:  # somebody else's config.json
            there = _There()
    if there.library_name != LIBRARY:
        raise InputError(
            f"{repo}: taken: the repository holds something else ({listed(others)}); choose another name, or give "
            "force to add the release to it"
        )
    own = {name: member.weights for name, member in release.members.items()}
    if {name: sae.weights for name, sae in there.saes.items()} != own:
        of = f"{listed(there.saes)} on {there.model_name or 'an unknown model'}, {there.hook_name or 'no site'}"
        here = f"{listed(own)} on {release.model_title}, {release.config.site or 'no site'}"
        raise InputError(
            f"{repo}: taken: it holds a release of other SAEs ({of}), and this run has {here}; choose another name, or "
            "give force to replace it"
        )
    if (
        CARD in others
        and there.card
        and checksum(Path(hf_hub_download(repo, CARD, revision=commit))) != there.card
    ):
        note(f"{repo}: its model card was changed on the Hub, and stays as it is there; force replaces it")
        return {CARD}
    return set()


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, the Hub's client does not tell of every try, and draws progress bars only in a terminal."""
    level, bars = hub_logging.get_verbosity(), not are_progress_bars_disabled()
    hub_logging.set_verbosity_error()
    if bars and not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        if bars:
            enable_progress_bars()


@contextmanager
def _told(repo: str, state: str) -> Iterator[None]:
    """Within, an error of the Hub's client is an InputError of one line. state: what is published, and how to go on."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the client has no common base of its many errors
        raise InputError(f"{repo}: {_why(repo, error)}; {state}") from error


def _why(repo: str, error: BaseException) -> str:
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    org = repo.partition("/")[0]
    for one in chain:
        if isinstance(one, OfflineModeIsEnabled):
            return "the Hub's client is offline (HF_HUB_OFFLINE); unset that to push"
        if isinstance(one, HfHubHTTPError):
            match one.response.status_code:
                case 401:
                    return "the Hub does not know the token; run `hf auth login`, or set HF_TOKEN anew"
                case 403:
                    return f"the token may not write to {org}; use one that may, or choose another name"
                case 409:
                    return "taken: there is a repository of this name that the token does not see"
                case 412:
                    return "somebody else changed the repository meanwhile; give the same command again"
            return f"the Hub refused ({one.server_message or reason(one)})"
    if isinstance(error, ValueError):  # a model card that the Hub refuses
        return " ".join(str(error).split())
    return f"the connection to the Hub broke ({reason(chain[-1])})"
