"""The key of a record: a hash of everything its measure depends on. A record with the same key need not be redone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ..kept_forest import digest
from ..measures.needs import Need
from ..measures.relatedness import RelatednessConfig
from ..measures.sentences import find_sentence_model
from ..measures.spec import MeasureSpec, Streaming
from ..measures.wordnet import find_wordnet
from ..saes.training import starts_without_edges
from ..structure.shuffled import BLOCK
from ..training.log import LOG
from .nulls import SEED, VERSION, Start
from .options import MeasureOptions
from .task import Task

# Groups of needs, by what they make a measure depend on: the model, the excluded positions, the measured text.
_LANGUAGE_MODEL: frozenset[Need] = frozenset(
    {
        "text", "losses", "firings", "activations", "probes", "labeled_texts", "first_letters", "language_model",
        "embedding",
    }
)  # fmt: skip
_POSITIONS = _LANGUAGE_MODEL - {"first_letters", "embedding"}
_MEASURED_TEXT = _POSITIONS - {"labeled_texts", "language_model"}


def record_key(spec: MeasureSpec, task: Task, options: MeasureOptions) -> str:
    """The key of a measure of this SAE with these settings. It depends only on what the measure declares it needs."""
    config, reader = options.config_of(spec.name), task.reader
    asked: dict[str, Any] = {"measure": spec.name, "version": spec.version, "sae": digest(task.sae)}
    asked["config"] = asdict(config) if spec.config else None
    if spec.needs & _LANGUAGE_MODEL:
        model = reader.lm.identity
        asked["model"] = (model.fingerprint or model.name, str(reader.lm.dtype), reader.lm.device.type)
        asked["site"], asked["bos"] = reader.site.name, reader.bos_id
    if spec.needs & _POSITIONS:
        asked["positions"] = (reader.exclude_first, reader.exclude_special, reader.max_norm)
    if spec.needs & _MEASURED_TEXT:
        asked["text"] = (task.tokens.context, _hash(task.tokens.ids))
    if isinstance(spec, Streaming):
        asked["batch"] = reader.batch_size
    of_need: dict[Need, Callable[[], Any]] = {
        "losses": lambda: options.ce_tokens,
        "probes": lambda: asdict(options.probes),
        "labeled_texts": lambda: _files(Path(config.texts.source)),
        "judge": lambda: (config.judge.endpoint, config.judge.model),
        "training_log": lambda: _files(task.log / LOG) if task.log else [],
        "forest": lambda: _hash(task.forest.parent),
    }
    if isinstance(config, RelatednessConfig):  # packages may have been installed since the last record
        found = find_wordnet(config.wordnet), find_sentence_model(config.sentence_model)
        asked["resources"] = [None if folder is None else _files(folder) for folder in found]
    if read := spec.files(config):
        asked["files"] = [_files(path) for path in read]
    if spec.nulls and options.nulls == "yes":
        asked["nulls"] = (VERSION, SEED, BLOCK, repr(task.start))
        if isinstance(task.start, Start) and starts_without_edges(
            task.start.config
        ):  # before, its untrained SAE had no edges to measure
            asked["nulls"] += ("learned parents",)
    in_keys = {"labeled_texts": "labelled_texts"}  # as in the keys of existing records
    asked |= {f"need {in_keys.get(need, need)}": of_need[need]() for need in spec.needs & of_need.keys()}
    if "judge" in spec.needs:
        del asked["config"]["judge"]  # timeout, retries and the like do not matter
    return hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=8).hexdigest()


def _hash(tensor: Tensor) -> str:
    return hashlib.blake2b(tensor.contiguous().numpy().tobytes(), digest_size=8).hexdigest()


def _files(source: Path) -> list[tuple[str, str]]:
    """Path and hash of a file, or of all files in a folder."""
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    return [(str(f), hashlib.blake2b(f.read_bytes(), digest_size=8).hexdigest()) for f in files]
