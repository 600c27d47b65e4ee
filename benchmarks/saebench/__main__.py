"""Compares saeforest with SAEBench 0.6.0 on the SAE of a run: core and absorption, on the same tokens and words.

.venv/bin/python -m benchmarks.saebench runs/demo --out runs/saebench
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.peers.environments import ROOT, EnvironmentFailure
from safetensors.torch import load_file, save_file

from saeforest.activations import ActivationReader
from saeforest.config import TrainConfig
from saeforest.errors import InputError
from saeforest.run_folder import RunFolder
from saeforest.saes import SAE
from saeforest.session import open_reader, read_tokens

from . import ours, report
from .environment import saebench_python

SEED = 42
_PROMPTS_READ = 32


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.saebench", description=(__doc__ or "").splitlines()[0]
    )
    p.add_argument(
        "run", type=Path, help="folder of a run with a top-k or tree SAE at blocks.I.hook_resid_post"
    )
    p.add_argument("--sae", metavar="NAME", help="which, where the run trained several")
    p.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="for what the two sides exchange and find"
    )
    p.add_argument("--windows", type=int, default=64, metavar="N", help="of the run's context; 0: no core")
    p.add_argument(
        "--batch", type=int, default=16, metavar="N", help="windows in a batch, as SAEBench has it"
    )
    p.add_argument("--words", type=int, default=60, metavar="N", help="of each letter; 0: no absorption")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        compare(options)
    except (InputError, EnvironmentFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(options: argparse.Namespace) -> None:
    """Writes `comparison.json` and `comparison.md`. Raises InputError, EnvironmentFailure."""
    torch.manual_seed(SEED)
    run = RunFolder(options.run)
    config, sae = run.load(options.sae, "cpu")
    # Of the batch: its mean is in the legacy explained variance.
    config = replace(config, lm=replace(config.lm, dtype="float32", batch_size=options.batch))
    reader = open_reader(config)
    _check(config, options.windows, reader)
    tokens = read_tokens(config, reader, "held_out", max(options.windows, 1) * config.text.context)
    words = ours.balanced_words(reader.lm.tokenizer, options.words, SEED) if options.words else []

    folder = options.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"ids": tokens.ids.contiguous()}, folder / "tokens.safetensors")
    job = {
        "model": str(Path(reader.lm.model.config.name_or_path).absolute()),
        "model_name": config.model,
        "sae": str(run.sae(options.sae or run.names()[0]).absolute()),
        "layer": int(config.site.split(".")[1]),
        "batch": reader.batch_size,
        "core": options.windows > 0,
        "words": words,
        "seed": SEED,
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    _run_theirs(folder)
    theirs = json.loads((folder / "theirs.json").read_text(encoding="utf-8"))

    found: dict[str, Any] = {"versions": theirs["versions"]}
    found["adapter"] = ours.check_adapter(sae, load_file(folder / "codes.safetensors"))
    if options.windows:
        found["theirs"] = theirs["core"]
        found["default"] = ours.core(sae, reader, tokens)
        found["preset"] = ours.core(sae, ours.saebench_positions(reader), tokens)
    if words:
        found["absorption"] = _absorption(sae, reader, folder, theirs["absorption"])
    (folder / "comparison.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    text = report.table(found)
    (folder / "comparison.md").write_text(text, encoding="utf-8")
    print(text)


def _check(config: TrainConfig, windows: int, reader: ActivationReader) -> None:
    if windows < 0 or windows % reader.batch_size:
        raise InputError(f"--windows {windows}: expected 0 or a multiple of {reader.batch_size}, a batch")
    if not config.site.endswith("hook_resid_post"):
        raise InputError(f"site {config.site}: SAEBench's absorption reads blocks.I.hook_resid_post alone")
    if not Path(reader.lm.model.config.name_or_path).is_dir():
        raise InputError(f"model {config.model}: expected one that lies in a folder, for SAEBench to read")


def _run_theirs(folder: Path) -> None:
    python = saebench_python()
    # Nothing may wait for a hub that can't be reached.
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    command = [str(python), "-m", "benchmarks.saebench.theirs", str(folder)]
    if subprocess.run(command, cwd=ROOT, env=offline, check=False).returncode:
        raise EnvironmentFailure("SAEBench's side failed; its messages are above")


def _absorption(sae: SAE, reader: ActivationReader, folder: Path, theirs: dict[str, Any]) -> dict[str, Any]:
    given = load_file(folder / "absorption.safetensors")
    raw, effective = ours.AbsorptionConfig(units="raw"), ours.AbsorptionConfig(units="effective")
    prompts = theirs["prompts"][:_PROMPTS_READ]
    return {
        "theirs": theirs["letters"],
        "theirs_effective": theirs["letters_effective"],
        "f1_probe": theirs["f1_probe"],
        "preset": ours.absorption_given(sae, given, theirs, raw),
        "default": ours.absorption_given(sae, given, theirs, effective),
        "own_probes": ours.absorption_of_our_own(sae, given, raw),
        "words": len(given["y_train"]) + len(given["y_test"]),
        "scored": len(given["letter"]),
        "prompts_with_bos": report.distance(ours.read_prompts(reader, prompts, bos=True), given["x"]),
        "prompts_without_bos": report.distance(ours.read_prompts(reader, prompts, bos=False), given["x"]),
    }


if __name__ == "__main__":
    sys.exit(main())
