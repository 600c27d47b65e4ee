"""The explorer's server: who may ask, what is answered, and that nothing beside it can be reached."""

from __future__ import annotations

import gzip
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerFast

from explore_cases import World
from saeforest.explore import Explorer
from saeforest.explore.api import Api
from saeforest.explore.labels.annotations import Annotations
from saeforest.explore.serving import server
from saeforest.explore.serving.server import MOST_BODY, listen, make_app
from saeforest.explore.serving.static import export_subtree
from saeforest.saes import TreeSAE

PATHS = [
    "overview",
    "forest",
    "labels",
    "nulls",
    "feature/3",
    "edge/12",
    "family/2",
    "tree-data/2",
    "annotations",
]
PATHS += ["blind/tally", "compare"]
ADDRESS = "http://127.0.0.1:8421"


@pytest.fixture(scope="module")
def small() -> World:
    return World(TreeSAE, documents=7)


@pytest.fixture
def api(small: World, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Api:
    annotations = Annotations(tmp_path / "run" / "annotations.sqlite")
    return Api(Explorer(small.index, small.sae.forest, tokenizer), annotations, sae=small.sae)


@pytest.fixture
def client(api: Api) -> TestClient:
    return TestClient(make_app(api), base_url=ADDRESS, raise_server_exceptions=True)


def error(answer: Any) -> str:
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert list(found) == ["error"]
    assert "\n" not in found["error"]
    return found["error"]


@pytest.mark.parametrize("path", PATHS)
def test_the_server_answers_as_the_api_does(path: str, api: Api, client: TestClient) -> None:
    answer = client.get(f"/api/v1/{path}")
    assert answer.status_code == 200
    assert answer.json() == json.loads(json.dumps(api.get(path)))
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in answer.headers["content-security-policy"]
    again = client.get(f"/api/v1/{path}", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.head(f"/api/v1/{path}").content == b""


def test_large_answers_are_compressed(client: TestClient, api: Api) -> None:
    with client.stream("GET", "/api/v1/forest", headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
        small = "content-encoding" not in answer.headers
    data = raw if small else gzip.decompress(raw)
    assert json.loads(data) == json.loads(json.dumps(api.get("forest")))


def test_a_family_is_downloaded_as_a_file(
    client: TestClient, api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    api.put("annotations/2", {"label": "mine"})
    answer = client.get("/api/v1/export/2")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="SAE-2.html"'
    n = export_subtree(api, 2, tmp_path / "family.html").n_features
    assert answer.content == (tmp_path / "family.html").read_bytes()
    assert client.head("/api/v1/export/2").content == b""
    assert client.post("/api/v1/export/2", json={}).status_code == 405
    for unknown in ("99999", "x", "2/3", ""):
        assert "expected" in error(answer := client.get(f"/api/v1/export/{unknown}"))
        assert answer.status_code == 404
    monkeypatch.setattr(server, "_MOST_EXPORTED", n - 1)
    assert f"expected at most {n - 1} in a file" in error(answer := client.get("/api/v1/export/2"))
    assert answer.status_code == 400


def test_names_of_files_are_plain() -> None:
    assert server.file_name('runs/demo, "a"\r\n\u202e', 7) == "runs-demo-a-7.html"
    assert server.file_name("\u4e2d", 7) == "saeforest-7.html"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil@127.0.0.1", "", "127.0.0.2:8421", "a b"]
)
def test_other_hosts_are_refused(host: str, client: TestClient) -> None:
    assert "Host" in error(answer := client.get("/api/v1/overview", headers={"Host": host}))
    assert answer.status_code == 403
    assert client.get("/", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8421", "localhost:8421", "localhost:9000", "[::1]:8421", "localhost"]
)
def test_names_of_this_machine_are_taken(host: str, client: TestClient) -> None:
    assert client.get("/api/v1/overview", headers={"Host": host}).status_code == 200
    same = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert client.put("/api/v1/annotations/3", json={"label": "x"}, headers=same).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:3000"},
        {"Origin": "https://127.0.0.1:8421"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_other_sites_are_refused(headers: dict[str, str], client: TestClient, api: Api) -> None:
    for answer in (
        client.get("/api/v1/overview", headers=headers),
        client.put("/api/v1/annotations/3", json={"label": "x"}, headers=headers),
    ):
        assert answer.status_code == 403
        assert "another" in error(answer)
        assert "access-control-allow-origin" not in answer.headers
    assert api.annotations.notes() == {}


def test_answers_are_not_held_back() -> None:
    """asyncio sets TCP_NODELAY where a socket names its protocol; else the end of an answer waits for 40 ms."""
    with (
        listen(0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.proto == socket.IPPROTO_TCP


def test_a_link_on_another_site_may_open_the_page(client: TestClient) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/page/../server.py",
        "/page.sources.json", "/annotations.sqlite", "/api/v1/../../annotations.sqlite", "/\\..\\x",
        "/api/v1/feature/%00", "/api/v2/overview", "/api/v1/", "/api/v1/feature/",
        "/api/v1/feature/99999999999999999999", "/api/v1/feature/-1", "/api/v1/feature/%D9%A3", "/api/v1/feature/3/x",
        "/api/v1/feature/1e1", "/api/v1/overview/3",
    ],
)  # fmt: skip
def test_what_does_not_exist_is_said_in_a_line(path: str, client: TestClient) -> None:
    request = client.build_request("GET", ADDRESS + "/")
    request.url = request.url.copy_with(raw_path=path.encode())
    answer = client.send(request)
    assert answer.status_code == 404, answer.text
    error(answer)


def test_wrong_methods_bodies_and_questions(client: TestClient) -> None:
    def put(path: str, **body: Any) -> Any:
        return client.put(f"/api/v1/{path}", **body)

    for answer, status, said in (
        (client.delete("/api/v1/overview"), 405, "expected GET, PUT or POST"),
        (client.options("/api/v1/overview"), 405, "expected GET, PUT or POST"),
        (client.post("/api/v1/overview", json={}), 405, "expected GET"),
        (client.get("/api/v1/prompt"), 405, "expected POST"),
        (client.post("/", json={}), 405, "expected GET"),
        (put("annotations/3", content=b"{}"), 400, "Content-Type"),
        (put("annotations/3", content=b"label=x", headers={"Content-Type": "text/plain"}), 400, "Content-Type"),
        (put("annotations/3", content=b"{", headers={"Content-Type": "application/json"}), 400, "not valid JSON"),
        (put("annotations/3", content=b"[" * 9000, headers={"Content-Type": "application/json"}), 400, "JSON"),
        (put("annotations/3", json=[]), 400, "expected an object"),
        (put("annotations/3", json={"lable": "x"}), 400, "lable"),
        (put("annotations/3", json={"label": 3}), 400, "label"),
        (put("annotations/3", json={"label": "x" * (MOST_BODY + 1)}), 400, "at most 262,144 bytes"),
        (put("annotations/30", json={"label": "x"}), 404, "expected 0 to 29"),
        (put("rating/12", json={"rating": "maybe"}), 400, "rating"),
        (put("rating/12", json={"rating": "yes", "blind": True}), 400, "blind/rate"),
        (put("rating/0", json={"rating": "yes"}), 404, "a root"),
        (client.post("/api/v1/prompt", json={"text": "a"}), 409, "not known"),
        (client.post("/api/v1/blind/next", json={"x": 1}), 400, "x"),
        (client.get("/api/v1/ungated/3"), 409, "not known"),
        (client.post("/api/v1/blind/rate", json={"id": "x", "rating": "yes"}), 404, "rated already"),
        (client.get("/api/v1/search?q="), 400, "expected some text"),
        (client.get("/api/v1/search?q=%5B&regex=1"), 400, "unterminated"),
        (client.get("/api/v1/search?q=a&n=-1"), 400, "expected 1 to 1,000"),
        (client.get("/api/v1/search?q=" + "a" * 2000), 400, "at most 1,000"),
        (client.get("/api/v1/search?q=" + "a" * 9000), 414, "at most 8,192 bytes"),
        (client.get("/api/v1/compare?other=../../x"), 404, "--compare"),
        (client.get("/api/v1/training"), 409, "no training log"),
    ):  # fmt: skip
        assert answer.status_code == status, (answer.text, said)
        assert said in error(answer)


def test_labels_notes_and_ratings_are_kept(client: TestClient, api: Api) -> None:
    assert client.get("/api/v1/labels").json()["sources"]["3"] == "auto"
    answer = client.put("/api/v1/annotations/3", json={"label": "mine", "note": "a\nb", "bookmark": True})
    assert answer.json() == {"label": "mine", "note": "a\nb", "bookmark": True}
    labels = client.get("/api/v1/labels").json()
    assert (labels["labels"]["3"], labels["sources"]["3"]) == ("mine", "hand")
    feature = client.get("/api/v1/feature/3").json()
    assert (feature["label"], feature["source"], feature["note"]) == ("mine", "hand", "a\nb")
    child = int(api.explorer.forest.edges[1][0])
    assert client.put(f"/api/v1/rating/{child}", json={"rating": "no"}).json()["rating"] == "no"
    assert client.get(f"/api/v1/edge/{child}").json()["rating"] == "no"
    assert client.put("/api/v1/annotations/3", json={"label": None}).json()["note"] == "a\nb"
    assert client.get("/api/v1/annotations").json() == {
        "annotations": {"3": {"label": None, "note": "a\nb", "bookmark": True}},
        "ratings": {str(child): {"rating": "no", "blind": False}},
    }


def test_a_blind_audit(client: TestClient, api: Api) -> None:
    parent = api.explorer.forest.parent.tolist()
    pairs = set(
        zip(api.explorer.index.null_parent.tolist(), api.explorer.index.null_child.tolist(), strict=True)
    )
    seen = {"edge": 0, "null": 0}
    for _ in range(20):
        pair = client.post("/api/v1/blind/next", json={}).json()
        assert set(pair) == {"id", "parent", "child"}
        assert set(pair["parent"]) == {"label", "tokens", "contexts"}
        assert all(context["child"] is None for context in pair["parent"]["contexts"])
        found = client.post("/api/v1/blind/rate", json={"id": pair["id"], "rating": "no"}).json()
        assert ((found["parent"], found["child"]) in pairs) == (found["was"] == "null")
        assert (parent[found["child"]] == found["parent"]) == (found["was"] == "edge")
        seen[found["was"]] += 1
        again = client.post("/api/v1/blind/rate", json={"id": pair["id"], "rating": "yes"})
        assert again.status_code == 404
    assert min(seen.values()) > 0
    tally = client.get("/api/v1/blind/tally").json()
    assert tally["edge"]["yes"] == tally["null"]["yes"] == 0
    assert 0 < tally["edge"]["no"] <= seen["edge"]
    assert client.get("/api/v1/annotations").json()["ratings"] == {}


@pytest.mark.parametrize(
    "evil",
    [
        "<script>alert(1)</script>",
        "</script",
        "<!--",
        "\u202eabc\u2066",
        "a\x1b[31m\x00",
        "\u2028&amp;",
    ],
)
def test_injected_text_comes_back_as_data(evil: str, client: TestClient) -> None:
    body = json.dumps({"label": evil, "note": evil}).encode()
    answer = client.put("/api/v1/annotations/3", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    for path in ("annotations", "labels", "feature/3", "annotations", "search?q=x"):
        answer = client.get(f"/api/v1/{path}")
        assert answer.content.isascii()
        assert not set(b"<>&") & set(answer.content)
        assert answer.headers["content-type"] == "application/json"
    label = client.get("/api/v1/labels").json()["labels"]["3"]
    assert label.isprintable()
    if evil.startswith("<"):
        assert label == evil
