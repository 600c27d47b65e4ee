"""Where this run of the tests keeps what its workers share."""

from __future__ import annotations

from pathlib import Path

import pytest

CACHE = "cache"


def shared_folder(config: pytest.Config) -> Path:
    """The temporary folder of this run of the tests, the same for all workers."""
    folder: Path = config._tmp_path_factory.getbasetemp()  # pyright: ignore[reportAttributeAccessIssue]
    return folder.parent if hasattr(config, "workerinput") else folder
