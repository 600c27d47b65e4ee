"""Memory is told truly: what there is, what a run will take, and what to do where that is too much."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from everything_cases import MakeOnce
from llama_cases import MakeConfig
from saeforest import cli, memory
from saeforest.config import MemberConfig, load_config, save_config
from saeforest.errors import InputError
from saeforest.saes import ExpertHSAEConfig, HSAEConfig, RunLength, TopKConfig, start_training
from saeforest.saes.hsae import Hierarchy
from saeforest.training import data, dry_run, rehearsal, run_training, settle
from saeforest.training.dry_run import estimate

GB = 2**30
#: One for each system's way to take memory, and two sizes of a tree from training to index.
CASES = (
    *("train:tree:s", "train:tree:l", "train:topk:m", "train:hsae:s", "train:expert_hsae:m"),
    *("eval:tree:s", "eval:tree:m", "index:tree:s", "index:tree:m"),
    "limited:tree:l",
)


# -- said and taken


@pytest.fixture(scope="module")
def measured(make_once: MakeOnce) -> dict[str, dict[str, object]]:
    """What processes of their own said beforehand and then took."""
    cases = [json.loads(line) for line in (make_once("peak", measure) / "found").read_text().splitlines()]
    return {case["case"]: case for case in cases}


def measure(folder: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peak_memory", str(folder), *CASES],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "found").write_text(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a forked process is what Linux says it is")
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("limited")])
def test_the_peak_that_is_said_is_the_one_that_is_taken(
    measured: dict[str, dict[str, float]], case: str
) -> None:
    said, taken = measured[case]["said"], measured[case]["taken"]
    assert 0.8 < said / taken < 1.2, measured[case]
    # Not only because most of it is libraries: what comes on top is known too.
    base = measured[case]["base"]
    assert 0.6 < (said - base) / (taken - base) < 1.6, measured[case]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
def test_too_little_memory_ends_in_a_line(measured: dict[str, dict[str, object]]) -> None:
    found = measured["limited:tree:l"]
    assert found["status"] == 2
    line = str(found["line"])
    assert line.startswith("saeforest: error: not enough memory for the SAE")
    assert "lower sae.layer_sizes or optim.batch_size" in line


# -- what there is


def write(path: Path, text: str | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="ascii")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB left, of 64."""
    write(
        tmp_path / "proc/meminfo", f"MemTotal: {64 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {8 * 2**20} kB"
    )
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    return tmp_path


def test_what_others_use_is_not_there(machine: Path) -> None:
    assert memory.available() == 8 * GB


def test_control_groups_of_the_second_version_limit_what_there_is(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "0::/user/job")
    group = machine / "sys/fs/cgroup/user"
    write(group / "job/memory.max", "max")
    write(group / "job/memory.current", 2 * GB)
    write(group / "memory.max", 6 * GB)  # of the group around it
    write(group / "memory.current", 5 * GB)
    write(group / "memory.stat", f"anon 1\ninactive_file {2 * GB}")  # files that were read can be dropped
    assert memory.available() == 3 * GB


def test_control_groups_of_the_first_version_do_too(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "5:cpu,cpuacct:/\n4:memory:/of/the/host\n0::/")
    group = machine / "sys/fs/cgroup/memory"  # a container sees its own group at the mount
    write(group / "memory.limit_in_bytes", 4 * GB)
    write(group / "memory.usage_in_bytes", 3 * GB)
    write(group / "memory.stat", f"inactive_file 5\ntotal_inactive_file {GB}")
    assert memory.available() == 2 * GB
    write(group / "memory.limit_in_bytes", 2**63 - 4096)  # no limit
    assert memory.available() == 8 * GB


def test_a_group_beyond_its_limit_has_nothing_left(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "0::/")
    write(machine / "sys/fs/cgroup/memory.max", GB)
    write(machine / "sys/fs/cgroup/memory.current", 2 * GB)
    assert memory.available() == 0


def test_a_limit_on_the_process_counts(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = memory._status("VmSize")
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (used + GB, used + GB))
    assert abs(memory.available() - GB) < GB // 10


def test_where_the_system_says_nothing_the_machine_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    assert memory.available() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory.resident() == memory.peak() > 2**20


