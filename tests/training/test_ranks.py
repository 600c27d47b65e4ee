"""Training by several processes: the same run as by one, bit for bit, and all end when one does."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_cases import MakeConfig
from ranks_cases import Worlds, machines, worlds
from saeforest import cli
from saeforest.config import ActivationConfig, MemberConfig, TrainConfig, save_config
from saeforest.files import is_temporary
from saeforest.run_folder import RunFolder
from saeforest.saes import HSAEConfig, TreeConfig
from saeforest.training import run_training
from saeforest.training.harvest import run_harvest
from saeforest.training.log import read_log
from saeforest.verify import verify
from training.test_several import SYSTEMS
from training_cases import TIMES, weights

#: How often a rank is killed, in worlds of at most how many; `make ranks` tries more.
KILLS, RANKS = (
    int(os.environ.get(f"SAEFOREST_RANK{name}", default)) for name, default in (("_KILLS", 1), ("S", 2))
)
EPOCHS = 6 * (1 + KILLS)
# What takes more processor time than `make test` has.
thorough = pytest.mark.skipif(KILLS == 1, reason="`make ranks` runs it")
LEAN: dict[str, Any] = {"rows": "active", "state": "int8"}
# Besides trees, which have all that looks at a whole batch: budgets, evidence for parents, starting anew.
NAMES = ("topk", "hsae", *(("batchtopk", "pursuit", "jumprelu", "expert_hsae") if KILLS > 1 else ()))


@pytest.fixture(scope="module")
def start() -> Iterator[Worlds]:
    with worlds() as started:
        yield started


@pytest.fixture(scope="module")
def base(tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of a Tree SAE on stored activations."""
    folder = tmp_path_factory.mktemp("ranks")
    run_harvest(tiny_config(), folder / "store")
    return tiny_config(data=str(folder / "store"), epochs=1, log_every=5)


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


def assert_same(out: Path, alone: Path, config: TrainConfig) -> None:
    for name in config.members():
        for file in ("sae_weights.safetensors", "cfg.json"):
            ours, theirs = (RunFolder(run).sae(name) / file for run in (out, alone))
            assert ours.read_bytes() == theirs.read_bytes(), name
        ours, theirs = (
            [
                {k: v for k, v in line.items() if k not in TIMES}
                for line in read_log(RunFolder(run).logs(name))
                if line.get("event") != "finished"
            ]
            for run in (out, alone)
        )
        assert ours == theirs
        ours, theirs = (RunFolder(run).logs(name) / "allocations.jsonl" for run in (out, alone))
        assert ours.exists() == theirs.exists()
        assert not ours.exists() or ours.read_text() == theirs.read_text()


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


def small(base: TrainConfig, epochs: int) -> TrainConfig:
    """A run of many quick steps, with a checkpoint after about each tenth of a second."""
    sae = replace(SYSTEMS["topk"], layer_sizes=(32,))
    return replace(base, sae=sae, epochs=epochs, checkpoint_minutes=0.002, log_every=2)


def steps_in(log: Path) -> int:
    return log.read_text().count('"fve"') if log.exists() else 0


def test_when_a_rank_is_killed_all_end_and_the_run_goes_on(
    start: Worlds, base: TrainConfig, tmp_path: Path
) -> None:
    """At any moment: one line and status 2, never a hang; with another number of ranks, to the bits of one process."""
    config, out, rng = small(base, EPOCHS), tmp_path / "run", random.Random(0)
    save_config(config, tmp_path / "run.yaml")
    command = ("train", "--config", str(tmp_path / "run.yaml"), "--out", str(out))
    for _ in range(KILLS):
        size = rng.randint(2, RANKS)
        before, more = steps_in(out / "log.jsonl"), rng.randint(1, 5)
        world = start.start(size, *command)
        until = time.monotonic() + 120
        while steps_in(out / "log.jsonl") < before + more and time.monotonic() < until:
            time.sleep(0.01)
        stepped = steps_in(out / "log.jsonl") >= before + more  # a busy machine may not come that far
        rank = rng.randrange(size)
        world.kill(rank)
        ended = world.wait()
        others = [code for i, code in enumerate(ended.codes) if i != rank]
        assert ended.codes[rank] == -signal.SIGKILL
        assert others == [2] * (size - 1), ended
        (line,) = ended.errors
        assert f"rank {rank} of {size} (process {world.pids[rank]} on" in line, ended
        if rank and stepped:
            step = re.search(r"a checkpoint of step ([0-9]+) of", line)
            assert step is not None, line
            assert (out / "checkpoints" / f"step-{int(step[1]):08}" / "state.json").exists()
    run_training(config, out)
    run_training(config, tmp_path / "alone")
    assert_same(out, tmp_path / "alone", config)


