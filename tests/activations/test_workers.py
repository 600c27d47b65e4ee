"""Several workers harvest together: however many they are, the store has the same bits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edits import edit_json
from harvest_cases import ABOUT, SHARD_ROWS, on_read
from llama_cases import MakeConfig
from saeforest import InputError, cli
from saeforest.activations import ActivationReader, harvest_folder, open_store, writer
from saeforest.activations.folder import LocalFolder
from saeforest.activations.plan import Plan, Worker, windows_of_a_shard
from saeforest.activations.status import store_status
from saeforest.session import open_reader, read_tokens
from saeforest.text import Tokens
from saeforest.training.harvest import device_of, run_harvest, worker_of
from saeforest.verify import verify


@pytest.fixture(scope="module")
def tokens(tiny_config: MakeConfig) -> Tokens:
    return read_tokens(tiny_config(), open_reader(tiny_config()), "train", 3_000)


@pytest.fixture
def reader(tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> ActivationReader:
    """Six shards for `tokens`, the last one shorter."""
    monkeypatch.setattr(writer, "SHARD_ROWS", SHARD_ROWS)
    return open_reader(tiny_config())


def files(folder: Path) -> dict[str, bytes]:
    """The files of a store, but for how long it took."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "harvest.json"}


@pytest.fixture
def alone(reader: ActivationReader, tokens: Tokens, tmp_path: Path) -> dict[str, bytes]:
    harvest_folder(reader, tokens, tmp_path / "alone", ABOUT)
    return files(tmp_path / "alone")


@pytest.mark.parametrize("order", [[1, 0], [2, 0, 3, 1], [6, 4, 2, 0, 5, 3, 1]])
def test_any_number_of_workers_makes_the_same_store(
    order: list[int], alone: dict[str, bytes], reader: ActivationReader, tokens: Tokens, tmp_path: Path
) -> None:
    """Seven workers are more than there are shards."""
    assert sum(name.startswith("shard-") for name in alone) == 6
    folder = tmp_path / "many"
    for i in order:
        done = harvest_folder(reader, tokens, folder, ABOUT, worker=Worker(i, len(order)))
        last_to_read = i == [j for j in order if j < 6][-1]
        assert (done is not None) == (last_to_read or (folder / "activations.json").exists())
        if (folder / "activations.json").exists():
            break
    assert files(folder) == alone
    record = json.loads((folder / "harvest.json").read_text())
    assert record["tokens"] == tokens.n_tokens
    assert record["activations"] == open_store(folder).n_rows


