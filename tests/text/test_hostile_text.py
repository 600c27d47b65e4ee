"""Control characters and markup from files, names and paths are shown, never obeyed; and one module prints."""

from __future__ import annotations

import ast
import logging
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.text import Text
from safetensors.torch import load_file, save_file

import saeforest.explore
from edits import edit_json, forget_checksums
from everything_cases import copied
from saeforest import cli
from saeforest.config import TrainConfig, load_config, save_config
from saeforest.errors import InputError
from saeforest.output import results, steady
from saeforest.saes import load_sae, save_sae
from saeforest.verify import verify

MakeConfig = Callable[..., TrainConfig]
SOURCE = Path(saeforest.__file__).parent
#: An escape sequence that colors, one that sets a window's title, a bell, markup of rich that opens, closes, links.
HOSTILE = "x\x1b[31m\x1b]0;title\x07\x9b2J\u202e[/x][bold][link=http://x]y[/link][red]"


@pytest.fixture
def copy(everything: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda part: copied(everything, part, tmp_path)


def said(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0, shows: str = "[/x][bold]") -> str:
    """What a command prints: nothing in it is obeyed, and what was hostile is to be seen."""
    assert cli.run(argv) == status
    told = "".join(capsys.readouterr())
    assert not [c for c in told if c in "\x1b\x07\x9b\u202e\r"]
    assert "".join(shows.split()) in "".join(told.split())  # wrapped anywhere
    assert "Traceback" not in told
    return told


# One place prints


def printing(path: Path) -> list[str]:
    """Calls in a module by which text could reach the terminal past `output`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        streams = ("sys.stdout.write", "sys.stderr.write", "sys.__stdout__.write", "sys.__stderr__.write")
        if name in (
            "print",
            "Console",
            "rich.print",
            "Text.from_markup",
            "Text.from_ansi",
            "warnings.warn",
            *streams,
        ):
            found.append(f"{path.name}:{node.lineno}: {name}")
        if any(
            keyword.arg == "markup" and ast.unparse(keyword.value) != "False" for keyword in node.keywords
        ):
            found.append(f"{path.name}:{node.lineno}: markup")
    return found


def test_no_other_module_prints() -> None:
    modules = sorted(SOURCE.rglob("*.py"))
    assert len(modules) > 80
    assert [line for module in modules if module.name != "output.py" for line in printing(module)] == []


def test_the_search_for_prints_finds_them(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text(
        "print('x')\nConsole(stderr=True)\nsys.stdout.write('x')\nTable(markup=True)\nTable(markup=False)\n"
    )
    assert len(printing(module)) == 4


def test_styled_text_obeys_nothing_either(capsys: pytest.CaptureFixture[str]) -> None:
    results().print(Text(HOSTILE, style="bold"))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "x␛[31m␛]0;title�2J�[/x][bold]" in out  # rich itself drops the bell


def test_what_other_libraries_log_is_shown_too(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("a library")
    with steady():
        handler = logging.StreamHandler()
        logger.addHandler(handler)
        try:
            logger.warning("unknown key %s", HOSTILE)
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn(HOSTILE, stacklevel=1)
        finally:
            logger.removeHandler(handler)
    told = capfd.readouterr().err
    assert "\x1b" not in told
    assert "unknown key x␛[31m" in told
    assert "UserWarning: x␛[31m" in told


# Files of a run that somebody else made


def test_metadata_of_an_sae(copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy("run")
    edit_json(folder / "sae" / "cfg.json", lambda cfg: cfg["metadata"].update(hook_name=HOSTILE))
    said(capsys, "eval", str(folder), "--measures", "dead", status=2)


@pytest.mark.parametrize("key", ["model", "site"])
def test_what_an_index_says_of_itself(
    copy: Callable[[str], Path], key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy("two")
    edit_json(folder / "index" / "tree" / "index.json", lambda index: index.update({key: HOSTILE}))
    said(capsys, "show", str(folder), "--sae", "tree")
    said(capsys, "show", str(folder), "0", "--sae", "tree")


def test_units_names_and_reasons_of_a_record(
    copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy("two")

    def change(record: dict[str, Any]) -> None:
        record["unit"] = HOSTILE
        record["value"] = {HOSTILE: None, "other": 1.0}
        record["interval"] = {HOSTILE: None, "other": None}
        record["detail"] = {"null": {HOSTILE: HOSTILE}, "units": {}}

    edit_json(folder / "eval" / "topk" / "dead.json", change)
    options = ["--tokens", "1600", "--sae", "topk", "--measures", "dead"]
    assert "␛[31m" in said(capsys, "eval", str(folder), *options, shows="[/x]")


@pytest.mark.parametrize("damage", [{"value": HOSTILE}, {HOSTILE: 1}, {"measure": 3, "unit": HOSTILE}])
def test_keys_and_values_of_a_damaged_record(
    copy: Callable[[str], Path], damage: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy("two")
    edit_json(folder / "eval" / "tree" / "dead.json", lambda record: record.update(damage))
    said(capsys, "compare", str(folder), "--out", str(folder.parent / "out"), status=2, shows="dead.json")
    said(capsys, "verify", str(folder), status=1, shows="dead.json")


def test_names_of_tensors(copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy("run")
    weights = folder / "sae" / "sae_weights.safetensors"
    save_file({HOSTILE: torch.zeros(1)}, weights)
    forget_checksums(folder / "sae")
    said(capsys, "show", str(folder), "0", status=2)
    checkpoint = next((copy("stopped") / "checkpoints").iterdir())
    tensors = load_file(checkpoint / "state.safetensors")
    save_file({**tensors, HOSTILE: torch.zeros(1)}, checkpoint / "state.safetensors")
    forget_checksums(checkpoint)
    said(capsys, "train", "--resume", "--out", str(checkpoint.parent.parent), status=2)


@pytest.mark.parametrize("file", ["sae/cfg.json", "config.yaml"])
def test_a_value_of_a_hundred_thousand_characters_is_cut(
    copy: Callable[[str], Path], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy("run")
    long = HOSTILE * 3_000
    if file == "config.yaml":
        (folder / file).write_text(f'tokens: "{"x" * 100_000}"\n')
        told = said(capsys, "show", str(folder), status=2, shows="config.yaml")
    else:
        edit_json(folder / file, d_in=long)
        told = said(capsys, "show", str(folder), status=2, shows="cfg.json")
    assert len(told) < 1_000


# Names and paths


@pytest.mark.parametrize("option", ["--model", "--data", "--site", "--device", "--config", "--out"])
@pytest.mark.parametrize("value", ["[/x]", "a\x1b[31m[/x]b", "[bold]/x"])
def test_options(
    option: str, value: str, tiny_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    save_config(tiny_config(), tmp_path / "c.yaml")
    if option == "--out":
        (tmp_path / value).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / value).write_text("a file in the way")
        said(capsys, "demo", "--out", value, status=2, shows="/x" if "/x" in value else "[bold]")
    elif option == "--config":
        said(capsys, "train", "--config", value, "--dry-run", status=2, shows="no such file")
    else:
        said(capsys, "train", "--config", "c.yaml", option, value, "--dry-run", status=2, shows="x")


def test_a_model_and_a_text_whose_paths_look_like_markup(
    tiny_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()
    model = Path(shutil.copytree(config.model, tmp_path / "[bold][x]"))
    text = Path(shutil.copytree(config.data, tmp_path / "[link=x]t\x1b[31m"))
    save_config(tiny_config(model=str(model), data=str(text)), tmp_path / "c.yaml")
    said(capsys, "train", "--config", str(tmp_path / "c.yaml"), "--dry-run", shows="[link=x]t␛[31m")


def test_a_path_in_an_error(
    copy: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy("run").rename(tmp_path / "[x][bold]\x1b[31m")
    (folder / "sae" / "cfg.json").unlink()
    said(capsys, "show", str(folder), status=2, shows="[x][bold]␛[31m")
    said(capsys, "verify", str(folder), status=0, shows="intact")


def test_a_folder_whose_name_is_no_text(
    copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Any bytes make a file name. safetensors takes only text."""
    folder = copy("two")
    odd = Path(os.fsdecode(os.fsencode(folder) + b"\xff"))
    folder.rename(odd)
    save_sae(load_sae(odd / "sae" / "tree"), odd / "again")
    assert torch.equal(load_sae(odd / "again").W_dec, load_sae(odd / "sae" / "tree").W_dec)
    assert [finding for finding in verify(odd) if not finding.sound] == []
    said(capsys, "show", str(odd), "--sae", "tree", shows="features fire")


def test_hints_are_quoted_for_the_shell(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("two").rename(tmp_path / "A B; rm -r *")
    (folder / "index" / "tree" / "index.json").write_text("{")
    sae = load_sae(folder / "sae" / "tree")
    with pytest.raises(InputError) as error:
        saeforest.explore.Index.load(folder / "index" / "tree", sae, sae.forest)
    assert f"run `saeforest index '{folder}' --sae tree` again" in str(error.value)


def test_yaml_that_was_written_for_a_hostile_path_comes_back(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config(data=HOSTILE)
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config