@pytest.mark.parametrize(
    ("stuck", "saved"),
    [
        ("stuck_reading", r"a checkpoint of step 5 of"),
        pytest.param("stuck_after_a_step", r"the last checkpoint is .*step-0000000[1-5]$", marks=thorough),
        pytest.param("stuck_saving", r"saving took more than 3 s and was given up$", marks=thorough),
    ],
)
def test_who_is_stuck_elsewhere_ends_too(
    stuck: str, saved: str, start: Worlds, base: TrainConfig, tmp_path: Path
) -> None:
    """The first rank comes to no exchange in which it could fail: it waits for a disk, or for a GPU."""
    often = 0.0 if stuck == "stuck_reading" else 1e-6
    config, out = replace(small(base, 1), checkpoint_minutes=often, log_every=1), tmp_path / "run"
    save_config(config, tmp_path / "run.yaml")
    command = ("train", "--config", str(tmp_path / "run.yaml"), "--out", str(out))
    world = start.start(2, *command, machines=None, patience=4, **{stuck: 6})
    until = time.monotonic() + 120
    while steps_in(out / "log.jsonl") < 5 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(1)  # until the first is stuck in the sixth
    world.kill(1)
    ended = world.wait()
    assert ended.codes == [2, -signal.SIGKILL], ended
    (line,) = ended.errors
    assert f"rank 1 of 2 (process {world.pids[1]} on" in line, ended
    assert re.search(saved, line), line
    if stuck == "stuck_reading":
        run_training(config, out)
        run_training(config, tmp_path / "alone")
        assert_same(out, tmp_path / "alone", config)


