"""Data sets of the Hub as documents."""

from __future__ import annotations

import sys
from importlib.metadata import metadata
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import zstandard

from llama_cases import MakeConfig
from saeforest.presets import PRESETS
from saeforest.session import about_text, open_reader
from saeforest.text import Document, Reading, documents, hub_name, is_hub_source, pinned
from saeforest.text import hub as hub_module
from saeforest.training.settle import settle_text
from text_cases import (
    read,
    reading_error,
)


@pytest.mark.parametrize(("source", "config"), [("org/name", None), ("org/name:en.1", "en.1")])
def test_hub_data_set_is_streamed(source: str, config: str | None, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(
        name: str, config: str | None = None, *, split: str, streaming: bool, revision: str | None = None
    ):
        asked.append((name, config, split, streaming, revision))
        return iter([{"text": "one", "id": 1}, {"text": ""}, {"text": "three"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = list(documents(source))
    assert found == [Document("one", f"{source}:1"), Document("three", f"{source}:3")]
    assert asked == [("org/name", config, "train", True, None)]


def test_hub_errors_are_one_line(monkeypatch: pytest.MonkeyPatch):
    def load_dataset(*_: object, **__: object):
        raise FileNotFoundError("Dataset 'org/name' doesn't exist\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "text source 'org/name'" in (message := reading_error("org/name"))
    assert "doesn't exist" in message


def test_hub_data_set_without_the_column(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter([{"note": "x"}]))
    assert (
        'org/name:1: expected the text under "text", "content", "document" or "body", found note'
        in reading_error("org/name")
    )


@pytest.mark.parametrize(("module", "source"), [("datasets", "org/name"), ("pyarrow", "{}/a.parquet")])
def test_missing_extra_is_named(module: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'saeforest[data]'" in reading_error(source.format(tmp_path))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", ("org/name", None, None)),
        ("org/name:en.1", ("org/name", None, "en.1")),
        ("org/name@v1.0", ("org/name", "v1.0", None)),
        ("org/name@refs/pr/3:en", ("org/name", "refs/pr/3", "en")),
        ("org/name:en@v1", None),
        ("org/name:en:test", None),
        ("org/name@", None),
        ("org/name@a b", None),
        ("org/name:", None),
        ("org/na me", None),
    ],
)
def test_names_on_the_hub(source: str, expected: tuple[str | None, ...] | None):
    place = hub_name(source)
    assert (None if place is None else tuple(place)) == expected
    if place is not None:
        assert str(place) == source


def test_revision_subset_and_split_are_passed_on(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(*args: object, **options: object):
        asked.append((args, options))
        return iter([{"summary": "one"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("org/name@v1:en", reading=Reading("summary", "test")) == ["one"]
    assert asked == [(("org/name", "en"), {"split": "test", "streaming": True, "revision": "v1"})]


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def load_dataset(*_: object, **__: object):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_the_first_cause_is_shown(monkeypatch: pytest.MonkeyPatch):
    outer = RuntimeError("could not build\nmore")
    outer.__cause__ = ValueError("in between")
    outer.__cause__.__context__ = ConnectionError("no route to host")
    failing(monkeypatch, outer)
    message = reading_error("org/name")
    assert (
        "split 'train' of the Hub data set can't be read (could not build; first cause: no route to host)"
        in message
    )
    assert "check the name, the subset, the revision, text.split and the network" in message


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    outer = RuntimeError("could not build")
    outer.__cause__ = ModuleNotFoundError("No module named 'soundfile.inner'", name="soundfile.inner")
    failing(monkeypatch, outer)
    assert "reading it needs the package soundfile: run `pip install 'soundfile'`" in reading_error(
        "org/name"
    )


def test_the_papers_data_set_without_zstandard(monkeypatch: pytest.MonkeyPatch):
    failing(monkeypatch, ValueError("Compression type zstd not supported"))
    assert "can't be read (Compression type zstd" in reading_error(
        "org/name"
    )  # it is installed: something else
    monkeypatch.setattr(hub_module, "find_spec", lambda _: None)
    message = reading_error("monology/pile-uncopyrighted")
    assert "reading it needs the package zstandard: run `pip install saeforest[data]`" in message.replace(
        "'", ""
    )


def test_the_papers_data_set_as_it_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All presets of the Tree SAE's paper read .jsonl.zst from the Hub, whose part a local file plays here."""
    packed = zstandard.ZstdCompressor().compress(b'{"text": "a document", "meta": {}}\n')
    (tmp_path / "d.jsonl.zst").write_bytes(packed)
    real = datasets.load_dataset

    def load_dataset(name: str, config: str | None = None, *, split: str, streaming: bool):
        assert name == PRESETS["tree-4layer"].data == "monology/pile-uncopyrighted"
        return real("json", data_files=str(tmp_path / "d.jsonl.zst"), split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("monology/pile-uncopyrighted") == ["a document"]
    extra = metadata("saeforest").get_all("Requires-Dist") or []
    assert [line for line in extra if line.startswith("zstandard")] or "zstandard" in (
        Path(__file__).parents[2] / "pyproject.toml"
    ).read_text("utf-8")


COMMIT = "0123456789" * 4


def test_a_revision_is_pinned_and_recorded(monkeypatch: pytest.MonkeyPatch, tiny_config: MakeConfig):
    asked = []

    class Api:
        def dataset_info(self, name: str, *, revision: str | None, timeout: float):
            asked.append((name, revision))
            return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert pinned("org/name@v1:en") == f"org/name@{COMMIT}:en"
    assert pinned(f"org/name@{COMMIT}") == f"org/name@{COMMIT}"
    assert asked == [("org/name", "v1")]
    config = settle_text(tiny_config(data="org/name:en", text={"split": "test"}), open_reader(tiny_config()))
    assert config.data == f"org/name@{COMMIT}:en"
    about = about_text(config, 3_072)
    assert about["dataset"] == config.data
    found = {
        key: about[key] for key in ("dataset_path", "dataset_subset", "dataset_revision", "dataset_split")
    }
    assert found == {
        "dataset_path": "org/name",
        "dataset_subset": "en",
        "dataset_revision": COMMIT,
        "dataset_split": "test",
    }


def test_offline_a_revision_stays_what_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Api:
        def dataset_info(self, *_: object, **__: object):
            raise ConnectionError("offline")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert pinned("org/name@v1") == "org/name@v1"
    assert pinned("org/name") == "org/name"


@pytest.mark.parametrize(
    "source", ["packaged", "packaged:wiki", "./org/name", "org/name.jsonl", "org/name.jsonl.gz"]
)
def test_what_is_not_on_the_hub(source: str):
    assert not is_hub_source(source)
