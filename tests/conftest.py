"""What a process of pytest needs: one that runs tests, all that they share (`shared_fixtures.py`)."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from run_of_tests import CACHE, shared_folder

_IMPORTING = pytest.StashKey[FileLock]()


@pytest.hookimpl(trylast=True)  # when there is a temporary folder
def pytest_configure(config: pytest.Config) -> None:
    worker = hasattr(config, "workerinput")
    # The process that hands tests to workers runs none, and these imports take it seconds while the workers wait.
    if not worker and config.getoption("numprocesses", default=None):
        return
    if worker:
        _wait_for_who_compiles(config)
    gc.disable()  # of what imports and collecting the tests make, nearly nothing is garbage: searching takes seconds
    config.pluginmanager.import_plugin("shared_fixtures")


def _wait_for_who_compiles(config: pytest.Config) -> None:
    """In a fresh environment the first worker compiles all modules as it imports them, torch's too: half a minute.
    The others would do the same work beside it, and so they wait until it has collected all tests."""
    lock = FileLock(shared_folder(config) / "importing.lock")
    lock.acquire()
    if any((Path(__file__).parent / "__pycache__").glob("shared_fixtures.*")):
        lock.release()
    else:
        config.stash[_IMPORTING] = lock


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()  # all of it stays until the end, also in forked processes
    gc.enable()
    if (lock := session.config.stash.get(_IMPORTING, None)) is not None:
        lock.release()


def pytest_sessionfinish(session: pytest.Session) -> None:
    gc.unfreeze()  # or what libraries count at the end looks like leaks
    if not hasattr(session.config, "workerinput"):  # half a gigabyte, which pytest would keep for three runs
        shutil.rmtree(shared_folder(session.config) / CACHE, ignore_errors=True)
