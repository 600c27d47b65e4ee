"""Measuring whole runs: one reading of the text for all SAEs, forests for flat ones, going on where it was stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edits import edit_json
from saeforest import InputError
from saeforest.config import MemberConfig, TrainConfig
from saeforest.evaluation import MeasureOptions, Source, evaluate, make_task, measure_run
from saeforest.evaluation import run as run_module
from saeforest.evaluation.forests import forests_of
from saeforest.evaluation.key import record_key
from saeforest.evaluation.options import MEASURE_PRESETS, PositionOptions
from saeforest.evaluation.registry import MEASURES
from saeforest.infer import InferConfig
from saeforest.lm import LanguageModel
from saeforest.measures import Record
from saeforest.measures.pooled import LabeledTextConfig
from saeforest.measures.probes import ProbeConfig
from saeforest.measures.sparse_probing import SparseProbingConfig
from saeforest.run_folder import RunFolder
from saeforest.saes import HSAEConfig, MatchingPursuitConfig, MatryoshkaConfig, TopKConfig
from saeforest.session import check_site, open_reader, read_tokens
from saeforest.text import Tokens
from saeforest.training import run_training

MakeConfig = Callable[..., TrainConfig]

NAMES = ("reconstruction", "cross_entropy", "coverage", "cooccurrence", "hsae")
OPTIONS = MeasureOptions(
    tokens=1600,
    ce_tokens=320,
    infer_tokens=2000,
    infer=InferConfig(method="coverage", min_score=0.5, min_count=2),
)


@pytest.fixture(scope="module")
def run(tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config()
    systems = {
        "tree": config.sae,
        "topk": TopKConfig((48,), (5,), dead_after_tokens=512),
        "matryoshka": MatryoshkaConfig((8, 40), (5,), dead_after_tokens=512),
        "pursuit": MatchingPursuitConfig((48,), (5,)),
        "hsae": HSAEConfig((8, 16), (4, 4)),
    }
    members = {name: MemberConfig(sae, config.optim) for name, sae in systems.items()}
    out = tmp_path_factory.mktemp("measured") / "run"
    run_training(replace(config, saes=members), out)
    return out


def measured(
    run: Path, names: tuple[str, ...] = NAMES, options: MeasureOptions = OPTIONS, *, again: bool = False
) -> dict[str, list[Record]]:
    return measure_run(run, names, options, again=again)


def count_forwards(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls = []
    original = LanguageModel.logits

    def counted(self: LanguageModel, ids: Tensor, hooks: Any = None) -> Tensor:
        if not hooks:  # the innermost call
            calls.append(len(ids))
        return original(self, ids, hooks)

    monkeypatch.setattr(LanguageModel, "logits", counted)
    return calls


def test_all_saes_are_measured_in_one_reading(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each as if it were alone."""
    calls = count_forwards(monkeypatch)
    records = measured(run, ("reconstruction", "cross_entropy"), again=True)
    # One at loading, one for the width of the site, and five that try whether passes can share the blocks before it;
    # 50 windows of 32 tokens in batches of 8; of the 2
    # batches that hold the first 10 windows one more with the site ablated, and one an SAE.
    assert len(calls) == 1 + 1 + 5 + 7 + 2 * (1 + len(records))
    for name, found in records.items():
        config, sae = RunFolder(run).load(name)
        reader = open_reader(config)
        text = read_tokens(config, reader, "held_out", OPTIONS.tokens)
        source = Source(config.data, "held_out", 0, name)
        alone = evaluate(sae, reader, text, ["reconstruction", "cross_entropy"], source, OPTIONS)
        assert [record.value for record in found] == [record.value for record in alone.values()]


