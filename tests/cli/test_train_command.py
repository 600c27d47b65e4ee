"""`saeforest train`, end to end on a tiny model."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import saeforest
from saeforest import cli, files
from saeforest.config import load_config
from saeforest.saes import TopKConfig

from .said import Call


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--model", "/nowhere/model"], "model '/nowhere/model'"),
        (["--site", "blocks.9.hook_resid_post"], "blocks.9.hook_resid_post"),
        (["--site", "blocks.1.hook_resid_pots"], "did you mean blocks.1.hook_resid_post"),
        (["--data", "/nowhere/text.txt"], "/nowhere/text.txt"),
        (["--device", "gpu"], "device 'gpu'"),
        (
            ["--sae.k-per-layer", "1", "1"],
            "sae.k_per_layer [1, 1] has 2 entries but sae.layer_sizes [8, 40, 64] has 3",
        ),
        (["--sae.k-per-layer", "9", "1", "1"], "sae.k_per_layer[0] = 9: expected 1 to 8"),
        (["--sae.aux.layers", "5"], "sae.aux.layers names layer 5"),
        (["--tokens", "100", "--epochs", "1"], "are fewer than one batch (optim.batch_size = 128)"),
        (["--tokens", "10", "--epochs", "100"], "are fewer than one batch (optim.batch_size = 128)"),
        (["--text.context", "100000"], "100000"),
        (["--optim.beta1", "1.0"], "optim.beta1 = 1.0"),
        (["--seed", "-1"], "seed = -1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_run_that_cannot_start_says_why(
    options: list[str], names: str, config_file: Path, fails: Callable[..., str]
) -> None:
    assert names in fails("train", "--config", config_file, "--out", "out/run", *options)


def test_a_configuration_with_a_misspelled_key(config_file: Path, fails: Callable[..., str]) -> None:
    config_file.write_text(config_file.read_text().replace("epochs:", "epoch:"))
    assert f"{config_file}: unknown key 'epoch'" in fails("train", "--config", config_file, "--out", "run")


def test_a_folder_in_use(config_file: Path, a_run: Path, fails: Callable[..., str]) -> None:
    before = sorted(a_run.rglob("*"))
    said = fails("train", "--config", config_file, "--out", a_run, "--seed", "1")
    assert f"{a_run}: exists and is not empty: it holds a finished run with seed = 0, not 1" in said
    assert sorted(a_run.rglob("*")) == before


def test_a_run_that_is_complete_is_left_as_it_is(config_file: Path, a_run: Path, call: Call) -> None:
    before = {p: p.read_bytes() for p in a_run.rglob("*") if p.is_file()}
    for how in (["--resume"], ["--config", config_file]):
        said = call("train", *how, "--out", a_run)
        assert (said.status, said.err) == (0, f"{a_run}: this run is complete; nothing is left to do\n")
    assert {p: p.read_bytes() for p in a_run.rglob("*") if p.is_file()} == before


def test_a_dry_run_tells_sizes_and_writes_nothing(config_file: Path, call: Call) -> None:
    said = call("train", "--config", config_file, "--out", "run", "--dry-run")
    assert said.status == 0
    text = " ".join((said.out + said.err).split())
    for part in (
        "width 16",
        "112 features in 3 layers [8, 40, 64]",
        "k [3, 2, 2]",
        "at most 3,072 tokens, 2 epoch(s)",
    ):
        assert part in text
    for part in ("of 128 activations", "MiB", "language model", "min", "memory"):
        assert part in text
    assert list(Path.cwd().iterdir()) == []


def test_the_disk_being_full_is_one_line(
    config_file: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x.safetensors")

    monkeypatch.setattr(files, "save_file", full)
    said = call("train", "--config", config_file, "--out", "run")
    assert said.status == 2
    assert "x.safetensors: No space left on device" in said.err.splitlines()[-1]
    assert not Path("run/sae").exists()


def test_ctrl_c_and_resume(config_file: Path, call: Call, finished_run: Path) -> None:
    import signal

    from saeforest.saes import Training

    after_step = Training.after_step

    def stopping(self: Any, step: Any, number: int) -> Any:
        if number == 20:
            signal.raise_signal(signal.SIGINT)
        return after_step(self, step, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "after_step", stopping)
        said = call("train", "--config", config_file, "--out", "run")
    assert said.status == 130
    last = said.err.splitlines()[-1]
    assert last.startswith("stopped after step 20 of 46; a checkpoint is saved")
    assert last.endswith("train --resume --out run")
    assert "Traceback" not in said.err
    assert "no trained SAE yet" in call("show", "run").err
    assert call("train", "--resume", "--out", "run").status == 0
    assert (Path("run/sae/sae_weights.safetensors")).read_bytes() == (
        finished_run / "sae" / "sae_weights.safetensors"
    ).read_bytes()


def test_a_system_is_chosen_by_name(config_file: Path, call: Call) -> None:
    """Over a configuration of another system: its own defaults, and its own options."""
    sizes = ["--sae.layer-sizes", "32", "--sae.k-per-layer", "4", "--sae.encoder-bias"]
    said = call("train", "--config", config_file, "--architecture", "topk", *sizes, "--tokens", "1024")
    assert said.status == 0, said.err
    config = load_config(Path("runs/tiny-topk/config.yaml"))
    assert config.sae == TopKConfig(layer_sizes=(32,), k_per_layer=(4,), encoder_bias=True)
    assert saeforest.load("runs/tiny-topk/sae").forest.layer_sizes == (32,)


def test_the_help_lists_the_options_of_the_system(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--architecture", "--sae.architecture"):
        assert cli.run(["train", option, "jumprelu", "--help-all"]) == 0
        text = capsys.readouterr().out
        assert "--sae.bandwidth" in text
        assert "--sae.allocation" not in text
        assert "System to train: tree," in text
