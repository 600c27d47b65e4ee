"""A training log in other tools: whole, once, in one remote run however often training stopped, and never its end."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_tools import FakeRun, Tools

import saeforest
from llama_cases import MakeConfig
from lm_cases import one_line
from saeforest import InputError, cli
from saeforest.config import MemberConfig, save_config
from saeforest.saes import TopKConfig
from saeforest.sinks import feed as feeds
from saeforest.sinks.feed import Feed, Place
from saeforest.sinks.names import SINKS
from saeforest.sinks.sink import numbers
from saeforest.stopping import Interrupted
from saeforest.training import loop
from saeforest.training.log import read_log

EVERY = 5


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    """The tools' packages as fakes, and no waiting between two tries."""
    found = Tools()
    found.install(monkeypatch)
    monkeypatch.setattr(feeds, "_PAUSE_S", 0.01)
    return found


def train(out: Path, **arguments: Any) -> saeforest.TrainedRun:
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    sizes = {"layer_sizes": 8, "k_per_layer": 2}
    return saeforest.train(x, "topk", out=out, steps=30, batch_size=16, log_every=EVERY, **sizes, **arguments)


def stopped(monkeypatch: pytest.MonkeyPatch, at: int, out: Path, **arguments: Any) -> None:
    """Trains until a signal asks to stop after a step."""
    step = loop.Trainee.step

    def until(self: loop.Trainee, *batch: Any) -> Any:
        done = step(self, *batch)
        if self.training.done == at:
            signal.raise_signal(signal.SIGINT)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainee, "step", until)
        with pytest.raises(Interrupted):
            train(out, **arguments)


