"""Several SAEs of a run: on the same activations, each as if it were alone."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import saeforest
from sae_cases import small
from saeforest import InputError, cli, saes
from saeforest.config import MemberConfig, TrainConfig, load_config, save_config
from saeforest.presets import PRESETS
from saeforest.run_folder import RunFolder
from saeforest.saes import (
    AuxConfig,
    BatchTopKConfig,
    HSAEConfig,
    JumpReLUConfig,
    MatchingPursuitConfig,
    MatryoshkaConfig,
    ParentsConfig,
    SystemConfig,
    TopKConfig,
)
from saeforest.training import Interrupted, loop, run_training
from saeforest.training.log import read_log
from saeforest.training.run import resume_config

MakeConfig = Callable[..., TrainConfig]

AUX = AuxConfig(k=4, detach=True, bias=False)
SYSTEMS: dict[str, SystemConfig] = {
    "topk": TopKConfig((48,), (5,), encoder_bias=True, aux=AUX, dead_after_tokens=512),
    "batchtopk": BatchTopKConfig((48,), (5,), aux=AUX, dead_after_tokens=512),
    "matryoshka": MatryoshkaConfig((8, 40), (5,), aux=AUX, dead_after_tokens=512),
    "matryoshka-batch": MatryoshkaConfig((8, 40), (5,), selection="batch", dead_after_tokens=512),
    "jumprelu": JumpReLUConfig((48,), (5,), dead_after_tokens=512),
    "hsae": HSAEConfig((8, 16, 24), (4, 4, 4), hierarchy=ParentsConfig(period=8), perturbation=0.3),
    "hsae-baseline": HSAEConfig(
        (8, 16), (4, 4), constraint=0.0, perturbation=0.0, hierarchy=ParentsConfig(updates="after")
    ),
    "pursuit": MatchingPursuitConfig((48,), (5,)),
}
SYSTEMS |= {
    name: small(name)
    for name in saes.SYSTEMS
    if name not in {"tree", *(config.architecture for config in SYSTEMS.values())}
}


def several(config: TrainConfig) -> TrainConfig:
    """Every system, and the Tree SAE of the configuration, in one run."""
    members = {name: MemberConfig(sae, config.optim, seed=i) for i, (name, sae) in enumerate(SYSTEMS.items())}
    return replace(config, saes={"tree": MemberConfig(config.sae, config.optim), **members})


@pytest.fixture(scope="module")
def run(tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("several") / "run"
    run_training(several(tiny_config()), out)
    return out


@pytest.mark.parametrize("name", ["tree", *SYSTEMS])
def test_alone_or_among_others_an_sae_is_the_same(
    name: str, run: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    """Bit for bit: weights, log and what dead features did."""
    alone = several(tiny_config()).members()[name]
    run_training(alone, tmp_path / "alone")
    for file in ("sae_weights.safetensors", "cfg.json"):
        assert (run / "sae" / name / file).read_bytes() == (tmp_path / "alone" / "sae" / file).read_bytes()

    def told(folder: Path) -> list[dict[str, Any]]:
        times = ("tokens_per_s", "seconds", "peak_memory_mb")
        lines = [line for line in read_log(folder) if line.get("event") != "finished"]
        return [{k: v for k, v in line.items() if k not in times} for line in lines]

    assert told(RunFolder(run).logs(name)) == told(tmp_path / "alone")


def test_every_sae_has_its_folder_and_its_log(run: Path) -> None:
    names = ["tree", *SYSTEMS]
    assert sorted(p.name for p in (run / "sae").iterdir()) == sorted(names)
    assert sorted(p.name for p in (run / "logs").iterdir()) == sorted(names)
    assert not (run / "checkpoints").exists()
    config = load_config(run / "config.yaml")
    for name, member in config.members().items():
        sae = saeforest.load(run / "sae" / name)
        assert sae.config.architecture == member.sae.architecture
        assert sae.config.layer_sizes == member.sae.layer_sizes
        x = torch.randn(7, sae.d_in)
        code = sae.encode(x)
        assert torch.equal(sae(x), sae.decode(*sae.encode_with_stats(x)))
        assert int(code.ids.max()) < sae.d_sae
        last = [line for line in read_log(RunFolder(run).logs(name)) if "event" not in line][-1]
        assert len(last["l0"]) == len(last["dead"]) == len(sae.config.layer_sizes)
        assert sae.metadata["seed"] == member.seed


def test_a_file_repeats_the_run(run: Path, tmp_path: Path) -> None:
    run_training(load_config(run / "config.yaml"), tmp_path / "again")
    for path in (run / "sae").rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(run)).read_bytes()


def test_a_stopped_run_goes_on_exactly(
    run: Path, tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    step = loop.Trainee.step

    def stopping(self: loop.Trainee, *batch: Any) -> Any:
        if self.training.done == 20 and self.name == "pursuit":
            signal.raise_signal(signal.SIGINT)
        return step(self, *batch)

    monkeypatch.setattr(loop.Trainee, "step", stopping)
    with pytest.raises(Interrupted, match="after step 21"):
        run_training(several(tiny_config()), out)
    monkeypatch.undo()
    run_training(resume_config(RunFolder(out)), out, resume=True)
    for path in (run / "sae").rglob("*.safetensors"):
        theirs = load_file(out / path.relative_to(run))
        for name, tensor in load_file(path).items():
            assert torch.equal(tensor, theirs[name]), (path, name)


# The command line


def test_presets_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "demo", "tree-4layer", "--out", str(tmp_path / "run")]) == 2
    assert "presets demo and tree-4layer: model is smollm2-135m for one and gpt2" in capsys.readouterr().err
    assert cli.run(["train", "demo", "demo", "--out", str(tmp_path / "run")]) == 2
    assert "for several seeds give seeds" in capsys.readouterr().err
    assert cli.run(["train", "demo", "demo-topk", "--optim.lr", "0.1", "--out", str(tmp_path / "run")]) == 2
    assert "there are several" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_train_and_measure_several_by_the_command_line(
    tiny_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = tiny_config(sae=SYSTEMS["topk"], tokens=1024), tmp_path / "run"
    save_config(config, tmp_path / "tiny.yaml")
    args = ["train", "--config", str(tmp_path / "tiny.yaml"), "--seeds", "3", "7", "--out", str(out)]
    assert cli.run(args) == 0
    said = capsys.readouterr().out
    assert "tiny-seed-3: FVE" in said
    assert "tiny-seed-7: FVE" in said
    a, b = (saeforest.load(out / "sae" / f"tiny-seed-{seed}") for seed in (3, 7))
    assert not torch.equal(a.encoder, b.encoder)
    assert cli.run(["eval", str(out), "--tokens", "512", "--ce-tokens", "128"]) == 0
    capsys.readouterr()
    record = json.loads((out / "eval" / "tiny-seed-7" / "reconstruction.json").read_text())
    assert record["settings"]["seed"] == 7
    assert cli.run(["show", str(out)]) == 2
    assert "holds several SAEs; give --sae with one of tiny-seed-3, tiny-seed-7" in capsys.readouterr().err
    assert cli.run(["show", str(out), "--sae", "tiny-seed-3"]) == 0
    assert (out / "index" / "tiny-seed-3").is_dir()
    assert cli.run(["show", str(out), "--sae", "tiny-seed-4"]) == 2


# Mistakes


def test_batches_of_different_sizes(tiny_config: MakeConfig) -> None:
    config = tiny_config()
    other = MemberConfig(config.sae, replace(config.optim, batch_size=64))
    with pytest.raises(InputError, match=r"saes\.b\.optim\.batch_size = 64: .* expected 128"):
        replace(config, saes={"a": MemberConfig(config.sae, config.optim), "b": other})


@pytest.mark.parametrize("name", ["", "a/b", "..", "ü", "a b"])
def test_names_are_names_of_folders(name: str, tiny_config: MakeConfig) -> None:
    config = tiny_config()
    with pytest.raises(InputError, match="expected letters, digits"):
        replace(config, saes={name: MemberConfig(config.sae, config.optim)})


def test_a_mistake_in_one_of_several_names_it(tiny_config: MakeConfig, tmp_path: Path) -> None:
    save_config(several(tiny_config()), tmp_path / "c.yaml")
    text = (tmp_path / "c.yaml").read_text()
    (tmp_path / "c.yaml").write_text(text.replace("residual_tolerance: 0.005", "residual_tolerance: soon"))
    with pytest.raises(InputError, match=r"saes\.pursuit\.sae\.residual_tolerance'"):
        load_config(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text(text.replace("architecture: hsae", "architecture: hase", 1))
    with pytest.raises(InputError, match=r"saes\.hsae\.sae\.architecture': expected one of tree, hsae"):
        load_config(tmp_path / "c.yaml")


def test_every_preset_can_be_written_and_read(tmp_path: Path) -> None:
    for name, config in PRESETS.items():
        save_config(config, tmp_path / "c.yaml")
        assert load_config(tmp_path / "c.yaml") == config, name


def test_presets_hold_what_the_papers_print() -> None:
    """docs/spec/tree-sae.md#sizes: L0 adds up, layer by layer, and sizes to 6,144, 24,576 and 49,152."""
    sizes, levels = {"6k": 6_144, "49k": 49_152}, {"6k": 8, "49k": 64}
    for name, config in PRESETS.items():
        if not name.startswith(("tree-", "topk", "matryoshka-", "matching-")):
            continue
        parts = name.split("-")
        size = next((sizes[part] for part in parts if part in sizes), 24_576)
        l0 = next((levels[part] for part in parts if part in levels), 32)
        if "l0" in parts:
            l0 = int(parts[parts.index("l0") + 1])
        assert sum(config.sae.layer_sizes) == size, name
        assert sum(config.sae.k_per_layer) == l0, name


@pytest.mark.parametrize("place", ["", "sae"])
def test_loading_a_run_of_several_names_them(place: str, run: Path) -> None:
    with pytest.raises(InputError, match=r"holds several SAEs; give one of its folders: batchtopk, "):
        saeforest.load(run / place)
