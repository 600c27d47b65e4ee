"""Ranks that are killed, stuck, cut off or asked to stop: all end with one line, and the run goes on."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from ranks_cases import Worlds, machines
from ranks_runs import KILLS, RANKS, assert_same, small, steps_in, thorough, wait_for_steps
from saeforest.config import MemberConfig, TrainConfig, save_config
from saeforest.files import is_temporary
from saeforest.run_folder import RunFolder
from saeforest.training import run_training
from saeforest.verify import verify

EPOCHS = 6 * (1 + KILLS)


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
        stepped = wait_for_steps(out / "log.jsonl", before + more)
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
    wait_for_steps(out / "log.jsonl", 5)
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
    wait_for_steps(out / "log.jsonl", 1)
    world.kill(1, signal.SIGTERM)
    ended = world.wait()
    assert ended.codes[0] in (130, 143)
    assert ended.codes[1] in (130, 143)
    assert ended.err[1] == ""
    assert f"a checkpoint is saved in {out}" in ended.err[0]
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
        wait_for_steps(out / "log.jsonl", 1)
        both.cut_off(side)
        ended = world.wait()
    assert ended.codes == [2, 2], ended
    assert "rank 1 of 2" in ended.errors[0]
    assert "a checkpoint of step" in ended.errors[0]
    assert "the ranks' meeting point cannot be reached" in ended.err[1]
    assert list((out / "checkpoints").glob("step-*/state.json"))


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
        wait_for_steps(out / "log.jsonl", before + more)
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
    wait_for_steps(out / "logs" / "c" / "log.jsonl", 6)
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
    wait_for_steps(out / "log.jsonl", 2, seconds=240)
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