def test_what_is_in_files_is_measured_to_the_same_bits(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = measure_run(run, ["coverage"], OPTIONS, sae="tree", again=True)["tree"][0]
    monkeypatch.setattr("saeforest.spill.WAITING", 1_000)
    in_files = measure_run(run, ["coverage"], OPTIONS, sae="tree", again=True)["tree"][0]
    assert in_files.value == in_memory.value
    assert in_files.interval == in_memory.interval


def test_flat_saes_are_measured_with_an_inferred_forest(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = {name: {r.measure: r for r in found} for name, found in measured(run).items()}
    for name in ("topk", "matryoshka", "pursuit"):
        found = records[name]
        assert found["coverage"].settings["forest"].startswith("inferred by coverage, parents by frequency")
        assert (found["coverage"].value["edges_measured"] or 0) > 0
        assert found["cooccurrence"].value["iou"] is not None
        assert found["hsae"].value["p_parent_child"] is not None
    assert records["tree"]["coverage"].settings["forest"] == "its own"
    assert records["tree"]["coverage"].value["min"] == 1

    saes = {name: RunFolder(run).load(name) for name in ("topk", "tree")}
    reader = open_reader(saes["tree"][0])
    kept = forests_of(saes, reader, OPTIONS, RunFolder(run))
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "activations", None)  # nothing is read for a forest that is kept
        again = forests_of(saes, reader, OPTIONS, RunFolder(run))
    assert torch.equal(kept["topk"][0].parent, again["topk"][0].parent)
    assert kept["topk"][1] == again["topk"][1]
    assert torch.equal(kept["tree"][0].parent, saes["tree"][1].forest.parent)
    other = forests_of(
        saes, reader, replace(OPTIONS, infer=InferConfig(method="coverage", min_score=0.9)), RunFolder(run)
    )
    assert not torch.equal(other["topk"][0].parent, kept["topk"][0].parent)
    (run / "forest" / "topk" / "forest.json").write_text("{")
    assert torch.equal(
        forests_of(saes, reader, OPTIONS, RunFolder(run))["topk"][0].parent, kept["topk"][0].parent
    )


def test_a_stopped_measurement_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = measured(run, again=True)
    stamp = {path: path.stat().st_mtime_ns for path in (run / "eval").rglob("*.json")}
    (run / "eval" / "topk" / "coverage.json").unlink()
    (run / "eval" / "hsae" / "hsae.json").write_text("cut sh")
    asked = []
    original = run_module.evaluate_all

    def spy(tasks: Any, *others: Any) -> Any:
        asked.extend((task.settings["sae"].split("/")[-1], tuple(task.names)) for task in tasks if task.names)
        return original(tasks, *others)

    monkeypatch.setattr(run_module, "evaluate_all", spy)
    assert measured(run) == before
    assert sorted(asked) == [("hsae", ("hsae",)), ("topk", ("coverage",))]
    fresh = {p.relative_to(run / "eval").as_posix() for p, t in stamp.items() if p.stat().st_mtime_ns != t}
    assert fresh == {"topk/coverage.json", "hsae/hsae.json"}
    asked.clear()
    measured(run, options=replace(OPTIONS, ce_tokens=64))  # another question
    assert {names for _, names in asked} == {("cross_entropy",)}


def test_presets_are_readings(run: Path) -> None:
    for name, options in MEASURE_PRESETS.items():
        assert options.preset == name
    few = replace(MEASURE_PRESETS["ref_tree_sae"], tokens=1600, ce_tokens=320)
    everything = measured(run, ("reconstruction",), few)["tree"][0]
    assert everything.tokens == 1600
    assert everything.settings["reading"] == "ref_tree_sae"
    positions = json.loads((run / "eval" / "tree" / "reconstruction.json").read_text())["settings"][
        "positions"
    ]
    assert positions == {"exclude_first": False, "exclude_special": False, "max_norm": 0}


def test_positions_default_to_the_runs(run: Path) -> None:
    reader = open_reader(RunFolder(run).load("tree")[0])
    assert PositionOptions().applied(reader).exclude_first == reader.exclude_first
    assert not PositionOptions(exclude_first=False).applied(reader).exclude_first


def test_a_record_of_another_question_is_not_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions, probes and forests belong to the question where a measure depends on them, and nowhere else."""
    names = ("reconstruction", "coverage", "composition", "dead_training")
    measured(run, names, again=True)
    asked: dict[str, tuple[str, ...]] = {}

    def spy(tasks: Any, *others: Any) -> Any:
        for task in tasks:
            asked[Path(task.settings["sae"]).name] = tuple(task.names)
        return iter(())

    monkeypatch.setattr(run_module, "evaluate_all", spy)
    for other, expected in [
        (OPTIONS, ()),
        (replace(OPTIONS, positions=PositionOptions(exclude_first=False)), names[:3]),
        (replace(OPTIONS, tokens=800), names[:3]),
        (replace(OPTIONS, ce_tokens=64), ()),
        (replace(OPTIONS, probes=ProbeConfig(epochs=3)), ()),
    ]:
        measured(run, names, other)
        assert asked["tree"] == expected
    measured(run, names, replace(OPTIONS, infer=InferConfig(method="coverage", min_score=0.9)))
    assert asked["tree"] == ()
    assert asked["topk"] == ("coverage",)


def test_labels_belong_to_the_question(run: Path, tmp_path: Path) -> None:
    source = tmp_path / "labels.csv"
    config, sae = RunFolder(run).load("tree")
    text = Tokens(torch.zeros(1, 32, dtype=torch.int32), torch.zeros(1, dtype=torch.int64), ("a",))
    task = make_task(sae, (), open_reader(config), text, Source("text", "held_out", 0, "tree"))
    probing = SparseProbingConfig(texts=LabeledTextConfig(source=str(source)))
    options = replace(OPTIONS, measures={"sparse_probing": probing})

    def key() -> str:
        return record_key(MEASURES["sparse_probing"], task, options)

    source.write_text("text,label\na,b\n")
    first = key()
    assert key() == first
    source.write_text("text,label\na,c\n")
    assert key() != first


def test_forests_are_inferred_where_training_looked(run: Path) -> None:
    """Whatever positions a reading measures."""
    wide = replace(OPTIONS, positions=PositionOptions(exclude_first=False, exclude_special=False, max_norm=0))
    (first,) = measured(run, ("coverage",), wide, again=True)["topk"]
    (second,) = measured(run, ("coverage",), again=True)["topk"]
    assert first.settings["forest"] == second.settings["forest"]
    assert first.tokens > second.tokens


def test_an_sae_of_another_model_is_not_measured(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    cfg = tmp_path / "run" / "sae" / "tree" / "cfg.json"
    edit_json(cfg, lambda about: about["metadata"].update(hook_name="blocks.0.hook_resid_post"))
    config, sae = RunFolder(tmp_path / "run").load("tree")
    with pytest.raises(
        InputError, match=r"trained on site blocks\.0\.hook_resid_post, but the run's is blocks\.1"
    ):
        check_site(sae, open_reader(config))
