"""A judge at an OpenAI-compatible chat endpoint: one POST to URL/chat/completions per question."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import sleep
from typing import Any

import httpx2

from ..errors import InputError
from ..files import parse_json
from ..output import printable

# Maximum wait between two tries, in seconds. If an endpoint asks for a longer one, the user is told.
_LONGEST_WAIT = 60.0
_MESSAGE_LENGTH = 200
_RETRIED = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)


class EndpointJudge:
    """A judge at an OpenAI-compatible endpoint, asked at temperature 0.

    Too many requests (429), server errors (5xx), lost connections and timeouts are retried after 1, 2, 4, ... seconds,
    or later if the endpoint asks for it (Retry-After).

    url:     URL of the endpoint, version included, such as https://host/v1. Redirects are not followed, so that the key
             is sent nowhere else.
    key:     API key, sent as a bearer token; empty to send none. It is never shown, even if the endpoint repeats it.
    timeout: seconds to wait for the endpoint to send anything.
    retries: number of tries after the first.
    workers: number of concurrent requests.
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
        """Close the connections."""
        self._client.close()

    def ask(self, system: str, user: str, *, max_tokens: int) -> str:
        """The reply to a question. Raises InputError if the endpoint refuses, or gives a wrong reply or none."""
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
                    f"judge {self.name}: {why}; it asks to wait {wait:.0f} s: run again after that"
                )
        raise InputError(
            f"judge {self.name}: no answer in {1 + self._retries} tries; last error: {why}; "
            "check judge.endpoint, or run again later"
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
                what = (
                    "the key is missing or not accepted; set the environment variable named by judge.key_env"
                )
            case 404:
                what = "no such model or path; check judge.endpoint and judge.model"
            case _:
                what = "the request was not accepted; check judge.endpoint and judge.model"
        raise InputError(f"judge {self.name}: {what} ({self._refusal(response)})") from None

    def _refusal(self, response: httpx2.Response) -> str:
        """The HTTP status and the endpoint's error message."""
        try:
            said: Any = self._json(response)["error"]
            said = said["message"] if isinstance(said, dict) else said
        except (ValueError, KeyError, TypeError):
            said = response.text
        message = self._safe(str(said).strip())
        return f"HTTP {response.status_code}: {message}" if message else f"HTTP {response.status_code}"

    def _json(self, response: httpx2.Response) -> Any:
        """The JSON in the response. Raises ValueError if it is malformed."""
        try:
            return parse_json(response.content, self.name)
        except InputError as error:
            raise ValueError(str(error)) from None

    def _safe(self, text: str) -> str:
        """A short printable line, without the key."""
        return printable(next(iter(self._without_key(text).splitlines()), "")[:_MESSAGE_LENGTH])

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "(the key)") if self._key else text


def _text(content: object) -> str:
    """The text of a reply; empty if there is no content, as when a model refuses."""
    if content is None:
        return ""
    if not isinstance(content, str):
        raise TypeError
    return _whole(content)


def _whole(text: str) -> str:
    """The text with unpaired surrogates, which JSON can contain but UTF-8 can't encode, replaced."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _retry_after(response: httpx2.Response) -> float:
    """Seconds to wait by the header Retry-After, which gives seconds or a date; 0 if it is absent."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max((date - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, OverflowError):  # no date, or one out of range
        return 0.0
