"""The JSON schema of the API: of every answer and every body, from the classes that make them.

python -m saeforest.explore.api.schema docs/explorer-api.schema.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ..answers import ANSWERS
from ..answers.parts import API_VERSION, ErrorAnswer
from .bodies import BODIES

#: Answers that are files: their media types by method and path.
FILES = {"GET export/ID": "text/html"}
_TEMPLATE = "#/$defs/{model}"


def schema() -> dict[str, Any]:
    """The schema: under `answers` and `bodies` by method and path, under `files` what is no JSON, `error` for every
    failure, and `$defs`."""
    kinds: dict[tuple[str, str], Any] = {("answers", path): kind for path, kind in ANSWERS.items()}
    kinds |= {("bodies", path): kind for path, kind in BODIES.items()}
    kinds["error", ""] = ErrorAnswer
    found, shared = TypeAdapter.json_schemas(
        [
            (key, "validation" if key[0] == "bodies" else "serialization", TypeAdapter(kind))
            for key, kind in kinds.items()
        ],
        ref_template=_TEMPLATE,
    )
    parts: dict[str, dict[str, Any]] = {"answers": {}, "bodies": {}}
    error: Any = None
    for ((part, path), _), of in found.items():
        if part == "error":
            error = of
        else:
            parts[part][path] = of
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The JSON API of saeforest explore",
        "version": API_VERSION,
        **parts,
        "files": {path: {"type": "string", "contentMediaType": kind} for path, kind in FILES.items()},
        "error": error,
        "$defs": shared.get("$defs", {}),
    }


def text() -> str:
    """The file docs/explorer-api.schema.json."""
    return json.dumps(schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
