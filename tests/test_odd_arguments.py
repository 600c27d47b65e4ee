"""Numbers and names on the command line that nothing can be done with: one line and status 2, at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from saeforest import cli
from saeforest.config import TrainConfig, save_config

MakeConfig = Callable[..., TrainConfig]
DIGITS = "9" * 5_000


def one_line(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.run(argv) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("saeforest: error: ")]
    assert len(errors) == 1
    assert "Traceback" not in out + err
    assert len(errors[0]) < 1_000
    return errors[0]


@pytest.mark.parametrize("feature", [DIGITS, "-1", "1e3", "²", "٣٣٣٣", "x", "", "0x1", "\x1b[2J"])
def test_features(feature: str, finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "feature" in one_line(capsys, "show", str(finished_run), "--", feature).lower()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--tokens", DIGITS), ("--tokens", "1e30"), ("--tokens", "nan"), ("--tokens", str(10**18)),
        ("--epochs", DIGITS), ("--epochs", str(10**16)), ("--seed", "-1"), ("--seed", DIGITS), ("--log-every", "0"),
        ("--lm.batch-size", "1e30"), ("--lm.batch-size", str(10**30)), ("--text.context", str(10**12)),
        ("--optim.batch-size", str(10**12)), ("--optim.lr", "nan"), ("--optim.lr", "1e999"),
        ("--checkpoint-minutes", "inf"), ("--activations.max-norm", "nan"), ("--device", "meta"),
        ("--device", "cuda:99"), ("--device", "x" * 5_000), ("--model", "x" * 5_000), ("--data", "x" * 5_000),
        ("--site", "x" * 5_000),
    ],
)  # fmt: skip
def test_training(
    option: str, value: str, tiny_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(tiny_config(), tmp_path / "c.yaml")
    one_line(
        capsys, "train", "--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run"), option, value
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--size", "nan"), ("--size", "1e10"), ("--size", "inf"), ("--steps", str(10**16)), ("--lr", "nan"),
        ("--batch-size", str(10**12)), ("--l0", "nan"), ("--l0", "inf"), ("--held-out", str(10**12)),
        ("--seeds", DIGITS), ("--seed", "x"),
    ],
)  # fmt: skip
def test_synthetic(option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_line(capsys, "synthetic", "tree", "--out", str(tmp_path / "out"), option, value)


def test_a_size_that_no_machine_has_the_memory_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four bytes for each of 16 weights of 2^31 features, twice, and the same again for their gradients."""
    options = ["--size", "1e9", "--systems", "topk", "--steps", "1"]
    said = one_line(capsys, "synthetic", "tree", *options, "--out", str(tmp_path / "out"))
    assert "features; expected at most" in said or "not enough memory" in said
