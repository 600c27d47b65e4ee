"""Uploading an export to Neuronpedia through its API: model and source set if they are new, then features in batches.

A batch that was sent once must not be sent again: Neuronpedia would show its activations twice. What was sent is
therefore kept in the export's folder, before and after each request. Of a batch whose answer was lost, the site is
asked whether its first feature is there: a batch is stored as a whole or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from ...errors import InputError
from ...extras import needs
from ...files import parse_json, read_json, write_json
from ...output import note, printable
from ...progress import progress
from ...schema import Count, Name, Schema, checked, shown
from ..exports import ABOUT
from .batches import Batch, Plan, batches_of, plan_of
from .config import UploadConfig
from .files import SENT

KEY = "NEURONPEDIA_API_KEY"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TIMEOUT_S, _TRIES, _LONGEST_WAIT_S, _MESSAGE = 120.0, 5, 60.0, 200


class Uploaded(NamedTuple):
    """What is on Neuronpedia after an upload. sent: features of this call; before: of earlier ones."""

    url: str
    sent: int
    before: int


class _About(Schema):
    """The keys of saeforest-export.json that an upload needs."""

    format: Name
    model: Name
    source: Name


class _Sent(Schema):
    """What was sent. confirmed: features that the API has said it stored. begun: that, and those of a request whose
    answer is not known."""

    api: Name
    model: Name
    source: Name
    confirmed: Count = 0
    begun: Count = 0


def place_of(folder: Path) -> tuple[str, str, Path]:
    """The model, the source and the folder MODEL/LAYER-SET of an export. Raises InputError if it is none."""
    about = checked(_About, read_json(folder / ABOUT), folder / ABOUT)
    if about.format != "neuronpedia":
        raise InputError(f"{folder}: an export to {about.format}; expected one to neuronpedia")
    return about.model, about.source, folder / about.model / about.source


def check_upload(folder: Path, config: UploadConfig) -> Plan:
    """What an upload is going to send. Nothing is sent.

    Raises InputError for an address that is none, and for anything in the files that the API does not take.
    """
    address = urlsplit(config.api)
    if address.scheme not in ("https", "http") or not address.hostname:
        raise InputError(
            f"api = {shown(config.api)}: expected an address such as https://neuronpedia.org/api"
        )
    if address.scheme == "http" and address.hostname not in _LOOPBACK:
        raise InputError(
            f"api = {shown(config.api)}: expected https, as the key would be readable on its way"
        )
    if config.new_model is not None and not 1 <= config.new_model <= 127:
        raise InputError(f"new_model = {config.new_model}: expected 1 to 127 layers")
    return plan_of(place_of(folder)[2])


def upload(
    folder: Path, key: str, config: UploadConfig | None = None, *, wait: Callable[[float], None] = time.sleep
) -> Uploaded:
    """Upload the export in a folder. Goes on where an earlier upload of the same folder ended.

    key:  API key, from the account page of Neuronpedia.
    wait: waits for some seconds before a request is tried again.

    Raises InputError if anything in the export exceeds the limits of the API (before anything is sent), the API refuses
    something or cannot be reached, or the folder was uploaded to another address before.
    """
    config = config or UploadConfig()
    if not key:
        raise InputError(
            f"no API key: set the environment variable {KEY} to the one of your Neuronpedia account"
        )
    plan = check_upload(folder, config)
    model, source, place = place_of(folder)
    sent = _Sent(api=config.api, model=model, source=source)
    if (folder / SENT).exists():
        sent = checked(_Sent, read_json(folder / SENT), folder / SENT)
        if (sent.api, sent.model, sent.source) != (config.api, model, source):
            raise InputError(
                f"{folder}: was uploaded to {sent.api} as {sent.model}/{sent.source}; to upload it elsewhere, export "
                "to another folder"
            )
    api = _Api(config.api, key, wait)
    try:
        _prepare(api, folder, config, model, source)
        before, done = sent.confirmed, 0
        with progress("upload", plan.features, "features") as advance:
            for batch in batches_of(place):
                done += len(batch.features)
                if batch.features and done > sent.confirmed:
                    sent = _send(api, folder, sent, batch, done)
                advance(len(batch.features))
    finally:
        api.close()
    return Uploaded(f"{config.api.removesuffix('/api')}/{model}/{source}", sent.confirmed - before, before)


def _prepare(api: _Api, folder: Path, config: UploadConfig, model: str, source: str) -> None:
    """Create the model and the source set unless they are there. Raises InputError if they cannot be."""
    name = source.partition("-")[2]
    if api.post("model/get", {"id": model}) is None:
        if config.new_model is None:
            raise InputError(
                f"{config.api}: has no model {shown(model)}; give the id of one that is there (neuronpedia.model), or "
                "create it (new_model, its number of layers)"
            )
        api.post("model/new", {"id": model, "layers": config.new_model, "displayName": model, "url": None})
        note(f"created the model {model}, unlisted")
    found = api.get(f"source-set/{quote(model)}/{quote(name)}")
    if found is None:
        (set_line,) = (parse_json(line, SENT) for line in _lines(folder / model / source / "sourceset.jsonl"))
        body = {
            "name": name,
            "modelId": model,
            "description": set_line["description"],
            "url": (set_line["urls"] or [None])[0],
        }
        found = api.post("source-set/new", body)
        note(f"created the source set {name}, unlisted")
    sources = found.get("sources") if isinstance(found, dict) else None
    ids = [s.get("id") for s in sources if isinstance(s, dict)] if isinstance(sources, list) else []
    if source not in ids:
        raise InputError(
            f"{config.api}: the source set {shown(name)} of {shown(model)} has no source {shown(source)}; check "
            "neuronpedia.layer against the number of layers that the model has there"
        )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _send(api: _Api, folder: Path, sent: _Sent, batch: Batch, done: int) -> _Sent:
    """Send a batch, after which `done` features are there; and keep that it was sent."""
    first = batch.features[0]["index"]
    where = f"feature/{quote(sent.model)}/{quote(sent.source)}/{first}"

    def there() -> bool:
        return api.get(where) is not None

    if not (sent.begun >= done and there()):
        sent = sent.model_copy(update={"begun": done})
        write_json(folder / SENT, sent.model_dump())
        body = {"modelId": sent.model, "source": sent.source, "features": batch.features}
        api.post("feature/upload-batch", body, unless=there)
    sent = sent.model_copy(update={"begun": done, "confirmed": done})
    write_json(folder / SENT, sent.model_dump())
    return sent


class _Api:
    """Requests to the API. Redirects are not followed, so that the key is sent nowhere else."""

    def __init__(self, url: str, key: str, wait: Callable[[float], None]) -> None:
        with needs("upload", "uploading"):
            import httpx2

        self._http, self._url, self._key, self._wait = httpx2, url.rstrip("/"), key, wait
        self._client = httpx2.Client(headers={"X-Api-Key": key}, timeout=_TIMEOUT_S)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str) -> Any:
        """The answer to a question; None if there is nothing."""
        return self._ask("GET", path, None, None)

    def post(self, path: str, body: Any, *, unless: Callable[[], bool] | None = None) -> Any:
        """The answer to a request, which is tried again after errors of the server or the network.

        unless: whether the request has been carried out, asked after an error: it is then not sent again.
        """
        return self._ask("POST", path, body, unless)

    def _ask(self, method: str, path: str, body: Any, unless: Callable[[], bool] | None) -> Any:
        seconds, why = 0.0, ""
        for attempt in range(_TRIES):
            if attempt:
                self._wait(seconds)
                if unless is not None and unless():
                    return None
            seconds = min(2.0**attempt, _LONGEST_WAIT_S)
            try:
                response = self._client.request(method, f"{self._url}/{path}", json=body)
            except (self._http.HTTPError, self._http.InvalidURL) as error:
                why = self._safe(str(error)) or type(error).__name__
                continue
            if response.status_code < 500 and response.status_code != 429:
                return self._answer(response, path)
            why = f"HTTP {response.status_code}: {self._message(response)}"
            asked = response.headers.get("Retry-After", "")
            seconds = min(max(seconds, float(asked) if asked.isdecimal() else 0.0), _LONGEST_WAIT_S)
        raise InputError(
            f"{self._url}/{path}: no answer in {_TRIES} tries; last error: {why}; give the same command again to go on"
        )

    def _answer(self, response: Any, path: str) -> Any:
        status = response.status_code
        if response.is_success:
            try:
                return parse_json(response.content, self._url)
            except InputError:
                raise InputError(
                    f"{self._url}/{path}: the answer is no JSON; check the address of the API"
                ) from None
        if status == 404 and response.request.method == "GET":
            return None
        if 300 <= status < 400:
            where = self._safe(response.headers.get("Location", ""))
            raise InputError(
                f"{self._url}: redirects to {shown(where)}; give the address of the API as it is there"
            )
        if status in (401, 403):
            raise InputError(
                f"{self._url}: the key in {KEY} is not accepted (HTTP {status}: {self._message(response)})"
            )
        raise InputError(f"{self._url}/{path}: refused (HTTP {status}: {self._message(response)})")

    def _message(self, response: Any) -> str:
        try:
            said = parse_json(response.content, self._url)
            return self._safe(str(said.get("error", "")) if isinstance(said, dict) else str(said))
        except InputError:
            return self._safe(response.text)

    def _safe(self, text: str) -> str:
        """A short printable line, without the key."""
        line = next(iter(text.replace(self._key, "(the key)").splitlines()), "")
        return printable(line[:_MESSAGE])
