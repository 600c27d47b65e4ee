"""The checkpoints of a dictionary that is divided among ranks are saved by all that have a part of it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from divided_cases import STEPS, assert_equal, step, stream, team_of
from edits import forget_checksums
from ranks_runs import KILLS, thorough
from saeforest.activations import ActivationStream
from saeforest.errors import InputError
from saeforest.files import write_tensors
from saeforest.ranks import Ranks
from saeforest.saes import (
    Training,
)
from saeforest.training import checkpoint as checkpoints
from saeforest.training.checkpoint import (
    SINGLE,
    Parts,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    tensors_of,
)
from saeforest.training.team import Team
from saeforest.verify import verify
from thread_ranks import in_ranks
from training.test_checkpoints import begun

# Moments in 8 bits have exponents for each row, and kernels of their own to be compiled.
STATE = "int8" if KILLS > 1 else "float32"


def saved(team: Team, training: Training, data: ActivationStream, folder: Path, number: int = STEPS) -> None:
    def write(step: int, parts: Parts | None) -> None:
        if team.ranks.first:
            save_checkpoint(folder, step, {SINGLE: training}, data.state(), "of the data", parts=parts)

    team.save(number, {SINGLE: training}, {}, write)


def stopped(folder: Path, ranks: Ranks, shards: int, system: str, **how: Any) -> dict[str, Tensor]:
    """Train, write a checkpoint, and go on; the state in the end, of this rank."""
    training, data, team = begun(system, state=STATE), stream(), team_of(ranks, shards, **how)
    team.begin({SINGLE: training}, data, 0)
    step(team, training, data, STEPS)
    saved(team, training, data, folder)
    step(team, training, data, 3)
    return tensors_of(training)


def resumed(folder: Path, ranks: Ranks, shards: int, system: str) -> dict[str, Tensor]:
    training, data, team = begun(system, state=STATE), stream(), team_of(ranks, shards)
    start = 0
    if ranks.first:
        (path,) = folder.iterdir()
        start = load_checkpoint(path, {SINGLE: training}, data, "of the data")
    assert team.begin({SINGLE: training}, data, start) == STEPS
    step(team, training, data, 3)
    return tensors_of(training)


@pytest.mark.parametrize(
    ("size", "shards", "system"),
    [
        (2, 2, "tree"),
        *(
            pytest.param(size, shards, system, marks=thorough)
            for size, shards in ((1, 1), (2, 2), (4, 2), (4, 4))
            for system in ("topk", "tree", "jumprelu", "hsae")
            if (size, system) != (2, "tree")
        ),
    ],
)
def test_shards_go_on_to_the_same_bits(size: int, shards: int, system: str, tmp_path: Path) -> None:
    """As if never stopped; and what they have written is the state of one file, for any number of shards."""
    undisturbed = in_ranks(size, lambda ranks: stopped(tmp_path / "run", ranks, shards, system))
    (written,) = (tmp_path / "run").iterdir()
    assert len(list(written.glob("*.safetensors"))) == shards
    for ours, theirs in zip(
        in_ranks(size, lambda ranks: resumed(tmp_path / "run", ranks, shards, system)),
        undisturbed,
        strict=True,
    ):
        assert_equal(ours, theirs)
    in_ranks(size, lambda ranks: stopped(tmp_path / "one", ranks, shards, system, whole_checkpoints=True))
    (one,) = (tmp_path / "one").iterdir()
    assert [path.name for path in one.glob("*.safetensors")] == [f"{SINGLE}.safetensors"]
    read = []
    for path in (written, one):
        training = begun(system, state=STATE)
        assert load_checkpoint(path, {SINGLE: training}, stream(), "of the data") == STEPS
        read.append(tensors_of(training))
    assert_equal(*read)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of two shards. Shared: not to be changed."""
    folder = tmp_path_factory.mktemp("shards")
    in_ranks(2, lambda ranks: stopped(folder, ranks, 2, "topk"))
    (path,) = folder.iterdir()
    return path


