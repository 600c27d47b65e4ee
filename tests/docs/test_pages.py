"""The code in the README, AGENTS.md and the documentation runs: every ```python block and every `saeforest` line of a
```bash block, page by page and in order, with a tiny language model, little text and few steps in place of the page's
own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import saeforest
from saeforest import cli, presets
from saeforest.api import train as api_train

ROOT = Path(__file__).parents[2]
#: Writes a file of the library and adds lines to another: its code runs in a copy.
WRITES_THE_LIBRARY = "docs/add-a-system.md"
# Specification and results hold no examples: their commands are the long ones that gave the numbers.
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in (ROOT / "README.md", ROOT / "AGENTS.md", *(ROOT / "docs").rglob("*.md"))
    if not {"spec", "results"} & set(page.relative_to(ROOT).parts)
)
#: What stands in a page, and what runs in its place; {model} and {text} are the tiny ones.
SMALL = {
    "Qwen/Qwen3-0.6B": "{model}",
    "smollm2-135m": "{model}",
    "blocks.14.": "blocks.1.",
    "blocks.15.": "blocks.1.",
    "my_texts/": "{text}",
    '"packaged"': '"{text}"',
    "--tokens 5000000": "--tokens 3000 --epochs 1 --optim.batch-size 128",
    "400_000": "3_000",
    "1024 2048 6144 7168": "16 32 64 64",
    "(384, 768, 2304, 2688)": "(16, 32, 64, 64)",
    "21 5 4 2": "4 2 2 2",
    "(21, 5, 4, 2)": "(4, 2, 2, 2)",
    "8192": "128",
    "batch_size=2048": "batch_size=128",
    "steps=500": "steps=50",
}
#: The layers of the presets that the pages train, in place of 6,144 features.
LAYERS = (48, 96, 160, 208)
#: What a `saeforest train` of presets is given besides.
PRESET = "--model {model} --site blocks.1.hook_resid_post --data {text} --tokens 5000 --epochs 1"


class Block(NamedTuple):
    language: str
    title: str
    line: int
    code: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    fence = r'^( *)```(\w+)(?: title="([^"]*)")?\n(.*?)^\1```'
    for found in re.finditer(fence, text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, found.start(4)) + 1
        code = re.sub(f"^{found[1]}", "", found[4], flags=re.MULTILINE)
        yield Block(found[2], found[3] or "", line, code)


def commands(code: str) -> Iterator[list[str]]:
    """The `saeforest` lines of a shell block; the others (pip, make, git) are for the reader alone."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["saeforest"]:
            yield words[1:]


def smaller(code: str, small: dict[str, Any]) -> str:
    for old, new in SMALL.items():
        code = code.replace(old, new.format_map(small))
    return code


def with_lines(text: str, diff: str) -> str:
    """The text with the `+` lines of a diff, each after the line that stands before it there."""
    lines, at = text.splitlines(), 0
    for change in diff.splitlines():
        if change.startswith("+"):
            lines.insert(at, change[1:])
        else:
            assert lines.count(change[1:]) == 1, f"not once in the file: {change[1:]}"
            at = lines.index(change[1:])
        at += 1
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def activations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Activations of a known tree, as a file."""
    path = tmp_path_factory.mktemp("known") / "activations.pt"
    torch.save(saeforest.synthetic("tree").held_out(4000).x, path)
    return path


@pytest.fixture
def small(
    tiny_model: Path,
    tiny_text: Path,
    finished_run: Path,
    activations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """A folder with what the pages speak of: a run, and activations of a known tree."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api_train, "_LEAST_STEPS", 50)
    for name in ("demo", "demo-topk", "demo-matryoshka"):
        config = presets.PRESETS[name]
        layers = LAYERS if len(config.sae.layer_sizes) > 1 else (sum(LAYERS),)
        monkeypatch.setitem(
            presets.PRESETS, name, replace(config, sae=replace(config.sae, layer_sizes=layers))
        )
    shutil.copytree(finished_run, tmp_path / "runs/demo")
    shutil.copy(activations, tmp_path)
    return {"model": tiny_model, "text": tiny_text}


@pytest.mark.parametrize("name", [page for page in PAGES if page != WRITES_THE_LIBRARY])
def test_the_code_of_a_page_runs(
    name: str, small: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(ROOT / name):
        code = smaller(block.code, small)
        if block.language == "python":
            # Its lines in a traceback are those of the page.
            exec(compile("\n" * (block.line - 1) + code, ROOT / name, "exec"), namespace)
        for words in commands(code) if block.language == "bash" else ():
            presets = words[0] == "train" and len(words) > 1 and not words[1].startswith("-")
            argv = [*words, *(PRESET.format_map(small).split() if presets else ())]
            status = cli.run(argv)
            assert status == 0, f"{name}: saeforest {shlex.join(words)}\n{capsys.readouterr().err}"


def test_a_system_is_added_as_the_page_says(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src")
    script = []
    for block in blocks(ROOT / WRITES_THE_LIBRARY):
        file = tmp_path / block.title
        if block.language == "diff":
            file.write_text(with_lines(file.read_text("utf-8"), block.code), "utf-8")
        elif block.title:
            assert not file.exists()
            file.write_text(block.code, "utf-8")
        elif block.language == "python":
            script.append(block.code)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)],
        cwd=tmp_path,
        # Compiled kernels are kept for the place of a file, and would be compiled anew in a copy.
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src"), "SAEFOREST_KERNELS": "plain"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_stand_in_is_needed() -> None:
    pages = "".join((ROOT / name).read_text(encoding="utf-8") for name in PAGES)
    assert [old for old in SMALL if old not in pages] == []


def test_blocks_and_commands_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "a\n\n```python\nx = 1\n```\n\n- b\n\n    ```bash\n    pip install x\n    saeforest show a \\\n"
        '      b  # why\n    ```\n\n```diff title="f.py"\n a\n+b\n```\n'
    )
    first, second, third = blocks(page)
    assert (first.language, first.line, first.code) == ("python", 4, "x = 1\n")
    assert list(commands(second.code)) == [["show", "a", "b"]]
    assert third.title == "f.py"
    assert with_lines("a\nc\n", third.code) == "a\nb\nc\n"


def test_a_line_that_the_page_does_not_know_is_an_error() -> None:
    with pytest.raises(AssertionError, match="not once in the file: a"):
        with_lines("b\n", " a\n+c\n")
