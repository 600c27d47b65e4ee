"""Runs that are stopped, crash or are damaged go on to the same bits, or say why they cannot."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edits import edit_json
from llama_cases import MakeConfig
from saeforest import InputError
from saeforest.config import TrainConfig, load_config, save_config
from saeforest.run_folder import RunFolder
from saeforest.training import Interrupted, log, loop, run_training
from saeforest.training.log import read_log
from saeforest.training.run import resume_config
from saeforest.training.unfinished import check_about
from training_cases import (
    FINISHED,
    STEPS,
    Crash,
    allocations,
    assert_same_run,
    at_step,
    crash,
    ctrl_c,
    weights,
)

# Resuming


@pytest.mark.parametrize(
    ("store", "stops"),
    [("memory", (1,)), ("memory", (11, 27, 45)), ("disk", (4, 23)), ("live", (4, 35))],
    ids=str,
)
def test_a_run_stopped_by_ctrl_c_and_resumed_is_as_if_never_stopped(
    store: str,
    stops: tuple[int, ...],
    tiny_config: MakeConfig,
    tmp_path: Path,
    small_blocks: None,
    whole_runs: dict[str, Path],
) -> None:
    """Stops right before and after reallocations (4, 12, 28), in the second epoch, after the reset, at the very end."""
    config, out = tiny_config(activations={"store": store}), tmp_path / "run"
    for i, stop in enumerate(stops):
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, stop, ctrl_c)
            with pytest.raises(Interrupted, match=f"after step {stop} of {STEPS}; a checkpoint is saved"):
                run_training(resume_config(RunFolder(out)) if i else config, out, resume=i > 0)
        assert [p.name for p in (out / "checkpoints").iterdir()] == [f"step-{stop:08}"]
        assert not (out / "sae").exists()
    run_training(resume_config(RunFolder(out)), out, resume=True).drop_activations()
    assert {p.name for p in out.iterdir()} == FINISHED
    assert_same_run(whole_runs[store], out)


def stopped_and_resumed(config: TrainConfig, folder: Path) -> Path:
    """A run that was stopped after 20 steps and resumed. It is the same as one that was not."""
    whole, out = folder / "whole", folder / "run"
    run_training(config, whole)
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 20, ctrl_c)
        with pytest.raises(Interrupted):
            run_training(config, out)
    run_training(resume_config(RunFolder(out)), out, resume=True)
    assert_same_run(whole, out)
    return out


def test_adams_state_in_half_precision_resumes_exactly(tiny_config: MakeConfig, tmp_path: Path) -> None:
    stopped_and_resumed(tiny_config(optim={"state": "bfloat16"}), tmp_path)


def test_rows_that_rest_resume_exactly(tiny_config: MakeConfig, tmp_path: Path) -> None:
    """How long each row has rested is in the checkpoint."""
    stopped_and_resumed(tiny_config(optim={"state": "bfloat16", "rows": "active"}), tmp_path)


def test_parents_from_data_resume_exactly(tiny_config: MakeConfig, tmp_path: Path) -> None:
    """Stopped between two updates, so that some of the evidence for the second is from before the stop."""
    data = {"every": 8, "sample": 64, "window": 640, "min_count": 4, "earned": 0.05, "dead_until": 0.9}
    config = tiny_config(
        sae={"allocation": {"rule": "data", "reinitialize": True, "root_reset_at": 0.95, "from_data": data}}
    )
    out = stopped_and_resumed(config, tmp_path)
    moved = [line["step"] for line in allocations(out) if line["event"] == "parents"]
    assert {8, 16, 24} <= set(moved)
    anew = [line["step"] for line in read_log(out) if line.get("event") == "started_anew"]
    assert any(step > 20 for step in anew)


@pytest.mark.parametrize("step", [5, 24])
def test_a_crashed_run_goes_on_from_its_last_checkpoint(
    step: int, finished_run: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    """The logs are ahead of the checkpoint then, and what is ahead is not logged twice."""
    out = tmp_path / "run"
    config = tiny_config(checkpoint_minutes=1e-9, log_every=1)
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, crash)
        with pytest.raises(Crash):
            run_training(config, out)
    assert [p.name for p in (out / "checkpoints").iterdir()] == [f"step-{step - 1:08}"]
    ahead = {"step": step, "event": "reallocation", "moves": [[9, 0, 1]]}
    for name in ("log.jsonl", "allocations.jsonl"):
        with (out / name).open("a") as f:
            f.write(json.dumps(ahead) + "\n")
    run_training(resume_config(RunFolder(out)), out, resume=True)
    steps = [line["step"] for line in read_log(out) if "event" not in line]
    assert steps == list(range(1, STEPS + 1))
    assert allocations(out) == allocations(finished_run)
    for name, tensor in weights(finished_run).items():
        assert torch.equal(weights(out)[name], tensor), name


def test_a_line_that_a_crash_cut_short_is_dropped(
    finished_run: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 24, ctrl_c)
        with pytest.raises(Interrupted):
            run_training(tiny_config(), out)
    for name in ("log.jsonl", "allocations.jsonl"):
        with (out / name).open("a") as f:
            f.write('{"step": 2')
    run_training(resume_config(RunFolder(out)), out, resume=True)
    assert_same_run(finished_run, out)


@pytest.mark.parametrize("name", ["log.jsonl", "allocations.jsonl"])
@pytest.mark.parametrize(
    "damage", [b"{", b"\xff\xfe", b"5", b"[" * 5000, b'{"event": "reallocation"}', b'{"step": -1}']
)
def test_a_damaged_line_of_a_log_is_set_aside(
    name: str, damage: bytes, stopped: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """These files alone are appended to: a power cut damages them first, and the checkpoint is sound all the same."""
    lines = (stopped / name).read_bytes().splitlines(keepends=True)
    (stopped / name).write_bytes(b"".join([*lines[:1], damage + b"\n", *lines[1:]]))
    run_training(resume_config(RunFolder(stopped)), stopped, resume=True)
    assert f"{name}: 1 damaged lines were set aside in {name.removesuffix('.jsonl')}.damaged.jsonl" in (
        capsys.readouterr().err
    )
    assert (stopped / name).with_suffix(".damaged.jsonl").read_bytes() == damage + b"\n"
    (stopped / name).with_suffix(".damaged.jsonl").unlink()
    assert_same_run(finished_run, stopped)


@pytest.mark.parametrize("name", ["log.jsonl", "allocations.jsonl"])
def test_a_changed_digit_in_a_finished_log_is_noticed(name: str, finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    text = (run / name).read_text()
    (run / name).write_text(text.replace('"step": 4', '"step": 5', 1))
    with pytest.raises(InputError, match=rf"{name}: does not match its checksum"):
        read_log(run)
    (run / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: (does not match its checksum|no such file)"):
        read_log(run)


@pytest.mark.parametrize("cut", [1, 30, 500])
def test_a_log_of_a_finished_run_that_was_cut_is_noticed(
    finished_run: Path, tmp_path: Path, cut: int
) -> None:
    """Without its closing line, it looks like that of a run that goes on."""
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    lines = (run / "log.jsonl").read_bytes()
    (run / "log.jsonl").write_bytes(
        lines[:-cut] if cut > 1 else b"".join(lines.splitlines(keepends=True)[:-1])
    )
    with pytest.raises(InputError, match=r"log\.jsonl: the closing line is missing or damaged"):
        read_log(run)


def test_an_edited_configuration_of_a_run_is_noticed(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("context: 32", "context: 64"))
    with pytest.raises(
        InputError, match=r"config\.yaml: does not match the checksum in its first line.*delete that"
    ):
        RunFolder(run).load()
    (run / "config.yaml").write_text(
        text[: text.index("text:")]
    )  # at the end of a line: defaults would fill in
    with pytest.raises(InputError, match=r"config\.yaml: does not match the checksum"):
        RunFolder(run).load()
    (run / "config.yaml").write_text(text.replace("context: 32", "context: 64"))
    assert load_config(run / "config.yaml").text.context == 64  # as a file of settings it may be edited
    _, *lines = (run / "config.yaml").read_text().splitlines(keepends=True)
    (run / "config.yaml").write_text("".join(lines))
    assert RunFolder(run).load()[0].text.context == 64


def test_a_log_that_the_disk_has_no_room_for_waits_for_the_next_line(
    finished_run: Path, tiny_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, failures = log._Lines._write, iter([False, True, True, *[False] * 100])

    def write(self: log._Lines) -> None:
        if next(failures):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log._Lines, "_write", write)
        run_training(tiny_config(), tmp_path / "run")
    assert_same_run(finished_run, tmp_path / "run")
    assert capsys.readouterr().err.count("No space left on device; training continues") == 1


def test_a_checkpoint_that_the_disk_has_no_room_for_is_left_out(
    finished_run: Path, tiny_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "state.safetensors")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", full)
        run_training(tiny_config(checkpoint_minutes=1e-9), tmp_path / "run")
    assert_same_run(finished_run, tmp_path / "run")
    assert (
        "step 46: checkpoint not saved: state.safetensors: No space left on device; training continues"
        in capsys.readouterr().err
    )


def test_checkpoints_come_as_often_as_asked(tiny_config: MakeConfig, tmp_path: Path) -> None:
    for name, minutes, expected in (("often", 1e-9, ["step-00000019"]), ("never", 0.0, [])):
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, 20, crash)
            with pytest.raises(Crash):
                run_training(tiny_config(checkpoint_minutes=minutes), tmp_path / name)
        found = tmp_path / name / "checkpoints"
        assert ([p.name for p in found.iterdir()] if found.exists() else []) == expected


def test_a_complete_run_is_not_resumed(finished_run: Path) -> None:
    with pytest.raises(InputError, match="complete; nothing to resume"):
        resume_config(RunFolder(finished_run))


@pytest.mark.parametrize("prepare", [lambda out: None, lambda out: out.mkdir()])
def test_nothing_there_to_resume(prepare: Any, tmp_path: Path) -> None:
    prepare(tmp_path / "run")
    with pytest.raises(InputError, match="nothing to resume; expected a folder"):
        resume_config(RunFolder(tmp_path / "run"))


@pytest.fixture(scope="module")
def stopped_once(tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 20, ctrl_c)
        with pytest.raises(Interrupted):
            run_training(tiny_config(), out)
    return out


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A copy of a run that was stopped after step 20, to be damaged."""
    return Path(shutil.copytree(stopped_once, tmp_path / "stopped"))


