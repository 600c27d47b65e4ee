"""`saeforest explore` end to end: a real port, real signals, and what is wrong said in a line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from saeforest import cli

from .said import Call


@pytest.fixture(scope="module")
def indexed(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("explore") / "run"))
    assert cli.run(["index", str(run), "--tokens", "2000", "--device", "cpu"]) == 0
    return run


@contextmanager
def exploring(*args: Any) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The command in a process of its own; the JSON document that it prints."""
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")}
    process = subprocess.Popen(
        [sys.executable, "-m", "saeforest", "explore", *map(str, args), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        lines = ""
        while not lines.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.communicate()
            lines += line
        yield process, json.loads(lines)
    finally:
        process.kill()
        process.wait()


def got(url: str, body: Any = None, method: str = "GET") -> Any:
    request = urllib.request.Request(url, method=method, headers={"Content-Type": "application/json"})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(request, data, timeout=600) as answer:
        return json.load(answer)


def test_from_the_command_to_the_page_and_back(indexed: Path, finished_run: Path) -> None:
    with exploring(indexed, "--port", 0, "--compare", finished_run) as (process, about):
        assert about["url"].startswith("http://127.0.0.1:")
        port = int(about["url"].rstrip("/").rpartition(":")[2])
        with urllib.request.urlopen(about["url"], timeout=600) as page:
            assert page.headers["content-type"].startswith("text/html")
        assert got(about["api"] + "overview")["n_features"] == 112
        assert got(about["api"] + "training")["steps"][0] == 1
        assert got(about["api"] + "annotations/3", {"label": "mine"}, "PUT")["label"] == "mine"
        prompt = got(about["api"] + "prompt", {"text": "the cat sat"}, "POST")
        assert len(prompt["tokens"]) == len(prompt["per_token"]) == 11
        for token in prompt["per_token"]:
            assert token["errors"][0] == 1
            assert len(token["errors"]) == prompt["layers"] + 1 == 4
            assert sum(p["p"] for p in token["clean"]) <= 1.0001
            assert all(path[0]["value"] > 0 for path in token["paths"])
        # The other run has the same SAE, and no index.
        assert got(about["api"] + "compare")["runs"] == [str(finished_run)]
        compared = got(f"{about['api']}compare?{urlencode({'other': finished_run})}")
        assert compared["here"]["measures"][0]["matched"] == 1
        assert compared["there"]["measures"][0]["kept"] == 1
        assert f"saeforest index {finished_run}" in compared["forest"]["missing"]
        # The same port is in use now.
        other = subprocess.run(
            [sys.executable, "-m", "saeforest", "explore", str(indexed), "--port", str(port)],
            capture_output=True,
            text=True,
        )
        assert other.returncode == 2
        assert other.stderr.startswith(
            f"saeforest: error: port {port}: in use, perhaps by another explorer; give --port"
        )
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        assert f"ssh -L {port}:127.0.0.1:{port} " in err
        assert "Traceback" not in err
        assert out == ""
    kept = indexed / "annotations.sqlite"
    assert kept.is_file()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_annotations_are_exchanged(indexed: Path, a_run: Path, call: Call) -> None:
    from saeforest.explore.labels.annotations import Annotations

    (indexed / "annotations.sqlite").unlink(missing_ok=True)  # another test's
    Annotations(indexed / "annotations.sqlite").set_note(5, label="five")
    assert call("explore", indexed, "--export-annotations", "notes.json").status == 0
    said = call("explore", a_run, "--import-annotations", "notes.json", "--json")
    assert (said.status, said.err) == (0, "read 1 annotations from notes.json\n")
    own = str(a_run / "annotations.sqlite")
    assert json.loads(said.out) == {"annotations": own, "imported": "notes.json", "n_imported": 1}
    assert Annotations(a_run / "annotations.sqlite").note(5).label == "five"
    assert call("verify", a_run).status == 0
    (a_run / "annotations.sqlite").write_bytes(b"SQLite format 3\x00" + b"x" * 2000)
    said = call("verify", a_run)
    assert said.status == 1
    assert "annotations.sqlite" in said.out


def test_what_is_wrong_is_said(finished_run: Path, a_run: Path, fails: Callable[..., str]) -> None:
    said = fails("explore", finished_run, "--port", 0)
    assert said.endswith(
        f"{finished_run}: no index yet; make it with `saeforest index {finished_run}`, or give --index to make it now"
    )
    assert "none named 'x'" in fails("explore", finished_run, "--sae", "x")
    assert "nowhere" in fails("explore", finished_run, "--index", "--compare", "nowhere", "--port", 0)
    assert "expected 0 to 65535" in fails("explore", finished_run, "--port", 70000)
    (a_run / "index").mkdir()
    (a_run / "index" / "index.json").write_text("{")
    said = fails("explore", a_run, "--port", 0)
    assert "can't be read" in said
    assert f"`saeforest index {a_run}` again" in said
