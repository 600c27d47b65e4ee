"""How the files of each kind of folder are checked, and how they can be repaired or recreated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..activations.folder import LocalFolder
from ..activations.plan import PLAN, digest_of_text, is_unfinished, read_entry, read_plan
from ..activations.sources import HARVEST, MANIFEST, TOKENS, open_store
from ..config import is_signed, load_config
from ..errors import InputError, command
from ..explore.index import index as indexes
from ..explore.labels.annotations import Annotations
from ..files import (
    CHECKSUM,
    CHECKSUMS,
    check_file,
    listed_checksum,
    read_bytes,
    read_tensors,
)
from ..interop import load_folder
from ..interop.tree_sae import CONFIG as RELEASED
from ..interop.tree_sae import WEIGHTS as RELEASED_WEIGHTS
from ..interop.tree_sae import load_tree_sae
from ..judges.cache import FILE as ANSWERS
from ..judges.cache import read_answers
from ..kept_forest import ABOUT as FOREST
from ..kept_forest import TENSORS as FOREST_TENSORS
from ..kept_forest import forest_of, read_forest
from ..measures.record import Record
from ..report.files import VALUES as REPORT
from ..run_folder import CONFIG, RunFolder
from ..saes import SAE, load_sae
from ..saes.files import CFG, WEIGHTS
from ..structure.forest import Forest
from ..text import Tokens
from ..training.checkpoint import STATE, checkpoints, is_checkpoint, read_state
from ..training.log import ALLOCATIONS, LOG, check_log, has_log, is_closed, read_lines
from ..worlds.results import read_recovery, read_scores
from ..worlds.run import RECOVERY, SCORES
from .finding import Finding, checked_json, checked_tensors, is_plain, tried


def checks_of(folder: Path, names: set[str]) -> Iterator[Callable[[Path], Iterator[Finding]]]:
    """The checks for a folder, chosen by the files in it that tell what kind of folder it is."""
    kinds: dict[str, Callable[[Path], Iterator[Finding]]] = {
        CONFIG: _config,
        CFG: _sae,
        MANIFEST: _store,
        PLAN: _unfinished_store,
        indexes.MANIFEST: _index,
        FOREST: _forest,
        STATE: _checkpoint,
        RECOVERY: _recovery,
        SCORES: _scores,
        ANSWERS: _answers,
        LOG: _logs,
    }
    for name, check in kinds.items():
        of_another = (name == CONFIG and not is_run(folder)) or (name == STATE and not is_checkpoint(folder))
        if name in names and not of_another:
            yield check
    if RELEASED_WEIGHTS in names and CFG not in names:
        yield _released


def is_run(folder: Path) -> bool:
    """Whether the config.yaml in a folder is a run's, not another tool's or the user's own."""
    run = RunFolder(folder)
    if run.has_results() or run.activations.exists() or has_log(folder):
        return True
    return tried(run.config_file, lambda: load_config(run.config_file), "")[0].sound


def _run_of(folder: Path) -> RunFolder | None:
    """The run that a folder belongs to or is; None if there is none."""
    return RunFolder.around(folder.resolve())


def _config(folder: Path) -> Iterator[Finding]:
    remedy, run = "restore the settings to what they were when the run began", RunFolder(folder)
    _, signed = tried(run.config_file, lambda: is_signed(run.config_file), remedy)
    yield tried(run.config_file, run.config, remedy, has_checksum=bool(signed))[0]


def _sae(folder: Path) -> Iterator[Finding]:
    remedy = _train_again(folder)
    about, cfg = checked_json(folder / CFG, remedy)
    weights = checked_tensors(folder / WEIGHTS, cfg, remedy)
    if about.sound and weights.sound:
        whole, _ = tried(folder, lambda: load_folder(folder), remedy)
        if whole.problem:
            of_weights = whole.problem.startswith(str(weights.path))
            blamed = weights if of_weights else about
            found = Finding(
                blamed.path, whole.problem.removeprefix(f"{blamed.path}: "), remedy, blamed.has_checksum
            )
            about, weights = (about, found) if of_weights else (found, weights)
    yield about
    yield weights
    yield from _missing_log(folder)


