"""Odd requests to the server of a real run: every one is answered, none with a 500, and none with a file.

`SAEFOREST_HTTP_CASES` is the number of requests (`make fuzz`: 2,000).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from saeforest.explore import index_run
from saeforest.explore.answers import ANSWERS
from saeforest.explore.api import Api
from saeforest.explore.api.schema import FILES
from saeforest.explore.serving.server import make_app

SECRET = "the secret of a file in and beside the run"
HOST = "127.0.0.1:8421"
CASES = int(os.environ.get("SAEFOREST_HTTP_CASES", "400"))
# Statuses that say what is wrong.
EXPECTED = {200, 304, 400, 403, 404, 405, 409, 414}


class Run(NamedTuple):
    """A server of a run. folder: of the run and a file beside it. before: the files there."""

    folder: Path
    client: TestClient
    before: set[str]

    def files(self) -> set[str]:
        return {str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(finished_run, folder / "run")
    index_run(folder / "run", 1600, device="cpu")
    for place in ("secret.txt", "run/secret.txt", "run/index.html", "run/sae/secret.txt"):
        (folder / place).write_text(SECRET)
    api = Api.of_run(folder / "run")
    # Entered, it keeps one event loop for all requests.
    with TestClient(make_app(api), base_url=f"http://{HOST}", raise_server_exceptions=True) as client:
        found = Run(folder, client, set())
        yield found._replace(before=found.files() | {"run/annotations.sqlite"})
    api.annotations.close()


text = st.text(max_size=20)
hostile = st.sampled_from([
    "..", "../..", "%2e%2e/", "/etc/passwd", "secret.txt", "../secret.txt", "config.yaml", "annotations.sqlite", "\x00",
    "<script>", "\u202e", "nan", "-1", "1e9", "٣", "0" * 400, "' OR 1=1 --", "{}", "(a+)+$", "(?s:.)*", "[", "\\",
    "a" * 9000,
])  # fmt: skip
number = st.one_of(st.integers(-5, 40), st.integers()).map(str)
word = st.one_of(text, hostile, number)
names = st.sampled_from(sorted({path.split(" ")[1].partition("/")[0] for path in ANSWERS}))
known = st.sampled_from(sorted(path.split(" ")[1] for path in (*ANSWERS, *FILES)))
api_path = st.one_of(
    known.flatmap(lambda path: number.map(lambda n: path.replace("ID", n).replace("CHILD", n))),
    st.tuples(names, word).map("/".join),
    st.lists(word, max_size=4).map("/".join),
)
odd_path = st.one_of(
    api_path.map(lambda rest: f"/api/v1/{quote(rest, safe='/', errors='replace')}"),
    api_path.map(lambda rest: "/api/v1/" + quote(rest, safe="/%.", errors="replace")),
    st.lists(word, max_size=4).map(lambda parts: "/" + quote("/".join(parts), safe="/.%", errors="replace")),
    st.binary(max_size=30).map(lambda raw: "/" + quote(raw)),
)
odd_query = st.dictionaries(
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
odd_body = st.one_of(
    st.dictionaries(keys, value, max_size=3).map(lambda data: json.dumps(data).encode()),
    value.map(lambda data: json.dumps(data).encode()),
    st.binary(max_size=60),
    st.sampled_from(
        [b"", b"[" * 5000, b'{"label": "' + b"x" * 300_000 + b'"}', b'{"label": 1e999}', b"\xff"]
    ),
)
odd_headers = st.fixed_dictionaries(
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
odd_method = st.sampled_from(
    ["GET", "GET", "GET", "PUT", "POST", "HEAD", "DELETE", "OPTIONS", "PATCH", "TRACE", "X"]
)


class Request(NamedTuple):
    """A request."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    headers: dict[str, str]


odd = st.builds(Request, odd_method, odd_path, odd_query, odd_body, odd_headers)
# Requests that get further: to a known path by its method, with keys that it takes, and values of any kind.
said = st.one_of(
    text, st.sampled_from(["\ud800", "\x00", "\u202e", "<script>", "x" * 3000, "the cat sat", ""])
)
valid_id = st.integers(-1, 115).map(str)
asked = {
    "search": st.fixed_dictionaries(
        {"q": word},
        optional={
            "regex": st.sampled_from(["0", "1"]),
            "in": st.sampled_from(["label", "token,text", "label,token,text"]),
            "n": st.integers(-1, 1100).map(str),
        },
    ),
    "compare": st.fixed_dictionaries({}, optional={"other": word}),
}
sent = {
    "annotations": st.fixed_dictionaries(
        {},
        optional={
            "label": st.one_of(st.none(), said),
            "note": st.one_of(st.none(), said),
            "bookmark": st.one_of(st.none(), st.booleans()),
        },
    ),
    "rating": st.fixed_dictionaries({"rating": st.sampled_from(["yes", "no", "unsure", "maybe"])}),
    "prompt": st.fixed_dictionaries({"text": said}),
    "blind": st.fixed_dictionaries({}, optional={"id": said, "rating": st.sampled_from(["yes", "no"])}),
}


def meant(name: str) -> st.SearchStrategy[Request]:
    method, path, *_ = name.split(" ")
    kind = path.partition("/")[0]
    nothing: st.SearchStrategy[dict[str, Any]] = st.just({})
    return st.builds(
        lambda number, query, body: Request(
            method,
            "/api/v1/" + path.replace("ID", number).replace("CHILD", number),
            query,
            json.dumps(body).encode(),
            {},
        ),
        valid_id,
        asked.get(kind, nothing),
        nothing if method == "GET" else sent.get(kind, nothing),
    )


requests = st.one_of(odd, st.sampled_from(sorted(ANSWERS)).flatmap(meant))


@settings(max_examples=CASES, suppress_health_check=list(HealthCheck))  # pyright: ignore[reportArgumentType]
@given(request=requests)
def test_any_request_is_answered(request: Request, run: Run) -> None:
    method, path, query, body, headers = request
    given_body: Any = {} if method in ("GET", "HEAD") else {"content": body}
    all_headers = {"Content-Type": "application/json", **headers}
    built = run.client.build_request(
        method, f"http://{HOST}/", params=query, headers=all_headers, **given_body
    )
    raw = path.encode("ascii", "ignore")
    built.url = built.url.copy_with(raw_path=raw + (b"?" + built.url.query if built.url.query else b""))
    answer = run.client.send(built)
    assert answer.status_code in EXPECTED, (answer.status_code, answer.text[:300])
    assert SECRET.encode() not in answer.content
    assert answer.headers["x-content-type-options"] == "nosniff"
    if answer.status_code >= 400 and method != "HEAD":
        found = answer.json()
        assert list(found) == ["error"]
        assert found["error"]
        assert found["error"].isprintable()
    assert run.files() <= run.before
