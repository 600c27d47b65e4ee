"""Numbers and names on the command line that nothing can be done with: one line and status 2, at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from saeforest import cli
from saeforest.config import TrainConfig, save_config
from saeforest.saes import SYSTEMS

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


SYSTEM_NAMES = ", ".join(SYSTEMS)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("train --lm.dtype float16", "--lm.dtype float16: expected one of auto, float32, bfloat16"),
        ("train --text.bos=maybe", "--text.bos maybe: expected one of auto, yes, no"),
        ("train --sae.allocation.growth triple", "--sae.allocation.growth triple: expected one of double, add"),
        ("train --architecture tpok", f"--architecture tpok: expected one of {SYSTEM_NAMES}; did you mean topk?"),
        ("train --sae.architecture=x", f"--sae.architecture x: expected one of {SYSTEM_NAMES}"),
        ("train --architecture", "--architecture: expected a value behind it"),
        ("train --architecture topk --sae.allocation.growth add", "--sae.allocation.growth: no such option"),
        ("train --tokens many", "--tokens many: expected a whole number"),
        ("train --tokens 5 --tokens=1e6 --seed 3", "--tokens 1e6: expected a whole number"),
        ("train --optim.lr fast", "--optim.lr fast: expected a number"),
        ("train --optim.lr --tokens 5", "--optim.lr: expected a value behind it"),
        ("train --sae.layer_sizes 5 x", "--sae.layer-sizes 5 x: expected whole numbers"),
        ("train --activations.max-norm x", "--activations.max-norm x: expected None or a number"),
        ("train --sae.aux.layers a", "--sae.aux.layers a: expected None or whole numbers"),
        (
            "train --sae.normalize-activations batch",
            "--sae.normalize-activations batch: expected layer_norm, constant_norm_rescale, none, dataset_scale or a "
            "number",
        ),
        ("train --sae.aux.coefficient 1 x", "--sae.aux.coefficient 1 x: expected a number or numbers"),
        ("train --tokenz 5", "--tokenz: no such option; did you mean --tokens?"),
        ("train --sae.kperlayer 5", "--sae.kperlayer: no such option; did you mean --sae.k-per-layer?"),
        ("train --learning-rate 5", "--learning-rate: no such option"),
        ("train --tokens 5 stray", "--tokens 5 stray: expected an option, not 'stray'"),
        ("train --tokens 5 demo-topk", "--tokens 5 demo-topk: expected an option, not 'demo-topk'; presets"),
        ("train --text.chat=perhaps", "--text.chat perhaps: expected an option, not 'perhaps'"),
        ("train --config=", "--config: expected a value behind it"),
        ("train demo demo-topk --architecture jumprelu", "--architecture jumprelu: sets up one SAE, but"),
        ("eval", "expected RUN"),
        ("eval run stray", "expected an option, not 'stray'"),
        ("eval run --sae", "--sae: expected a value behind it"),
        ("eval run --preset", "--preset: expected a value behind it"),
        (
            "eval run --preset saebench",
            "--preset saebench: expected one of recommended, saebench_0.6, ref_tree_sae",
        ),
        ("index run --tokens x", "--tokens x: expected None or a whole number"),
        ("show run -n x", "--families x: expected a whole number"),
    ],
    ids=lambda value: value.split(":")[0],
)  # fmt: skip
@pytest.mark.parametrize("columns", [None, "20"])
def test_a_message_names_the_option_what_was_given_and_what_is_expected(
    argv: str,
    said: str,
    columns: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However narrow the terminal is."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    command = argv.split()[0]
    message = one_line(capsys, *argv.split()).removeprefix("saeforest: error: ")
    assert message.removesuffix(f" (see `saeforest {command} --help`)").startswith(said)
    assert os.environ.get("COLUMNS") == columns


def test_a_size_that_no_machine_has_the_memory_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four bytes for each of 16 weights of 2^31 features, twice, and the same again for their gradients."""
    options = ["--size", "1e9", "--systems", "topk", "--steps", "1"]
    said = one_line(capsys, "synthetic", "tree", *options, "--out", str(tmp_path / "out"))
    assert "features; expected at most" in said or "not enough memory" in said