def _released(folder: Path) -> Iterator[Finding]:
    remedy = "copy or download the folder again"
    whole, _ = tried(folder, lambda: load_tree_sae(folder), remedy)
    for name in (RELEASED, RELEASED_WEIGHTS):
        path = folder / name
        problem = (
            whole.problem.removeprefix(f"{path}: ") if whole.problem.startswith(str(path)) else whole.problem
        )
        if not whole.problem or whole.problem.startswith(str(path)) or name == RELEASED:
            yield Finding(path, problem, remedy if problem else "")


def _train_again(folder: Path) -> str:
    run = _run_of(folder)
    if run is None:
        return "restore it from a copy: the trained weights can't be recreated from other files here"
    if checkpoints(run.checkpoints):
        return (
            f"delete {folder.name}/ and run `{command('train', '--resume', '--out', run)}`: nothing is lost"
        )
    again = command("train", "--config", run.config_file, "--out", "NEW")
    return f"restore it from a copy, or train again with `{again}`: the trained weights are lost"


def _checkpoint(folder: Path) -> Iterator[Finding]:
    run = _run_of(folder)
    others = [path for path in checkpoints(folder.parent) if path.name != folder.name]
    lost = f"the steps since {others[-1].name} are lost" if others else "the training so far is lost"
    go_on = command("train", "--resume", "--out", run) if run else "saeforest train --resume"
    remedy = f"delete the folder {folder} and run `{go_on}`: {lost}"
    manifest, data = checked_json(folder / STATE, remedy)
    state, _ = tried(folder / STATE, lambda: read_state(folder), remedy)
    yield state if manifest.sound and not state.sound else manifest
    listed = data.get(CHECKSUMS, {}) if isinstance(data, dict) else {}
    names = {path.name for path in folder.glob("*.safetensors")}
    names |= {name for name in listed if is_plain(name)} if isinstance(listed, dict) else set()
    for name in sorted(names):
        yield checked_tensors(folder / name, data, remedy)


def _store(folder: Path) -> Iterator[Finding]:
    run = _run_of(folder)
    if run is not None and run.path != folder.resolve():
        again = f"`{command('train', '--resume', '--out', run)}`, which reads the language model again"
    else:
        again = "`saeforest harvest` with the settings in the manifest"
    remedy = f"delete the folder {folder} and run {again}: only time is lost"
    manifest, data = checked_json(folder / MANIFEST, remedy)
    opened, store = tried(folder / MANIFEST, lambda: open_store(folder), remedy)
    missing = opened.problem.endswith("missing")  # a missing shard has a finding of its own
    yield opened if manifest.sound and not opened.sound and not missing else manifest
    expected = listed_checksum(data, TOKENS)
    yield tried(
        folder / TOKENS,
        lambda: Tokens.load(folder / TOKENS, expected),
        remedy,
        has_checksum=expected is not None,
    )[0]
    if (folder / HARVEST).exists():
        delete = "delete it: it only records the cost of the harvest"
        told, _ = checked_json(folder / HARVEST, delete)
        form, _ = tried(folder / HARVEST, lambda: store.harvest if store else None, delete)
        yield form if told.sound and not form.sound else told
    shards = data.get("shards") if isinstance(data, dict) else None
    for shard in shards if isinstance(shards, list) else []:
        if isinstance(shard, dict) and isinstance(name := shard.get("file"), str) and is_plain(name):
            yield _shard(folder / name, shard, remedy)


def _unfinished_store(folder: Path) -> Iterator[Finding]:
    remedy = "nothing to do: the command that wrote it reads these activations again"
    place = LocalFolder(folder)
    manifest, _ = checked_json(folder / PLAN, remedy)
    form, plan = tried(folder / PLAN, lambda: read_plan(place), remedy)
    yield form if manifest.sound and not form.sound else manifest
    if plan is not None and place.has(TOKENS):

        def read() -> None:
            if digest_of_text(Tokens.load(folder / TOKENS)) != plan.text:
                raise InputError(f"{folder / TOKENS}: not the text of {PLAN}")

        yield tried(folder / TOKENS, read, remedy, has_checksum=True)[0]
    for name in sorted(filter(is_unfinished, place.sizes())):
        if not name.startswith("shard-"):  # the beginning of a shard may be newer than its entry
            continue
        file, _ = checked_json(folder / name, remedy)
        form, entry = tried(folder / name, lambda name=name: read_entry(place, name), remedy)
        yield form if file.sound and not form.sound else file
        if entry is not None and entry.rows:
            shard = {"rows": entry.rows, "checksum": entry.file_checksum}
            yield _shard(folder / entry.file, shard, remedy)


