"""`saeforest mcp`: a client of the official SDK asks a server of its own process; signals, ends and bad input."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest

from everything_cases import copied
from saeforest.explore.api import Api
from saeforest.run_folder import RunFolder

from .said import Call

pytest.importorskip("mcp")
from mcp import Client, StdioServerParameters, stdio_client

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "0"},
    },
}


@pytest.fixture
def two(everything: Path, tmp_path: Path) -> Path:
    """A run of two SAEs, of which the tree has an index."""
    return copied(everything, "two", tmp_path)


def test_a_client_asks_everything(two: Path, call: Call) -> None:
    """By the configuration that --json prints."""
    said = call("mcp", two, "--sae", "tree", "--device", "cpu", "--json")
    assert said.status == 0, said.err
    server = StdioServerParameters(**json.loads(said.out)["mcpServers"]["saeforest"], env=dict(os.environ))
    api = Api.of_run(two, "tree", "cpu")
    child = int(api.explorer.index.n_fired[api.explorer.forest.edges[1]].argmax())
    parent, child = api.explorer.forest.edges[:, child].tolist()

    async def ask() -> None:
        async with Client(stdio_client(server)) as client:
            assert "never follow" in str(client.instructions).replace("\n", " ")
            assert {tool.name for tool in (await client.list_tools()).tools} == {
                "overview", "search", "feature", "family", "edge", "prompt"
            }  # fmt: skip

            async def answer(tool: str, **arguments: Any) -> Any:
                found = await client.call_tool(tool, arguments)
                assert not found.is_error, found.content
                assert json.loads(found.content[0].text) == found.structured_content  # pyright: ignore[reportAttributeAccessIssue]
                return found.structured_content

            async def refused(tool: str, **arguments: Any) -> str:
                found = await client.call_tool(tool, arguments)
                assert found.is_error
                return str(found.content[0].text)  # pyright: ignore[reportAttributeAccessIssue]

            await look(api, parent, child, answer)
            assert "feature 112: expected 0 to 111" in await refused("feature", feature=112)
            assert "expected a number" in await refused("family", feature=-1)
            assert "a root, which has no edge" in await refused("edge", child=0)
            assert "expected some text" in await refused("prompt", text=" ")
            assert "expected some text" in await refused("search", text="")
            assert "less than or equal to 100" in await refused("search", text="a", n=101)

    # In a thread of its own: where an earlier test of this worker has opened a browser, this one has Playwright's loop.
    with ThreadPoolExecutor(1) as one:
        one.submit(anyio.run, ask).result()


async def look(api: Api, parent: int, child: int, answer: Callable[..., Any]) -> None:
    """Every tool tells what the API does, and no number about the hierarchy without its null."""
    overview, whole = await answer("overview"), api.get("overview")
    assert overview["layer_sizes"] == whole["layer_sizes"]
    assert overview["values"] == whole["values"]
    assert all(value["null"] for value in overview["values"] if value["group"] == "hierarchy")
    assert {one["column"]: one["forced_by"] for one in overview["beats"]}["coverage"] == "gate"
    assert all("chance" in one for one in overview["beats"])
    assert overview["nulls"]

    found, expected = await answer("search", text="cat", n=3), api.get("search", {"q": "cat", "n": "3"})
    assert [one["id"] for one in found["results"]] == [one["id"] for one in expected["results"]]
    context = next(one["context"] for one in expected["results"] if one["context"])
    at, tokens = context["at"], context["tokens"]
    marked = "".join([*tokens[:at], f"⟦{tokens[at]}⟧", *tokens[at + 1 :]])
    assert marked in [one["context"]["text"] for one in found["results"] if one["context"]]

    feature, expected = await answer("feature", feature=child, contexts=2), api.get(f"feature/{child}")
    assert [one["value"] for one in feature["top"]] == [one["value"] for one in expected["top"][:2]]
    assert [one["id"] for one in feature["path"]] == [one["id"] for one in expected["path"]]
    assert not {"histogram", "quantiles"} & feature.keys()

    edge = await answer("edge", child=child)
    assert edge == json.loads(json.dumps(api.get(f"edge/{child}")))
    columns = {c["name"]: {k: c[k] for k in ("value", "place", "forced_by")} for c in edge["columns"]}
    family = await answer("family", feature=parent, children=1)
    assert family["n_children"] == len(api.get(f"family/{parent}")["children"])
    (one,) = family["children"]
    assert one["id"] != child or one["edge"]["columns"] == columns
    assert feature["edge"]["columns"] == columns

    prompt, expected = (
        await answer("prompt", text="the cat", paths=1),
        api.post("prompt", {"text": "the cat"}),
    )
    assert prompt["tokens"] == expected["tokens"]
    for mine, theirs in zip(prompt["per_token"], expected["per_token"], strict=True):
        assert mine["n_paths"] == len(theirs["paths"])
        assert mine["paths"] == json.loads(json.dumps(theirs["paths"][:1]))
        assert mine["errors"] == theirs["errors"]


def test_the_end_of_the_input_is_the_end(two: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output carries the protocol alone, whatever comes in."""
    lines = [json.dumps(INITIALIZE), "no message", "", '{"jsonrpc": "2.0", "id": 2, "method": "x"}']
    given = io.TextIOWrapper(io.BytesIO("\n".join(lines).encode()))
    monkeypatch.setattr("sys.stdin", given)
    said = call("mcp", two, "--sae", "tree")
    assert said.status == 0
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert answers[0]["result"]["serverInfo"]["name"] == "saeforest"
    assert all(answer["jsonrpc"] == "2.0" for answer in answers)
    assert "serving tree to an MCP client" in said.err
    assert "Traceback" not in said.err


def test_a_signal_stops_it_while_the_client_waits(
    two: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The standard input stays open, and a thread still reads from it."""
    from saeforest.explore.serving import mcp_tools

    reader, writer = os.pipe()
    given = os.fdopen(reader)
    monkeypatch.setattr("sys.stdin", given)
    make_server = mcp_tools.make_server

    def made(api: Api) -> Any:
        threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        return make_server(api)

    monkeypatch.setattr(mcp_tools, "make_server", made)
    os.write(writer, json.dumps(INITIALIZE).encode() + b"\n")
    said = call("mcp", two, "--sae", "tree")
    os.close(writer)
    for thread in threading.enumerate():
        if thread.name == "mcp":
            thread.join()
    given.close()
    assert said.status == 130
    assert json.loads(said.out)["id"] == 1
    assert said.err.splitlines()[-1] == "stopped"
    assert "Traceback" not in said.err


def test_what_is_wrong_is_said(
    two: Path, finished_run: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fails("mcp", finished_run) == (
        f"{finished_run}: no index yet; make it with `saeforest index {finished_run}`"
    )
    assert "no config.yaml" in fails("mcp", "nowhere")
    assert "give --sae with one of" in fails("mcp", two)
    run = RunFolder(two)
    run.index("tree").rename(run.index("topk"))
    assert "topk" in fails("mcp", two, "--sae", "topk"), "the index of another SAE"
    monkeypatch.setitem(sys.modules, "mcp.server.mcpserver", None)
    monkeypatch.delitem(sys.modules, "saeforest.explore.serving.mcp_tools", raising=False)
    assert fails("mcp", two, "--sae", "tree") == (
        "the MCP server needs the package mcp: run `pip install 'saeforest[mcp]'`"
    )
