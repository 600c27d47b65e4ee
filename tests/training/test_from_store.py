"""Training on stored activations needs no language model: what the run says of one is what the harvest said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edits import edit_run_config
from llama_cases import MakeConfig, save_llama
from saeforest import InputError, cli
from saeforest.activations import StoredActivations, open_store
from saeforest.activations.data import StoredData, TextData, data_of
from saeforest.config import TrainConfig, load_config, save_config
from saeforest.lm import load_lm
from saeforest.run_folder import RunFolder
from saeforest.training import run_training
from saeforest.training.harvest import run_harvest
from saeforest.training.settle import settle
from training_cases import assert_same_run

DEFAULT = TrainConfig()
TRAIN = """
import sys
from pathlib import Path
from saeforest.config import load_config
from saeforest.training import run_training
run_training(load_config(Path(sys.argv[1])), Path(sys.argv[2]))
print("transformers" in sys.modules)
"""


@pytest.fixture(scope="module")
def place(
    tiny_config: MakeConfig, tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a model, text, the activations of the one on the other, and a run that trained on them while the
    model was not there."""
    folder = tmp_path_factory.mktemp("from_store")
    shutil.copytree(tiny_model, folder / "model")
    shutil.copytree(tiny_text, folder / "text")
    given = tiny_config(model=str(folder / "model"), data=str(folder / "text"))
    run_harvest(given, folder / "store")
    config = replace(given, model=DEFAULT.model, site=DEFAULT.site, data=str(folder / "store"))
    save_config(config, folder / "config.yaml")
    (folder / "model").rename(folder / "away")
    command = [sys.executable, "-c", TRAIN, str(folder / "config.yaml"), str(folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (folder / "away").rename(folder / "model")
    assert done.stdout == "False\n"
    return folder


def test_what_data_are_is_decided_once(place: Path) -> None:
    assert data_of("packaged") == TextData("packaged")
    assert data_of(str(place / "text")) == TextData(str(place / "text"))
    stored = data_of(str(place / "store"))
    assert isinstance(stored, StoredData)
    assert stored.source == str(place / "text")


def test_the_run_says_what_the_harvest_said(place: Path) -> None:
    run = RunFolder(place / "run")
    lm = load_lm(str(place / "model"))
    config, sae = run.load()
    assert (config.model, config.site) == (str(place / "model"), "blocks.1.hook_resid_post")
    assert {key: sae.metadata[key] for key in lm.identity.to_dict()} == lm.identity.to_dict()
    assert sae.metadata["dataset"] == str(place / "text")
    assert sae.metadata["context_size"] == 32
    about = json.loads(run.model_file.read_text())
    assert about == json.loads((place / "store" / "model.json").read_text())
    assert about["model_fingerprint"] == lm.identity.fingerprint
    assert about["loss"] > 0


def test_the_run_is_measured_indexed_and_verified(place: Path, tmp_path: Path) -> None:
    run = str(shutil.copytree(place / "run", tmp_path / "run"))
    assert cli.run(["eval", run, "--tokens", "640", "--ce-tokens", "64", "--measures", "sparsity"]) == 0
    assert cli.run(["index", run, "--tokens", "640"]) == 0
    assert cli.run(["verify", run]) == 0
    assert cli.run(["verify", str(place / "store")]) == 0


def test_another_model_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = save_llama(tmp_path / "other", damage=lambda model: model.lm_head.weight.data.mul_(1.5))
    config = load_config(place / "config.yaml")
    with pytest.raises(InputError, match="activations of model"):
        settle(replace(config, model=str(other)))
    with pytest.raises(
        InputError, match=r"activations of site 'blocks\.1\.hook_resid_post', but the configuration has"
    ):
        settle(replace(config, site="blocks.0.hook_resid_post"))
    run = Path(shutil.copytree(place / "run", tmp_path / "run"))
    edit_run_config(run, model=str(other))
    assert cli.run(["eval", str(run)]) == 2
    assert cli.run(["index", str(run)]) == 2
    assert capsys.readouterr().err.count("the SAE was trained on model") == 2


def test_a_dry_run_needs_no_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "model").rename(place / "away")
    try:
        assert cli.run(["train", "--config", str(place / "config.yaml"), "--dry-run"]) == 0
    finally:
        (place / "away").rename(place / "model")
    said = " ".join(capsys.readouterr().err.split())
    assert "language model 0.0 min" in said
    assert "(harvested)" in said


def test_a_store_of_before_tells_only_which_model(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "store", tmp_path / "store")
    (tmp_path / "store" / "model.json").unlink()
    stored = data_of(str(tmp_path / "store"))
    assert isinstance(stored, StoredData)
    assert stored.about_model() == load_lm(str(place / "model")).identity.to_dict()


def test_a_part_of_a_store_is_what_a_shorter_harvest_holds(
    tiny_config: MakeConfig, tmp_path: Path, small_blocks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same rows, text and trained weights, wherever in a shard the part ends."""
    long, short = tmp_path / "long", tmp_path / "short"
    run_harvest(tiny_config(tokens=4096), long)
    run_harvest(tiny_config(tokens=2600), short)
    part, whole = open_store(long, 3, 2600), open_store(short, 3)
    assert (part.n_tokens, part.n_rows, part.n_blocks) == (2592, whole.n_rows, whole.n_blocks)
    assert [shard["rows"] for shard in part.shards] == [shard["rows"] for shard in whole.shards]
    assert part.shards[-1]["rows"] < open_store(long).shards[len(part.shards) - 1]["rows"]
    for epoch, index in ((0, 0), (1, part.n_blocks - 1)):
        ours, theirs = part.block(epoch, index), whole.block(epoch, index)
        assert torch.equal(ours.x, theirs.x)
        assert torch.equal(ours.rows, theirs.rows)
    ours, theirs = part.tokens(), whole.tokens()
    assert torch.equal(ours.ids, theirs.ids)
    assert torch.equal(ours.document_starts, theirs.document_starts)
    assert ours.names == theirs.names

    for data, name in ((long, "part"), (short, "whole")):
        capsys.readouterr()
        run_training(tiny_config(data=str(data), tokens=2600, epochs=1), tmp_path / name)
        said = f"{long}: the first 2,592 of its 4,096 tokens are read"
        assert (said in capsys.readouterr().err) == (data == long)
    assert_same_run(tmp_path / "part", tmp_path / "whole")
    with pytest.raises(InputError, match=r"a finished run with tokens = 2592, not 3072"):
        run_training(tiny_config(data=str(long), tokens=3072, epochs=1), tmp_path / "part")


def test_a_part_ends_between_shards_and_where_no_window_is_counted(
    tiny_config: MakeConfig, tmp_path: Path, small_blocks: None
) -> None:
    run_harvest(tiny_config(tokens=4096), tmp_path / "store")
    whole = open_store(tmp_path / "store")
    ends = [shard["windows"] * 32 for shard in whole.shards]
    counted = whole.manifest["shards"]
    uncounted = {
        **whole.manifest,
        "shards": [{k: v for k, v in s.items() if k != "windows"} for s in counted],
    }
    for tokens in (32, ends[0], ends[0] + 32, ends[1], 4096, 9000):
        parts = [
            StoredActivations(whole.folder, manifest, 0, tokens) for manifest in (whole.manifest, uncounted)
        ]
        rows = [torch.cat([p.shard(i).rows for i in range(len(p.shards))]) for p in parts]
        expected = torch.cat([whole.shard(i).rows for i in range(len(counted))])
        assert torch.equal(rows[0], expected[expected < tokens])
        assert torch.equal(rows[0], rows[1])
        assert [len(p.shards) for p in parts] == [sum(end < tokens for end in (0, *ends[:-1]))] * 2