def _shard(path: Path, shard: dict[str, Any], remedy: str) -> Finding:
    expected = shard.get("checksum")
    if isinstance(expected, str):  # checked without loading the shard into memory
        return tried(path, lambda: check_file(path, expected), remedy, has_checksum=True)[0]

    def read() -> None:
        rows = shard.get("rows")
        if any(len(tensor) != rows for tensor in read_tensors(path).values()):
            raise InputError(f"{path}: expected {rows} rows, as {MANIFEST} says")

    return tried(path, read, remedy)[0]


def _index(folder: Path) -> Iterator[Finding]:
    remedy = f"run `{indexes.index_command(folder.resolve())}`: nothing is lost"
    manifest, data = checked_json(folder / indexes.MANIFEST, remedy)
    about, _ = tried(folder / indexes.MANIFEST, lambda: indexes.read_about(folder), remedy)
    manifest = about if manifest.sound and not about.sound else manifest
    expected = listed_checksum(data, indexes.TOKENS)
    tokens, _ = tried(
        folder / indexes.TOKENS,
        lambda: Tokens.load(folder / indexes.TOKENS, expected),
        remedy,
        has_checksum=expected is not None,
    )
    tensors = checked_tensors(folder / indexes.TENSORS, data, remedy)
    found = [manifest, tokens, tensors]
    sae, forest = _sae_beside(folder), _forest_beside(folder)
    if sae is not None and forest is not None and all(finding.sound for finding in found):
        whole, _ = tried(folder, lambda: indexes.Index.load(folder, sae, forest), remedy)
        if whole.problem:
            found[0] = Finding(manifest.path, whole.problem, remedy, manifest.has_checksum)
    yield from found


def _sae_beside(folder: Path) -> SAE | None:
    """The SAE that a folder within a run belongs to; None if there is none or it is damaged."""
    run = _run_of(folder)
    if run is None:
        return None
    try:
        return load_sae(run.sae_beside(folder.resolve()))
    except (InputError, OSError):
        return None


def _forest_beside(folder: Path) -> Forest | None:
    """The forest of the run that an index in `folder` is of; None where there is none, or a damaged one."""
    run, sae = _run_of(folder), _sae_beside(folder)
    if run is None or sae is None:
        return None
    try:
        return forest_of(sae, run.forest_beside(folder.resolve()))[0]
    except (InputError, OSError):
        return None


def _forest(folder: Path) -> Iterator[Finding]:
    run = _run_of(folder)
    again = command("eval", run or "RUN")
    remedy = f"delete the folder {folder}: the next `{again}` infers the forest again, and nothing is lost"
    about, data = checked_json(folder / FOREST, remedy)
    tensors = checked_tensors(folder / FOREST_TENSORS, data, remedy)
    if about.sound and tensors.sound:

        def read() -> None:
            kept, parent = read_forest(folder)
            sae = _sae_beside(folder)
            sizes = (len(parent),) if sae is None else sae.config.layer_sizes
            Forest(parent, sizes, layered=kept["layered"])

        whole, _ = tried(folder / FOREST, read, remedy)
        about = Finding(about.path, whole.problem, whole.remedy, about.has_checksum)
    yield about
    yield tensors


def _record(path: Path) -> Finding:
    run = _run_of(path.parent)
    name = None if run is None else run.name_of(path.parent.resolve())
    again = command("eval", run or "RUN", "--measures", path.stem, *(("--sae", name) if name else ()))
    remedy = f"run `{again}`: only time is lost"
    file, _ = checked_json(path, remedy)
    record, _ = tried(path, lambda: Record.read(path), remedy)
    return record if file.sound and not record.sound else file


