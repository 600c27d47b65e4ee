"""Training by several processes: the same run as by one, bit for bit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_cases import MakeConfig
from ranks_cases import Worlds
from ranks_runs import KILLS, assert_same, small, thorough
from saeforest import cli
from saeforest.config import ActivationConfig, MemberConfig, TrainConfig, save_config
from saeforest.evaluation import MEASURES
from saeforest.run_folder import RunFolder
from saeforest.saes import HSAEConfig, TreeConfig
from saeforest.training import run_training
from saeforest.verify import verify
from training.test_several import SYSTEMS
from training_cases import weights

LEAN: dict[str, Any] = {"rows": "active", "state": "int8"}
# Besides trees, which have all that looks at a whole batch: budgets, evidence for parents, starting anew.
NAMES = ("topk", "hsae", *(("batchtopk", "pursuit", "jumprelu", "expert_hsae") if KILLS > 1 else ()))


@pytest.fixture(scope="module")
def config(base: TrainConfig) -> TrainConfig:
    """A run of many systems."""
    optim = replace(base.optim, batch_size=128 if KILLS > 1 else 256)
    systems = {"tree": base.sae, "earned": earned(base), **{name: SYSTEMS[name] for name in NAMES}}
    saes = {name: MemberConfig(sae, optim, seed=i) for i, (name, sae) in enumerate(systems.items())}
    if KILLS > 1:
        saes["lean"] = MemberConfig(base.sae, replace(optim, weights="bfloat16", **LEAN), seed=len(saes))
    return replace(base, saes=saes)


def earned(base: TrainConfig, every: int = 5) -> TreeConfig:
    """A tree that earns its edges, whose dead features start anew."""
    tree = base.sae
    assert isinstance(tree, TreeConfig)
    evidence = replace(tree.allocation.from_data, every=every, sample=40, window=160, min_count=2)
    allocation = replace(tree.allocation, rule="data", reinitialize=True, from_data=evidence)
    return replace(tree, selection="closed", budget="batch", allocation=allocation)


@pytest.fixture(scope="module")
def alone(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as one process trains it."""
    out = tmp_path_factory.mktemp("alone") / "run"
    run_training(config, out)
    return out


