"""Files changed by hand, as tests of what is read need them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from saeforest.config import load_config, save_config
from saeforest.files import CHECKSUM, CHECKSUMS


def edit_json(
    path: Path, change: Callable[[dict[str, Any]], object] = lambda data: None, **values: Any
) -> None:
    """Changes a JSON object (`...` deletes a key) and deletes its checksum, as whoever edits it on purpose must."""
    data = json.loads(path.read_text(encoding="utf-8"))
    data.pop(CHECKSUM, None)
    change(data)
    changed = {key: value for key, value in (data | values).items() if value is not ...}
    path.write_text(json.dumps(changed), encoding="utf-8")


def edit_run_config(run: Path, **changes: Any) -> None:
    """Changes settings in RUN/config.yaml, and its checksum with them: a run that was made so."""
    path = run / "config.yaml"
    save_config(replace(load_config(path), **changes), path)


def forget_checksums(folder: Path) -> None:
    """Makes the folder one of the time before there were any, so that what is inside the files is looked at."""

    def forget(data: dict[str, Any]) -> None:
        data.pop(CHECKSUMS, None)
        for shard in data.get("shards", []):
            shard.pop(CHECKSUM)

    for path in folder.glob("*.json"):
        edit_json(path, forget)
