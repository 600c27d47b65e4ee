"""`saeforest verify`: every file is looked at, and what is damaged is named with what can be done."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edits import edit_json
from everything_cases import CHECKPOINT, copied
from saeforest import cli
from saeforest.errors import InputError
from saeforest.files import atomic_folder, checksum, write_json
from saeforest.verify import Finding, summary, verify


def damaged(path: Path) -> list[Finding]:
    return [finding for finding in verify(path) if not finding.sound]


def flip(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)


@pytest.fixture
def copy(everything: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda part: copied(everything, part, tmp_path)


def test_all_is_sound(everything: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert damaged(everything) == []
    looked_at = {finding.path.relative_to(everything).as_posix() for finding in verify(everything)}
    expected = {
        "run/config.yaml", "run/log.jsonl", "run/sae/cfg.json", "run/sae/sae_weights.safetensors",
        "two/sae/tree/cfg.json", "two/logs/topk/log.jsonl", "two/eval/topk/coverage.json",
        "two/eval/tree/judge.jsonl", "two/forest/topk/forest.json", "two/forest/topk/forest.safetensors",
        "two/index/tree/index.json", "two/index/tree/index.safetensors", "two/index/tree/tokens.safetensors",
        f"{CHECKPOINT}/state.json", f"{CHECKPOINT}/state.safetensors", "store/activations.json",
        "store/tokens.safetensors", "store/shard-00000.safetensors", "store/harvest.json", "results/recovery.json",
        "report/report.json",
    }  # fmt: skip
    assert expected <= looked_at
    # Pictures and pages say nothing that could be checked; every other file is looked at.
    rest = {
        path.relative_to(everything).as_posix() for path in everything.rglob("*") if path.is_file()
    } - looked_at
    assert {Path(name).suffix for name in rest} <= {".png", ".svg", ".html", ".md", ""}, rest
    assert cli.run(["verify", str(everything)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [summary(verify(everything))]
    assert f"{len(looked_at)} files intact" in out
    assert err == ""


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("run/sae/sae_weights.safetensors", "train --config"),
        ("run/sae/cfg.json", "the trained weights are lost"),
        ("two/index/tree/index.json", "saeforest index {}/two --sae tree`: nothing is lost"),
        ("two/index/tree/index.safetensors", "--sae tree"),
        ("two/index/tree/tokens.safetensors", "--sae tree"),
        (
            "two/forest/topk/forest.safetensors",
            "saeforest eval {}/two` infers the forest again, and nothing is lost",
        ),
        ("two/eval/tree/coverage.json", "saeforest eval {}/two --measures coverage --sae tree"),
        ("two/eval/tree/judge.jsonl", "asks the judge those questions again"),
        (
            f"{CHECKPOINT}/state.json",
            "saeforest train --resume --out {}/stopped`: the training so far is lost",
        ),
        (f"{CHECKPOINT}/state.safetensors", "delete the folder"),
        ("report/report.json", "saeforest compare again"),
        ("store/tokens.safetensors", "saeforest harvest"),
        ("store/shard-00000.safetensors", "saeforest harvest"),
        ("store/activations.json", "saeforest harvest"),
        ("run/log.jsonl", "its training curves are lost"),
        ("run/allocations.jsonl", "its training curves are lost"),
        ("run/config.yaml", "restore the settings"),
    ],
)
def test_a_flipped_bit_is_named_with_its_remedy(
    copy: Callable[[str], Path], tmp_path: Path, file: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    part, _, _ = file.partition("/")
    folder = copy(part)
    flip(tmp_path / file)
    (found,) = damaged(folder)
    assert found.path == tmp_path / file
    assert remedy.format(tmp_path) in found.remedy
    assert found.has_checksum or not file.endswith(".safetensors")
    assert cli.run(["verify", str(folder)]) == 1
    line, told = capsys.readouterr().out.splitlines()
    assert line == str(found)
    assert told.endswith(", 1 damaged")
    # Of the file alone, too.
    assert damaged(tmp_path / file) == [found]


@pytest.mark.parametrize(
    "file",
    ["run/sae/sae_weights.safetensors", "two/index/tree/tokens.safetensors", "two/forest/topk/forest.safetensors",
     f"{CHECKPOINT}/state.safetensors", "store/shard-00000.safetensors", "run/log.jsonl", "two/logs/topk/log.jsonl"],
)  # fmt: skip
def test_a_file_that_a_manifest_lists_is_missing(
    copy: Callable[[str], Path], tmp_path: Path, file: str
) -> None:
    folder = copy(file.partition("/")[0])
    (tmp_path / file).unlink()
    (found,) = damaged(folder)
    assert (found.path, found.problem) == (tmp_path / file, "no such file")


@pytest.mark.parametrize("file", ["stopped/log.jsonl", "results/recovery.json"])
def test_what_has_no_checksum_is_checked_by_its_form(
    copy: Callable[[str], Path], tmp_path: Path, file: str
) -> None:
    folder = copy(file.partition("/")[0])
    path = tmp_path / file
    path.write_bytes(path.read_bytes().replace(b":", b";", 3))
    (found,) = damaged(folder)
    assert found.path == path


def test_an_index_of_another_sae(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("two")
    weights = folder / "sae" / "tree"
    shutil.rmtree(weights)
    shutil.copytree(copy("run") / "sae", weights)
    edit_json(weights / "cfg.json", metadata={})
    found = damaged(folder / "index")
    assert [finding.path.name for finding in found] in ([], ["index.json"])
    edit_json(folder / "index" / "tree" / "index.json", sae="of another")
    (found,) = damaged(folder / "index")
    assert "another SAE or forest" in found.problem


def test_a_manifest_of_another_kind(copy: Callable[[str], Path]) -> None:
    folder = copy("store")
    edit_json(folder / "activations.json", shards="many")
    (found,) = damaged(folder)
    assert "shards" in found.problem
    edit_json(folder / "activations.json", shards=[{"file": "../run/log.jsonl", "rows": 1}])
    assert [finding.path.name for finding in damaged(folder)] == ["activations.json"]


def test_a_copy_of_a_model_in_the_cache(tmp_path: Path) -> None:
    """Any folder whose manifest lists checksums."""
    copy = tmp_path / "models" / "llama-0123"
    copy.mkdir(parents=True)
    (copy / "config.json").write_text('{"model_type": "llama"}')
    (copy / "model.safetensors").write_bytes(b"weights")
    listed = ("config.json", "model.safetensors")
    write_json(copy / "copy.json", {"checksums": {name: checksum(copy / name) for name in listed}})
    assert {f.path.name for f in verify(tmp_path / "models") if f.sound} == {"copy.json", *listed}
    flip(copy / "model.safetensors")
    (found,) = damaged(tmp_path / "models")
    assert found.path == copy / "model.safetensors"
    assert "run the command that made it again" in found.remedy
    flip(copy / "copy.json", 0.3)
    assert damaged(tmp_path / "models")[0].path == copy / "copy.json"


def test_names_in_a_manifest_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    folder = tmp_path / "a"
    folder.mkdir()
    names = ("../outside", "/etc/passwd", "", "a\0b")
    write_json(folder / "m.json", {"checksums": dict.fromkeys(names, "xxh3:0")})
    assert [finding.path.name for finding in verify(folder)] == ["m.json"]


def test_leftovers_are_named_and_nothing_is_changed(
    copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy("run")
    (folder / ".saeforest-abc.part").mkdir()
    old = folder / ".saeforest-def.old.part"
    (old / "index").mkdir(parents=True)
    with atomic_folder(folder / "sae2"):  # which is being written just now
        before = sorted(folder.rglob("*"))
        assert cli.run(["verify", str(folder)]) == 0
        assert sorted(folder.rglob("*")) == before
    out = capsys.readouterr().out
    assert ".saeforest-abc.part: left behind by a killed process; contains nothing that is needed" in out
    assert (
        ".saeforest-def.old.part: left behind by a killed process; contains index, which was being replaced"
        in out
    )
    assert "2 left behind by killed processes" in out


def test_what_is_nothing_of_ours(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "config.yaml").write_text("services: [web]")
    for place in (tmp_path, tmp_path / "notes.json", tiny_model):
        with pytest.raises(InputError, match="no file written by saeforest"):
            verify(place)
    with pytest.raises(InputError, match="no such file or folder"):
        verify(tmp_path / "nowhere")
    assert cli.run(["verify", str(tmp_path)]) == 2


def test_a_folder_that_cannot_be_read(copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, scan = copy("run"), os.scandir

    def refuse(path: os.PathLike[str] | str) -> object:
        if str(path).endswith("sae"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (found,) = damaged(folder)
    assert (found.path.name, found.problem) == ("sae", "Permission denied")


def test_the_summary() -> None:
    sound, other = Finding(Path("a"), has_checksum=True), Finding(Path("b"))
    broken, left = Finding(Path("c"), "damaged", "x"), Finding(Path("d"), "left", "x", leftover=True)
    assert summary([sound]) == "1 file intact"
    assert summary([sound] * 3 + [broken]) == "3 files intact, 1 damaged"
    unsigned = "1 of them without a checksum: only their format could be checked"
    assert summary([sound, other, left]) == f"2 files intact ({unsigned}), 1 left behind by killed processes"
    assert json.dumps(str(broken)) == '"c: damaged; x"'