@pytest.mark.parametrize(
    ("size", "spread"),
    [
        (2, "rows"),
        *(pytest.param(*world, marks=thorough) for world in ((4, "rows"), (2, "saes"), (4, "saes"))),
    ],
)
def test_ranks_train_what_one_trains(
    size: int, spread: str, start: Worlds, config: TrainConfig, alone: Path, tmp_path: Path
) -> None:
    """Weights, logs and moves of children, bit for bit; only the first of them says anything."""
    save_config(config, tmp_path / "run.yaml")
    out = tmp_path / "run"
    command = ("train", "--config", str(tmp_path / "run.yaml"), "--out", str(out), "--spread", spread)
    ended = start.run(size, *command)
    assert ended.codes == [0] * size, ended.err
    assert "".join([*ended.out[1:], *ended.err[1:]]) == ""
    assert_same(out, alone, config)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(
            ["--spread", "saes"], "spread = saes: 2 ranks, but the run trains one SAE", marks=thorough
        ),
        (
            ["--optim.batch-size", "8"],
            "optim.batch_size = 8: expected 16 or more, 8 rows for each of 2 ranks",
        ),
        pytest.param(
            ["--whole-checkpoints"],
            "--whole-checkpoints: without --shards, every checkpoint is one file",
            marks=thorough,
        ),
        pytest.param(
            ["--shards", "3"], "shards = 3: expected a divisor of the number of ranks, 2", marks=thorough
        ),
    ],
)
def test_wrong_input_is_one_line_of_the_first(
    arguments: list[str], said: str, start: Worlds, base: TrainConfig, tmp_path: Path
) -> None:
    save_config(small(base, 1), tmp_path / "run.yaml")
    command = ("train", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run"))
    ended = start.run(2, *command, *arguments)
    assert ended.codes == [2, 2]
    assert ended.err[1] == ""
    (line,) = ended.err[0].splitlines()
    assert line.startswith("saeforest: error: ")
    assert said in line
    assert not (tmp_path / "run").exists()


def divided(base: TrainConfig, name: str, folder: Path) -> TrainConfig:
    """A run of five steps, in which children move; also in `folder` as run.yaml."""
    own = {"tree": base.sae, "lean": base.sae, "earned": earned(base, every=2)}
    sae = own[name] if name in own else SYSTEMS[name]
    if isinstance(sae, HSAEConfig):
        sae = replace(sae, hierarchy=replace(sae.hierarchy, period=2))
    optim = replace(base.optim, batch_size=512, **(LEAN if name == "lean" else {}))
    config = replace(base, sae=sae, optim=optim)
    save_config(config, folder / "run.yaml")
    return config


def assert_close(out: Path, alone: Path) -> None:
    """Parents and thresholds the same; weights up to the order in which ranks add."""
    ours, theirs = weights(out), weights(alone)
    assert ours.keys() == theirs.keys()
    for key, found in ours.items():
        torch.testing.assert_close(found, theirs[key], rtol=0, atol=1e-6)
    assert not torch.equal(theirs["W_enc"], theirs["W_dec"].T)  # there were steps


@pytest.mark.parametrize(
    "name",
    [
        "hsae",
        *(
            pytest.param(name, marks=thorough)
            for name in ("topk", "batchtopk", "tree", "earned", "lean", "jumprelu")
        ),
    ],
)
def test_a_divided_dictionary_is_trained_as_a_whole_one(
    name: str, start: Worlds, base: TrainConfig, tmp_path: Path
) -> None:
    """Saved whole, as by one process; where the rows of the batch are divided too, with the bits of shards alone."""
    config = divided(base, name, tmp_path)
    command = ("train", "--config", str(tmp_path / "run.yaml"), "--shards", "2", "--out")
    for size in (2, 4) if KILLS > 1 else (2,):
        ended = start.run(size, *command, str(tmp_path / f"{size}"))
        assert ended.codes == [0] * size, ended.err
    run_training(config, tmp_path / "alone")
    assert_close(tmp_path / "2", tmp_path / "alone")
    if KILLS > 1:
        assert_same(tmp_path / "4", tmp_path / "2", config)
        ended = start.run(4, *command[:-2], "4", "--out", str(tmp_path / "four shards"))
        assert ended.codes == [0] * 4, ended.err
        assert_close(tmp_path / "four shards", tmp_path / "alone")


@thorough
@pytest.mark.parametrize("name", ["topk", "tree", "hsae"])
def test_a_mesh_goes_on_in_another_shape(name: str, start: Worlds, base: TrainConfig, tmp_path: Path) -> None:
    """Stopped as two by two, then as four shards, then as two ranks that divide the batch; ended by one process.

    Each shard of a checkpoint is a file of its own, unless it is to be whole.
    """
    config, out = divided(base, name, tmp_path), tmp_path / "run"
    command = ("train", "--config", str(tmp_path / "run.yaml"), "--out", str(out), "--shards")
    for step, (size, shards) in enumerate([(4, 2), (4, 4), (2, 1)], 1):
        ended = start.run(size, *command, str(shards), stop_at=step)
        assert set(ended.codes) <= {130, 143}, ended
        (checkpoint,) = (out / "checkpoints").iterdir()
        assert checkpoint.name == f"step-{step:08}"
        assert len(list(checkpoint.glob("*.safetensors"))) == shards
        assert all(finding.sound for finding in verify(checkpoint))
    ended = start.run(2, *command, "2", "--whole-checkpoints", stop_at=4)
    assert set(ended.codes) <= {130, 143}, ended
    assert [path.name for path in out.glob("checkpoints/*/*.safetensors")] == ["state.safetensors"]
    run_training(config, out)
    run_training(config, tmp_path / "alone")
    assert_close(out, tmp_path / "alone")


def test_two_ranks_read_a_language_model_during_training(
    tiny_config: MakeConfig, start: Worlds, base: TrainConfig, tmp_path: Path
) -> None:
    """They divide its passes, and train what one process trains, bit for bit."""
    live = replace(small(base, 1), data=tiny_config().data, activations=ActivationConfig(store="live"))
    save_config(live, tmp_path / "run.yaml")
    ended = start.run(2, "train", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run"))
    assert ended.codes == [0, 0], ended
    assert not RunFolder(tmp_path / "run").activations.exists()
    run_training(live, tmp_path / "alone")
    assert_same(tmp_path / "run", tmp_path / "alone", live)


def test_two_ranks_measure_what_one_measures(start: Worlds, finished_run: Path, tmp_path: Path) -> None:
    """The records of one process, to the last digit, also of losses with the reconstruction of each layer."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    fast = [name for name, measure in MEASURES.items() if "fast" in measure.sets]
    names = (*fast, "mcs", "edges", "graph")
    command = (
        "eval",
        str(run),
        "--measures",
        ",".join(names),
        "--tokens",
        "640",
        "--ce-tokens",
        "256",
        "--cross-entropy.levels",
    )
    assert cli.run(command) == 0
    alone = {file.name: file.read_bytes() for file in (run / "eval").glob("*.json")}
    assert {f"{name}.json" for name in fast} <= alone.keys()
    assert {"mcs.json", "edges.json", "graph.json"} <= alone.keys()
    shutil.rmtree(run / "eval")
    ended = start.run(2, *command)
    assert ended.codes == [0, 0], ended.err
    assert ended.out[1] == ended.err[1] == ""
    assert {file.name: file.read_bytes() for file in (run / "eval").glob("*.json")} == alone
