"""`saeforest explore`."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ..errors import InputError, command
from ..judges.config import NO_JUDGE, JudgeConfig
from ..output import note, say, say_json
from .arguments import parse
from .common import subject_of
from .shared import Device, Json, OneSAE, Reads, ReadsOptions, RunOrSAE

if TYPE_CHECKING:
    from ..explore.api import Api
    from ..explore.api.compare import Other
    from ..explore.subject import Subject
    from ..run_folder import RunFolder


@dataclass(frozen=True)
class ExploreArguments:
    source: RunOrSAE
    sae: OneSAE = None
    port: int = 8421
    """Port on this machine for the page; 0 for any free one."""
    any_port: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Take the next free port if this one is in use."""
    no_browser: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Only print the address, and open no browser."""
    index: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Make the index of a run first if there is none; that of an SAE without a run is made anyway."""
    out: Path | None = None
    """Folder for index, forest and notes, for an SAE without a run; required there, and only then."""
    reads: ReadsOptions = field(default_factory=Reads)
    compare: tuple[Path, ...] = ()
    """Folders of other runs whose SAEs the page may compare this one with."""
    export_annotations: Path | None = None
    """Write labels, notes, ratings and bookmarks to this JSON file, and stop."""
    import_annotations: Path | None = None
    """Add labels, notes, ratings and bookmarks from this JSON file, and stop. What is newer stays."""
    label: int = 0
    """Number of features for the judge to label before the page opens: families worth seeing first. They are kept."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    device: Device = None
    json: Json = False


def explore(argv: Sequence[str]) -> None:
    args = parse(ExploreArguments, argv, "explore")
    from ..extras import needs

    if args.label < 0:
        raise InputError(f"--label {args.label}: expected 0 or more")
    if args.label and not args.judge.model:
        raise InputError(f"--label: {NO_JUDGE}")
    if args.export_annotations is not None or args.import_annotations is not None:
        _exchange(args, subject_of(args.source, args.sae, args.out, args.reads, "cpu"))
        return
    with needs("explore", "the explorer"):
        from ..explore.serving.server import listen, serve
    from ..explore.api import Api

    try:
        listener = listen(args.port, any_port=args.any_port)
    except InputError as error:
        raise InputError(f"{error}; give --port N, or --any-port for the next free one") from None
    with listener:
        subject = subject_of(args.source, args.sae, args.out, args.reads, args.device)
        shown = subject.run or subject.name
        if (run := subject.run) is not None and not subject.place.index.exists() and not args.index:
            again = command("index", run, *(("--sae", subject.name) if run.several else ()))
            raise InputError(f"{run}: no index yet; make it with `{again}`, or give --index to make it now")
        api = Api.of_subject(subject, others=_others(args, subject), make_index=True)
        if api.explorer.origin == "none":
            note(f"{shown} has no forest; `{command('infer', shown)}` finds parents for its features")
        if args.label:
            _label(args, subject, api)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        api.prepare()
        if args.json:
            say_json({"url": address, "api": f"{address}api/v1/", "run": str(shown), "sae": subject.name})
        serve(api, listener, lambda: _say(args, subject, address))
    note("stopped")


def _label(args: ExploreArguments, subject: Subject, api: Api) -> None:
    """Has the judge label features. Its answers are kept with those about the run's measures."""
    from ..explore.labels.judge_labels import features_to_label, judge_labels
    from ..judges import open_judge

    with open_judge(args.judge, subject.reader.lm, subject.place.judge) as judge:
        assert judge is not None
        features = features_to_label(api.explorer, args.label, api.annotations)
        found = judge_labels(api.explorer, api.features.contexts, judge, features, api.annotations)
    unusable = f"; {found.unusable:,} replies could not be used" if found.unusable else ""
    note(f"{found.labeled:,} features were labeled by {judge.name}{unusable}")


def _say(args: ExploreArguments, subject: Subject, address: str) -> None:
    """Says where the page is, and opens it."""
    if not args.json:
        say(f"{subject.run or subject.name} is shown at {address}")
        say(f"Ctrl-C stops it. Labels and notes are kept in {subject.place.annotations}.")
    if args.no_browser:
        return
    if not _has_screen():
        port = address.rstrip("/").rpartition(":")[2]
        note("There is no browser here. From a machine with one, connect with")
        note(f"  ssh -L {port}:127.0.0.1:{port} {_host()}")
        note(f"and open {address} there.")
        return

    def open_page() -> None:
        with suppress(webbrowser.Error, OSError):
            webbrowser.open(address)

    threading.Thread(target=open_page, daemon=True).start()


def _has_screen() -> bool:
    """Whether a browser could show a page here. A browser in the terminal is none: it would take the terminal."""
    if os.environ.get("BROWSER"):
        return True
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return not (os.environ.get("SSH_CONNECTION") and sys.platform != "linux")


def _host() -> str:
    import getpass
    import socket

    user = ""
    with suppress(OSError, KeyError, ImportError):
        user = f"{getpass.getuser()}@"
    return f"{user}{socket.gethostname()}"


def _others(args: ExploreArguments, subject: Subject) -> Mapping[str, Other]:
    """The SAEs to compare with, by name: those of the same run, and those of the runs that are given."""
    from ..explore.api import Api
    from ..explore.api.compare import Opened
    from ..explore.subject import Subject
    from ..run_folder import RunFolder

    def opened(run: RunFolder, sae: str) -> Other:
        def load() -> Opened:
            other = Subject.of_run(run, sae, args.device)
            try:
                api, missing = Api.of_subject(other), None
            except InputError as error:  # compared without its texts, which nothing else needs
                api, missing = None, str(error)
            return Opened(other.sae, other.forest[0], api, missing)

        return load

    found: dict[str, Other] = {}
    if subject.run is not None:
        for sae in subject.run.names():
            if sae != subject.name:
                found[sae] = opened(subject.run, sae)
    for folder in args.compare:
        other = RunFolder(folder)
        for sae in other.names():
            found[f"{folder}/{sae}" if other.several else str(folder)] = opened(other, sae)
    return found


def _exchange(args: ExploreArguments, subject: Subject) -> None:
    """Exports or imports annotations."""
    from ..explore.labels.annotations import Annotations

    annotations = Annotations(subject.place.annotations)
    done: dict[str, object] = {"annotations": str(subject.place.annotations)}
    if (source := args.import_annotations) is not None:
        n = annotations.load(source, subject.sae.d_sae)
        say(f"read {n:,} annotations from {source}")
        done |= {"imported": str(source), "n_imported": n}
    if (target := args.export_annotations) is not None:
        annotations.save(target)
        say(f"wrote the annotations to {target}")
        done |= {"exported": str(target)}
    annotations.close()
    if args.json:
        say_json(done)
