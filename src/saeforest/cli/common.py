"""What the commands share: checks of arguments, and what to do next."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from shlex import quote
from shutil import which
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..output import say
from ..stopping import Interrupted
from .shared import Reads

if TYPE_CHECKING:
    from ..explore.subject import Subject
    from ..run_folder import RunFolder


@contextmanager
def resumable(out: Path, command: str) -> Iterator[None]:
    """Within, an interruption says how to go on if anything is there to go on with."""
    try:
        yield
    except Interrupted as stop:
        there = out.exists() and any(out.iterdir())
        how = f"{program()} {command} --out {quoted(out)}" if command.startswith("train") else command
        go_on = f"; go on with: {how}" if there else ""
        raise Interrupted(f"{stop}{go_on}", stop.signum) from None


def named(run: RunFolder, sae: str | None) -> str:
    """The name of the SAE that --sae chooses, which may be left out where the run has only one."""
    names = run.names()
    if run.several and sae not in names:
        raise InputError(f"{run}: holds several SAEs; give --sae with one of {', '.join(names)}")
    if sae is not None and sae not in names:
        raise InputError(f"{run}: holds one SAE, {names[0]}, and none named '{sae}'; leave out --sae")
    return sae or names[0]


def subject_of(source: str, sae: str | None, out: Path | None, reads: Reads, device: str | None) -> Subject:
    """The SAE that is explored: of a run, or, with --out, alone."""
    from ..explore.subject import Subject
    from ..run_folder import RunFolder

    run, alone = RunFolder(Path(source)), reads != Reads() or out is not None
    if run.config_file.is_file():
        if alone:
            raise InputError(
                f"{run}: a run has its own model, site and data, and its index goes to RUN/index; leave out --model, "
                "--site, --data and --out"
            )
        return Subject.of_run(run, named(run, sae), device)
    if out is None:
        raise InputError(
            f"{source}: no config.yaml, so this is no run; for an SAE without a run, give --out too: the folder for "
            "its index and its notes"
        )
    if sae is not None:
        raise InputError(f"{source}: not a run, so it has no SAE named '{sae}'; give the SAE's own folder")
    return Subject.alone(source, out, model=reads.model, site=reads.site, data=reads.data, device=device)


def quoted(path: Path) -> str:
    """A path as it is typed in a shell."""
    return quote(str(path))


def program() -> str:
    """What to type to run this program: `make demo` uses one that may not be on the PATH."""
    if which("saeforest"):
        return "saeforest"
    return "python -m saeforest" if Path(sys.argv[0]).name == "__main__.py" else sys.argv[0]


def say_next(run: RunFolder, name: str, *, families: bool = True) -> None:
    """Says which commands a trained SAE is looked at with."""
    typed, which_sae = program(), f" --sae {name}" if run.several else ""
    commands = (
        {f"{typed} show {run}{which_sae}": "the most telling families; -n 30 for more"} if families else {}
    )
    commands |= {
        f"{typed} show {run} FEATURE{which_sae}": "what a feature fires on, and the tree under it",
        f"{typed} eval {run}": "measure it on held-out text",
        f"{typed} train --help": "your own model, site, text and sizes",
        f'In Python: saeforest.load("{run.sae(name)}")': "the SAE: encode, decode, forest",
    }
    width = max(map(len, commands))
    say_lines("\nNext:\n" + "\n".join(f"  {command:{width}}   {what}" for command, what in commands.items()))


def near(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that is spelled most like `name`; empty if there is none."""
    found = get_close_matches(name, known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def positive(args: Any, *names: str) -> None:
    """Raises InputError where one of the named arguments is below 1."""
    for name in names:
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected 1 or more")


def say_lines(text: str) -> None:
    for line in text.splitlines():
        say(line)
