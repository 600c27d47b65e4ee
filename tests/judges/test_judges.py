"""Judges: an endpoint that is a real HTTP server with bad days, a local model, and answers that are kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from saeforest.errors import InputError
from saeforest.judges import (
    CachedJudge,
    Judge,
    JudgeConfig,
    endpoint,
    open_judge,
)
from saeforest.judges.endpoint import EndpointJudge
from saeforest.judges.local import LocalJudge
from saeforest.lm import LanguageModel, load_lm

KEY = "sk-very-secret-0123456789"


def completion(content: object) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}


@dataclass
class Answer:
    status: int = 200
    body: object = field(default_factory=lambda: completion("hello"))
    """Bytes are sent as they are, the rest as JSON."""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


class Server(ThreadingHTTPServer):
    """Gives its `answers` one after the other, the last for ever, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = [Answer()]
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def next_answer(self) -> Answer:
        with self.lock:
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        answer = server.next_answer()
        server.closing.wait(answer.delay)
        data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        try:
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(data)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # whoever asked has given up

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been slept."""
    waits: list[float] = []
    monkeypatch.setattr(endpoint, "sleep", waits.append)
    return waits


@pytest.fixture
def judge(server: Server, waits: list[float]) -> Iterator[EndpointJudge]:
    judge = EndpointJudge(server.url, "a-model", key=KEY, timeout=5, retries=3)
    yield judge
    judge.close()


def refused(judge: Judge) -> str:
    with pytest.raises(InputError) as info:
        judge.ask("system", "user", max_tokens=3)
    said = str(info.value)
    assert len(said.splitlines()) == 1
    assert KEY not in said
    assert all(c.isprintable() for c in said)
    cause = info.value.__cause__
    assert cause is None or KEY not in repr(cause)
    return said


# ---- endpoints


def test_a_question_and_its_reply(server: Server, judge: EndpointJudge, waits: list[float]) -> None:
    assert isinstance(judge, Judge)
    assert judge.ask("be brief", "how are\nyou?", max_tokens=7) == "hello"
    ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "a-model",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "how are\nyou?"},
        ],
        "temperature": 0,
        "max_tokens": 7,
    }
    assert waits == []
    assert judge.name == f"a-model at {server.url}"
    assert KEY not in repr(judge) + judge.name


def test_the_key_is_not_kept_where_a_reply_repeats_it(
    server: Server, judge: EndpointJudge, tmp_path: Path
) -> None:
    server.answers = [Answer(200, completion(f"your key is {KEY}!"))]
    kept = CachedJudge(judge, tmp_path)
    assert kept.ask("s", "u", max_tokens=9) == "your key is (the key)!"
    assert KEY not in (tmp_path / "judge.jsonl").read_text()


def test_half_a_character_is_no_text(server: Server, judge: EndpointJudge) -> None:
    server.answers = [Answer(200, completion("half \ud83d of one"))]
    assert judge.ask("s \udc00", "u \ud83d", max_tokens=9) == "half ? of one"
    assert [message["content"] for message in server.asked[0][2]["messages"]] == ["s ?", "u ?"]


def test_a_url_that_is_none() -> None:
    judge = EndpointJudge("http://[::1", "m", retries=0)
    with pytest.raises(InputError, match=r"^judge m at "):
        judge.ask("s", "u", max_tokens=1)
    judge.close()


def test_a_date_beyond_all_calendars_is_no_date(
    server: Server, judge: EndpointJudge, waits: list[float]
) -> None:
    late = "Mon, 1 Jan 99999999999999999999 00:00:00 GMT"
    server.answers = [Answer(429, {}, {"Retry-After": late}), Answer()]
    assert judge.ask("s", "u", max_tokens=1) == "hello"
    assert waits == [1.0]


def test_without_a_key_none_is_sent(server: Server) -> None:
    judge = EndpointJudge(server.url + "/", "m")
    judge.ask("", "", max_tokens=1)
    judge.close()
    assert "authorization" not in server.asked[0][1]
    assert server.asked[0][0] == "/v1/chat/completions"


def test_no_content_is_an_empty_reply(server: Server, judge: EndpointJudge) -> None:
    server.answers = [Answer(body=completion(None))]
    assert judge.ask("", "", max_tokens=1) == ""


@pytest.mark.parametrize("status", [500, 502, 503, 529, 429])
def test_a_bad_moment_is_waited_for(
    server: Server, judge: EndpointJudge, waits: list[float], status: int
) -> None:
    server.answers = [
        Answer(status, {"error": {"message": "overloaded"}}),
        Answer(status, b"<html>"),
        Answer(),
    ]
    assert judge.ask("", "", max_tokens=1) == "hello"
    assert waits == [1, 2]
    assert server.asked[0] == server.asked[1]


def test_the_endpoint_says_how_long_to_wait(server: Server, judge: EndpointJudge, waits: list[float]) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    asked = ["17", date, "soon"]
    server.answers = [*(Answer(429, {}, {"Retry-After": a}) for a in asked), Answer()]
    assert judge.ask("", "", max_tokens=1) == "hello"
    assert waits[0] == 17
    assert 2 < waits[1] <= 30
    assert waits[2] == 4


def test_a_wait_that_is_too_long_is_told(server: Server, judge: EndpointJudge, waits: list[float]) -> None:
    server.answers = [Answer(429, {"error": {"message": "daily limit"}}, {"Retry-After": "3600"})]
    said = refused(judge)
    assert "daily limit" in said
    assert "3600 s" in said
    assert waits == []


def test_a_bad_day(server: Server, judge: EndpointJudge, waits: list[float]) -> None:
    server.answers = [Answer(503, {"error": {"message": "down\nfor the day"}})]
    said = refused(judge)
    assert "no answer in 4 tries" in said
    assert "HTTP 503: down" in said
    assert waits == [1, 2, 4]
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}), "key_env"),
        (Answer(403, {"error": "forbidden"}), "HTTP 403: forbidden"),
        (Answer(404, {"error": {"message": "no model a-model"}}), "no such model or path"),
        (Answer(400, {"error": {"message": "\x1b[2Jmax_tokens is too large"}}), "max_tokens is too large"),
        (Answer(422, b"\xff\xfe not text"), "HTTP 422"),
        (Answer(400, b""), "HTTP 400"),
        (Answer(302, b"", {"Location": "http://127.0.0.1:1/"}), "HTTP 302"),
        (Answer(400, {"error": {"message": "x" * 10_000}}), "xxx"),
        (Answer(200, b"<html>welcome</html>"), "not a chat completion"),
        (Answer(200, b'{"choices": [{"mess'), "not a chat completion"),
        (Answer(200, {"choices": []}), "not a chat completion"),
        (Answer(200, b"[" * 100_000), "not a chat completion"),
        (Answer(200, b'{"choices": ' + b"9" * 5_000 + b"}"), "not a chat completion"),
        (Answer(400, b'{"error": ' + b"[" * 100_000), "HTTP 400"),
        (Answer(200, []), "not a chat completion"),
        (Answer(200, completion(["a"])), "not a chat completion"),
        (Answer(200, b"junk", {"Content-Encoding": "gzip"}), "judge a-model"),
    ],
)
def test_what_no_waiting_helps(
    server: Server, judge: EndpointJudge, waits: list[float], answer: Answer, says: str
) -> None:
    server.answers = [answer]
    said = refused(judge)
    assert says in said
    assert len(said) < 600
    assert (len(server.asked), waits) == (1, [])


def test_a_slow_answer_is_asked_for_again(server: Server, waits: list[float]) -> None:
    server.answers = [Answer(delay=30), Answer()]
    judge = EndpointJudge(server.url, "m", timeout=0.3, retries=1)
    assert judge.ask("", "", max_tokens=1) == "hello"
    server.answers = [Answer(delay=30)]
    assert "ReadTimeout" in refused(judge)
    judge.close()
    assert waits == [1, 1]


def test_a_lost_connection_is_tried_again(server: Server, judge: EndpointJudge, waits: list[float]) -> None:
    server.answers = [Answer(headers={"Content-Length": "5000", "Connection": "close"}, body=b"{"), Answer()]
    assert judge.ask("", "", max_tokens=1) == "hello"
    assert waits == [1]


def test_nobody_there(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as gone:
        url = gone.url
    judge = EndpointJudge(url, "m", retries=2)
    assert "ConnectError" in refused(judge)
    judge.close()
    assert waits == [1, 2]


# ---- local models


@pytest.fixture(scope="module")
def lm(tiny_model: Path) -> LanguageModel:
    return load_lm(str(tiny_model))


def greedy_by_hand(lm: LanguageModel, text: str, n: int) -> str:
    ids = list(text.encode())
    start = len(ids)
    for _ in range(n):
        ids.append(int(lm.logits(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == lm.eos_id:
            break
    said = lm.tokenizer.decode(ids[start:], skip_special_tokens=True)
    assert isinstance(said, str)
    return said.strip()


def test_a_model_without_a_chat_template(lm: LanguageModel) -> None:
    judge = LocalJudge(lm)
    assert isinstance(judge, Judge)
    assert (judge.name, judge.workers) == (f"{lm.name} in float32", 1)
    said = judge.ask("System.", "User?", max_tokens=6)
    assert said == greedy_by_hand(lm, "System.\n\nUser?\n", 6)
    assert said != greedy_by_hand(lm, "System.\n\nAnother?\n", 6)
    assert said == judge.ask("System.", "User?", max_tokens=6)


PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[reply]"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
THINKING = PLAIN + "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (PLAIN, "[system]S[user]U[reply]"),
        (NO_SYSTEM, "[user]S\n\nU[reply]"),
        (THINKING, "[system]S[user]U[reply]"),
    ],
)
def test_a_model_with_a_chat_template(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, template: str, wanted: str
) -> None:
    monkeypatch.setattr(lm.tokenizer, "chat_template", template)
    assert LocalJudge(lm).ask("S", "U", max_tokens=5) == greedy_by_hand(lm, wanted, 5)


def test_a_special_token_in_the_text_is_only_text(lm: LanguageModel) -> None:
    said = LocalJudge(lm).ask("S", "a <eos> b", max_tokens=4)
    assert said == greedy_by_hand(lm, "S\n\na < eos> b\n", 4)


def test_a_question_that_is_too_long(lm: LanguageModel) -> None:
    said = r"a question of 2105 tokens and a reply of 4 exceed the model.s context of 2048"
    with pytest.raises(InputError, match=said):
        LocalJudge(lm).ask("S", "x" * 2101, max_tokens=4)


# ---- configuration


def test_no_judge_by_default(lm: LanguageModel) -> None:
    with open_judge(JudgeConfig(), lm, None) as judge:
        assert judge is None


def test_a_local_judge_that_is_the_model_measured(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_judge(JudgeConfig(model=lm.name), lm, tmp_path) as judge:
        assert judge is not None
        assert judge.ask("S", "U", max_tokens=2) == greedy_by_hand(lm, "S\n\nU\n", 2)
    with open_judge(JudgeConfig(model=lm.name), lm, tmp_path) as judge:
        monkeypatch.setattr(lm.model, "generate", None)
        assert judge is not None
        assert judge.ask("S", "U", max_tokens=2) == greedy_by_hand(lm, "S\n\nU\n", 2)


def test_another_local_judge(lm: LanguageModel, tiny_model: Path) -> None:
    other = LanguageModel("another", lm.model, lm.tokenizer)
    with open_judge(JudgeConfig(model=str(tiny_model)), other, None) as judge:
        assert judge is not None
        assert judge.name == f"{tiny_model} in float32"


def test_a_local_judge_that_is_missing(lm: LanguageModel) -> None:
    with (
        pytest.raises(InputError, match="/no/such/model"),
        open_judge(JudgeConfig(model="/no/such/model"), lm, None),
    ):
        pass


def test_an_endpoint_by_configuration(
    server: Server, lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", f"  {KEY}\n")
    config = JudgeConfig(endpoint=server.url, model="a-model", key_env="A_KEY", workers=2)
    with open_judge(config, lm, tmp_path) as judge:
        assert judge is not None
        assert judge.workers == 2
        assert judge.ask("s", "u", max_tokens=1) == "hello"
        server.answers = [Answer(401, {"error": {"message": f"bad key {KEY}"}})]
        refused(judge)
    assert server.asked[0][1]["authorization"] == f"Bearer {KEY}"
    assert KEY not in (tmp_path / "judge.jsonl").read_text()
    assert len(server.asked) == 2


def test_a_key_that_is_none(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-with\na line")
    with (
        pytest.raises(InputError, match="OPENAI_API_KEY") as info,
        open_judge(JudgeConfig(endpoint="http://127.0.0.1:1/v1", model="m"), lm, None),
    ):
        pass
    assert "sk-with" not in str(info.value)


@pytest.mark.parametrize("key_env", ["", "sk-very-secret", "A KEY", "1KEY", "KEY\n", "SCHLÜSSEL"])
def test_a_name_that_no_variable_has(key_env: str) -> None:
    with pytest.raises(InputError, match=r"^judge.key_env: expected") as info:
        JudgeConfig(key_env=key_env)
    assert not key_env or key_env.strip() not in str(info.value)
    assert JudgeConfig(key_env="_Key_2").key_env == "_Key_2"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/v1", "file:///etc/passwd", "host/v1", "http://", "https://user:word@host/v1",
        "https://host/v1?key=word", "https://host/v1#a", "https://host:port/v1", "https://ho st/v1",
        "https://host/v1\n",
    ],
)  # fmt: skip
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(InputError, match=r"^judge.endpoint: expected") as info:
        JudgeConfig(endpoint=url, model="m")
    assert "word" not in str(info.value)


@pytest.mark.parametrize("url", ["https://host/v1", "http://127.0.0.1:8000/v1/", "http://[::1]:80"])
def test_urls(url: str) -> None:
    assert JudgeConfig(endpoint=url, model="m").endpoint == url


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"endpoint": "https://host/v1"}, "judge.model = '': expected the model's name at the endpoint"),
        ({"timeout": 0.0}, "judge.timeout = 0.0"),
        ({"timeout": float("nan")}, "judge.timeout = nan"),
        ({"timeout": float("inf")}, "judge.timeout = inf"),
        ({"retries": -1}, "judge.retries = -1"),
        ({"workers": 0}, "judge.workers = 0"),
    ],
)
def test_configurations_out_of_range(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as info:
        JudgeConfig(**changes)
    assert str(info.value).startswith(says)
