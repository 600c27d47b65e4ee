"""Every kind of file that is read: the cheapest call by which a command reads it, and what comes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from mutations import (
    Mutation,
    byte_mutations,
    json_mutations,
    line_mutations,
    tensor_mutations,
    yaml_mutations,
)

from everything_cases import CHECKPOINT, WIDTH, Fives
from saeforest.activations import ActivationStream
from saeforest.activations.folder import LocalFolder
from saeforest.activations.plan import read_entry, read_plan
from saeforest.activations.sources import MemoryActivations, open_store
from saeforest.config import load_config
from saeforest.explore import Index
from saeforest.explore.measuring.counts import Counts
from saeforest.explore.measuring.run import _STATE as INDEX_STATE
from saeforest.explore.measuring.run import _TENSORS as COUNTS
from saeforest.explore.measuring.run import _Unfinished
from saeforest.files import CHECKSUM, CHECKSUMS, read_json
from saeforest.interop import load_folder
from saeforest.interop.tree_sae import load_tree_sae
from saeforest.judges.cache import CachedJudge
from saeforest.kept_forest import kept_forest
from saeforest.lm import load_lm
from saeforest.measures.dead_training import read_dead_rates
from saeforest.measures.record import Record
from saeforest.report.load import load_runs
from saeforest.report.page import build_page
from saeforest.saes import RunLength, load_sae, start_training
from saeforest.saes.files import WEIGHTS
from saeforest.schema import without
from saeforest.stopping import Stop
from saeforest.text import Tokens, documents
from saeforest.text.labeled import labeled
from saeforest.training.checkpoint import SINGLE, load_checkpoint
from saeforest.training.log import RunLog, read_log
from saeforest.worlds.results import read_recovery
from saeforest.worlds.run import Kept

ROWS = 3_000
FIRINGS = "firings-00000.safetensors"
#: What was read where the damaged file was put aside, and its work is done again.
ANEW = "anew"


@dataclass(frozen=True)
class Target:
    """A file, and the call that reads it.

    read:     gets the folder with one of each file; what it returns tells what was read.
    may_differ: why another result without a word is right; empty where it is not.
    verified: the part of the folder that `saeforest verify` is to find damaged where the call refuses it.
    manifest: the file that lists this one's checksum.
    """

    name: str
    file: str
    mutations: st.SearchStrategy[Mutation]
    read: Callable[[Path], Any]
    may_differ: str = ""
    verified: str = ""
    manifest: str = ""


def digest(*things: Any) -> str:
    found = hashlib.blake2b(digest_size=16)

    def add(thing: Any) -> None:
        if isinstance(thing, torch.Tensor):
            found.update(repr((thing.dtype, thing.shape)).encode())
            found.update(thing.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(thing, dict):
            for key, value in thing.items():
                add(key)
                add(value)
        elif isinstance(thing, list | tuple):
            found.update(str(len(thing)).encode())
            for value in thing:
                add(value)
        else:
            found.update(repr(thing).encode("utf-8", "surrogatepass"))

    add(things)
    return found.hexdigest()


def _config(root: Path) -> str:
    return digest(load_config(root / "run" / "config.yaml", of_run=True))


def _sae(root: Path) -> str:
    sae = load_sae(root / "run" / "sae")
    return digest(sae.tensors(), sae.config, sae.metadata)


def _checkpoint(root: Path) -> str:
    config = load_config(root / "stopped" / "config.yaml")
    run = RunLength(46, config.optim.batch_size)
    training = start_training(config.sae, WIDTH, run, optim=config.optim)
    data = MemoryActivations(torch.zeros(ROWS, WIDTH), torch.arange(ROWS), seed=0)
    stream = ActivationStream(data, config.optim.batch_size)
    fingerprint = json.loads((root / "fingerprint.json").read_text())
    step = load_checkpoint(root / CHECKPOINT, {SINGLE: training}, stream, fingerprint)
    stream.next()
    moments = training.optimizer.state_dict()["state"]
    return digest(step, training.state_dict(), moments, stream.state(), torch.get_rng_state())


def _store(root: Path) -> str:
    store = open_store(root / "store")
    block = store.block(0, 0)
    about = {key: value for key, value in store.manifest.items() if key != "shards"}
    return digest(block.x, block.rows, store.tokens().ids, store.tokens().names, about)


def _index(root: Path) -> str:
    index = Index.load(root / "two/index/tree", sae := load_sae(root / "two/sae/tree"), sae.forest)
    return digest(index.tensors(), index.about, index.tokens.ids, index.tokens.names)


def _record(root: Path) -> str:
    record = Record.read(root / "two/eval/tree/coverage.json")
    found = load_runs([root / "two"])
    build_page(found, [root / "two"], root / "out")
    return digest(
        record.to_json(),
        [entry.records["coverage"].to_json() for entry in found if "coverage" in entry.records],
    )


def _answers(root: Path) -> str:
    file = root / "two/eval/tree/judge.jsonl"
    before = file.read_bytes()
    judge = CachedJudge(Fives(), file.parent)
    try:
        return digest([judge.ask("a system", user, max_tokens=1) for user in "abc"])
    finally:
        file.write_bytes(before)


def _forest(root: Path) -> str:
    about = json.loads((root / "about_forest.json").read_text())
    found = kept_forest(root / "two/forest/topk", load_sae(root / "two/sae/topk"), about)
    if found is None:
        return ANEW
    return digest(found[0].parent, found[0].layered, found[1])


def _log(root: Path) -> str:
    read_log(root / "run")
    sizes = load_config(root / "run/config.yaml").sae.layer_sizes
    return digest(read_dead_rates(root / "run", sizes))


def _log_on_resume(root: Path) -> str:
    folder = root / "stopped"
    before = {path: path.read_bytes() for path in folder.glob("*.jsonl")}
    try:
        RunLog(folder, resume_at=20)
        return digest([path.read_bytes() for path in sorted(before)])
    finally:
        for path in set(folder.glob("*.jsonl")) | before.keys():
            path.unlink()
        for path, data in before.items():
            path.write_bytes(data)


def _texts(name: str) -> Callable[[Path], str]:
    return lambda root: digest([(d.name, d.text) for d in documents(str(root / "texts" / name))])


def _labeled(name: str) -> Callable[[Path], str]:
    return lambda root: digest(labeled(str(root / "texts" / name)))


def _model(root: Path) -> str:
    lm = load_lm(str(root / "model"), device="cpu", dtype=torch.float32)
    ids = lm.tokenizer("the cat sat", add_special_tokens=False)["input_ids"]
    return digest(ids, lm.eos_id, lm.model.state_dict())


def _released(root: Path) -> str:
    sae = load_tree_sae(root / "released")
    return digest(sae.tensors(), sae.config, sae.metadata)


def _theirs(name: str) -> Callable[[Path], str]:
    def read(root: Path) -> str:
        sae = load_folder(root / name)
        return digest(sae.tensors(), sae.config, sae.metadata)

    return read


def _recovery(root: Path) -> str:
    return digest(read_recovery(root / "results" / "recovery.json"))


def _harvest(root: Path) -> str:
    return digest(open_store(root / "store").harvest)


def _plan(root: Path) -> str:
    plan = read_plan(LocalFolder(root / "unfinished"))
    assert plan is not None
    return digest(plan.model_dump())


def _entry(root: Path) -> str:
    return digest(read_entry(LocalFolder(root / "unfinished"), "shard-00000.json").model_dump())


def _scores(root: Path) -> str:
    kept = Kept.read(root / "results/scores.json", json.loads((root / "asked.json").read_text()))
    assert kept is not None
    return digest(kept._scores)


def unfinished_index(root: Path) -> tuple[Counts, _Unfinished]:
    """An index on its way, not begun."""
    tokens, sae = Tokens.load(root / "counted/tokens.safetensors"), load_sae(root / "two/sae/tree")
    return Counts(sae, sae.forest, tokens, 3), _Unfinished(root / "counted", {"sae": "x"}, tokens, Stop())


def _counts(root: Path) -> str:
    counts, unfinished = unfinished_index(root)
    unfinished.begin(counts)
    if not unfinished._windows:
        return ANEW
    firings = [vars(part) for part in counts.firings]
    return digest(counts.tensors(), firings, unfinished._windows)


_TEXT = "another text is another text"
_MODEL, _FORM = "a model of others, without a checksum", "it has no checksum: only its form is checked"
_CFG, _STATE, _STORE = "run/sae/cfg.json", f"{CHECKPOINT}/state.json", "store/activations.json"
_INDEX, _FOREST = "two/index/tree", "two/forest/topk"
_ABOUT_INDEX, _ABOUT_FOREST = f"{_INDEX}/index.json", f"{_FOREST}/forest.json"
TARGETS = [
    Target("config.yaml", "run/config.yaml", yaml_mutations, _config, verified="run/config.yaml"),
    Target("cfg.json", _CFG, json_mutations, _sae, verified="run/sae"),
    Target("sae_weights", f"run/sae/{WEIGHTS}", tensor_mutations, _sae, verified="run/sae", manifest=_CFG),
    Target("state.json", _STATE, json_mutations, _checkpoint, verified=CHECKPOINT),
    Target(
        "checkpoint", f"{CHECKPOINT}/{SINGLE}.safetensors", tensor_mutations, _checkpoint, manifest=_STATE
    ),
    Target("log.jsonl", "run/log.jsonl", line_mutations, _log),
    Target("allocations.jsonl", "run/allocations.jsonl", line_mutations, _log),
    Target("log.jsonl on resume", "stopped/log.jsonl", line_mutations, _log_on_resume, _FORM),
    Target("allocations.jsonl on resume", "stopped/allocations.jsonl", line_mutations, _log_on_resume, _FORM),
    Target("activations.json", _STORE, json_mutations, _store, verified="store"),
    Target("shard", "store/shard-00000.safetensors", tensor_mutations, _store, manifest=_STORE),
    Target("tokens", "store/tokens.safetensors", tensor_mutations, _store, verified="store", manifest=_STORE),
    Target("harvest.json", "store/harvest.json", json_mutations, _harvest, verified="store"),
    Target("unfinished.json", "unfinished/unfinished.json", json_mutations, _plan, verified="unfinished"),
    Target("shard.json", "unfinished/shard-00000.json", json_mutations, _entry, verified="unfinished"),
    Target("scores.json", "results/scores.json", json_mutations, _scores, verified="results"),
    Target("unfinished index", f"counted/{INDEX_STATE}", json_mutations, _counts),
    Target("its counts", f"counted/{COUNTS}", tensor_mutations, _counts, manifest=f"counted/{INDEX_STATE}"),
    Target("its firings", f"counted/{FIRINGS}", tensor_mutations, _counts, manifest=f"counted/{INDEX_STATE}"),
    Target("index.json", _ABOUT_INDEX, json_mutations, _index, verified=_INDEX),
    Target(
        "index",
        f"{_INDEX}/index.safetensors",
        tensor_mutations,
        _index,
        verified=_INDEX,
        manifest=_ABOUT_INDEX,
    ),
    Target("index tokens", f"{_INDEX}/tokens.safetensors", tensor_mutations, _index, manifest=_ABOUT_INDEX),
    Target("record", "two/eval/tree/coverage.json", json_mutations, _record, verified="two/eval"),
    Target("judge.jsonl", "two/eval/tree/judge.jsonl", line_mutations, _answers),
    Target("forest.json", _ABOUT_FOREST, json_mutations, _forest),
    Target("forest", f"{_FOREST}/forest.safetensors", tensor_mutations, _forest, manifest=_ABOUT_FOREST),
    Target("recovery.json", "results/recovery.json", json_mutations, _recovery, _FORM, verified="results"),
    Target(".jsonl", "texts/a.jsonl", line_mutations, _texts("a.jsonl"), _TEXT),
    Target(".txt", "texts/a.txt", line_mutations, _texts("a.txt"), _TEXT),
    Target(".csv", "texts/a.csv", line_mutations, _texts("a.csv"), _TEXT),
    Target(".parquet", "texts/a.parquet", byte_mutations, _texts("a.parquet"), _TEXT),
    Target("labeled .jsonl", "texts/labeled.jsonl", line_mutations, _labeled("labeled.jsonl"), _TEXT),
    Target("labeled .csv", "texts/labeled.csv", line_mutations, _labeled("labeled.csv"), _TEXT),
    Target("model's config.json", "model/config.json", json_mutations, _model, _MODEL),
    Target("model's weights", "model/model.safetensors", tensor_mutations, _model, _MODEL),
    Target("model's tokenizer.json", "model/tokenizer.json", json_mutations, _model, _MODEL),
    Target("model's tokenizer_config.json", "model/tokenizer_config.json", json_mutations, _model, _MODEL),
    Target("released config.json", "released/config.json", json_mutations, _released, _MODEL),
    Target("released weights", "released/sae.safetensors", tensor_mutations, _released, _MODEL),
    Target("SAELens' cfg.json", "saelens/cfg.json", json_mutations, _theirs("saelens"), _MODEL),
    Target("SAELens' weights", f"saelens/{WEIGHTS}", tensor_mutations, _theirs("saelens"), _MODEL),
    Target("Gemma Scope", "gemma/params.npz", byte_mutations, _theirs("gemma"), _MODEL),
]


def about_forest(root: Path) -> dict[str, Any]:
    """The question that the kept forest answers."""
    kept = read_json(root / "two/forest/topk/forest.json")
    return without(kept, CHECKSUM, CHECKSUMS, "layered", "activations")
