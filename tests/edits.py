"""Files changed by hand, as tests of what is read need them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def forget_checksums(folder: Path) -> None:
    """Makes the folder one of the time before there were any, so that what is inside the files is looked at."""
    for path in folder.glob("*.json"):
        edit_json(path, lambda data: data.pop(CHECKSUMS, None))
