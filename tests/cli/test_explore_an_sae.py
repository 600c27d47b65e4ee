"""`saeforest index` and `explore` of an SAE without a run: a tree, and a flat one whose forest is inferred."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from saeforest.explore.api import Api
from saeforest.explore.subject import Subject
from saeforest.saes import TopKConfig, TopKSAE
from saeforest.saes.files import save_sae
from saeforest.verify import verify

from .said import Call


@pytest.fixture(scope="module")
def text(tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of about 3,600 tokens."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n\n".join(path.read_text() for path in sorted(tiny_text.glob("*.txt"))) * 2)
    return file


@pytest.fixture
def tree(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run / "sae", tmp_path / "tree"))


@pytest.fixture(scope="module")
def flat(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random flat SAE that does not know what it reads."""
    folder = tmp_path_factory.mktemp("flat") / "sae"
    d_in = json.loads((finished_run / "sae" / "cfg.json").read_text())["d_in"]
    save_sae(TopKSAE(TopKConfig((48,), (5,)), d_in, seed=0), folder)
    return folder


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Api]]:
    """The APIs that `explore` would serve."""
    served: list[Api] = []
    monkeypatch.setattr(
        "saeforest.explore.serving.server.serve", lambda api, listener, started: served.append(api)
    )
    yield served
    for api in served:
        api.annotations.close()


def test_a_flat_sae_with_the_forest_that_is_inferred_for_it(
    flat: Path, tiny_model: Path, text: Path, shown: list[Api], call: Call
) -> None:
    reads = ["--model", tiny_model, "--site", "blocks.1.hook_resid_post", "--data", text]
    said = call("explore", flat, "--out", "explored", *reads, "--device", "cpu", "--port", 0)
    assert said.status == 0, said.err
    assert f"{flat} has learned no forest; inferring one, once" in said.err
    (api,) = shown
    overview = api.get("overview")
    assert overview["title"] == str(flat)
    assert overview["forest"].startswith("inferred by reconstruction, parents by frequency")
    assert overview["n_features"] == 48
    assert overview["site"] == "blocks.1.hook_resid_post"
    assert overview["has"]["prompt"]
    assert not overview["has"]["training"]
    assert api.get("feature/0")["n_fired"] >= 0
    assert len(api.post("prompt", {"text": "the cat"})["per_token"]) == 7
    api.put("annotations/3", {"label": "mine"})
    made = {path.name for path in Path("explored").iterdir()}
    assert made == {"index", "forest", "annotations.sqlite"}
    assert all(finding.sound for finding in verify(Path("explored")))
    # The index says what the SAE reads, so that it need not be said again; and nothing is made again.
    before = (Path("explored") / "index" / "index.json").read_bytes()
    said = call("explore", flat, "--out", "explored", "--device", "cpu", "--port", 0)
    assert said.status == 0, said.err
    assert "once" not in said.err
    assert shown[1].get("feature/3")["label"] == "mine"
    assert len(shown[1].post("prompt", {"text": "the cat"})["per_token"]) == 7
    assert (Path("explored") / "index" / "index.json").read_bytes() == before


def test_a_forest_inferred_before_is_taken(flat: Path, tiny_model: Path, text: Path, call: Call) -> None:
    reads = ["--model", tiny_model, "--site", "blocks.1.hook_resid_post", "--data", text, "--device", "cpu"]
    rule = ["--method", "coverage", "--min-score", "0.5", "--min-count", "2"]
    assert call("infer", flat, "--out", "explored/forest", *rule, *reads).status == 0
    said = call("index", flat, "--out", "explored", "--tokens", 1600, *reads, "--json")
    assert said.status == 0, said.err
    assert json.loads(said.out)["folder"] == "explored/index"
    assert "inferring" not in said.err
    subject = Subject.alone(flat, Path("explored"), device="cpu")
    forest, origin = subject.forest
    assert origin.startswith("inferred by coverage")
    assert forest.edges.shape[1] > 0


