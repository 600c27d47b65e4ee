"""The command line, end to end on a tiny model: what it writes and prints, and one line for every mistake."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import saeforest
from conftest import MakeConfig, save_llama
from edits import edit_run_config, forget_checksums
from saeforest import cli, files
from saeforest.activations.sources import open_store
from saeforest.config import load_config, save_config
from saeforest.saes import TopKConfig

FAST = {"reconstruction", "cross_entropy", "sparsity", "dead", "coverage", "cooccurrence"}
FINISHED = {"config.yaml", "model.json", "log.jsonl", "allocations.jsonl", "sae"}


@dataclass
class Said:
    status: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a command line in an empty folder, as a pipe would see it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*args: Any) -> Said:
        capfd.readouterr()
        status = cli.run([str(a) for a in args])
        out, err = capfd.readouterr()
        return Said(status, out, err)

    return run


@pytest.fixture
def fails(call: Call) -> Callable[..., str]:
    """Runs a command line that must fail with one line, which it returns, and write nothing."""

    def run(*args: Any) -> str:
        said = call(*args)
        assert said.status == 2, said
        lines = [line for line in said.err.splitlines() if not _is_news(line)]
        assert len(lines) == 1, said.err
        assert lines[0].startswith("saeforest: error: ")
        assert len(lines[0]) < 700
        assert said.out == ""
        assert list(Path.cwd().iterdir()) == []
        return lines[0].removeprefix("saeforest: error: ")

    return run


def _is_news(line: str) -> bool:
    progress = " done: " in line and line.startswith(("tokenize", "harvest", "train", "index", "measure"))
    told = ": reading " in line or "predicts a plain English text badly" in line
    return progress or told or line.endswith("has no index yet; making it, once")


@pytest.fixture
def config_file(tiny_config: MakeConfig, tmp_path: Path) -> Path:
    save_config(tiny_config(), tmp_path / "tiny.yaml")
    return tmp_path / "tiny.yaml"


@pytest.fixture
def a_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be changed."""
    return Path(shutil.copytree(finished_run, tmp_path / "a_run"))


# The frame


