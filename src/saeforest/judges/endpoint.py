"""A judge behind an OpenAI-compatible chat endpoint: one POST to URL/chat/completions for each question."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import sleep
from typing import Any

import httpx2

from ..errors import InputError
from ..files import parse_json
from ..output import printable

# Seconds: no wait between two tries is longer, and an endpoint that asks for a longer one is told to the user.
_LONGEST_WAIT = 60.0
_MESSAGE_LENGTH = 200
_RETRIED = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)


class EndpointJudge:
    """Asks at temperature 0. Too many requests (429), errors of the server (5xx), lost connections and timeouts are
    tried again after 1, 2, 4, ... seconds, or later where the endpoint says so (Retry-After).

    url:     with the version, such as https://host/v1; redirects are not followed, so the key goes nowhere else.
    key:     sent as a bearer token; empty: none is sent. It is never shown, not even where the endpoint repeats it.
    timeout: seconds without a sign of life. retries: tries after the first.
    """

    def __init__(
        self, url: str, model: str, *, key: str = "", timeout: float = 60, retries: int = 5, workers: int = 4
    ) -> None:
        self.name, self.workers = f"{model} at {url}", workers
        self._url, self._model, self._key, self._retries = (
            f"{url.rstrip('/')}/chat/completions",
            model,
            key,
            retries,
        )
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(headers=headers, timeout=timeout)

    def close(self) -> None:
        self._client.close()

    def ask(self, system: str, user: str, *, max_tokens: int) -> str:
        """Raises InputError where the endpoint refuses, answers something else, or does not answer at all."""
        body = {
            "model": self._model,
            "messages": [
                {"role": "system", "content": _whole(system)},
                {"role": "user", "content": _whole(user)},
            ],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        wait, why = 0.0, ""
        for attempt in range(1 + self._retries):
            if attempt:
                sleep(wait)
            wait = min(2.0**attempt, _LONGEST_WAIT)
            try:
                response = self._client.post(self._url, json=body)
            except _RETRIED as error:
                why = type(error).__name__
                continue
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise InputError(f"judge {self.name}: {self._safe(str(error))}") from None
            if response.status_code != 429 and response.status_code < 500:
                return self._reply(response)
            why = self._refusal(response)
            wait = max(wait, _retry_after(response))
            if wait > _LONGEST_WAIT:
                raise InputError(
                    f"judge {self.name}: {why}; it asks to wait {wait:.0f} s: run the command again after that"
                )
        raise InputError(
            f"judge {self.name}: no answer in {1 + self._retries} tries, the last: {why}; "
            "check judge.endpoint, or run the command again later"
        )

    def _reply(self, response: httpx2.Response) -> str:
        if response.is_success:
            try:
                content = self._json(response)["choices"][0]["message"]["content"]
                return self._without_key(_text(content))
            except (ValueError, KeyError, IndexError, TypeError):
                raise InputError(
                    f"judge {self.name}: the reply is not a chat completion; "
                    "expected judge.endpoint to be an OpenAI-compatible URL such as https://host/v1"
                ) from None
        match response.status_code:
            case 401 | 403:
                what = "the key is missing or not accepted; put it in the environment variable judge.key_env names"
            case 404:
                what = "no such model or path; check judge.endpoint and judge.model"
            case _:
                what = "the request was not accepted; check judge.endpoint and judge.model"
        raise InputError(f"judge {self.name}: {what} ({self._refusal(response)})") from None

    def _refusal(self, response: httpx2.Response) -> str:
        """The status, and what the endpoint says about it."""
        try:
            said: Any = self._json(response)["error"]
            said = said["message"] if isinstance(said, dict) else said
        except (ValueError, KeyError, TypeError):
            said = response.text
        message = self._safe(str(said).strip())
        return f"HTTP {response.status_code}: {message}" if message else f"HTTP {response.status_code}"

    def _json(self, response: httpx2.Response) -> Any:
        """Raises ValueError where the body is no JSON of a sane shape."""
        try:
            return parse_json(response.content, self.name)
        except InputError as error:
            raise ValueError(str(error)) from None

    def _safe(self, text: str) -> str:
        """One short printable line without the key."""
        return printable(next(iter(self._without_key(text).splitlines()), "")[:_MESSAGE_LENGTH])

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "(the key)") if self._key else text


def _text(content: object) -> str:
    """A model that refuses may send no content at all: that is an empty reply."""
    if content is None:
        return ""
    if not isinstance(content, str):
        raise TypeError
    return _whole(content)


def _whole(text: str) -> str:
    """JSON can spell half a character, which is no text: nothing could write it."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _retry_after(response: httpx2.Response) -> float:
    """Seconds until the endpoint wants to be asked again: it gives them, or a date. 0 where it gives neither."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max((date - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, OverflowError):  # no date, or one beyond all calendars
        return 0.0
