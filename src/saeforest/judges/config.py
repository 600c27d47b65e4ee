"""Choosing and opening a judge."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import InputError
from ..extras import needs
from ..lm import LanguageModel, identify, load_lm, same_model
from .cache import CachedJudge
from .judge import Judge

NO_JUDGE = (
    "no judge: set judge.model to smollm2-135m, a folder, a .gguf file or a Hub name for a local model, or "
    "judge.endpoint and judge.model for an OpenAI-compatible endpoint, with its key in OPENAI_API_KEY"
)


@dataclass(frozen=True)
class JudgeConfig:
    """Which language model acts as the judge. There is no judge unless `model` is set."""

    endpoint: str = ""
    """URL of an OpenAI-compatible endpoint, version included, such as https://host/v1. If empty, the judge is a local
    model."""
    model: str = ""
    """Name of the model at the endpoint; for a local judge: smollm2-135m, a folder, a .gguf file or a Hub name. By
    default there is no judge."""
    key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the endpoint's API key. If it is unset, no key is sent. The key is
    never written to disk."""
    timeout: float = 60.0
    """Seconds to wait for the endpoint to send anything before a request is retried."""
    retries: int = 5
    """Number of times to retry a failed request."""
    workers: int = 4
    """Number of concurrent requests to the endpoint."""

    def __post_init__(self) -> None:
        expected = "http(s)://HOST/v1, without a user, a query or a fragment"
        if self.endpoint and not _is_plain_url(self.endpoint):
            raise InputError(f"judge.endpoint: expected {expected}")  # not shown: it may hold a password
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_env):
            # Nor is this: it may be the key itself.
            raise InputError(
                "judge.key_env: expected the name of an environment variable, of letters, digits and _"
            )
        ranges = [
            ("model", self.model, bool(self.model) or not self.endpoint, "the model's name at the endpoint"),
            ("timeout", self.timeout, 0 < self.timeout < float("inf"), "more than 0 seconds"),
            ("retries", self.retries, self.retries >= 0, "0 or more"),
            ("workers", self.workers, self.workers >= 1, "1 or more"),
        ]
        for name, value, holds, wanted in ranges:
            if not holds:
                raise InputError(f"judge.{name} = {value!r}: expected {wanted}")


def _is_plain_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        return False
    plain = (
        not (parts.query or parts.fragment or "@" in parts.netloc) and url.isprintable() and " " not in url
    )
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port_is_valid and plain


@contextmanager
def open_judge(config: JudgeConfig, lm: LanguageModel, folder: Path | None) -> Iterator[Judge | None]:
    """Context with the configured judge; None if none is configured. It keeps its answers in `folder`, if given.

    A local judge runs on the device of `lm` with its dtype; it is `lm` itself if that is the same model.
    Raises InputError if the model can't be loaded or the API key is malformed.
    """
    if not config.model:
        yield None
    elif config.endpoint:
        with needs("judges", "a judge behind an endpoint"):
            from .endpoint import EndpointJudge
        judge = EndpointJudge(
            config.endpoint,
            config.model,
            key=_key(config.key_env),
            timeout=config.timeout,
            retries=config.retries,
            workers=config.workers,
        )
        try:
            yield CachedJudge(judge, folder)
        finally:
            judge.close()
    else:
        from .local import LocalJudge  # brings transformers

        if not same_model(identify(config.model), lm.identity):
            lm = load_lm(config.model, device=str(lm.device), dtype=lm.dtype)
        yield CachedJudge(LocalJudge(lm), folder)


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError(
            f"environment variable {variable}: expected an API key of ASCII characters without spaces"
        )
    return key