def test_activations_wait_where_there_is_room_now(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(activations={"store": "auto"}, epochs=1)
    for left, store in ((100, "memory"), (30, "live")):
        monkeypatch.setattr(settle, "available", lambda left=left: left)
        assert settle.settle_store(config, 10, 2, 2).activations.store == store


def test_where_activations_wait_is_settled_before_they_are_read(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on finds another amount of memory; in another store the rows come in another order."""
    out = tmp_path / "run"

    def killed(*_: object) -> None:
        assert load_config(out / "config.yaml", of_run=True).activations.store == "memory"
        raise InputError("killed")

    monkeypatch.setattr(data, "harvest_memory", killed)
    with pytest.raises(InputError, match="killed"):
        run_training(tiny_config(activations={"store": "auto"}), out)


# -- what a run will take


def test_long_work_says_its_peak_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "resident", lambda: GB)
    monkeypatch.setattr(memory, "peak", lambda: 2 * GB)
    monkeypatch.setattr(memory, "available", lambda: 3 * GB)
    forecast = memory.Forecast("index", "lm.batch_size")
    forecast.tell(GB, 4 * GB)
    forecast.tell(GB)
    assert forecast.expected == 6 * GB
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "index: peak memory about 6.0 GiB (3.0 GiB more are available)",
        "warning: index: this takes about 6.0 GiB, but only 4.0 GiB are available; lower lm.batch_size, "
        "or use a machine with more memory",
    ]


def test_what_the_gpu_holds_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "on_gpu", lambda: 5 * GB)
    memory.Forecast("index", "lm.batch_size").tell(1)
    assert "; on the GPU 5.0 GiB so far" in capsys.readouterr().err


def test_work_that_is_small_warns_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    memory.Forecast("index", "lm.batch_size").tell(1)
    assert "warning" not in capsys.readouterr().err


def test_a_dry_run_warns_and_tries_nothing_where_the_state_has_no_room(
    tiny_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "c.yaml"
    save_config(tiny_config(), path)
    for module in (memory, dry_run):
        monkeypatch.setattr(module, "available", lambda: 1000)
    monkeypatch.setattr(dry_run, "rehearse", lambda *_: pytest.fail("tried"))
    assert cli.run(["train", "--config", str(path), "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "or more: there is not enough memory to try a step" in said
    assert "SAE unknown" in said
    assert "warning: this takes about" in said
    assert "or use a machine with more" in said


def test_a_dry_run_holds_all_saes_at_once(tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    member = MemberConfig(sae=TopKConfig((4096,), (4,)), optim=config.optim)
    several = replace(config, saes=dict.fromkeys("abc", member))
    seen: list[int] = []
    step = rehearsal._Tried.step

    def counted(self: rehearsal._Tried, n: int) -> float:
        seen.append(len({id(sae) for sae in alive}))
        return step(self, n)

    alive: list[object] = []
    made = dry_run.new_training
    monkeypatch.setattr(dry_run, "new_training", lambda *args: alive.append(one := made(*args)) or one)
    monkeypatch.setattr(rehearsal._Tried, "step", counted)
    found = estimate(several)
    assert set(seen) == {3}
    # Without an encoder bias, b_enc is held but not trained.
    assert found.memory.state == found.bytes_sae == 3 * (16 * (2 * 4096 * 16 + 16) + 4 * 4096)


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        ({}, 16),
        ({"state": "bfloat16"}, 12),
        ({"rows": "active"}, 12),
        ({"rows": "active", "state": "bfloat16"}, 8),
    ],
)
def test_gradients_of_active_rows_are_not_kept_for_all(
    tiny_config: MakeConfig, optim: dict[str, str], expected: int
) -> None:
    assert dry_run._bytes(tiny_config(optim=optim)) == expected


def test_what_is_trained_in_place_of_rows_is_counted(tiny_config: MakeConfig) -> None:
    """An H-SAE trains factors of the children's rows: only those have gradients and moments."""
    config = replace(tiny_config(), sae=ExpertHSAEConfig((32, 512), (4, 4), subspace=4))
    rows, factors = 544 * 16, (32 + 32 * 4) * 16 + 512 * 4
    biases = 544 + 16
    found = estimate(config)
    assert found.bytes_sae == 4 * 2 * rows + 16 * (2 * factors + biases)
    assert found.n_parameters == {"expert_hsae": 2 * rows + biases}


@pytest.mark.parametrize(
    ("store", "n_rows", "state", "lm", "steps", "lower"),
    [
        ("memory", 2**24, GB, 1, 2 * GB, "tokens, or set activations.store to live"),
        ("live", 2**24, GB, 1, 2 * GB - 1, "sae.layer_sizes"),
        ("memory", 1000, GB, 1, 5 * GB, "optim.batch_size or sae.layer_sizes"),
        ("disk", 1000, GB, 9 * GB, 2 * GB, "lm.dtype to bfloat16, or choose a smaller model"),
        ("harvested", 2**24, 1, 1, 2, "the number of harvested activations"),
    ],
)
def test_what_takes_most_is_to_be_lowered(
    store: str, n_rows: int, state: int, lm: int, steps: int, lower: str
) -> None:
    waiting = dry_run._Waiting(store, n_rows, 1000, torch.device("cpu"))
    tried = rehearsal.Rehearsal(1.0, steps, 2 * steps, 0)
    found = dry_run._peak_memory(GB, GB // 4, waiting, state, lm, tried, torch.device("cpu"))
    assert found.lower == lower
    assert found.peak == GB + waiting.held + steps
    assert found.dead == found.peak + steps


def test_reading_may_take_more_than_training() -> None:
    waiting = dry_run._Waiting("disk", 1000, 1000, torch.device("cpu"))
    tried = rehearsal.Rehearsal(1.0, 2, 2, 0)
    found = dry_run._peak_memory(GB, 7 * GB, waiting, 1, 1, tried, torch.device("cpu"))
    assert found.peak >= 8 * GB
    assert found.lower == "lm.batch_size or text.context"


def rehearsed(
    config: TopKConfig | HSAEConfig, batch_size: int, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> tuple[rehearsal.Rehearsal, list[int]]:
    """What a rehearsal found, and the sizes of the batches that it trained on."""
    if slow:
        monkeypatch.setattr(rehearsal, "_SECONDS_PER_STEP", 0.0)
    training = start_training(config, 16, RunLength(100, batch_size))
    sizes: list[int] = []
    training.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    return rehearsal.rehearse({"tree": training}, x, memory.resident()), sizes


def test_a_slow_system_is_tried_on_a_part_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, sizes = rehearsed(TopKConfig((64,), (4,)), 4096, monkeypatch, slow=False)
    assert sizes.count(4096) >= 4
    part, sizes = rehearsed(TopKConfig((64,), (4,)), 4096, monkeypatch, slow=True)
    assert max(sizes) == 1024
    assert len(sizes) == 3
    assert part.seconds_per_step > 0
    assert whole.seconds_per_step > 0


def test_a_rehearsal_finds_the_forest_that_training_would(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(Hierarchy, "update", lambda self, sae, step: steps.append(step) or [])
    rehearsed(HSAEConfig((8, 16, 32), (2, 2, 2), normalize_activations=1.0), 64, monkeypatch, slow=False)
    assert steps
    assert set(steps) == {5}
