"""The measures of a run, on the text that its training left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..activations import ActivationReader
from ..config import TrainConfig
from ..errors import UserError
from ..progress import console
from ..saes import SAE
from ..saes.files import SAE_FOLDER
from ..session import read_tokens, text_source, within
from ..training.log import LOG, log_folder
from .evaluate import Source, Task, evaluate_all, subject_of
from .forests import forests_of
from .options import MeasureOptions
from .record import Record
from .registry import MEASURES, Streaming

EVAL_FOLDER = "eval"


def measure_run(
    saes: Mapping[str, tuple[TrainConfig, SAE]],
    reader: ActivationReader,
    names: Sequence[str],
    options: MeasureOptions,
    folder: Path,
    *,
    again: bool = False,
) -> dict[str, list[Record]]:
    """Measures SAEs of a run on `options.tokens` held-out tokens and writes `folder/eval/<measure>.json` for each.

    saes: configuration and SAE by name, as `load_run` gives them; a single SAE's name is empty, and the records of
        one of several go to `folder/eval/<name>/`. All read the same text.
    again: take measures anew of which there is a record already, made with the same settings on the same text.

    Every record is written as soon as it is known: a measurement that was stopped goes on with those that are missing.

    Raises UserError where the text or the activations are at fault (see `evaluate_all`).
    """
    config = next(iter(saes.values()))[0]
    reader = options.positions.applied(reader)
    text = read_tokens(config, reader, "held_out", options.tokens)
    digests = {name: _digest(sae) for name, (_, sae) in saes.items()}
    asked = (
        dict.fromkeys(saes, tuple(names))
        if again
        else {
            n: _missing(within(folder / EVAL_FOLDER, n), names, options, digests[n], text.ids) for n in saes
        }
    )
    wanted = {n: any(MEASURES[m].forest for m in missing) for n, missing in asked.items()}
    forests = forests_of({n: saes[n] for n in saes if wanted[n]}, reader, options, folder)
    tasks = {}
    for name, missing in asked.items():
        member, sae = saes[name]
        forest, origin = forests.get(name, (sae.forest, "its own"))
        subject = subject_of(
            sae,
            forest,
            reader,
            text,
            Source(
                text_source(config), "held_out", member.seed, str(within(folder / SAE_FOLDER, name)), origin
            ),
            folder=within(folder / EVAL_FOLDER, name),
            log=log_folder(folder, name) if (log_folder(folder, name) / LOG).is_file() else None,
        )
        tasks[name] = Task(subject, missing)
    name_of = {id(task): name for name, task in tasks.items()}
    for task, record in evaluate_all(list(tasks.values()), options):
        name = name_of[id(task)]
        key = _key(record.measure, options, digests[name], text.ids)
        place = within(folder / EVAL_FOLDER, name) / f"{record.measure}.json"
        replace(record, settings={**record.settings, "key": key}).write(place)
        console.print(f"measured  {name} {record.measure}".rstrip(), style="dim")
    return {
        name: [Record.read(within(folder / EVAL_FOLDER, name) / f"{measure}.json") for measure in names]
        for name in saes
    }


def _missing(
    folder: Path, names: Sequence[str], options: MeasureOptions, digest: str, ids: Any
) -> tuple[str, ...]:
    """The measures of which `folder` has no record, or one of other settings, weights or text."""

    def there(name: str) -> bool:
        try:
            record = Record.read(folder / f"{name}.json")
        except UserError:  # none, or a damaged one
            return False
        return record.settings.get("key") == _key(name, options, digest, ids)

    return tuple(name for name in names if not there(name))


def _key(name: str, options: MeasureOptions, digest: str, ids: Any) -> str:
    """Tells whether a record answers the same question: of these weights, on this text, with these settings."""
    spec, config = MEASURES[name], options.config_of(name)
    settings: dict[str, Any] = {
        "preset": options.preset,
        "config": None if config is None else asdict(config),
    }
    if isinstance(spec, Streaming):
        settings["ce_tokens"] = options.ce_tokens
    elif spec.sees:
        settings["probes"] = asdict(options.probes)
    if spec.forest:
        settings |= {"infer_tokens": options.infer_tokens, "infer": asdict(options.infer)}
    text = hashlib.blake2b(ids.numpy().tobytes(), digest_size=8).hexdigest()
    said = json.dumps([name, settings, digest, text], sort_keys=True, default=str)
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def _digest(sae: SAE) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(sae.tensors().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
