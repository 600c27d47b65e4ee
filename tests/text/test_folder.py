"""Folders: what is read, what is skipped, and that both are reported."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from llama_cases import MakeConfig
from saeforest.evaluation import measure_saes
from saeforest.evaluation.options import MeasureOptions
from saeforest.files import write_json
from saeforest.run_folder import RunFolder
from saeforest.session import open_reader
from saeforest.text import Reading, documents
from saeforest.training import run_training
from text_cases import error_line, read, reading_error, write_jsonl


def names(folder: Path, **options: object) -> list[str]:
    return [document.name for document in documents(str(folder), **options)]  # pyright: ignore[reportArgumentType]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The only line on the standard error."""

    def line() -> str:
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    return line


def test_what_is_read_and_what_is_passed_over_is_said(tmp_path: Path, said: Callable[[], str]):
    for i in range(3):
        (tmp_path / f"part-{i}.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 50))
    notes = [
        "LICENSE.txt",
        "licence.txt",
        "README.txt",
        "requirements.txt",
        "requirements-dev.txt",
        "NOTICE.txt",
    ]
    for name in [*notes, "a.txt", "b.md", "c.md", ".hidden.txt", "Makefile", "licensed-texts.txt"]:
        (tmp_path / name).write_text(name)
    (tmp_path / ".git").mkdir()
    assert len(read(tmp_path)) == 152
    line = said()
    assert line.startswith(
        f"{tmp_path}: reading 3 .jsonl.gz, 2 .txt; skipping 2 .md, 2 hidden, 1 LICENSE.txt (not text)"
    )
    assert "1 without a suffix" in line
    for name in notes:
        assert f"1 {name} (not text)" in line
    assert read(tmp_path / "LICENSE.txt") == ["LICENSE.txt"]  # asked for by name


def test_it_is_said_once(tmp_path: Path, said: Callable[[], str]):
    (tmp_path / "a.txt").write_text("a")
    for _ in range(3):
        read(tmp_path)
    assert said() == f"{tmp_path}: reading 1 .txt"


def test_every_kind_in_the_order_of_paths(tmp_path: Path):
    from test_fields import KINDS

    for i, (kind, write) in enumerate(KINDS.items()):
        write(tmp_path / f"{9 - i}{kind}", [{"text": f"{kind} {j}"} for j in range(2)])
    (tmp_path / "z.txt").write_text("z")
    (tmp_path / "b").mkdir()
    (tmp_path / "b.tsv").write_text("text\nx\n")
    (tmp_path / "b" / "a.ndjson").write_text('{"text": "y"}\n')
    kinds = [".arrow", ".parquet", ".csv", ".json", ".jsonl"]
    expected = [f"{kind} {j}" for kind in kinds for j in range(2)]
    assert read(tmp_path) == [*expected, "x", "y", "z"]


def test_tables_and_json_that_hold_no_text_are_passed_over(
    tmp_path: Path, said: Callable[[], str], capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "about.csv").write_text("id,license\n1,MIT\n")
    (tmp_path / "config.json").write_text('{\n  "seed": 1\n}\n')
    (tmp_path / "infos.json").write_text('{"default": {"features": 1}}')
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "chat.json").write_text('{"messages": []}')
    assert "set text.chat to true" in reading_error(tmp_path)
    (tmp_path / "chat.json").unlink()
    capsys.readouterr()
    (tmp_path / "one.json").write_text('{"text": "one"}')
    (tmp_path / "named.csv").write_text("summary\ns\n")
    assert read(tmp_path) == ["a", "one"]
    line = said()
    assert "1 .json without a text field (config.json)" in line
    assert "1 .json without a text field (infos.json)" in line
    assert "1 .csv without a text field (about.csv), 1 .csv without a text field (named.csv)" in line


def test_a_column_by_name_decides_what_is_text(tmp_path: Path):
    (tmp_path / "named.csv").write_text("summary,text\ns,t\n")
    (tmp_path / "other.csv").write_text("text\nt\n")
    assert read(tmp_path, reading=Reading("summary")) == ["s"]


@pytest.mark.parametrize("content", [b'["a"]', b'[{"id": 1}]', b'{"id": 1}\n{"id": 2}\n', b"[", b"\xff\xfe"])
def test_records_without_text_are_no_excuse(tmp_path: Path, content: bytes):
    (tmp_path / "d.json").write_bytes(content)
    (tmp_path / "a.txt").write_text("a")
    assert f"{tmp_path}/d.json" in reading_error(tmp_path)


@pytest.mark.parametrize("things", [(), ("a.png", "b.png", "LICENSE.txt")])
def test_nothing_to_read(things: tuple[str, ...], tmp_path: Path):
    for thing in things:
        (tmp_path / thing).touch()
    message = reading_error(tmp_path)
    assert message.endswith(
        "it contains 2 .png, 1 LICENSE.txt (not text)" if things else "it contains nothing"
    )


def test_many_kinds_are_summed_up(tmp_path: Path, said: Callable[[], str]):
    (tmp_path / "a.txt").write_text("a")
    for i in range(30):
        (tmp_path / f"b.kind{i:02}").touch()
    read(tmp_path)
    line = said()
    assert "1 .kind11, 18 others" in line
    assert ".kind12" not in line


# Links


