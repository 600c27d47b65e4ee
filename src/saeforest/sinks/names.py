"""The sinks by name. A new one is a file beside this one, and a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, NamedTuple, get_args

from ..errors import InputError
from ..extras import missing
from .sink import Sink, Start

SinkName = Literal["tensorboard", "trackio", "wandb", "mlflow"]
SINKS: tuple[SinkName, ...] = get_args(SinkName)


class _Tool(NamedTuple):
    """Where a sink's `open_sink` is, and the package that it needs."""

    module: str
    package: str


_TOOLS: dict[SinkName, _Tool] = {
    "tensorboard": _Tool(".tensorboard_files", "tensorboard"),
    "trackio": _Tool(".trackio_run", "trackio"),
    "wandb": _Tool(".wandb_run", "wandb"),
    "mlflow": _Tool(".mlflow_run", "mlflow"),
}


def check_sinks(names: Sequence[str]) -> tuple[SinkName, ...]:
    """The names, each once. Raises InputError for an unknown one, and where its package is not installed."""
    found: list[SinkName] = []
    for name in names:
        if name not in _TOOLS:
            raise InputError(f"log = {str(name)[:100]!r}: expected any of {', '.join(SINKS)}")
        if not installed(name):
            raise missing(name, f"a log in {name}", _TOOLS[name].package)
        if name not in found:
            found.append(name)
    return tuple(found)


def installed(name: SinkName) -> bool:
    """Whether the package of a sink is there."""
    return find_spec(_TOOLS[name].package) is not None


def opener(name: SinkName) -> Callable[[Start], Sink]:
    """The function that opens a sink. Imports its package."""
    return import_module(_TOOLS[name].module, __package__).open_sink