@thorough
@pytest.mark.parametrize("rank", [0, 1])
def test_who_never_comes_is_named(rank: int, start: Worlds, base: TrainConfig, tmp_path: Path) -> None:
    save_config(small(base, 1), tmp_path / "run.yaml")
    command = ("train", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run"))
    world = start.start(3, *command, meet_s=10)
    world.kill(rank)
    ended = world.wait()
    assert [code for i, code in enumerate(ended.codes) if i != rank] == [2, 2], ended
    (line,) = ended.errors
    assert f"rank {rank} of 3" in line, ended


@thorough
def test_asked_to_stop_all_save_and_stop(start: Worlds, base: TrainConfig, tmp_path: Path) -> None:
    save_config(small(base, 40), tmp_path / "run.yaml")
    out = tmp_path / "run"
    world = start.start(2, "train", "--config", str(tmp_path / "run.yaml"), "--out", str(out))
    while not steps_in(out / "log.jsonl"):
        time.sleep(0.01)
    world.kill(1, signal.SIGTERM)
    ended = world.wait()
    assert ended.codes[0] in (130, 143)
    assert ended.codes[1] in (130, 143)
    assert ended.err[1] == ""
    assert "a checkpoint is saved" in ended.err[0]
    assert list((out / "checkpoints").glob("step-*/state.json"))


@thorough
@pytest.mark.parametrize("side", [0, 1])
def test_when_a_machine_is_cut_off_both_end(
    side: int, start: Worlds, base: TrainConfig, tmp_path: Path
) -> None:
    """Nothing tells the one that the other is gone: neither a signal nor a closed connection."""
    save_config(small(base, 60), tmp_path / "run.yaml")
    out = tmp_path / "run"
    with ExitStack() as stack:
        try:
            both = stack.enter_context(machines())
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no network namespaces here")
        command = ("train", "--config", str(tmp_path / "run.yaml"), "--out", str(out))
        world = start.start(2, *command, machines=both)
        while not steps_in(out / "log.jsonl"):
            time.sleep(0.01)
        both.cut_off(side)
        ended = world.wait()
    assert ended.codes == [2, 2], ended
    assert "rank 1 of 2" in ended.errors[0]
    assert "a checkpoint of step" in ended.errors[0]
    assert "the ranks' meeting point cannot be reached" in ended.err[1]
    assert list((out / "checkpoints").glob("step-*/state.json"))


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


@thorough
@pytest.mark.parametrize("shards", [2, 4])
def test_killed_within_a_checkpoint(shards: int, start: Worlds, base: TrainConfig, tmp_path: Path) -> None:
    """Half of a shard is written: the checkpoint before is whole, and from it the run goes on in another shape."""
    config, out = small(base, 20), tmp_path / "run"
    save_config(config, tmp_path / "run.yaml")
    command = ("train", "--config", str(tmp_path / "run.yaml"), "--out", str(out), "--shards")
    ended = start.run(shards, *command, str(shards), killed_at=3)
    assert ended.codes == [2] * (shards - 1) + [-signal.SIGKILL], ended
    (line,) = ended.errors
    (checkpoint,) = (path for path in (out / "checkpoints").iterdir() if not is_temporary(path))
    assert line.endswith(f"the last checkpoint is {checkpoint}"), ended
    assert len(list(checkpoint.glob("*.safetensors"))) == shards
    assert all(finding.sound for finding in verify(checkpoint))
    ended = start.run(4, *command, "2")
    assert ended.codes == [0] * 4, ended
    assert RunFolder(out).is_trained()


@thorough
@pytest.mark.parametrize("shards", [2, 4])
def test_when_a_rank_of_a_mesh_is_killed_all_end_and_the_run_goes_on(
    shards: int, start: Worlds, base: TrainConfig, tmp_path: Path
) -> None:
    """Nobody has all rows: from the last checkpoint they go on to the bits of an undisturbed run."""
    config, out, rng = small(base, 4 + KILLS), tmp_path / "run", random.Random(shards)
    save_config(config, tmp_path / "run.yaml")
    command = ("train", "--config", str(tmp_path / "run.yaml"), "--shards", str(shards), "--out")
    for _ in range(max(KILLS // 4, 1)):
        before, more = steps_in(out / "log.jsonl"), rng.randint(1, 5)
        world = start.start(4, *command, str(out))
        until = time.monotonic() + 120
        while steps_in(out / "log.jsonl") < before + more and time.monotonic() < until:
            time.sleep(0.01)
        rank = rng.randrange(4)
        world.kill(rank)
        ended = world.wait()
        assert [code for i, code in enumerate(ended.codes) if i != rank] == [2] * 3, ended
        (line,) = ended.errors
        assert f"rank {rank} of 4 (process {world.pids[rank]} on" in line, ended
    for folder in (out, tmp_path / "undisturbed"):
        ended = start.run(shards, *command, str(folder))
        assert ended.codes == [0] * shards, ended
    assert_same(out, tmp_path / "undisturbed", config)


@thorough
@pytest.mark.parametrize("shards", [1, 2])
def test_killed_at_any_moment_from_start_to_end(
    shards: int, start: Worlds, base: TrainConfig, tmp_path: Path
) -> None:
    """Before all have met, while they connect or take up a checkpoint, in a step, in the last save: never a hang."""
    config, out, rng = small(base, 4), tmp_path / "run", random.Random(10 + shards)
    save_config(config, tmp_path / "run.yaml")
    command = ("train", "--config", str(tmp_path / "run.yaml"), "--shards", str(shards), "--out")
    begun = time.monotonic()
    ended = start.run(2, *command, str(tmp_path / "undisturbed"))
    lasts = time.monotonic() - begun
    assert ended.codes == [0, 0], ended
    for _ in range(max(KILLS // 2, 1)):
        size = shards * rng.randint(2 // shards, max(RANKS // shards, 2 // shards))
        world, rank = start.start(size, *command, str(out), meet_s=30), rng.randrange(size)
        time.sleep(rng.uniform(0, lasts))
        with suppress(ProcessLookupError):  # it has come to the end
            world.kill(rank)
        ended = world.wait()
        others = {code for i, code in enumerate(ended.codes) if i != rank}
        assert others in ({0}, {2}), ended  # 0: nothing was left to do together
        assert ended.codes[rank] in (0, -signal.SIGKILL), ended
        assert [f"rank {rank} of {size}" in line for line in ended.errors] == [True] * (others == {2}), ended
        run = RunFolder(out)
        if run.config_file.exists() and run.is_trained():
            assert_same(out, tmp_path / "undisturbed", config)
            shutil.rmtree(out)
    ended = start.run(2, *command, str(out))
    assert ended.codes == [0, 0], ended
    assert_same(out, tmp_path / "undisturbed", config)


@thorough
def test_saes_that_are_spread_go_on_in_another_world(
    start: Worlds, base: TrainConfig, tmp_path: Path
) -> None:
    """Three SAEs: asked to stop as two ranks, killed as three, ended by one."""
    sae = small(base, 1).sae
    members = {
        name: MemberConfig(replace(sae, layer_sizes=(width,)), base.optim, seed=width)
        for name, width in (("a", 32), ("b", 40), ("c", 48))
    }
    config, out = replace(small(base, 4), saes=members), tmp_path / "run"
    save_config(config, tmp_path / "run.yaml")
    command = ("train", "--config", str(tmp_path / "run.yaml"), "--out", str(out), "--spread", "saes")
    ended = start.run(2, *command, stop_at=5)
    assert set(ended.codes) <= {130, 143}, ended
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000005"]
    world = start.start(3, *command)
    until = time.monotonic() + 120
    while time.monotonic() < until and steps_in(out / "logs" / "c" / "log.jsonl") < 6:
        time.sleep(0.01)
    world.kill(2)
    ended = world.wait()
    assert ended.codes == [2, 2, -signal.SIGKILL], ended
    (line,) = ended.errors
    (checkpoint,) = (path for path in (out / "checkpoints").iterdir() if not is_temporary(path))
    assert line.endswith(f"the last checkpoint is {checkpoint}"), ended
    assert checkpoint.name > "step-00000005"
    run_training(config, out)
    run_training(config, tmp_path / "alone")
    assert_same(out, tmp_path / "alone", config)


@thorough
def test_torchrun_itself(base: TrainConfig, tmp_path: Path) -> None:
    """It sends SIGTERM to the other rank, and reports after our line what it knows."""
    config, out = small(base, 6), tmp_path / "run"
    save_config(config, tmp_path / "run.yaml")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "saeforest",
        "train",
    ]
    torchrun = subprocess.Popen(
        [*command, "--config", str(tmp_path / "run.yaml"), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    until = time.monotonic() + 240
    while steps_in(out / "log.jsonl") < 2 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(rank_of(torchrun.pid, 1), signal.SIGKILL)
    _, err = torchrun.communicate(timeout=120)
    assert torchrun.returncode == 1
    (line,) = (line for line in err.splitlines() if "saeforest: error" in line)
    assert "rank 1 of 2 (process" in line, err
    assert "a checkpoint of step" in line, err
    assert "Traceback" not in err.split(line)[0], err
    assert "Root Cause" in err.split(line)[1], err  # its own report, which our guide mentions
    run_training(config, out)
    run_training(config, tmp_path / "alone")
    assert_same(out, tmp_path / "alone", config)


def rank_of(torchrun: int, rank: int) -> int:
    """The process of a rank."""
    children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
    (found,) = (
        int(pid) for pid in children if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text()
    )
    return found


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
    names = ("reconstruction", "cross_entropy", "coverage", "mcs")
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
    assert {f"{name}.json" for name in names} <= alone.keys()
    shutil.rmtree(run / "eval")
    ended = start.run(2, *command)
    assert ended.codes == [0, 0], ended.err
    assert ended.out[1] == ended.err[1] == ""
    assert {file.name: file.read_bytes() for file in (run / "eval").glob("*.json")} == alone
