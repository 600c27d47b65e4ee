"""Packages that only some of the work needs: `pip install 'saeforest[NAME]'` brings them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from .errors import InputError

#: The extras that pyproject.toml declares for users.
Extra = Literal[
    "report",
    "judges",
    "data",
    "umap",
    "explore",
    "mcp",
    "upload",
    "s3",
    "tensorboard",
    "trackio",
    "wandb",
    "mlflow",
]


@contextmanager
def needs(extra: Extra, what: str) -> Iterator[None]:
    """Within, a package that is not installed is an InputError with the line that installs it.

    what: names the work that needs the package, as the subject of a sentence.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "saeforest":
            raise
        raise missing(extra, what, error.name.split(".")[0]) from None


def missing(extra: Extra, what: str, package: str = "") -> InputError:
    """The InputError for work (`what`) that needs packages of an extra."""
    needed = f"the package {package}" if package else "more packages"
    return InputError(f"{what} needs {needed}: run `pip install 'saeforest[{extra}]'`")