def resuming_fails(out: Path, names: str) -> None:
    with pytest.raises(InputError) as error:
        run_training(resume_config(RunFolder(out)), out, resume=True)
    assert "\n" not in str(error.value)
    assert names in str(error.value)
    assert (out / "checkpoints" / "step-00000020").exists()


@pytest.mark.parametrize("share", [0.0, 0.4, 0.999])
def test_a_truncated_checkpoint(stopped: Path, share: float) -> None:
    file = stopped / "checkpoints" / "step-00000020" / "state.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    resuming_fails(stopped, str(file))


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "{}", '{"step": 20}', '{"step": 20, "data": 5}', '{"step": "x", "data": {}}']
)
def test_a_checkpoint_with_another_state(stopped: Path, text: str) -> None:
    (stopped / "checkpoints" / "step-00000020" / "state.json").write_text(text)
    resuming_fails(stopped, "step-00000020")


def test_a_checkpoint_without_a_file(stopped: Path) -> None:
    (stopped / "checkpoints" / "step-00000020" / "state.json").unlink()
    resuming_fails(stopped, "state.json")


def test_a_checkpoint_without_its_optimizer(stopped: Path) -> None:
    """Adam would start from nothing, and nobody would know."""
    file = stopped / "checkpoints" / "step-00000020" / "state.safetensors"
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if not k.startswith("optimizer.")}, file)
    resuming_fails(stopped, "step-00000020")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sae": {"layer_sizes": (8, 40, 65)}}, "written with sae.layer_sizes = [8, 40, 64]"),
        ({"sae": {"k_per_layer": (2, 2, 2)}}, "written with sae.k_per_layer = [3, 2, 2]"),
        ({"optim": {"lr": 2e-3}}, "written with optim.lr = 0.003, but now it is 0.002"),
        ({"optim": {"batch_size": 64}}, "written with optim.batch_size = 128"),
        ({"epochs": 3}, "written with epochs = 2"),
        ({"seed": 5}, "written with seed = 0"),
        ({"site": "model.layers.0.mlp.up_proj"}, "activations with site = 'blocks.1.hook_resid_post'"),
        ({"site": "blocks.0.hook_resid_post"}, "activations with site = 'blocks.1.hook_resid_post'"),
        ({"data_seed": 5}, "activations with seed = 0, not 5"),
    ],
    ids=str,
)
def test_a_run_with_other_settings_does_not_go_on(
    stopped: Path, changes: Any, says: str, tiny_config: MakeConfig
) -> None:
    save_config(tiny_config(**changes), stopped / "config.yaml")
    resuming_fails(stopped, says)