def _answers(folder: Path) -> Iterator[Finding]:
    path, damaged = folder / ANSWERS, 0

    def read() -> None:
        nonlocal damaged
        damaged = sum(answer is None for answer in read_answers(read_bytes(path), str(path)))
        if damaged:
            raise InputError(f"{path}: {damaged:,} damaged lines")

    remedy = "nothing to do: the next `saeforest eval` asks the judge those questions again"
    yield tried(path, read, remedy, has_checksum=True)[0]


def _recovery(folder: Path) -> Iterator[Finding]:
    remedy = "run `saeforest synthetic` again: only time is lost"
    yield tried(folder / RECOVERY, lambda: read_recovery(folder / RECOVERY), remedy)[0]


def _scores(folder: Path) -> Iterator[Finding]:
    remedy = "delete it and run `saeforest synthetic` again: only time is lost"
    file, _ = checked_json(folder / SCORES, remedy)
    form, _ = tried(folder / SCORES, lambda: read_scores(folder / SCORES), remedy)
    yield form if file.sound and not form.sound else file


_LOG_REMEDY = "restore it from a copy; the SAE is not affected, but its training curves are lost"


def _missing_log(folder: Path) -> Iterator[Finding]:
    """Check that a trained SAE has its log, which is closed before the SAE is saved."""
    if (run := _run_of(folder)) is None:
        return
    name = run.name_of(folder.resolve())
    logs = folder.parents[1] / "logs" / name if name else folder.parent
    if is_closed(logs) and not has_log(logs):
        yield Finding(logs / LOG, "no such file", _LOG_REMEDY)


def _logs(folder: Path) -> Iterator[Finding]:
    remedy = _LOG_REMEDY
    closed, _ = tried(folder / LOG, lambda: check_log(folder / LOG), remedy)
    for name in (LOG, ALLOCATIONS):
        path = folder / name
        if not path.exists() and not closed.problem.startswith(str(path)):
            continue

        def read(path: Path = path) -> None:
            if damaged := read_lines(path)[1]:
                raise InputError(f"{path}: {len(damaged):,} of its lines are damaged")

        finding, _ = tried(path, read, remedy)
        if (
            finding.sound
            and closed.problem
            and (name == LOG) != closed.problem.startswith(str(folder / ALLOCATIONS))
        ):
            finding = Finding(path, closed.problem.removeprefix(f"{path}: "), remedy)
        yield replace(finding, has_checksum=is_closed(folder))


def other_file(path: Path, known: set[Path]) -> Iterator[Finding]:
    """Check a file that does not determine the kind of its folder: a record, a report, a manifest with checksums."""
    if path.suffix == ".sqlite" and not path.is_symlink():
        yield from _annotations(path)
    if path.suffix != ".json" or path.is_symlink():
        return
    run, folder = _run_of(path.parent), path.parent.resolve()
    if run is not None and run.records in (folder, folder.parent):
        yield _record(path)
        return
    again = "saeforest compare" if path.name == REPORT else "the command that wrote it"
    finding, data = checked_json(path, f"restore it from a copy, or run {again} again")
    if isinstance(data, dict) and {"measure", "value", "interval"} <= data.keys():
        yield _record(path)
    elif finding.has_checksum or path.name == REPORT or _torn(path) or (finding.problem and known):
        yield finding
        listed = data.get(CHECKSUMS) if isinstance(data, dict) else None
        for name, expected in sorted(listed.items()) if isinstance(listed, dict) else ():
            file = path.parent / str(name)
            if is_plain(name) and file not in known and isinstance(expected, str):
                remedy = "delete its folder, and run the command that made it again"
                yield tried(file, lambda f=file, e=expected: check_file(f, e), remedy, has_checksum=True)[0]


def _annotations(path: Path) -> Iterator[Finding]:
    run, folder = _run_of(path.parent), path.parent.resolve()
    if run is None or folder not in (run.path.resolve(), run.path.resolve() / "annotations"):
        return

    def read() -> None:
        annotations = Annotations(path)
        try:
            annotations.to_dict()
        finally:
            annotations.close()

    remedy = "restore it from a copy, or move it away: labels, notes and ratings by hand are lost"
    yield tried(path, read, remedy)[0]


def _torn(path: Path) -> bool:
    """Whether an unreadable file contains a checksum of the form that saeforest writes."""
    try:
        return f'"{CHECKSUM}": "xxh3:'.encode() in read_bytes(path)
    except InputError:
        return False
