"""Two thousand odd requests: every one is answered, none with a 500, and none with a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerFast

from explore_cases import World
from saeforest.explore import Explorer
from saeforest.explore.answers import ANSWERS
from saeforest.explore.api import Api
from saeforest.explore.labels.annotations import Annotations
from saeforest.explore.serving.server import make_app
from saeforest.saes import TreeSAE

SECRET = "the secret of a file beside the run"
HOST = "127.0.0.1:8421"
CASES = int(os.environ.get("SAEFOREST_HTTP_CASES", "2000"))
# Statuses that say what is wrong.
EXPECTED = {200, 304, 400, 403, 404, 405, 409, 414}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "run").mkdir()
    for place in ("secret.txt", "run/config.yaml", "run/index.html"):
        (folder / place).write_text(SECRET)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Iterator[TestClient]:
    world = World(TreeSAE, documents=7)
    annotations = Annotations(folder / "run" / "annotations.sqlite")
    api = Api(Explorer(world.index, world.sae.forest, tokenizer), annotations, sae=world.sae)
    # Entered, it keeps one event loop for all requests.
    with TestClient(make_app(api), base_url=f"http://{HOST}", raise_server_exceptions=True) as client:
        yield client


text = st.text(max_size=20)
hostile = st.sampled_from([
    "..", "../..", "%2e%2e/", "/etc/passwd", "secret.txt", "config.yaml", "annotations.sqlite", "\x00", "<script>",
    "\u202e", "nan", "-1", "1e9", "٣", "0" * 400, "' OR 1=1 --", "{}", "(a+)+$", "(?s:.)*", "[", "\\", "a" * 9000,
])  # fmt: skip
number = st.one_of(st.integers(-5, 40), st.integers()).map(str)
word = st.one_of(text, hostile, number)
names = st.sampled_from(sorted({path.split(" ")[1].partition("/")[0] for path in ANSWERS}))
known = st.sampled_from(sorted(path.split(" ")[1] for path in ANSWERS))
api_path = st.one_of(
    known.flatmap(lambda path: number.map(lambda n: path.replace("ID", n).replace("CHILD", n))),
    st.tuples(names, word).map("/".join),
    st.lists(word, max_size=4).map("/".join),
)
path = st.one_of(
    api_path.map(lambda rest: f"/api/v1/{quote(rest, safe='/', errors='replace')}"),
    api_path.map(lambda rest: "/api/v1/" + quote(rest, safe="/%.", errors="replace")),
    st.lists(word, max_size=4).map(lambda parts: "/" + quote("/".join(parts), safe="/.%", errors="replace")),
    st.binary(max_size=30).map(lambda raw: "/" + quote(raw)),
)
query = st.dictionaries(
    st.one_of(st.sampled_from(["q", "regex", "in", "n", "other"]), text),
    st.one_of(word, st.sampled_from(["0", "1", "label", "token,text"])),
    max_size=4,
)
value = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), word, st.sampled_from(["yes", "no", "unsure"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)
keys = st.sampled_from(["label", "note", "bookmark", "rating", "blind", "id", "text"])
body = st.one_of(
    st.dictionaries(keys, value, max_size=3).map(lambda data: json.dumps(data).encode()),
    value.map(lambda data: json.dumps(data).encode()),
    st.binary(max_size=60),
    st.sampled_from(
        [b"", b"[" * 5000, b'{"label": "' + b"x" * 300_000 + b'"}', b'{"label": 1e999}', b"\xff"]
    ),
)
headers = st.fixed_dictionaries(
    {},
    optional={
        "Host": st.sampled_from([HOST, "localhost", "evil.example", "[", "127.0.0.1:x", ""]),
        "Origin": st.sampled_from([f"http://{HOST}", "null", "http://evil.example"]),
        "Content-Type": st.sampled_from(
            ["application/json", "application/json; charset=utf-8", "text/plain", ""]
        ),
        "If-None-Match": st.sampled_from(["*", '"x"', ",,,"]),
        "Accept-Encoding": st.sampled_from(["gzip", "identity", "br", ""]),
        "Range": st.just("bytes=0-9"),
        "Cookie": st.just("a=b"),
    },
)
method = st.sampled_from(
    ["GET", "GET", "GET", "PUT", "POST", "HEAD", "DELETE", "OPTIONS", "PATCH", "TRACE", "X"]
)


@settings(max_examples=CASES, suppress_health_check=list(HealthCheck))  # pyright: ignore[reportArgumentType]
@given(method=method, path=path, query=query, body=body, headers=headers)
def test_any_request_is_answered(
    method: str,
    path: str,
    query: dict[str, str],
    body: bytes,
    headers: dict[str, str],
    client: TestClient,
    folder: Path,
) -> None:
    sent: Any = {} if method in ("GET", "HEAD") else {"content": body}
    asked = {"Content-Type": "application/json", **headers}
    request = client.build_request(method, f"http://{HOST}/", params=query, headers=asked, **sent)
    raw = path.encode("ascii", "ignore")
    request.url = request.url.copy_with(
        raw_path=raw + (b"?" + request.url.query if request.url.query else b"")
    )
    answer = client.send(request)
    assert answer.status_code in EXPECTED, (answer.status_code, answer.text[:300])
    assert SECRET.encode() not in answer.content
    assert answer.headers["x-content-type-options"] == "nosniff"
    if answer.status_code >= 400 and method != "HEAD":
        found = answer.json()
        assert list(found) == ["error"]
        assert found["error"]
        assert found["error"].isprintable()
    written = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert written - {"run/annotations.sqlite"} == {"secret.txt", "run/config.yaml", "run/index.html"}
