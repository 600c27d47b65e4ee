"""Neuronpedia's bulk files, from the explorer's index: what its import reads, and what `upload` sends.

    OUT/MODEL/LAYER-SET/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl     one line each
    OUT/MODEL/LAYER-SET/features/batch-N.jsonl.gz       a line for each of 1,024 features
    OUT/MODEL/LAYER-SET/activations/batch-N.jsonl.gz    their contexts
    OUT/MODEL/LAYER-SET/explanations/batch-N.jsonl.gz   their labels, and which parent they have
    OUT/MODEL/LAYER-SET/hierarchy.json                  the forest and what speaks for its edges

Neuronpedia has no place for a forest: an explanation and the label of a feature's vector say "child of #p". All lines
of a file have the same keys, because its import takes the columns from the first.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...explore import Explorer, open_explorer
from ...explore.labels.annotations import Annotations
from ...explore.labels.labels import Labels
from ...explore.queries.contexts import TokenTexts
from ...files import atomic_file, read_json, write_json
from ...kept_forest import digest
from ...progress import progress
from ...run_folder import RunFolder
from ...saes import SAE
from ..exports import ABOUT, HIERARCHY, Exported, check_out, export_folder, is_export, of_run
from .config import NeuronpediaConfig
from .names import Names, names_of
from .records import Records, hierarchy

#: Features in one file.
BATCH = 1_024
FEATURES, ACTIVATIONS, EXPLANATIONS = "features", "activations", "explanations"
#: What was sent of an export, in its folder.
SENT = "neuronpedia-upload.json"


def export_neuronpedia(
    run: RunFolder | Path,
    out: Path,
    config: NeuronpediaConfig | None = None,
    *,
    sae: str | None = None,
    device: str | None = None,
    force: bool = False,
) -> Exported:
    """Write Neuronpedia's bulk files for the features of a run's SAE. Makes the run's index first if there is none.

    config: what the SAE is called there.
    sae:    which SAE of a run that trained several.
    device: device for making an index.
    force:  whether an earlier export at `out` is replaced.

    Raises InputError if Neuronpedia does not take a name, the SAE has no such feature, or `out` holds anything else
    than an earlier export.
    """
    config = config or NeuronpediaConfig()
    run = run if isinstance(run, RunFolder) else RunFolder(run)
    found = of_run(run, sae, device)
    names = names_of(found.sae, config)
    for feature in config.features:
        if not 0 <= feature < found.sae.d_sae:
            raise InputError(f"feature {feature}: expected 0 to {found.sae.d_sae - 1}")
    check_out(out, force)
    if (out / SENT).exists():
        raise InputError(
            f"{out}: was uploaded, and {SENT} says how far; go on with the upload, or export to another folder"
        )
    explorer = open_explorer(run, sae, device)
    annotations = Annotations(run.annotations(found.name))
    return write_neuronpedia(explorer, annotations, found.sae, names, out, config.features, force=force)


def is_written(out: Path, run: RunFolder | Path, config: NeuronpediaConfig, sae: str | None = None) -> bool:
    """Whether `out` holds such an export of the SAE already. Raises InputError as `export_neuronpedia` does."""
    if not is_export(out):
        return False
    found = of_run(run, sae, "cpu")
    names = names_of(found.sae, config)
    about = read_json(out / ABOUT)
    kept = [about.get(key) for key in ("format", "sae", "model", "source", "asked_for")]
    return kept == ["neuronpedia", digest(found.sae), names.model, names.source, sorted(set(config.features))]


def write_neuronpedia(
    explorer: Explorer,
    annotations: Annotations,
    sae: SAE,
    names: Names,
    out: Path,
    features: Sequence[int] = (),
    *,
    force: bool = False,
) -> Exported:
    """Write Neuronpedia's bulk files for features of an index; of all that fire, unless some are given.

    Raises InputError if `out` holds anything else than an earlier export.
    """
    index, texts = explorer.index, TokenTexts(explorer.tokenizer)
    labels = Labels(index, texts, annotations).all()
    judges = {feature: judged.judge for feature, judged in annotations.judged().items()}
    records = Records(explorer, sae, names, labels, judges, texts)
    chosen = sorted(set(features)) if features else (index.n_fired > 0).nonzero().flatten().tolist()
    about: dict[str, Any] = {
        "model": names.model,
        "source": names.source,
        "asked_for": sorted(set(features)),
        "features": len(chosen),
        "silent": int((index.n_fired == 0).sum()),
    }
    with export_folder(out, "neuronpedia", sae, about, force=force) as folder:
        place = folder / names.model / names.source
        for part in (FEATURES, ACTIVATIONS, EXPLANATIONS):
            (place / part).mkdir(parents=True)
        for name, line in records.headers().items():
            (place / f"{name}.jsonl").write_text(_line(line), encoding="utf-8")
        n_activations = n_explanations = 0
        with progress("neuronpedia", len(chosen), "features") as advance:
            for number, start in enumerate(range(0, len(chosen), BATCH)):
                batch = chosen[start : start + BATCH]
                contexts = {feature: records.contexts(feature) for feature in batch}
                lines = {
                    FEATURES: [records.feature(feature) for feature in batch],
                    ACTIVATIONS: [a for f, some in contexts.items() for a in records.activations(f, some)],
                    EXPLANATIONS: [e for feature in batch for e in records.explanations(feature)],
                }
                n_activations += len(lines[ACTIVATIONS])
                n_explanations += len(lines[EXPLANATIONS])
                for part, some in lines.items():
                    if some:
                        _write_lines(place / part / f"batch-{number}.jsonl.gz", some)
                advance(len(batch))
        write_json(place / HIERARCHY, hierarchy(explorer))
        about |= {"activations": n_activations, "explanations": n_explanations}
    return Exported(out, about)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with atomic_file(path) as temporary, gzip.GzipFile(temporary, "wb", compresslevel=5, mtime=0) as file:
        for line in lines:
            file.write(_line(line).encode("utf-8", "replace"))
