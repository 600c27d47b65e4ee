"""The nulls of the hierarchy metric: what is shuffled, what is untrained, and that all three are measured alike."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama_cases import MakeConfig
from saeforest.config import save_config
from saeforest.errors import InputError
from saeforest.evaluation import measure_saes
from saeforest.evaluation.options import MeasureOptions
from saeforest.measures.hierarchy import HierarchyConfig
from saeforest.measures.probes import ProbeConfig
from saeforest.run_folder import RunFolder
from saeforest.saes import RunLength, Setup, TopKConfig, build, save_sae, training_of
from saeforest.session import open_reader
from saeforest.structure.forest import ROOT

sys.path.insert(
    0, str(Path(__file__).parents[2])
)  # the benchmarks are run from the repository, and are no package

from benchmarks import hierarchy_nulls as nulls


def test_shuffling_keeps_layers_and_numbers_of_children(finished_run: Path) -> None:
    _, before = RunFolder(finished_run).load()
    after = nulls.shuffled(RunFolder(finished_run).load()[1], seed=0)
    assert not torch.equal(after.parent, before.parent)
    start = 0
    for size in before.config.layer_sizes:
        old, new = (sae.parent[start : start + size] for sae in (before, after))
        assert torch.equal((old == ROOT), (new == ROOT))
        assert torch.equal(old.sort().values, new.sort().values)  # as many children of every parent
        start += size
    for name in ("encoder", "decoder", "b_dec"):
        assert torch.equal(getattr(after, name), getattr(before, name))
    again = nulls.shuffled(RunFolder(finished_run).load()[1], seed=0)
    assert torch.equal(again.parent, after.parent)
    other = nulls.shuffled(RunFolder(finished_run).load()[1], seed=1)
    assert not torch.equal(other.parent, after.parent)


def test_the_untrained_sae_is_the_one_that_training_starts_from(finished_run: Path) -> None:
    config, trained = RunFolder(finished_run).load()
    x = nulls.first_activations(config, open_reader(config), 128)
    assert x.shape == (128, trained.d_in)
    sae, fresh = nulls.untrained(config, x), build(config.sae, trained.d_in, seed=config.seed)
    assert torch.equal(sae.encoder, fresh.encoder)
    assert torch.equal(sae.decoder, fresh.decoder)
    assert torch.equal(sae.parent, fresh.parent)
    training_of(fresh, Setup(RunLength(1, len(x)))).initialize(x, x)
    assert torch.equal(sae.b_dec, fresh.b_dec)
    assert not torch.equal(sae.encoder, trained.encoder)


def test_a_scale_of_the_data_is_folded_in(finished_run: Path) -> None:
    config, _ = RunFolder(finished_run).load()
    scaled = replace(config, sae=replace(config.sae, normalize_activations="dataset_scale"))
    x = 3 * torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    assert nulls.untrained(scaled, x).config.normalize_activations == "none"


def test_the_three_are_measured_alike(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "nulls.json"
    command = [
        str(finished_run), "--tokens", "600", "--parents", "20", "--min-count", "5", "--epochs", "2", "--out", str(out),
    ]  # fmt: skip
    assert nulls.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == [
        nulls.TRAINED,
        nulls.SHUFFLED,
        nulls.UNTRAINED,
    ]
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["settings"]["parents"] == 20
    trained, shuffled, untrained = written["rows"]
    assert trained["which"] == nulls.TRAINED
    assert all(row["pairs"] > 0 for row in written["rows"])
    fve = [row["values"]["fve"][0] for row in (trained, shuffled, untrained)]
    assert fve[0] > fve[1]
    assert fve[0] > fve[2]
    options = MeasureOptions(
        tokens=600,
        measures={
            "hierarchy": HierarchyConfig(parents=20, seeds=(0,), min_count=5, rank_curve=0, variants=())
        },
        probes=ProbeConfig(epochs=2),
    )
    config, sae = RunFolder(finished_run).load()
    run = RunFolder(tmp_path)
    run.save_config(config)
    saes = {"tree": (config, sae)}
    (record,) = measure_saes(saes, open_reader(config), ["hierarchy"], options, run)["tree"]
    assert {name: trained["values"][name][0] for name in nulls.COLUMNS} == {
        name: record.value[name] for name in nulls.COLUMNS
    }
    # Each by its own parents.
    assert shuffled["values"]["s_res_tree"] != trained["values"]["s_res_tree"]
    assert untrained["values"]["s_res_tree"] != trained["values"]["s_res_tree"]


def test_an_sae_without_a_gate_is_refused(
    finished_run: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config(), sae=TopKConfig((32,), (4,)))
    run = tmp_path / "run"
    run.mkdir()
    save_config(config, run / "config.yaml")
    save_sae(build(config.sae, 16, seed=0), run / "sae")
    with pytest.raises(InputError, match="expected a Tree SAE"):
        nulls.main([str(run)])