def expected(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """What a sink is to have of a finished log: a slow reading of its lines."""
    found = []
    for line in read_log(folder):
        if line.get("event") == "finished":
            continue
        values: dict[str, float] = {}
        start = f"{line['event']}/" if "event" in line else ""
        start += f"layer_{line['layer']}/" if "layer" in line else ""
        for key, value in line.items():
            if key in ("step", "event", "layer") or value is None:
                continue
            if isinstance(value, list):
                for i, x in enumerate(value):
                    if x is not None:
                        values[f"{start}{key}/layer_{i}"] = float(x)
                if key in ("l0", "dead"):
                    values[f"{start}{key}/total"] = float(sum(value))
            elif isinstance(value, dict):
                values |= {f"{start}{key}/{inner}": float(x) for inner, x in value.items()}
            else:
                values[start + key] = float(value)
        found.append((line["step"], values))
    return found


def only(runs: dict[str, FakeRun]) -> FakeRun:
    (run,) = runs.values()
    return run


def test_numbers_of_a_line() -> None:
    step = {
        "step": 7,
        "loss": 2,
        "reconstruction": [0.5, None],
        "l0": [1.0, 2.0],
        "fve": None,
        "seconds": {"lm": 1},
    }
    assert numbers(step) == {
        "loss": 2.0,
        "reconstruction/layer_0": 0.5,
        "l0/layer_0": 1.0,
        "l0/layer_1": 2.0,
        "l0/total": 3.0,
        "seconds/lm": 1.0,
    }
    event = {"event": "reallocation", "step": 4, "layer": 1, "moved": 3, "why": "words", "whole": True}
    assert numbers(event) == {"reallocation/layer_1/moved": 3.0}


@pytest.mark.parametrize("name", SINKS)
def test_a_run_that_is_stopped_twice_is_one_remote_run(
    name: str, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every line of log.jsonl once, in order; the same call goes on without naming the sink."""
    out = tmp_path / "run"
    stopped(monkeypatch, 13, out, log=name)
    stopped(monkeypatch, 22, out)
    train(out)
    run = only(tools.runs[name])
    assert run.logged == expected(out)
    assert len(run.logged) > 6
    assert run.opened == len(run.ends) == 3
    ends = {"wandb": [1, 1, 0], "mlflow": ["KILLED", "KILLED", "FINISHED"]}
    assert run.ends == ends.get(name, [None] * 3)
    config = run.about.get("config", run.about.get("params"))
    assert config is not None
    assert config["log_every"] in (EVERY, str(EVERY))
    if name != "tensorboard":
        assert run.about["name"].startswith("run")
        assert run.about["group"] == "run"


def test_lines_that_an_earlier_process_could_not_send(
    tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tool was away all the time: one note, and everything comes when the run goes on."""
    out = tmp_path / "run"

    def away(tool: str, what: str) -> None:
        raise ConnectionError("no route to wandb\nand more")

    monkeypatch.setattr(feeds, "PATIENCE_S", 0.1)
    monkeypatch.setattr("saeforest.training.sinks.PATIENCE_S", 0.1)
    tools.on = away
    stopped(monkeypatch, 13, out, log=["wandb", "mlflow"])
    notes = [line for line in capsys.readouterr().err.splitlines() if "no route" in line]
    assert notes == [
        f"{name}: no route to wandb; training goes on without it, and the log in log.jsonl is whole"
        for name in ("wandb", "mlflow")
    ]
    assert not tools.runs
    tools.on = lambda tool, what: None
    train(out)
    for name in ("wandb", "mlflow"):
        assert only(tools.runs[name]).logged == expected(out)


@pytest.mark.parametrize("what", ["log", "close"])
def test_a_sink_that_fails_never_ends_a_run(
    what: str, tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so once; the SAE is the one that training without it gives."""

    def fail(tool: str, now: str) -> None:
        if now == what:
            raise RuntimeError("quota exceeded")

    tools.on = fail
    run = train(tmp_path / "run", log="wandb")
    alone = train(tmp_path / "alone")
    assert torch.equal(run.sae.W_dec, alone.sae.W_dec)
    said = capsys.readouterr().err
    assert said.count("wandb: quota exceeded; training goes on") == 1
    assert ("lines of the log were not sent" in said) == (what == "log")


def test_a_sink_that_fails_for_a_while(
    tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = iter(range(3))

    def fail(tool: str, what: str) -> None:
        if what == "log" and next(failures, None) is not None:
            raise TimeoutError

    tools.on = fail
    train(tmp_path / "run", log=("trackio",))
    assert only(tools.runs["trackio"]).logged == expected(tmp_path / "run")
    said = capsys.readouterr()
    assert (
        said.err.count("trackio: TimeoutError; training goes on")
        == said.err.count("trackio: works again")
        == 1
    )
    assert "* this tool speaks on the standard output" in said.err
    assert said.out == ""


def test_a_sink_that_hangs(
    tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training does not wait for it, and at its end not for ever."""
    monkeypatch.setattr("saeforest.training.sinks.PATIENCE_S", 0.05)
    release = threading.Event()
    tools.on = lambda tool, what: what == "open" or release.wait(30)
    try:
        run = train(tmp_path / "run", log="wandb")
    finally:
        release.set()
    assert len(run.log) > 5
    assert (
        f"wandb: {len(expected(tmp_path / 'run'))} lines of the log were not sent" in capsys.readouterr().err
    )


def test_what_is_refused(tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for log, words in (
        ("swanlab", ("log = 'swanlab'", "tensorboard, trackio, wandb, mlflow")),
        (["wandb", "x"], ("log = 'x'",)),
    ):
        with pytest.raises(InputError) as info:
            train(tmp_path / "run", log=log)
        one_line(info, *words)
    with pytest.raises(InputError) as info:
        saeforest.train(torch.randn(99, 4), "topk", layer_sizes=8, k_per_layer=2, steps=2, log="wandb")
    one_line(info, "log = wandb", "give out")
    monkeypatch.undo()
    with pytest.raises(InputError) as info:
        train(tmp_path / "run", log="trackio")
    one_line(info, "a log in trackio needs the package trackio", "pip install 'saeforest[trackio]'")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_without_the_package(
    tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or with a damaged note of the remote runs: it goes on, and says what it goes without."""
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stopped(patch, 13, out, log=["wandb", "trackio"])
    state = json.loads((out / "sinks/state.json").read_text())
    assert state["sinks"].keys() == {"wandb", "trackio"}
    monkeypatch.setattr("saeforest.sinks.names.find_spec", lambda name: None if name == "wandb" else name)
    stopped(monkeypatch, 22, out)
    assert "wandb: its package is not installed; training goes on without it" in capsys.readouterr().err
    assert only(tools.runs["wandb"]).opened == 1
    monkeypatch.undo()
    tools.install(monkeypatch)
    (out / "sinks/state.json").write_text("{")
    train(out, log="wandb")
    assert "those that are given now begin new remote runs" in capsys.readouterr().err
    first, second = tools.runs["wandb"].values()
    assert second.logged == expected(out)
    assert second.logged[: len(first.logged)] == first.logged


def test_a_failed_start_leaves_nothing(tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stops before it kept anything is gone, with its sinks' files."""
    out = tmp_path / "run"

    def nan(self: loop.Trainee, *batch: Any) -> Any:
        raise InputError("the loss is NaN")

    monkeypatch.setattr(loop.Trainee, "step", nan)
    with pytest.raises(InputError, match="NaN"):
        train(out, log=SINKS)
    assert not out.exists()
    assert only(tools.runs["mlflow"]).ends == ["KILLED"]


def test_the_command(
    tools: Tools, tmp_path: Path, tiny_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several SAEs, each is a run of its own, in one group."""
    base = tiny_config(epochs=1)
    flat = TopKConfig((48,), (5,), dead_after_tokens=512)
    members = {"tree": MemberConfig(base.sae, base.optim), "topk": MemberConfig(flat, base.optim)}
    save_config(replace(base, saes=members), tmp_path / "two.yaml")
    out = tmp_path / "both"
    argv = ["train", "--config", str(tmp_path / "two.yaml"), "--out", str(out)]
    assert cli.run([*argv, "--log", "excel"]) == 2
    assert "--log excel: expected" in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()
    assert cli.run([*argv, "--json", "--log", *SINKS]) == 0
    assert json.loads(capsys.readouterr().out)["saes"].keys() == {"tree", "topk"}
    for name in SINKS:
        for id, run in tools.runs[name].items():
            place = id if name == "tensorboard" else run.about["name"]
            sae = "tree" if "tree" in place.removeprefix(str(tmp_path)) else "topk"
            assert run.logged == expected(out / "logs" / sae)
            assert any("reallocation/layer_1/moved" in values for _, values in run.logged) == (sae == "tree")
            assert name == "tensorboard" or run.about["group"] == "both"
        assert len(tools.runs[name]) == 2
    assert cli.run(["verify", str(out)]) == 0


class Slow:
    """A sink whose calls are seen, and fail as they are told to."""

    id = "slow"

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self.steps.append(step)

    def close(self, finished: bool) -> None:
        self.steps.append(-1 if finished else -2)


def test_lines_up_to_the_last_that_was_sent_are_left_out() -> None:
    """Several lines may be of one step: only those after the second of step 4 are new."""
    sink = Slow()
    feed = Feed("slow", sink, Place(4, 2))
    for step in (0, 1, 4, 4, 4, 6):
        feed.put({"step": step, "x": 1})
    feed.end(finished=True)
    feed.wait(10)
    assert sink.steps == [4, 6, -1]
    assert feed.sent == Place(6, 1)