def test_a_setting_newer_than_the_checkpoint_counts_as_its_default(stopped: Path) -> None:
    checkpoint, config = stopped / "checkpoints" / "step-00000020", stopped / "config.yaml"
    about = json.loads((checkpoint / "state.json").read_text())["about"]
    check_about(checkpoint, about, config)
    edit_json(checkpoint / "state.json", lambda state: state["about"]["config"]["optim"].pop("weights"))
    check_about(checkpoint, about, config)
    about["config"]["optim"]["weights"] = "bfloat16"
    with pytest.raises(
        InputError, match=r"written with optim\.weights = 'float32', but now it is 'bfloat16'"
    ):
        check_about(checkpoint, about, config)


def test_a_run_with_another_model_does_not_go_on(
    tiny_config: MakeConfig, tiny_model: Path, tmp_path: Path
) -> None:
    """One of the same shape, put in its place: the hybrid would name the new one."""
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 20, ctrl_c)
        with pytest.raises(Interrupted):
            run_training(tiny_config(model=str(model), activations={"store": "live"}), out)
    weights = load_file(model / "model.safetensors")
    save_file({k: v * 1.01 for k, v in weights.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"step-00000020: written with model\.fingerprint"):
        run_training(resume_config(RunFolder(out)), out, resume=True)


# Ctrl-C of a real process


def cli(*args: str) -> list[str]:
    return [sys.executable, "-m", "saeforest", *args]


def test_sigterm_stops_a_run_like_ctrl_c(tiny_config: MakeConfig, tmp_path: Path) -> None:
    at = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 3, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            run_training(tiny_config(), at)
    assert [p.name for p in (at / "checkpoints").iterdir()] == ["step-00000003"]


def test_ctrl_c_ends_a_process_with_130_and_a_checkpoint(tiny_config: MakeConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    save_config(tiny_config(epochs=100_000, log_every=1), tmp_path / "long.yaml")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        cli("train", "--config", str(tmp_path / "long.yaml"), "--out", str(out)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 120
        while not (out / "log.jsonl").exists() or (out / "log.jsonl").stat().st_size < 2000:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - sent < 50
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert f"train --resume --out {out}" in stderr
    (checkpoint,) = (out / "checkpoints").iterdir()
    step = json.loads((checkpoint / "state.json").read_text())["step"]
    assert checkpoint.name == f"step-{step:08}"
    # It goes on, in this process, for one more step.
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step + 1, ctrl_c)
        with pytest.raises(Interrupted, match=f"after step {step + 1} of"):
            run_training(resume_config(RunFolder(out)), out, resume=True)
    steps = [line["step"] for line in read_log(out) if "event" not in line]
    assert steps == list(range(1, step + 2))


@pytest.fixture(autouse=True)
def _signals_are_given_back() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    yield
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