def test_without_a_command_the_commands_are_listed(call: Call) -> None:
    said = call()
    assert said.status == 2
    for command in cli.COMMANDS:
        assert f"saeforest {command}" in said.out + said.err
    assert call("--help").status == 0
    assert call("--version").out == f"{saeforest.__version__}\n"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command: str, call: Call) -> None:
    with pytest.raises(SystemExit) as stop:
        call(command, "--help")
    assert stop.value.code == 0


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["trian"], "command 'trian': expected one of"),
        (["trian"], "did you mean train?"),
        (["train", "dmo"], "preset 'dmo'"),
        (["train", "dmo"], "did you mean demo?"),
        (["train", "--tokenz", "5"], "--tokenz"),
        (["train", "--tokens", "many"], "--tokens"),
        (["train", "--tokens"], "--tokens"),
        (["train", "--optim.lr", "fast"], "--optim.lr"),
        (["train", "--lm.dtype", "float16"], "--lm.dtype"),
        (["train", "--sae.layer-sizes", "5", "x"], "--sae.layer-sizes"),
        (["train", "--tokens", "0"], "tokens = 0"),
        (["train", "--config"], "--config"),
        (["train", "--config", "/nowhere.yaml"], "/nowhere.yaml: no such file"),
        (["train", "demo", "--config", "x.yaml"], "give one of them"),
        (["train", "--resume", "--out", "nothing"], "nothing: nothing to resume; expected a folder"),
        (["train", "--resume"], "runs/demo: nothing to resume; expected a folder"),
        (["eval"], "RUN"),
        (["eval", "nowhere"], "nowhere"),
        (["eval", "nowhere", "--measures", "speed"], "measure 'speed'"),
        (["eval", "nowhere", "--tokens", "0"], "tokens = 0"),
        (["eval", "nowhere", "--ce-tokens", "-1"], "ce_tokens = -1"),
        (["index", "nowhere"], "nowhere"),
        (["index", "nowhere", "--tokens", "0"], "--tokens 0"),
        (["show"], "RUN"),
        (["show", "nowhere"], "nowhere"),
        (["show", "nowhere", "five"], "nowhere"),
        (["show", "nowhere", "-n", "0"], "families"),
        (["harvest"], "--out"),
        (["demo", "--tokens", "-5"], "--tokens -5"),
        (["demo", "--tokens", "x"], "--tokens"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_that_names_it(args: list[str], names: str, fails: Callable[..., str]) -> None:
    assert names in fails(*args)


# Training


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


def test_a_configuration_with_a_misspelt_key(config_file: Path, fails: Callable[..., str]) -> None:
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
        with pytest.raises(SystemExit):
            cli.run(["train", option, "jumprelu", "--help"])
        text = capsys.readouterr().out
        assert "--sae.bandwidth" in text
        assert "--sae.allocation" not in text
        assert "--architecture {tree,hsae,topk,batchtopk," in text


# What a finished run goes through


def test_from_text_to_the_terminal(config_file: Path, call: Call, tiny_text: Path) -> None:
    """train, eval, index, show, harvest, train on what was harvested, eval."""
    said = call("train", "--config", config_file, "--out", "run")
    assert said.status == 0
    assert " show run FEATURE" in said.out
    assert {p.name for p in Path("run").iterdir()} == FINISHED
    sae = saeforest.load("run/sae")
    assert sae.forest.layer_sizes == (8, 40, 64)
    x = torch.randn(5, 16)
    assert sae(x).shape == x.shape
    assert sae.encode(x).ids.shape == (5, 7)

    said = call("eval", "run", "--tokens", "1600", "--ce-tokens", "320")
    assert said.status == 0, said.err
    check_records(Path("run/eval"), data=str(tiny_text))
    assert "fve" in said.out

    assert call("index", "run", "--tokens", "2000").status == 0
    families = call("show", "run")
    assert families.status == 0
    assert families.err == ""
    assert len(families.out) > 20
    for feature in (0, 8, 111):
        shown = call("show", "run", feature)
        assert shown.status == 0
        assert str(feature) in shown.out
        assert "\x1b" not in shown.out + families.out

    config = load_config(config_file)
    options = ["--model", config.model, "--site", config.site, "--data", config.data, "--tokens", 3072]
    options += ["--text.context", 32, "--text.held-out", 0.2, "--lm.dtype", "float32", "--device", "cpu"]
    said = call("harvest", *options, "--out", "store")
    assert said.status == 0
    store = open_store(Path("store"))
    assert said.out.startswith(f"{store.n_rows:,} activations in store")
    again = call("harvest", *options, "--out", "store")
    assert (again.status, again.out.splitlines()[0]) == (0, said.out.splitlines()[0])
    assert "store: this harvest is complete; nothing is left to do" in again.err
    assert call("harvest", *options, "--seed", "1", "--data-seed", "7", "--out", "store").status == 2

    assert call("train", "--config", config_file, "--data", "store", "--out", "second").status == 0
    assert {p.name for p in Path("second").iterdir()} == FINISHED
    said = call("eval", "second", "--tokens", "1600", "--ce-tokens", "320")
    assert said.status == 0, said.err
    check_records(Path("second/eval"))
    assert {p.name for p in Path.cwd().iterdir()} == {"run", "second", "store"}


def check_records(folder: Path, data: str | None = None) -> None:
    assert {p.stem for p in folder.iterdir()} == FAST
    found = {p.stem: json.loads(p.read_text()) for p in folder.iterdir()}
    for name, record in found.items():
        assert {"measure", "value", "interval", "unit", "tokens", "settings"} <= set(record)
        assert record["measure"] == name
        assert record["value"]
        assert record["interval"].keys() == record["value"].keys()
        assert 0 < record["tokens"] <= 1600
        assert record["settings"]
        for value, interval in zip(record["value"].values(), record["interval"].values(), strict=True):
            if value is not None and interval is not None:
                assert interval[0] <= interval[1]
    assert {"fve", "fve_legacy"} <= set(found["reconstruction"]["value"])
    assert {"clean", "spliced", "ablated", "ce_loss_score"} <= set(found["cross_entropy"]["value"])
    assert 0 < found["reconstruction"]["value"]["fve"] < 1
    # The gate: a child fires only where its parent does.
    assert found["coverage"]["value"]["edges_measured"] > 5
    assert found["coverage"]["value"]["min"] == 1
    if data:
        assert data in json.dumps(found["reconstruction"]["settings"])


def test_show_makes_a_missing_index_once(a_run: Path, call: Call) -> None:
    said = call("show", a_run, 3)
    assert said.status == 0
    assert "has no index yet; making it, once" in said.err
    assert (a_run / "index").is_dir()
    assert call("show", a_run, 3).err == ""


@pytest.mark.parametrize("feature", ["112", "-1", "1000000"])
def test_a_feature_out_of_range(feature: str, finished_run: Path, fails: Callable[..., str]) -> None:
    assert feature in fails("show", finished_run, feature)
    assert not (finished_run / "index").exists()


# Damaged runs

COMMANDS = [["show"], ["show", "3"], ["eval"], ["index"]]


def on(command: list[str], run: Path) -> list[Any]:
    return [command[0], run, *command[1:]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_damaged_weights_name_their_file(command: list[str], a_run: Path, fails: Callable[..., str]) -> None:
    file = a_run / "sae" / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    assert str(file) in fails(*on(command, a_run))
    assert {p.name for p in a_run.iterdir()} == FINISHED


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_weights_with_a_nan_name_their_file(
    command: list[str], a_run: Path, fails: Callable[..., str]
) -> None:
    file = a_run / "sae" / "sae_weights.safetensors"
    weights = load_file(file)
    weights["W_dec"][3, 3] = float("nan")
    save_file(weights, file)
    assert "does not match its checksum" in fails(*on(command, a_run))
    forget_checksums(file.parent)
    assert "tensor 'W_dec' holds NaN" in fails(*on(command, a_run))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("missing", ["config.yaml", "sae", "sae/cfg.json"])
def test_a_run_without_a_part_of_it(
    missing: str, command: list[str], a_run: Path, fails: Callable[..., str]
) -> None:
    path = a_run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert str(a_run) in fails(*on(command, a_run))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_sae_of_another_width_than_the_site(
    command: list[str], a_run: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """config.yaml was edited to another model."""
    other = save_llama(tmp_path / "wide", width=24)
    edit_run_config(a_run, model=str(other))
    said = fails(*on(command, a_run))
    assert "has width 24, but the SAE's is 16" in said
    assert {p.name for p in a_run.iterdir()} == FINISHED


def test_a_model_that_is_gone(a_run: Path, fails: Callable[..., str]) -> None:
    edit_run_config(a_run, model="/gone/model")
    assert "/gone/model" in fails("eval", a_run)


def test_too_little_held_out_text(a_run: Path, fails: Callable[..., str]) -> None:
    assert "one window of context 32" in fails("eval", a_run, "--tokens", "5")


def test_an_index_of_another_sae_is_told(a_run: Path, finished_run: Path, call: Call) -> None:
    assert call("index", a_run, "--tokens", "640").status == 0
    file = a_run / "sae" / "sae_weights.safetensors"
    weights = load_file(file)
    weights["W_dec"] = weights["W_dec"].roll(1, 0).contiguous()
    save_file(weights, file)
    said = call("show", a_run)
    assert said.status == 2
    assert "index" in said.err
    assert len(said.err.splitlines()) == 1


# The demo, on the real model


@pytest.mark.model
def test_the_demo_on_the_embedded_model(call: Call) -> None:
    said = call("demo", "--out", "demo", "--tokens", "10000", "--eval-tokens", "2000")
    assert said.status == 0, said.err
    sae = saeforest.load("demo/sae")
    assert sae.d_in == 576
    assert sae.forest.layer_sizes == (384, 768, 2304, 2688)
    records = {p.stem: json.loads(p.read_text()) for p in Path("demo/eval").iterdir()}
    assert set(records) == FAST
    coverage = records["coverage"]["value"]
    assert coverage["min"] == 1
    assert coverage["edges_measured"] > 500
    assert 0.3 < records["reconstruction"]["value"]["fve"] < 1
    assert "fve" in said.out
    assert "Next:" in said.out
    assert "\x1b" not in said.out
    assert re.search(r"famil(y|ies)", said.out)
    assert {p.name for p in Path("demo").iterdir()} - {"allocations.jsonl"} == (
        FINISHED - {"allocations.jsonl"} | {"eval", "index"}
    )
    shown = call("show", "demo", 400)
    assert shown.status == 0
    assert "400" in shown.out


# synthetic


def test_synthetic_scores_every_system_for_every_seed(call: Call) -> None:
    """Some steps only: that they run, and what is written. What they recover is in docs/results/synthetic.md."""
    systems = "tree,tree-any-parent,hsae,hsae-baseline,topk,batchtopk,matryoshka,jumprelu,matching_pursuit"
    args = ["--seeds", "2", "--seed", "3", "--steps", "12", "--batch-size", "64", "--held-out", "500"]
    said = call("synthetic", "matryoshka", "--systems", systems, *args, "--out", "found")
    assert said.status == 0, said.err
    found = json.loads(Path("found/recovery.json").read_text())
    assert set(systems.split(",")) <= set(found)
    assert {"topk+coverage", "topk+mcs", "topk+reconstruction"} <= set(found)
    for name, scores in found.items():
        assert {"fve", "l0", "mcc_truth", "edge_f1", "ancestor_f1", "absorption", "hierarchy"} <= set(
            scores
        ), name
        for score in scores.values():
            assert len(score["values"]) == 2
            known = sorted(v for v in score["values"] if v is not None)
            assert score["median"] == (pytest.approx(sum(known) / len(known)) if known else None)
    assert found["tree"]["coverage_min"]["median"] == 1
    assert "edge F1" in said.out
    assert all(name in said.out for name in systems.split(","))
    assert "..." not in said.out, "it must fit a terminal of 100 columns"
    again = call("synthetic", "matryoshka", "--systems", "topk", *args, "--out", "again")
    assert again.status == 0
    assert json.loads(Path("again/recovery.json").read_text())["topk+mcs"] == found["topk+mcs"]


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["nowhere"], "generator 'nowhere': expected one of matryoshka"),
        (["matryoshkas"], "did you mean matryoshka?"),
        (["tree", "--systems", "tree,forest"], "system 'forest': expected some of tree"),
        (["tree", "--systems", "tree,tree"], "expected different names"),
        (["tree", "--systems", ","], "expected different names"),
        (["tree", "--seeds", "0"], "--seeds 0"),
        (["tree", "--steps", "0"], "steps = 0"),
        (["tree", "--size", "-1"], "size = -1"),
        (["tree", "--l0", "-3"], "l0 = -3"),
        (
            ["tree", "--size", "0.1", "--systems", "topk,tree"],
            "system tree with size 0.1 and l0 None: sae.k_per",
        ),
        ([], "GENERATOR"),
    ],
)
def test_synthetic_mistakes(args: list[str], names: str, fails: Callable[..., str]) -> None:
    assert names in fails("synthetic", *args)
