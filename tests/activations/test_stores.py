"""Stores at addresses that fsspec knows: the same files, the same errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from harvest_cases import ABOUT, SHARD_ROWS
from llama_cases import MakeConfig
from saeforest import InputError, cli
from saeforest.activations import ActivationReader, harvest_folder, open_store, writer
from saeforest.activations.data import StoredData, data_of
from saeforest.activations.folder import Folder, LocalFolder, RemoteFolder, folder_at
from saeforest.activations.plan import Worker
from saeforest.activations.status import store_status
from saeforest.session import open_reader, read_tokens
from saeforest.text import Tokens


@pytest.fixture
def address() -> Iterator[str]:
    """An address in fsspec's memory."""
    yield "memory://bucket/acts"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, address: str) -> Folder:
    return folder_at(tmp_path / "acts" if request.param == "disk" else address)


def test_files_of_a_folder(folder: Folder) -> None:
    assert folder.sizes() == {}
    assert not folder.has("a.json")
    with pytest.raises(InputError, match=r"acts/a\.json: no such file"):
        folder.read_json("a.json")
    folder.write_json("a.json", {"a": (1, 2)})
    assert folder.read_json("a.json") == {"a": [1, 2]}
    checksum = folder.write_tensors("b.safetensors", {"x": torch.arange(3)})
    assert torch.equal(folder.read_tensors("b.safetensors", checksum)["x"], torch.arange(3))
    assert folder.sizes() == {name: folder.size(name) for name in ("a.json", "b.safetensors")}
    with pytest.raises(InputError, match=r"b\.safetensors: damaged: it does not match .*; go"):
        folder.check("b.safetensors", "xxh3:0", "go")
    with pytest.raises(InputError, match=r"a\.json: not a whole safetensors file .*; go"):
        folder.read_tensors("a.json", None, "go")
    for _ in range(2):
        folder.remove("a.json")
    assert list(folder.sizes()) == ["b.safetensors"]


def test_an_edited_object_is_told(address: str) -> None:
    folder = RemoteFolder(address)
    folder.write_json("a.json", {"a": 1})
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/bucket/acts/a.json", fs.cat_file("/bucket/acts/a.json").replace(b'"a": 1', b'"a": 2'))
    with pytest.raises(InputError, match=r"memory://bucket/acts/a\.json: does not match its key"):
        folder.read_json("a.json")


def test_an_address_without_its_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(address: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(InputError, match=r"s3://b/acts needs the package s3fs: run .*saeforest\[s3\]"):
        RemoteFolder("s3://b/acts").has("x")
    with pytest.raises(InputError, match="gs://b/acts: Install"):
        RemoteFolder("gs://b/acts").has("x")
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"nothing://b: .*expected a folder, or an address"):
        RemoteFolder("nothing://b").sizes()


def test_an_error_of_the_service_names_the_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable(Exception):
        """Not an OSError, as those of many services."""

    def fail(*_: object) -> None:
        raise Unreachable("no\nroute")

    monkeypatch.setattr(fsspec.filesystem("memory"), "cat_file", fail)
    with pytest.raises(OSError, match=r"no route: 'memory://bucket/acts/a\.json'"):
        RemoteFolder(address).read_json("a.json")


@pytest.fixture(scope="module")
def tokens(tiny_config: MakeConfig) -> Tokens:
    return read_tokens(tiny_config(), open_reader(tiny_config()), "train", 1280)


@pytest.fixture
def reader(tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> ActivationReader:
    monkeypatch.setattr(writer, "SHARD_ROWS", SHARD_ROWS)
    return open_reader(tiny_config())


def test_a_remote_store_has_the_files_of_a_local_one(
    address: str, reader: ActivationReader, tokens: Tokens, tmp_path: Path
) -> None:
    harvest_folder(reader, tokens, tmp_path / "acts", ABOUT)
    far = RemoteFolder(address)
    assert harvest_folder(reader, tokens, far, ABOUT, worker=Worker(1, 2)) is None
    assert [name[6:11] for name in store_status(far).there] == ["00001"]
    fs = fsspec.filesystem("memory")
    data = fs.cat_file("/bucket/acts/shard-00001.safetensors")
    fs.pipe_file("/bucket/acts/shard-00001.safetensors", data[:-1] + bytes([data[-1] ^ 1]))
    assert list(store_status(far).damaged) == ["shard-00001.safetensors"]
    assert harvest_folder(reader, tokens, far, ABOUT, worker=Worker(0, 2)) is not None, "it has its entry"
    with pytest.raises(InputError, match=r"shard-00001\.safetensors: damaged"):
        open_store(address).shard(1)
    for name in far.sizes():
        far.remove(name)
    for i in (1, 0):
        harvest_folder(reader, tokens, far, ABOUT, worker=Worker(i, 2))
    for path in (tmp_path / "acts").iterdir():
        if path.name != "harvest.json":
            assert fs.cat_file(f"/bucket/acts/{path.name}") == path.read_bytes()
    one, other = open_store(tmp_path / "acts").block(0, 0), open_store(address).block(0, 0)
    assert torch.equal(one.x, other.x)
    assert torch.equal(open_store(address).tokens().ids, tokens.ids)
    found = data_of(address)
    assert isinstance(found, StoredData)
    assert found.folder == far
    with pytest.raises(InputError, match=r"memory://bucket/nothing: no activations\.json"):
        data_of("memory://bucket/nothing")
    assert data_of(str(tmp_path / "acts")) == StoredData(LocalFolder(tmp_path / "acts"), found.manifest)


def test_training_from_an_address(
    address: str, tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Harvested and trained from the command line, with the same bits as from a disk."""
    monkeypatch.setattr(writer, "SHARD_ROWS", SHARD_ROWS)
    monkeypatch.chdir(tmp_path)
    c = tiny_config()
    options = [
        "--model", c.model, "--site", c.site, "--data", c.data, "--tokens", "1024", "--device", "cpu",
        "--text.context", c.text.context, "--lm.dtype", "float32", "--lm.batch-size", c.lm.batch_size,
    ]  # fmt: skip
    for out in (address, "disk"):
        assert cli.run(["harvest", *map(str, options), "--out", out]) == 0
        sizes = ["--architecture", "topk", "--sae.layer-sizes", "32", "--sae.k-per-layer", "4"]
        steps = ["--optim.batch-size", "256", "--device", "cpu", "--out", f"run-{out[:4]}"]
        assert cli.run(["train", "--data", out, *sizes, *steps]) == 0
    weights = [
        (tmp_path / f"run-{name}/sae/sae_weights.safetensors").read_bytes() for name in ("memo", "disk")
    ]
    assert weights[0] == weights[1]
    assert cli.run(["harvest", "--status", address]) == 0
