"""What is checked about a tool, how it is run, and the table that comes of it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import FOLDER, RECIPES, ROOT, EnvironmentFailure, Recipe, python_of


@dataclass(frozen=True)
class Row:
    """One thing that was loaded or written.

    where: what was read by whom.
    codes, reconstructions: largest difference, as a share of the largest entry; None where none is compared.
    ok: whether it is as expected.
    said: what else there is to say.
    """

    where: str
    codes: float | None
    reconstructions: float | None
    ok: bool = True
    said: str = ""


@dataclass(frozen=True)
class Tool:
    """A tool that files are exchanged with.

    check: given an empty folder and a function that runs a script of `benchmarks/interop/theirs` in the tool's
           environment, returns what it found.
    environment: package whose environment it runs in.
    more:  arguments of `pip install` for what that environment lacks.
    """

    name: str
    version: str
    check: Callable[[Path, Run], list[Row]]
    environment: str
    more: tuple[tuple[str, ...], ...] = ()


Run = Callable[..., Any]
"""Runs a script of theirs with some arguments; returns the JSON that it prints on its last line."""
#: saeforest itself, as it is here.
OURS = ("--editable", str(ROOT))


def tool(
    package: str,
    recipe: Recipe,
    check: Callable[[Path, Run], list[Row]],
    *more: tuple[str, ...],
    environment: str = "",
) -> Tool:
    """A tool in an environment of its own, made by the recipe, or in another's."""
    if not environment:
        RECIPES[package] = recipe
    return Tool(package, recipe.version, check, environment or package, more)


def runner(tool: Tool, say: Callable[[str], None]) -> Run:
    """What runs scripts of `theirs` in the environment of a tool, which is made if it isn't there."""
    python = python_of(tool.environment, "cpu", say)
    for arguments in tool.more:
        constraint = FOLDER / tool.environment / "constraint.txt"
        install = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--constraint",
            str(constraint),
            *arguments,
        ]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EnvironmentFailure(f"{tool.name}: pip install {' '.join(arguments)}: {done.stderr[-1000:]}")

    def run(script: str, *arguments: Any) -> Any:
        # Nothing may wait for a hub that can't be reached.
        offline = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        command = [str(python), "-m", f"benchmarks.interop.theirs.{script}", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=offline, check=False, capture_output=True, text=True)
        if done.returncode:
            raise EnvironmentFailure(f"{tool.name}: {script} failed:\n{done.stderr[-4000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


def table(rows: Iterable[tuple[Tool, Row]]) -> str:
    """The rows as Markdown."""
    lines = ["| tool | version | what was read | codes | reconstructions | |", "|---|---|---|---|---|---|"]
    for tool, row in rows:
        said = row.said if row.ok else f"**not as expected** {row.said}"
        shown = [_shown(row.codes), _shown(row.reconstructions)]
        lines.append(f"| {tool.name} | {tool.version} | {row.where} | {' | '.join(shown)} | {said} |")
    return "\n".join(lines) + "\n"


def _shown(difference: float | None) -> str:
    if difference is None:
        return ""
    return "equal bits" if difference == 0 else f"{difference:.1e}"