def test_verify_looks_at_every_shard(written: Path) -> None:
    found = {finding.path.name for finding in verify(written)}
    assert found == {"state.json", "state-00001-of-00002.safetensors", "state-00002-of-00002.safetensors"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda tensors: tensors.clear(),
            r"tensor 'training.sae.encoder' is \[4, 8\] of float32; expected \[8, 8\]",
        ),
        (lambda tensors: tensors.update(other=torch.ones(1)), r"00001-of-00002.safetensors: tensor 'other'"),
        (
            lambda tensors: tensors.update({"training.sae.decoder": torch.ones(4, 3)}),
            r"tensor 'training.sae.decoder' is \[4, 3\] of float32; beside the other shards it would be \[4, 8\]",
        ),
        (
            lambda tensors: tensors.update({"training.sae.encoder": torch.tensor(1.0)}),
            r"tensor 'training.sae.encoder' is \[4, 8\] of float32; beside the other shards it would be \[3, 8\]",
        ),
    ],
)
def test_a_shard_of_another_kind(
    change: Callable[[dict[str, Tensor]], object], said: str, written: Path, tmp_path: Path
) -> None:
    copy = tmp_path / written.name
    copy.mkdir()
    for file in written.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    forget_checksums(copy)
    file = copy / "state-00002-of-00002.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(InputError, match=said) as error:
        load_checkpoint(copy, {SINGLE: begun("topk", state=STATE)}, stream(), "of the data")
    assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(InputError, match=r"00002-of-00002.safetensors: no such file"):
        load_checkpoint(copy, {SINGLE: begun("topk", state=STATE)}, stream(), "of the data")


@pytest.mark.parametrize("shard", [1, 2])
def test_a_full_disk_leaves_the_checkpoint_before(
    shard: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever rank cannot write: the first one says so, the others go on."""

    def full(path: Path, tensors: dict[str, Tensor]) -> str:
        if f"{shard:05}-of" in path.name and training_on:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write_tensors(path, tensors)

    training_on: list[bool] = []
    monkeypatch.setattr(checkpoints, "write_tensors", full)

    def work(ranks: Ranks) -> list[str]:
        training, data, team = begun("topk"), stream(), team_of(ranks, 2)
        team.begin({SINGLE: training}, data, 0)
        step(team, training, data, 1)
        saved(team, training, data, tmp_path, 1)
        training_on.append(True)
        step(team, training, data, 1)
        failed = []
        try:
            saved(team, training, data, tmp_path, 2)
        except OSError as error:
            failed.append(str(error))
        step(team, training, data, 1)
        return failed

    failed, others = in_ranks(2, work)
    assert others == []
    assert len(failed) == 1
    assert "No space left on device" in failed[0]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    last = latest_checkpoint(tmp_path)
    assert last is not None
    assert load_checkpoint(last, {SINGLE: begun("topk")}, stream(), "of the data") == 1


def test_all_stay_until_a_checkpoint_is_whole(tmp_path: Path) -> None:
    """A rank that is asked to stop ends after it has written its shard, and with it all others."""

    def work(ranks: Ranks) -> bool:
        training, data, team = begun("topk"), stream(), team_of(ranks, 2)
        team.begin({SINGLE: training}, data, 0)
        step(team, training, data, 1)

        def write(number: int, parts: Parts | None) -> None:
            assert parts is not None

            def slowly(folder: Path) -> dict[str, str]:
                checksums = parts.write(folder)
                with ranks._world.waiting():  # pyright: ignore[reportAttributeAccessIssue]
                    time.sleep(0.3)
                return checksums

            slow = parts._replace(write=slowly)
            save_checkpoint(tmp_path, number, {SINGLE: training}, data.state(), "of the data", parts=slow)

        team.save(1, {SINGLE: training}, {}, write)
        return latest_checkpoint(tmp_path) is not None

    assert in_ranks(2, work) == [True, True]


def test_a_folder_that_cannot_be_made_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def work(ranks: Ranks) -> bool:
        training, data, team = begun("topk"), stream(), team_of(ranks, 2)
        team.begin({SINGLE: training}, data, 0)
        step(team, training, data, 1)
        with suppress(OSError):
            saved(team, training, data, tmp_path / "file" / "below", 1)
            return False
        return True

    assert in_ranks(2, work) == [True, False]
