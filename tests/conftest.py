"""What a process of pytest needs: one that runs tests, all that they share (`shared_fixtures.py`)."""

from __future__ import annotations

import shutil

import pytest

from run_of_tests import CACHE, shared_folder


def pytest_configure(config: pytest.Config) -> None:
    # The process that hands tests to workers runs none, and these imports take it seconds while the workers wait.
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", default=None):
        config.pluginmanager.import_plugin("shared_fixtures")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # half a gigabyte, which pytest would keep for three runs
        shutil.rmtree(shared_folder(session.config) / CACHE, ignore_errors=True)