def test_linked_folders_are_read(tmp_path: Path, said: Callable[[], str]):
    """Each once, and never round in a circle."""
    texts, outside = tmp_path / "texts", tmp_path / "outside"
    (texts / "inner").mkdir(parents=True)
    (outside / "deep").mkdir(parents=True)
    (texts / "inner" / "a.txt").write_text("a")
    (outside / "b.txt").write_text("b")
    (outside / "deep" / "c.txt").write_text("c")
    (texts / "link").symlink_to(outside)
    (texts / "again").symlink_to(outside)
    (texts / "aa").symlink_to(texts / "inner")
    (texts / "up").symlink_to(tmp_path)
    (texts / "inner" / "here").symlink_to(".")
    (outside / "deep" / "back").symlink_to(texts)
    (texts / "gone.txt").symlink_to(tmp_path / "nowhere")
    (texts / "file.txt").symlink_to(outside / "b.txt")
    assert names(texts) == ["again/b.txt", "again/deep/c.txt", "file.txt", "inner/a.txt"]
    line = said()
    assert "5 linked folder that was already read" in line
    assert "1 broken link" in line
    (tmp_path / "all").symlink_to(texts)
    assert names(tmp_path / "all") == ["again/b.txt", "again/deep/c.txt", "file.txt", "inner/a.txt"]


# What tools leave


def test_a_run_inside_its_own_data(
    tiny_config: MakeConfig, tiny_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = tmp_path / "data"
    shutil.copytree(tiny_text, data)
    config = tiny_config(data=str(data), epochs=1)
    first = names(data)
    run_training(config, data / "runs" / "a")
    run = RunFolder(data / "runs" / "a")
    resolved, sae = run.load()
    saes = {"tree": (resolved, sae)}
    measure_saes(saes, open_reader(resolved), ["sparsity"], MeasureOptions(tokens=640), run)
    assert names(data) == first
    assert "1 folder that is a run of saeforest (runs/a)" in capsys.readouterr().err
    assert "a run of saeforest, not text" in reading_error(data / "runs" / "a")


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (("config.yaml", "log.jsonl"), "a run of saeforest"),
        (("config.yaml", "sae/x"), "a run of saeforest"),
        (("activations.json", "tokens.safetensors"), "harvested activations"),
        (("cfg.json", "sae_weights.safetensors"), "an SAE"),
        (("index.json", "index.safetensors"), "an index of saeforest"),
        (("config.json", "merges.txt", "vocab.json"), "a language model"),
        (("config.json", "tokenizer.json"), "a language model"),
        (("recovery.json",), "a synthetic run of saeforest"),
    ],
)
def test_what_tools_leave_is_no_text(
    files: tuple[str, ...], what: str, tmp_path: Path, said: Callable[[], str]
):
    (tmp_path / "a.txt").write_text("a")
    for name in (*files, "notes.txt"):
        path = tmp_path / "left" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "not this"}')
    assert read(tmp_path) == ["a"]
    assert said() == f"{tmp_path}: reading 1 .txt; skipping 1 folder that is {what} (left)"
    assert f"{what}, not text" in reading_error(tmp_path / "left")


def test_a_run_that_has_only_begun(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("model: m\nsite: s\ndata: d\n")
    (tmp_path / "run" / "a.txt").write_text("not this")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("title: my site\n")
    (tmp_path / "other" / "a.txt").write_text("a")
    assert read(tmp_path) == ["a"]


# What `datasets` saves


def saved(folder: Path, n: int = 5, **splits: str) -> Path:
    parts = {
        split: datasets.Dataset.from_dict({"id": list(range(n)), "text": [f"{name} {i}" for i in range(n)]})
        for split, name in splits.items()
    }
    if list(splits) == ["only"]:
        parts["only"].save_to_disk(folder, num_shards=2)
    else:
        datasets.DatasetDict(list(parts.items())).save_to_disk(folder)
    return folder


def test_saved_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets.disable_progress_bars()
    assert read(saved(tmp_path / "one", only="a")) == [f"a {i}" for i in range(5)]
    (tmp_path / "one" / "cache-1.arrow").write_bytes(b"left by a map")
    assert len(read(tmp_path / "one")) == 5
    both = saved(tmp_path / "both", train="a", test="b")
    assert read(both) == [f"a {i}" for i in range(5)]
    assert read(both, reading=Reading(split="test")) == [f"b {i}" for i in range(5)]
    message = reading_error(both, reading=Reading(split="dev"))
    assert message == f"{both}: has no split 'dev'; set text.split to one of train, test"
    (tmp_path / "a.txt").write_text("z")
    assert len(read(tmp_path)) == 11  # among others


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", {"_data_files": [{"filename": "../secret.arrow"}]}),
        ("state.json", {"_data_files": [{"filename": "data-00009.arrow"}]}),
        ("state.json", {"_data_files": [{}]}),
        ("dataset_dict.json", {"splits": ["../.."]}),
        ("dataset_dict.json", {"splits": 3}),
        ("dataset_dict.json", {"splits": ["train"]}),
        ("dataset_dict.json", []),
    ],
)
def test_damaged_saved_data_sets(tmp_path: Path, file: str, content: object):
    (tmp_path / "dataset_info.json").write_text("{}")
    write_json(tmp_path / file, content)
    assert str(tmp_path) in (message := reading_error(tmp_path))
    assert "save it again" in message or "save the data set again" in message


@pytest.mark.parametrize("kind", ["file", "folder", "packaged"])
def test_splits_of_what_has_none(kind: str, tmp_path: Path):
    write_jsonl(tmp_path / "d.jsonl", ["a"])
    source = {"file": tmp_path / "d.jsonl", "folder": tmp_path, "packaged": "packaged"}[kind]
    message = error_line(lambda: documents(str(source), reading=Reading(split="test")))
    assert "text.split" in message
