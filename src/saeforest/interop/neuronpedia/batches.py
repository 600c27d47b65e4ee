"""What the API takes of an export: its features in batches, each checked against the limits before anything is sent."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import InputError
from ...files import parse_json
from ...schema import shown
from .files import ACTIVATIONS, EXPLANATIONS, FEATURES
from .records import MOST_EXPLANATION

#: Limits of the API: features in a request, logits and tokens of an activation, the largest index of a feature.
MOST_FEATURES, MOST_LOGITS, MOST_TOKENS, MOST_INDEX = 128, 20, 1_024, 10_000_000
#: Bytes of a request: servers in front of an API often take no more.
MOST_BYTES = 4_000_000
_WRITE_ANEW = "the export is damaged or was edited; write it again"


class Plan(NamedTuple):
    """What is going to be sent. without: features that the API does not take, as they have no context."""

    features: int
    without: int
    batches: int
    n_bytes: int


def plan_of(place: Path) -> Plan:
    """What is going to be sent of the files in MODEL/LAYER-SET.

    Raises InputError for the first thing in them that the API does not take.
    """
    features = batches = n_bytes = without = 0
    seen: set[int] = set()
    for batch in batches_of(place):
        for feature in batch.features:
            check(feature, place)
            if feature["index"] in seen:
                raise InputError(f"{place}: feature {feature['index']} is there twice; {_WRITE_ANEW}")
            seen.add(feature["index"])
        features, batches = features + len(batch.features), batches + 1
        n_bytes, without = n_bytes + batch.n_bytes, without + batch.without
    return Plan(features, without, batches, n_bytes)


class Batch(NamedTuple):
    """Features of one request. without: how many between those of the batch before and its last have no context."""

    features: list[dict[str, Any]]
    n_bytes: int
    without: int


def batches_of(place: Path) -> Iterator[Batch]:
    """The features as the API takes them, as many in a batch as fit; always the same. Raises InputError for damage."""
    batch: list[dict[str, Any]] = []
    n_bytes = without = 0
    for feature in _features(place):
        if not feature["activations"]:
            without += 1
            continue
        size = len(json.dumps(feature, separators=(",", ":")))
        if batch and (len(batch) == MOST_FEATURES or n_bytes + size > MOST_BYTES):
            yield Batch(batch, n_bytes, without)
            batch, n_bytes, without = [], 0, 0
        batch, n_bytes = [*batch, feature], n_bytes + size
    if batch or without:
        yield Batch(batch, n_bytes, without)


def _features(place: Path) -> Iterator[dict[str, Any]]:
    files = sorted((place / FEATURES).glob("batch-*.jsonl.gz"), key=lambda path: int(path.name[6:-9]))
    if not files:
        raise InputError(f"{place}: no features; {_WRITE_ANEW}")
    for file in files:
        try:
            about: dict[str, dict[str, list[Any]]] = {}
            for kind in (ACTIVATIONS, EXPLANATIONS):
                by_feature = about.setdefault(kind, {})
                if (other := place / kind / file.name).exists():
                    for line in read_lines(other):
                        by_feature.setdefault(line["index"], []).append(line)
            for line in read_lines(file):
                index = line["index"]
                yield {
                    "index": int(index),
                    "density": line["frac_nonzero"],
                    "topLogits": _logits(line, "pos"),
                    "bottomLogits": _logits(line, "neg"),
                    "explanations": [_explanation(e) for e in about[EXPLANATIONS].get(index, [])],
                    "activations": [_activation(a) for a in about[ACTIVATIONS].get(index, [])],
                }
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{file}: not the lines of an export ({error!r:.100}); {_WRITE_ANEW}") from None


def _logits(line: dict[str, Any], key: str) -> list[dict[str, Any]]:
    pairs = zip(line[f"{key}_str"], line[f"{key}_values"], strict=True)
    return [{"token": token, "value": value} for token, value in pairs]


def _explanation(line: dict[str, Any]) -> dict[str, Any]:
    return {
        "text": line["description"],
        "methodName": line["typeName"],
        "modelName": line["explanationModelName"],
    }


def _activation(line: dict[str, Any]) -> dict[str, Any]:
    return {
        "tokens": line["tokens"],
        "values": line["values"],
        "quantileMax": line["binMax"],
        "quantileMin": line["binMin"],
        "quantileFraction": line["binContains"],
    }


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a compressed file. Raises InputError for a damaged one."""
    try:
        with gzip.open(path, "rb") as file:
            for line in file:
                yield parse_json(line, str(path))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged ({error}); {_WRITE_ANEW}") from None


def check(feature: dict[str, Any], place: Path) -> None:
    """Raise InputError for the first thing in a feature that the API does not take."""

    def refuse(what: str) -> InputError:
        return InputError(f"{place}: feature {feature['index']} has {what}; {_WRITE_ANEW}")

    if not 0 <= feature["index"] <= MOST_INDEX:
        raise refuse(f"a number that is not within 0 to {MOST_INDEX:,}")
    if not _within(feature["density"], 0, 1):
        raise refuse(f"the density {shown(feature['density'])}, not one from 0 to 1")
    for key in ("topLogits", "bottomLogits"):
        if len(feature[key]) > MOST_LOGITS:
            raise refuse(f"{len(feature[key])} {key}, more than {MOST_LOGITS}")
        if not all(_is_text(logit["token"]) and _within(logit["value"]) for logit in feature[key]):
            raise refuse(f"an empty token or no number in {key}")
    for explanation in feature["explanations"]:
        if not _is_text(explanation["text"]) or len(explanation["text"]) > MOST_EXPLANATION:
            raise refuse(f"an explanation that has not 1 to {MOST_EXPLANATION} characters")
    if not feature["activations"]:
        raise refuse("no activation")
    for activation in feature["activations"]:
        tokens, values = activation["tokens"], activation["values"]
        if len(tokens) != len(values) or not 1 <= len(tokens) <= MOST_TOKENS:
            raise refuse(
                f"an activation of {len(tokens)} tokens and {len(values)} values, not 1 to {MOST_TOKENS:,} of each"
            )
        if not all(map(_is_text, tokens)) or not all(map(_within, values)):
            raise refuse("an activation with an empty token or a value that is no number")
        share = activation["quantileFraction"]
        if share is not None and not _within(share, 0, 1):
            raise refuse(f"an activation whose quantileFraction is {shown(share)}, not from 0 to 1")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _within(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and low <= value <= high
