"""Fixtures of the tests of ranks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llama_cases import MakeConfig
from ranks_cases import Worlds, worlds
from saeforest.config import TrainConfig
from saeforest.training.harvest import run_harvest


@pytest.fixture(scope="module")
def start() -> Iterator[Worlds]:
    with worlds() as started:
        yield started


@pytest.fixture(scope="module")
def base(tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of a Tree SAE on stored activations."""
    folder = tmp_path_factory.mktemp("ranks")
    run_harvest(tiny_config(), folder / "store")
    return tiny_config(data=str(folder / "store"), epochs=1, log_every=5)