def test_a_harvest_goes_on_with_another_number_of_workers(
    alone: dict[str, bytes], reader: ActivationReader, tokens: Tokens, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    assert harvest_folder(reader, tokens, folder, ABOUT, worker=Worker(1, 4)) is None
    read: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        on_read(patch, read.append)
        assert harvest_folder(reader, tokens, folder, ABOUT) is not None
    # Of 6 shards of 2 batches, the other worker has read 2.
    assert len(read) == -(-len(tokens.ids) // reader.batch_size) - 4
    assert files(folder) == alone


@pytest.mark.parametrize("of", [2, 3])
def test_a_dead_worker_costs_its_open_shard_only(
    of: int, alone: dict[str, bytes], reader: ActivationReader, tokens: Tokens, tmp_path: Path
) -> None:
    folder = tmp_path / "many"

    def crash(i: int) -> None:
        if i == 3:  # in its second shard
            raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        on_read(patch, crash)
        with pytest.raises(RuntimeError, match="killed"):
            harvest_folder(reader, tokens, folder, ABOUT, worker=Worker(0, of))
    assert [p.name for p in folder.glob("shard-*.safetensors")] == ["shard-00000.safetensors"]
    for i in range(1, of):
        assert harvest_folder(reader, tokens, folder, ABOUT, worker=Worker(i, of)) is None
    assert harvest_folder(reader, tokens, folder, ABOUT, worker=Worker(0, of)) is not None
    assert files(folder) == alone


def test_workers_that_disagree_are_refused(reader: ActivationReader, tokens: Tokens, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    harvest_folder(reader, tokens, folder, ABOUT, worker=Worker(0, 2), given={"tokens": 3_000})
    before = files(folder)
    for about, given, key in (
        ({**ABOUT, "site": "other"}, {"tokens": 3_000}, "site: "),
        (ABOUT, {"tokens": 4_000}, "given tokens: 3000 there, 4000 now"),
    ):
        with pytest.raises(InputError, match=f"unfinished harvest of other activations .{key}"):
            harvest_folder(reader, tokens, folder, about, worker=Worker(1, 2), given=given)
        assert files(folder) == before
    fewer = Tokens(tokens.ids[:40], tokens.document_starts[:1], tokens.names[:1])
    with pytest.raises(InputError, match=r"other activations \((text|windows): "):
        harvest_folder(reader, fewer, folder, ABOUT, worker=Worker(1, 2), given={"tokens": 3_000})


def test_workers_that_start_at_once_and_disagree_mix_nothing(
    reader: ActivationReader, tokens: Tokens, tmp_path: Path
) -> None:
    """Both write the plan. The one whose plan was replaced stops before any of its shards counts."""
    folder = tmp_path / "many"

    def other_starts(i: int) -> None:
        if i == 0:
            plan = json.loads((folder / "unfinished.json").read_text())
            del plan["checksum"]
            plan["about"]["site"] = "other"
            (folder / "unfinished.json").write_text(json.dumps(plan))

    with pytest.MonkeyPatch.context() as patch:
        on_read(patch, other_starts)
        with pytest.raises(InputError, match=r"other activations .site: 'other' there"):
            harvest_folder(reader, tokens, folder, ABOUT, worker=Worker(0, 2))
    assert list(folder.glob("shard-*")) == []


def test_a_shard_of_other_settings_never_gets_into_a_manifest(
    reader: ActivationReader, tokens: Tokens, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    harvest_folder(reader, tokens, folder, ABOUT, worker=Worker(0, 2))
    edit_json(folder / "shard-00002.json", plan="xxh3:0")
    for i in (0, 1):
        with pytest.raises(InputError, match=r"shard-00002\.json: written by a worker with other settings"):
            harvest_folder(reader, tokens, folder, ABOUT, worker=Worker(i, 2))
    assert not (folder / "activations.json").exists()
    assert "other settings" in store_status(LocalFolder(folder)).damaged["shard-00002.safetensors"]


# Which windows are in which shard


def test_shards_are_whole_batches_of_windows() -> None:
    """As many batches as have the rows if no position but the first is left out."""
    assert windows_of_a_shard(1 << 16, 127, 16) == 528  # 33 batches of 16 x 127 = 2,032 rows
    assert windows_of_a_shard(300, 31, 8) == 16
    plan = Plan(about={}, settings={}, text="", windows=93, shard_windows=16)
    assert [plan.span(i) for i in range(plan.n_shards)][-2:] == [range(64, 80), range(80, 93)]
    assert [list(Worker(i, 4).shards(plan)) for i in range(4)] == [[0, 4], [1, 5], [2], [3]]


def test_a_shard_without_activations_has_no_file(
    reader: ActivationReader, tokens: Tokens, tmp_path: Path
) -> None:
    ids = tokens.ids.clone()
    ids[16:32] = reader.lm.eos_id  # the second shard
    text = Tokens(ids, tokens.document_starts, tokens.names)
    for i in (1, 0):
        harvest_folder(
            reader, text, tmp_path / "store", {**ABOUT, "tokens": text.n_tokens}, worker=Worker(i, 2)
        )
    store = open_store(tmp_path / "store")
    assert [shard["file"][6:11] for shard in store.shards] == ["00000", "00002", "00003", "00004", "00005"]
    rows = torch.cat([store.shard(i).rows for i in range(5)])
    assert torch.equal(rows, reader.read(text, torch.arange(len(ids))).rows)


# Who is which worker


def test_a_worker_knows_its_number() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    slurm = {"SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "2"}
    assert worker_of(None, None, {}) == Worker(0, 1)
    assert worker_of(2, 4, torchrun) == Worker(2, 4)
    assert worker_of(None, None, torchrun | slurm) == Worker(3, 8)
    assert worker_of(None, None, slurm) == Worker(5, 6)
    assert worker_of(None, None, {"RANK": "3"}) == Worker(0, 1)
    for index, of in ((4, 4), (-1, 4), (None, 4), (1, None)):
        with pytest.raises(InputError, match=r"worker = .*, of = .*: expected both"):
            worker_of(index, of, {})
    with pytest.raises(InputError, match="RANK = None, WORLD_SIZE = 8"):
        worker_of(None, None, {"RANK": "first", "WORLD_SIZE": "8"})
    assert device_of("auto", torchrun, 4) == "cuda:1"
    assert device_of("auto", slurm, 2) == "cuda:0"
    assert [device_of("auto", torchrun, 1), device_of("auto", {}, 4), device_of("cpu", torchrun, 4)] == [
        "auto", "auto", "cpu",
    ]  # fmt: skip


# The command


@pytest.fixture
def command(tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setattr(writer, "SHARD_ROWS", SHARD_ROWS)
    c = tiny_config(tokens=3_000)
    options = [
        "--model", c.model, "--site", c.site, "--data", c.data, "--tokens", c.tokens, "--device", "cpu",
        "--text.context", c.text.context, "--lm.dtype", "float32", "--lm.batch-size", c.lm.batch_size,
    ]  # fmt: skip
    return lambda *more: cli.run(["harvest", *map(str, options), *map(str, more)])


def test_workers_from_the_command_line(
    command: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    assert command("--out", one) == 0
    assert command("--out", many, "--prepare") == 0
    assert sorted(p.name for p in many.iterdir()) == ["tokens.safetensors", "unfinished.json"]
    capsys.readouterr()
    # The tokens are there, so the text is not read again.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saeforest.training.harvest.read_tokens", lambda *_: pytest.fail("tokenized again"))
        assert command("--out", many, "--worker", 1, "--of", 2) == 0
        assert "worker 1 of 2 is done; saeforest harvest --status" in capsys.readouterr().out
        assert command("--out", many, "--worker", 0, "--of", 3, "--tokens", 2_000) == 2
        assert "(tokens: 3000 there, 2000 now)" in capsys.readouterr().err
        assert command("--out", many, "--worker", 2, "--of", 2) == 2
        assert cli.run(["harvest", "--status", str(many)]) == 0
        said = capsys.readouterr().out
        assert "unfinished; 3 of 6 shards are there" in said
        assert "missing: shard-00000.safetensors, shard-00002.safetensors, shard-00004.safetensors" in said
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert command("--out", many, "--json") == 0
    assert json.loads(capsys.readouterr().out)["complete"] is True
    assert files(many) == files(one)
    assert cli.run(["harvest", "--status", str(many), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["complete"], status["shards"], status["missing"], status["damaged"]) == (True, 6, [], {})
    assert command("--out", many, "--element", "int8") == 2
    assert "activations stored as auto, not int8" in capsys.readouterr().err


def test_status_and_verify_name_what_is_damaged_or_missing(
    reader: ActivationReader, tokens: Tokens, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "many"
    with pytest.raises(InputError, match=r"neither activations\.json nor unfinished\.json"):
        store_status(LocalFolder(folder))
    harvest_folder(reader, tokens, folder, ABOUT, worker=Worker(0, 2))
    shutil.copytree(folder, tmp_path / "half")
    harvest_folder(reader, tokens, folder, ABOUT, worker=Worker(1, 2))
    for place, complete in ((tmp_path / "half", False), (folder, True)):
        status = store_status(LocalFolder(place))
        assert (status.complete, len(status.there), status.damaged) == (complete, 6 if complete else 3, {})
        damaged, gone = place / "shard-00002.safetensors", place / "shard-00004.safetensors"
        data = bytearray(damaged.read_bytes())
        data[-1] ^= 1
        damaged.write_bytes(data)
        os.remove(gone)
        assert cli.run(["harvest", "--status", str(place)]) == 1
        said = capsys.readouterr().out
        assert "damaged: shard-00002.safetensors: damaged: it does not match its checksum" in said
        assert ("shard-00004.safetensors: no such file" in said) or ("missing: shard-00004" in said)
        assert {f.path.name for f in verify(place) if not f.sound} == {damaged.name, gone.name}
        quick = store_status(LocalFolder(place), quick=True)
        assert damaged.name in quick.there
        assert gone.name not in quick.there
    # The unfinished one is mended by going on.
    half = tmp_path / "half"
    text = LocalFolder(half).read_tensors("tokens.safetensors")
    text["ids"][3, 3] ^= 1
    LocalFolder(half).write_tensors("tokens.safetensors", text)
    assert "tokens.safetensors" in {f.path.name for f in verify(half) if not f.sound}
    (half / "tokens.safetensors").unlink()
    for i in (0, 1):
        harvest_folder(reader, tokens, half, ABOUT, worker=Worker(i, 2))
    assert cli.run(["harvest", "--status", str(half)]) == 0
    assert cli.run(["verify", str(half)]) == 0


def test_an_unfinished_harvest_of_an_older_version_is_told(tiny_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "unfinished.json").write_text('{"format_version": 1, "about": {}, "shards": []}')
    with pytest.raises(InputError, match="an unfinished harvest of an older version; delete"):
        run_harvest(tiny_config(), tmp_path)
