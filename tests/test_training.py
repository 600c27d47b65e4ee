"""Training: repeatable, resumable bit for bit, honest in its logs, and it learns."""

from __future__ import annotations

import errno
import json
import math
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

from conftest import EOS, MakeConfig, save_llama
from edits import edit_json
from saeforest import UserError
from saeforest.activations import ActivationStream, harvest_folder, sources, writer
from saeforest.activations.sources import MemoryActivations
from saeforest.config import OptimConfig, TrainConfig, load_config, save_config
from saeforest.saes import AllocationConfig, TrainingPlan, TreeAuxConfig, TreeConfig, TreeSAE, build, load_sae
from saeforest.saes.base import Event
from saeforest.session import about_activations, load_run, open_reader, read_tokens, settle_positions
from saeforest.training import Interrupted, log, loop, run_training, train
from saeforest.training.data import choose_store
from saeforest.training.log import read_log
from saeforest.training.run import resume_config

STEPS = 46
TIMES = ("tokens_per_s", "seconds", "peak_memory_mb")
FINISHED = {"config.yaml", "model.json", "log.jsonl", "allocations.jsonl", "sae"}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks an epoch, so that a resumed run lands inside one of them."""
    monkeypatch.setattr(sources, "_BLOCK_ROWS", 700)
    monkeypatch.setattr(writer, "SHARD_ROWS", 700)
    monkeypatch.setattr(sources, "_SHARDS_MIXED", 2)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "sae" / "sae_weights.safetensors")


def timeless(run: Path) -> list[dict[str, Any]]:
    lines = [line for line in read_log(run) if line.get("event") != "finished"]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def allocations(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "allocations.jsonl").read_text().splitlines()]


def assert_same_run(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert timeless(a) == timeless(b)
    assert allocations(a) == allocations(b)
    assert (a / "sae" / "cfg.json").read_text() == (b / "sae" / "cfg.json").read_text()


def at_step(monkeypatch: pytest.MonkeyPatch, wanted: int, act: Any) -> None:
    """`act()` in step `wanted`, after the optimiser, before its checkpoint."""
    after_step = TreeSAE.after_step

    def acting(self: TreeSAE, step: int, loss: float) -> list[Event]:
        events = after_step(self, step, loss)
        if step == wanted:
            act()
        return events

    monkeypatch.setattr(TreeSAE, "after_step", acting)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


class Crash(Exception):
    pass


def crash() -> None:
    raise Crash


# A finished run


def test_a_finished_run_holds_the_fixed_names_alone(finished_run: Path) -> None:
    assert {p.name for p in finished_run.iterdir()} == FINISHED
    assert {p.name for p in (finished_run / "sae").iterdir()} == {"cfg.json", "sae_weights.safetensors"}


def test_the_decoder_is_of_unit_norm(tiny_config: MakeConfig, tmp_path: Path) -> None:
    """Also where the very last step still has a large rate."""
    run_training(tiny_config(tokens=1024, optim={"decay": "none", "lr": 0.05}), tmp_path / "run")
    norms = weights(tmp_path / "run")["W_dec"].double().norm(dim=1)
    assert float((norms - 1).abs().max()) < 1e-6


def test_the_config_of_a_run_repeats_it(finished_run: Path, tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = load_config(finished_run / "config.yaml")
    assert (config.activations.max_norm or 0) > 0
    assert config == tiny_config(text={"bos": "no"}, activations={"max_norm": config.activations.max_norm})
    run_training(config, tmp_path / "again")
    assert_same_run(finished_run, tmp_path / "again")


@pytest.mark.parametrize("store", ["disk", "live"])
def test_two_runs_with_one_seed_are_identical(
    store: str, tiny_config: MakeConfig, tmp_path: Path, small_blocks: None, whole_runs: dict[str, Path]
) -> None:
    run_training(tiny_config(activations={"store": store}), tmp_path / "run").drop_activations()
    assert_same_run(whole_runs[store], tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} == FINISHED


def test_another_seed_is_another_run(finished_run: Path, tiny_config: MakeConfig, tmp_path: Path) -> None:
    run_training(tiny_config(seed=1), tmp_path / "other")
    ours, theirs = weights(finished_run), weights(tmp_path / "other")
    for name in ("W_enc", "W_dec", "b_dec", "parent"):
        assert not torch.equal(ours[name], theirs[name]), name


def test_metadata_says_where_the_sae_comes_from(finished_run: Path, tiny_config: MakeConfig) -> None:
    config = tiny_config()
    metadata = load_sae(finished_run).metadata
    assert metadata["model_name"] == config.model
    assert metadata["hook_name"] == config.site
    assert metadata["context_size"] == 32
    assert metadata["dataset"] == config.data
    assert metadata["tokens"] == STEPS * 128
    assert metadata["seed"] == 0


def test_dataset_scale_becomes_the_number_that_was_used(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config(tokens=1024, epochs=1, sae={"normalize_activations": "dataset_scale"})
    run = run_training(config, tmp_path / "run")
    scale = load_config(tmp_path / "run" / "config.yaml").sae.normalize_activations
    assert isinstance(scale, float)
    assert load_sae(tmp_path / "run").config.normalize_activations == "none"  # folded into the weights
    assert isinstance(run.blocks, MemoryActivations)
    norms = run.blocks.x.float().norm(dim=1)
    assert float(norms.mean()) * scale == pytest.approx(math.sqrt(16), rel=1e-5)


# The log


def test_a_logged_step_says_all_there_is_to_say(finished_run: Path) -> None:
    steps = [line for line in read_log(finished_run) if "event" not in line]
    assert [line["step"] for line in steps] == [1, 10, 20, 30, 40, 46]
    for line in steps:
        assert set(line) == {
            "step", "tokens", "lr", "loss", "reconstruction", "auxiliary", "fve", "l0", "dead",
            "tokens_per_s", "seconds", "peak_memory_mb",
        }  # fmt: skip
        assert line["tokens"] == 128 * line["step"]
        assert set(line["seconds"]) == {"lm", "data", "sae"}
        assert min(line["seconds"].values()) >= 0
        assert line["tokens_per_s"] > 0
        assert line["peak_memory_mb"] > 50
        assert [len(line[key]) for key in ("reconstruction", "auxiliary", "l0", "dead")] == [3, 3, 3, 3]
        assert all(0 < l0 <= k for l0, k in zip(line["l0"], (3, 2, 2), strict=True))
        assert all(0 <= dead <= size for dead, size in zip(line["dead"], (8, 40, 64), strict=True))
        assert line["fve"] < 1
        total = sum(line["reconstruction"]) + sum(line["auxiliary"]) / 32
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    rates = [line["lr"] for line in steps]
    assert rates[0] == pytest.approx(3e-3 / (0.1 * STEPS))
    assert rates[1] == 3e-3
    assert rates[-1] == 0


def test_a_live_run_says_what_the_language_model_took(tiny_config: MakeConfig, tmp_path: Path) -> None:
    start = time.perf_counter()
    run_training(tiny_config(tokens=1024, activations={"store": "live"}), tmp_path / "run")
    elapsed = time.perf_counter() - start
    seconds = [line["seconds"] for line in read_log(tmp_path / "run") if "event" not in line]
    assert sum(s["lm"] for s in seconds) > 0
    assert sum(sum(s.values()) for s in seconds) < elapsed


def test_a_batch_without_variance_does_not_break_the_log(tmp_path: Path) -> None:
    """One activation has no variance to explain; JSON has no word for what 1 - 1/0 is."""
    config = synthetic_config(batch_size=1, lr=1e-3)
    sae = build(config.sae, 16, seed=0)
    sae.prepare(TrainingPlan(2, 1))
    memory = MemoryActivations(torch.randn(4, 16), torch.arange(4), 0)
    train(config, {"": sae}, ActivationStream(memory, 1), 2, tmp_path)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_the_moves_lead_from_the_first_parents_to_the_last(
    finished_run: Path, tiny_config: MakeConfig
) -> None:
    parent = build(tiny_config().sae, 16, seed=0).parent.tolist()
    events = allocations(finished_run)
    assert {e["event"] for e in events} == {"reallocation", "root_reset"}
    for event in events:
        assert event["moves"]
        for feature, old, new in event["moves"]:
            assert parent[feature] == old != new
            parent[feature] = new
    assert parent == weights(finished_run)["parent"].tolist()
    logged = [line for line in read_log(finished_run) if "moved" in line]
    assert sum(line["moved"] for line in logged) == sum(len(e["moves"]) for e in events)
    assert {(e["step"], e["layer"]) for e in events} == {
        (e["step"], e["layer"]) for e in logged if e["moved"]
    }


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
                run_training(resume_config(out) if i else config, out, resume=i > 0)
        assert [p.name for p in (out / "checkpoints").iterdir()] == [f"step-{stop:08}"]
        assert not (out / "sae").exists()
    run_training(resume_config(out), out, resume=True).drop_activations()
    assert {p.name for p in out.iterdir()} == FINISHED
    assert_same_run(whole_runs[store], out)


def test_adams_state_in_half_precision_resumes_exactly(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config(optim={"state": "bfloat16"})
    whole, out = tmp_path / "whole", tmp_path / "run"
    run_training(config, whole)
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 20, ctrl_c)
        with pytest.raises(Interrupted):
            run_training(config, out)
    run_training(resume_config(out), out, resume=True)
    assert_same_run(whole, out)


@pytest.fixture(scope="module")
def whole_runs(tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An uninterrupted run from each kind of store, with the small blocks."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_BLOCK_ROWS", 700)
        patch.setattr(writer, "SHARD_ROWS", 700)
        patch.setattr(sources, "_SHARDS_MIXED", 2)
        for store in ("memory", "disk", "live"):
            run_training(tiny_config(activations={"store": store}), folder / store)
    return {store: folder / store for store in ("memory", "disk", "live")}


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
    run_training(resume_config(out), out, resume=True)
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
    run_training(resume_config(out), out, resume=True)
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
    run_training(resume_config(stopped), stopped, resume=True)
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
    with pytest.raises(UserError, match=rf"{name}: does not match its checksum"):
        read_log(run)
    (run / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: (does not match its checksum|no such file)"):
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
    with pytest.raises(UserError, match=r"log\.jsonl: its closing line is missing or damaged"):
        read_log(run)


def test_an_edited_configuration_of_a_run_is_noticed(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("context: 32", "context: 64"))
    with pytest.raises(
        UserError, match=r"config\.yaml: does not match the checksum in its first line.*delete that"
    ):
        load_run(run)
    (run / "config.yaml").write_text(
        text[: text.index("text:")]
    )  # at the end of a line: defaults would fill in
    with pytest.raises(UserError, match=r"config\.yaml: does not match the checksum"):
        load_run(run)
    (run / "config.yaml").write_text(text.replace("context: 32", "context: 64"))
    assert load_config(run / "config.yaml").text.context == 64  # as a file of settings it may be edited
    _, *lines = (run / "config.yaml").read_text().splitlines(keepends=True)
    (run / "config.yaml").write_text("".join(lines))
    assert load_run(run)[0].text.context == 64


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
    assert capsys.readouterr().err.count("No space left on device; going on") == 1


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
        "step 46: no checkpoint: state.safetensors: No space left on device; going on"
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
    with pytest.raises(UserError, match="complete; nothing to resume"):
        resume_config(finished_run)


@pytest.mark.parametrize("prepare", [lambda out: None, lambda out: out.mkdir()])
def test_nothing_there_to_resume(prepare: Any, tmp_path: Path) -> None:
    prepare(tmp_path / "run")
    with pytest.raises(UserError, match="nothing to resume; expected a folder"):
        resume_config(tmp_path / "run")


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
    with pytest.raises(UserError) as error:
        run_training(resume_config(out), out, resume=True)
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
        ({"sae": {"layer_sizes": (8, 40, 65)}}, "was written with sae.layer_sizes = [8, 40, 64]"),
        ({"sae": {"k_per_layer": (2, 2, 2)}}, "was written with sae.k_per_layer = [3, 2, 2]"),
        ({"optim": {"lr": 2e-3}}, "was written with optim.lr = 0.003, but now it is 0.002"),
        ({"optim": {"batch_size": 64}}, "was written with optim.batch_size = 128"),
        ({"epochs": 3}, "was written with epochs = 2"),
        ({"seed": 5}, "was written with seed = 0"),
        ({"site": "model.layers.0.mlp.up_proj"}, "holds activations with site = 'blocks.1.hook_resid_post'"),
        ({"site": "blocks.0.hook_resid_post"}, "holds activations with site = 'blocks.1.hook_resid_post'"),
        ({"data_seed": 5}, "holds activations with seed = 0, not 5"),
    ],
    ids=str,
)
def test_a_run_with_other_settings_does_not_go_on(
    stopped: Path, changes: Any, says: str, tiny_config: MakeConfig
) -> None:
    save_config(tiny_config(**changes), stopped / "config.yaml")
    resuming_fails(stopped, says)


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
    with pytest.raises(UserError, match=r"step-00000020: was written with model\.fingerprint"):
        run_training(resume_config(out), out, resume=True)


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
            run_training(resume_config(out), out, resume=True)
    steps = [line["step"] for line in read_log(out) if "event" not in line]
    assert steps == list(range(1, step + 2))


# Learning


def synthetic_config(batch_size: int, lr: float) -> TrainConfig:
    return TrainConfig(
        log_every=50,
        sae=TreeConfig(
            layer_sizes=(8, 36),
            k_per_layer=(1, 1),
            normalize_activations="none",
            aux=TreeAuxConfig(layers=(0, 1), k=8, detach=True, bias=False, rescale=True),
            allocation=AllocationConfig(
                first=30, cap=60, dead_after_tokens=4000, eligible_within_tokens=50_000, root_reset_at=0.7
            ),
        ),
        optim=OptimConfig(lr=lr, batch_size=batch_size, warmup=0.02, decay="linear", precision="float32"),
    )


def tree_data(n: int, d: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """6 parents with 3 children each, orthonormal directions; on a row one parent, and often a child of it."""
    directions = torch.linalg.qr(torch.randn(d, d, generator=generator))[0][:24]
    parent = torch.randint(6, (n,), generator=generator)
    child = 6 + 3 * parent + torch.randint(3, (n,), generator=generator)
    size = 1 + 0.3 * torch.rand(n, 2, generator=generator)
    size[:, 1] *= torch.rand(n, generator=generator) < 0.6
    x = 3 * size[:, :1] * directions[parent] + 2 * size[:, 1:] * directions[child]
    x += 0.02 * torch.randn(n, d, generator=generator)
    # b_dec takes the mean of the parents, so what is left to a parent's feature is what sets it apart.
    directions[:6] -= directions[:6].mean(0)
    return x, torch.nn.functional.normalize(directions)


def test_training_recovers_the_directions_of_a_synthetic_tree(tmp_path: Path) -> None:
    """A broken gradient, a wrong sign, or a frozen decoder misses these numbers by far."""
    d, n_steps = 24, 500
    x, directions = tree_data(20_000, d, torch.Generator().manual_seed(0))
    config = synthetic_config(batch_size=256, lr=3e-3)
    sae = build(config.sae, d, seed=0)
    sae.prepare(TrainingPlan(n_steps, 256))

    def recovered() -> torch.Tensor:
        return (sae.W_dec.detach() @ directions.T).amax(0) > 0.9

    assert recovered().sum() == 0
    train(
        config,
        {"": sae},
        ActivationStream(MemoryActivations(x, torch.arange(len(x)), 0), 256),
        n_steps,
        tmp_path,
    )
    steps = [line for line in read_log(tmp_path) if "event" not in line]
    assert steps[0]["fve"] < 0.3
    assert steps[-1]["fve"] > 0.98
    assert steps[-1]["loss"] < 0.2 * steps[0]["loss"]
    assert recovered()[:6].sum() >= 5, "parents"
    assert recovered()[6:].sum() >= 15, "children"
    # Below a parent's feature hang features of its own children, far more often than the 1 in 9 of the first forest.
    alike = sae.W_dec.detach() @ directions.T > 0.9
    under = [
        bool((alike[:, c] & alike[:, (c - 6) // 3][sae.parent] & (sae.parent >= 0)).any())
        for c in range(6, 24)
    ]
    assert sum(under) >= 8


def test_a_loss_that_is_not_finite_is_told(tmp_path: Path) -> None:
    config = synthetic_config(batch_size=8, lr=1e-3)
    sae = build(config.sae, 16, seed=0)
    sae.prepare(TrainingPlan(5, 8))
    x = torch.full((16, 16), 1e30)
    with pytest.raises(UserError, match=r"step 1: the loss is (nan|inf); lower optim\.lr = 0\.001"):
        train(config, {"": sae}, ActivationStream(MemoryActivations(x, torch.arange(16), 0), 8), 5, tmp_path)
    assert not (tmp_path / "sae").exists()


# Where a run may land


def test_a_folder_in_use_is_left_alone(tiny_config: MakeConfig, tmp_path: Path, finished_run: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt", finished_run):
        with pytest.raises(UserError, match=r"exists and is not empty|is a file"):
            run_training(tiny_config(seed=1), out)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_empty_folder_will_do(tiny_config: MakeConfig, tmp_path: Path, finished_run: Path) -> None:
    (tmp_path / "run").mkdir()
    run_training(tiny_config(), tmp_path / "run")
    assert_same_run(finished_run, tmp_path / "run")


FAILED_STARTS: dict[str, dict[str, Any]] = {
    "unknown model": {"model": "/nowhere/at/all"},
    "unknown site": {"site": "blocks.7.hook_resid_post"},
    "missing text": {"data": "/nowhere/text.txt"},
    "too few tokens": {"tokens": 100, "epochs": 1},
    "too few activations": {"tokens": 128, "epochs": 1},
    "too few activations on disk": {"tokens": 128, "epochs": 1, "activations": {"store": "disk"}},
}


@pytest.mark.parametrize("exists", [False, True], ids=["new folder", "empty folder"])
@pytest.mark.parametrize("why", FAILED_STARTS)
def test_a_failed_start_leaves_nothing_behind(
    why: str, exists: bool, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    if exists:
        out.mkdir()
    with pytest.raises(UserError) as error:
        run_training(tiny_config(**FAILED_STARTS[why]), out)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.rglob("*")] == (["run"] if exists else [])


def test_ctrl_c_while_harvesting_leaves_nothing_behind(tiny_config: MakeConfig, tmp_path: Path) -> None:
    from saeforest.activations import ActivationReader

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ActivationReader, "read", stop)
        with pytest.raises(KeyboardInterrupt):
            run_training(tiny_config(activations={"store": "disk"}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# Harvested activations


@pytest.fixture(scope="module")
def harvested(tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, folder = tiny_config(), tmp_path_factory.mktemp("harvest") / "store"
    reader = open_reader(config)
    tokens = read_tokens(config, reader, "train", config.tokens)
    config = settle_positions(config, reader, tokens)
    harvest_folder(reader, tokens, folder, about_activations(config, tokens, reader.lm.identity))
    return folder


def test_harvested_activations_train_like_a_store_on_disk(
    harvested: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    run_training(tiny_config(activations={"store": "disk"}), tmp_path / "disk")
    before = {p.name: p.read_bytes() for p in harvested.iterdir()}
    # Another share held out, say: the SAE would be measured on text that it was trained on.
    else_where = {"text": {"context": 16, "held_out": 0.5}, "activations": {"exclude_first": False}}
    run = run_training(tiny_config(data=str(harvested), **else_where), tmp_path / "run")
    ours, theirs = (
        load_config(tmp_path / "run" / "config.yaml"),
        load_config(tmp_path / "disk" / "config.yaml"),
    )
    assert (ours.text, ours.tokens) == (theirs.text, theirs.tokens)
    assert ours.activations.exclude_first
    assert ours.activations.max_norm == theirs.activations.max_norm
    for name, tensor in weights(tmp_path / "disk").items():
        assert torch.equal(weights(tmp_path / "run")[name], tensor), name
    assert {p.name: p.read_bytes() for p in harvested.iterdir()} == before
    assert run.tokens.ids[0, 0] != EOS


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "OTHER"}, "set model to "),
        ({"site": "blocks.0.hook_resid_post"}, "set site to blocks.1.hook_resid_post"),
    ],
    ids=str,
)
def test_harvested_activations_of_something_else_are_refused(
    changes: dict[str, Any],
    says: str,
    harvested: Path,
    tiny_config: MakeConfig,
    tmp_path: Path,
) -> None:
    if "model" in changes:  # one of the same shape
        other = save_llama(tmp_path / "other", damage=lambda model: model.lm_head.weight.data.mul_(1.5))
        changes = {"model": str(other)}
    with pytest.raises(UserError) as error:
        run_training(tiny_config(data=str(harvested), **changes), tmp_path / "run")
    assert says in str(error.value)
    assert str(harvested) in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["model", "site", "data", "context", "held_out", "max_norm"])
def test_a_store_that_does_not_say_what_it_is_of_is_refused(
    key: str, harvested: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    shutil.copytree(harvested, folder)
    edit_json(folder / "activations.json", lambda manifest: manifest.pop(key))
    with pytest.raises(UserError, match=f"activations.json.*{key}"):
        run_training(tiny_config(data=str(folder)), tmp_path / "run")


# Stores


def test_auto_keeps_what_fits_in_memory(tiny_config: MakeConfig) -> None:
    one, two = (
        tiny_config(epochs=1, activations={"store": "auto"}),
        tiny_config(activations={"store": "auto"}),
    )
    assert choose_store(one, 10_000, 64, 2) == "memory"
    assert choose_store(one, 10**12, 4096, 2) == "live"
    assert choose_store(two, 10**12, 4096, 2) == "disk"
    assert choose_store(tiny_config(activations={"store": "live"}), 10, 64, 2) == "live"


@pytest.fixture(autouse=True)
def _signals_are_given_back() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    yield
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