def test_a_tree_knows_what_it_reads_and_is_loaded_once(
    tree: Path, text: Path, shown: list[Api], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saeforest import session
    from saeforest.explore import subject

    loads, opens = [], []
    load, open_reader = subject.load, session.open_reader
    monkeypatch.setattr(subject, "load", lambda source: (loads.append(source), load(source))[1])
    monkeypatch.setattr(subject, "open_reader", lambda config: (opens.append(config), open_reader(config))[1])
    assert (
        call("explore", tree, "--out", "explored", "--data", text, "--device", "cpu", "--port", 0).status == 0
    )
    (api,) = shown
    assert api.get("overview")["forest"] == "learned"
    assert api.post("prompt", {"text": "a"})["layers"] == 3
    assert (len(loads), len(opens)) == (1, 1)
    assert not (Path("explored") / "forest").exists()


def test_the_sae_of_a_run_is_loaded_once(
    a_run: Path, shown: list[Api], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saeforest import run_folder

    loads, load = [], run_folder.load_sae
    monkeypatch.setattr(run_folder, "load_sae", lambda folder: (loads.append(folder), load(folder))[1])
    for _ in ("making the index", "opening it"):
        loads.clear()
        assert call("explore", a_run, "--index", "--port", 0).status == 0
        assert len(loads) == 1
    assert shown[1].get("overview")["n_features"] == 112


@pytest.mark.parametrize("command", ["index", "explore"])
def test_what_is_wrong_is_said_in_a_line(
    command: str,
    flat: Path,
    tree: Path,
    finished_run: Path,
    tiny_model: Path,
    fails: Callable[..., str],
    tmp_path: Path,
) -> None:
    port = ("--port", 0) if command == "explore" else ()
    out = tmp_path / "out"
    assert "give --out too: the folder for its index" in fails(command, flat, *port)
    assert "do not say which model it was trained on; give model" in fails(command, flat, "--out", out, *port)
    said = fails(command, flat, "--out", out, "--model", tiny_model, *port)
    assert "do not say which site it was trained on; give site" in said
    assert "its index goes to RUN/index; leave out" in fails(command, finished_run, "--out", out, *port)
    assert "not a run, so it has no SAE named 'x'" in fails(command, flat, "--out", out, "--sae", "x", *port)
    assert "exists and holds no index; choose a new folder" in fails(command, tree, "--out", flat, *port)
    assert "no such folder; expected a run" in fails(command, tmp_path / "none", "--out", out, *port)
    said = fails(
        command, flat, "--out", out, "--model", tiny_model, "--site", "blocks.77.hook_resid_post", *port
    )
    assert "blocks.77" in said
    assert not out.exists() or list(out.iterdir()) == []


def test_an_index_of_another_sae_is_told(
    flat: Path, tree: Path, tiny_model: Path, text: Path, call: Call, shown: list[Api]
) -> None:
    assert (
        call("index", tree, "--out", "explored", "--data", text, "--tokens", 640, "--device", "cpu").status
        == 0
    )
    said = call("explore", flat, "--out", "explored", "--device", "cpu", "--port", 0)
    assert said.status == 2
    assert "belongs to another SAE or forest; run `saeforest index SAE --out explored` again" in said.err
    assert not shown


def test_a_signal_after_the_pass_stops_at_once(
    tree: Path, text: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows the pass takes a while; the same command then goes on from what was counted."""
    from saeforest.explore.measuring import build

    nearest = build.nearest

    def interrupted(rows: torch.Tensor) -> object:
        signal.raise_signal(signal.SIGINT)
        return nearest(rows)

    command = ("index", tree, "--out", "explored", "--data", text, "--tokens", 640, "--device", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(build, "nearest", interrupted)
        said = call(*command)
    assert said.status == 130
    assert "stopped after reading; give the same command to go on" in said.err
    assert not Path("explored/index").exists()
    said = call(*command)
    assert said.status == 0
    assert "continuing after 640 tokens" in said.err
    assert {path.name for path in Path("explored").iterdir()} == {"index"}
