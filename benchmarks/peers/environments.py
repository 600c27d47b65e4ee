"""An environment of its own for every peer, made once from its release."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-peers"
#: The release the project is developed with. Asked for by itself, so that pip takes the CPU build if it has one.
TORCH = "2.13.0"
_STAMP = "made.txt"
# Modules are compiled when they are first imported: most of what comes along never is.
_INSTALL = ("-m", "pip", "install", "--no-compile")


class EnvironmentFailure(Exception):
    """A library's environment cannot be made; the message is one line."""


@dataclass(frozen=True)
class Recipe:
    """What pip installs for a peer, beside torch."""

    version: str
    needs: tuple[str, ...] | None = None
    """None: all that it asks for. Otherwise the package comes without its dependencies, and these with theirs."""


RECIPES = {
    "sae-lens": Recipe("6.54.12"),
    "eai-sparsify": Recipe("1.3.3"),
    # nnsight, which reads the language model, brings a torchvision that replaces torch; the trainers don't use it.
    "dictionary-learning": Recipe("0.1.0", ("einops", "numpy", "tqdm")),
    # torchvision and timm, which load vision models, replace torch as well; the headless build of OpenCV does without
    # the libraries of a desktop. It was written for an older matplotlib.
    "overcomplete": Recipe(
        "0.3.0",
        (
            "einops",
            "matplotlib<3.9",
            "numpy",
            "opencv-python-headless",
            "scikit-image",
            "scikit-learn<2",
            "scipy",
            "tqdm",
        ),
    ),
}


def python_of(library: str, device: str, say: Callable[[str], None] = print) -> Path:
    """The interpreter to run a library with; its environment is made if it isn't there.

    Raises EnvironmentFailure.
    """
    if library == "saeforest":
        return Path(sys.executable)
    folder = FOLDER / (library if device == "cpu" else f"{library}-{device}")
    python, stamp = folder / "bin" / "python", folder / _STAMP
    recipe = RECIPES[library]
    made_of = f"{library}=={recipe.version} {' '.join(recipe.needs or ())}\n"
    if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == made_of):
        say(f"{library} {recipe.version}: making {folder.relative_to(ROOT)}")
        shutil.rmtree(folder, ignore_errors=True)
        _make(folder, library, recipe, own_torch=device == "cpu")
        stamp.write_text(made_of, encoding="utf-8")
    return python


def _make(folder: Path, library: str, recipe: Recipe, *, own_torch: bool) -> None:
    python = str(folder / "bin" / "python")
    # A machine with a GPU has its own build of torch, which its environments see.
    _run(
        library, sys.executable, "-m", "venv", *([] if own_torch else ["--system-site-packages"]), str(folder)
    )
    if own_torch:
        _run(library, python, *_INSTALL, f"torch=={TORCH}")
    torch = _torch_version(library, python)
    constraint = folder / "constraint.txt"
    constraint.write_text(f"torch=={torch}\n", encoding="utf-8")
    install = [python, *_INSTALL, "--constraint", str(constraint)]
    package = f"{library}=={recipe.version}"
    if recipe.needs is None:
        _run(library, *install, package)
    else:
        _run(library, *install, *recipe.needs)
        _run(library, *install, "--no-deps", package)
    if (now := _torch_version(library, python)) != torch:
        raise EnvironmentFailure(f"{library}: its dependencies replaced torch {torch} by {now}")


def _torch_version(library: str, python: str) -> str:
    return _run(library, python, "-c", "import torch; print(torch.__version__)").strip()


def _run(library: str, *command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise EnvironmentFailure(f"{library}: {command[0]}: {error.strerror}") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
        raise EnvironmentFailure(
            f"{library}: `{' '.join(command[1:5])}` failed with code {done.returncode}: {errors[-1]}"
        )
    return done.stdout
