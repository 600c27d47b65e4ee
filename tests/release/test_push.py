"""Runs on a Hub: what is published, what is refused, and uploads that break; with the Hub's client over a socket."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants, snapshot_download
from safetensors.torch import load_file, save_file

import saeforest
from everything_cases import copied
from figure_cases import words_explorer
from hub_cases import READER, Hub
from lm_cases import one_line
from saeforest import InputError, cli
from saeforest.explore import Explorer
from saeforest.explore.subject import Subject
from saeforest.files import write_json
from saeforest.measures import Record
from saeforest.release.card import picture
from saeforest.release.preview import PAGE, PICTURE, preview_of
from saeforest.release.push import push

NAME = "org/demo"
# The Hub's client gives its HTTP library a file in a way that this one would rather not see.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")


@pytest.fixture
def two(everything: Path, tmp_path: Path) -> Path:
    """A run of a tree and a flat SAE, measured, the tree indexed."""
    return copied(everything, "two", tmp_path)


def refused(*parts: str, **arguments: Any) -> None:
    with pytest.raises(InputError) as info:
        push(**arguments)
    one_line(info, *parts)


# What is published


def test_one_sae(hub: Hub, finished_run: Path, tiny_model: Path) -> None:
    """Private, loaded by name to the bit; the card's own lines run; the download is counted."""
    done = push(finished_run, NAME, license_id="mit")
    assert (done.changed, done.private, hub.repos[NAME].private) == (True, True, True)
    assert done.commit == hub.repos[NAME].commits[-1][0]
    files = hub.repos[NAME].files
    own = {"README.md", "config.json", ".gitattributes"}
    assert files.keys() - own == {
        str(p.relative_to(finished_run)) for p in finished_run.rglob("*.*") if p.is_file()
    }
    hub.requests.clear()
    local, there = saeforest.load(finished_run), saeforest.load(NAME)
    assert hub.requests[f"GET /{NAME}/resolve/{done.commit}/config.json"] == 1
    x = torch.randn(20, local.d_in)
    assert torch.equal(local(x), there(x))
    assert torch.equal(local.forest.parent, there.forest.parent)
    assert torch.equal(local.encode(x).ids, saeforest.load(NAME, revision=done.commit).encode(x).ids)

    front, card = split(files["README.md"])
    assert front["license"] == "mit"
    assert front["library_name"] == "saeforest"
    assert "base_model" not in front, "it has no name on the Hub"
    assert (
        "`blocks.1.hook_resid_post` (hook name of TransformerLens); `model.layers.1` in transformers" in card
    )
    assert "No number about the hierarchy was measured beside its nulls" in card
    assert str(tiny_model.parent) not in card, "no path of this machine"
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    lines: dict[str, Any] = {}
    exec(code.replace("path/to/llama", str(tiny_model)), lines)
    assert lines["x_hat"].shape == lines["x"].shape
    assert len(lines["code"].ids) == len(lines["x"]) > 5


def split(card: bytes) -> tuple[dict[str, Any], str]:
    _, front, body = card.decode().split("---\n", 2)
    return yaml.safe_load(front), body


def test_several_saes(hub: Hub, two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each by its name, or a line with the names; the whole repository is a run again."""
    done = push(two, NAME)
    assert done.saes == {"tree": f"{NAME}:tree", "topk": f"{NAME}:topk"}
    for name, source in done.saes.items():
        assert saeforest.load(source).d_sae == saeforest.load(two / "sae" / name).d_sae
    with pytest.raises(InputError) as info:
        saeforest.load(NAME)
    one_line(info, f"it holds {NAME}:topk, {NAME}:tree")

    about = json.loads(hub.repos[NAME].files["config.json"])
    assert about["saes"]["topk"]["forest"].startswith("inferred by coverage")
    assert about["saes"]["tree"]["records"] == ["coverage", "dead", "reconstruction"]
    copy = snapshot_download(NAME, local_dir=tmp_path / "copy")
    assert cli.run(["verify", copy]) == 0
    shown = []
    for run in (copy, str(two)):
        capsys.readouterr()
        assert cli.run(["show", run, "3", "--sae", "tree"]) == 0
        shown.append(capsys.readouterr().out.replace(run, "RUN"))
    assert shown[0] == shown[1] != ""


def test_the_numbers_of_the_card(hub: Hub, two: Path) -> None:
    """Each with its interval; about the hierarchy only beside nulls."""
    push(two, NAME)
    _, card = split(hub.repos[NAME].files["README.md"])
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| `t")]
    fve = Record.read(two / "eval/tree/reconstruction.json")
    low, high = fve.interval["fve"] or (0, 0)
    (quality,) = (row for row in rows if row[0] == "`tree`" and len(row) == 3)
    assert quality[1] == f"{fve.value['fve']:.4f} ({low:.4f} to {high:.4f})"
    coverage = Record.read(two / "eval/topk/coverage.json")
    (ungated,) = (row for row in rows if row[:2] == ["`topk`", "coverage without the gate (`coverage`)"])
    ends = ("", "_shuffled", "_untrained", "_over_shuffled", "_over_untrained")
    assert [cell.partition(" ")[0] for cell in ungated[2:]] == [
        f"{coverage.value[f'ungated{end}']:.4f}" for end in ends
    ]
    assert "dead features" in card
    assert "L0" not in card.partition("## Measured")[2].partition("In parentheses")[0], "not measured"


def test_a_family_in_pictures(finished_run: Path, tmp_path: Path) -> None:
    words = words_explorer()
    rarer = words.index.n_fired.clone()
    rarer[0] = 45  # of 1,000 tokens: a feature that is everywhere tells nothing
    explorer = Explorer(replace(words.index, n_fired=rarer), words.forest, words.tokenizer)
    subject = Subject.of_run(finished_run, "tree", "cpu")
    found = preview_of(explorer, subject, tmp_path)
    assert found is not None
    assert found.feature == 0
    assert set(found.files) == {f"preview/{PICTURE}", f"preview/{PAGE}"}
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert '"start":"#/family/0"' in (tmp_path / PAGE).read_text().replace(" ", "")
    assert found.nulls == "", "nothing was measured, and no path of this machine is told"
    card = "\n".join(picture(found))
    assert "![Feature 0 with the features below it](preview/family.png)" in card
    assert preview_of(words, subject, tmp_path) is None


def test_public_only_when_all_is_there(hub: Hub, finished_run: Path) -> None:
    hub.drop = 100
    refused("the connection to the Hub broke", run=finished_run, repo=NAME, public=True)
    assert hub.repos[NAME].private
    hub.drop = 0
    assert not push(finished_run, NAME, public=True).private
    assert not hub.repos[NAME].private
    steps = [r for r in hub.requests if r.endswith(("/settings", "/commit/main", "/repos/create"))]
    assert [step.rpartition("/")[2] for step in steps] == ["create", "main", "settings"]


# Going on


def test_a_line_that_drops(hub: Hub, two: Path) -> None:
    """Nothing is published; the same call sends what is missing and no more."""
    hub.spare, hub.drop = 2, 100
    refused("the connection to the Hub broke", "nothing of this was published", "goes on", run=two, repo=NAME)
    assert hub.repos[NAME].files.keys() == {".gitattributes"}
    there = set(hub.objects)
    assert len(there) == 2
    hub.drop = 0
    hub.uploads.clear()
    assert push(two, NAME).changed
    assert len(hub.objects) == 5
    assert not there & set(hub.uploads), "sent again although it was there"
    assert hub.repos[NAME].files["sae/tree/sae_weights.safetensors"]


def test_a_drop_that_passes(hub: Hub, finished_run: Path) -> None:
    hub.drop = 1
    assert push(finished_run, NAME).changed
    assert len(hub.uploads) == 2


def test_an_answer_that_is_lost(hub: Hub, finished_run: Path) -> None:
    """The commit was made, but nobody said so: the same call finds it, and makes no second one."""
    hub.lose = True
    refused("either all of this was published or nothing", run=finished_run, repo=NAME)
    n = len(hub.repos[NAME].commits)
    done = push(finished_run, NAME)
    assert not done.changed
    assert len(hub.repos[NAME].commits) == n == 2
    assert saeforest.load(NAME).d_sae


def test_bringing_it_up_to_date(hub: Hub, two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A new record comes, what is gone goes, a card changed by hand stays; without a change there is no commit."""
    first = push(two, NAME)
    assert not push(two, NAME).changed
    (two / "eval/topk/dead.json").rename(two / "eval/tree/other.json")
    repo = hub.repos[NAME]
    repo.commit({**repo.files, "README.md": b"---\nlicense: mit\n---\nby hand", "poem.txt": b"mine"})
    done = push(two, NAME)
    assert done.changed
    assert done.commit != first.commit
    assert repo.files["README.md"].endswith(b"by hand")
    assert repo.files["poem.txt"] == b"mine"
    assert "eval/tree/other.json" in repo.files
    assert "eval/topk/dead.json" not in repo.files
    assert "its model card was changed on the Hub, and stays" in capsys.readouterr().err
    push(two, NAME, force=True)
    assert b"by hand" not in repo.files["README.md"]


def test_two_at_once(hub: Hub, finished_run: Path) -> None:
    hub.meanwhile = True
    refused("somebody else changed the repository meanwhile", run=finished_run, repo=NAME)
    assert push(finished_run, NAME, force=True).changed


# What is refused


def test_no_token_or_one_without_rights(
    hub: Hub, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused("the token may not write to another", run=finished_run, repo="another/demo")
    monkeypatch.setenv("HF_TOKEN", READER)
    refused("the token may not write to org", "nothing was published", run=finished_run, repo=NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused("the Hub does not know the token", "hf auth login", run=finished_run, repo=NAME)
    monkeypatch.delenv("HF_TOKEN")
    hub.requests.clear()
    refused("no token for the Hub", "hf auth login", run=finished_run, repo=NAME)
    assert not hub.requests
    assert not hub.repos


def test_a_token_without_rights_where_a_release_is(
    hub: Hub, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(finished_run, NAME)
    monkeypatch.setenv("HF_TOKEN", READER)
    refused("the token may not write to org", run=finished_run, repo=NAME, force=True)


def test_a_name_that_is_taken(hub: Hub, finished_run: Path, two: Path) -> None:
    """By somebody else's model, by a release of other SAEs, by something that the token does not see."""
    hub.add(NAME, {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights"})
    refused("taken", "model.safetensors", "give force", run=finished_run, repo=NAME)
    assert push(finished_run, NAME, force=True).changed
    assert hub.repos[NAME].files["model.safetensors"] == b"weights"
    refused("other SAEs (tree on llama", "this run has topk, tree on llama", run=two, repo=NAME)
    push(two, NAME, force=True)
    assert "sae/cfg.json" not in hub.repos[NAME].files, "of the one that was replaced"
    assert saeforest.load(f"{NAME}:topk").d_sae == 48
    hub.add("org/bad", {"config.json": b"{"})
    refused("taken", run=two, repo="org/bad")


def test_a_folder_with_a_missing_tensor(hub: Hub, two: Path) -> None:
    """Of the run before anything is sent, and of what is on the Hub."""
    path = two / "sae/topk/sae_weights.safetensors"
    tensors = load_file(path)
    del tensors["W_dec"]
    save_file(tensors, path)
    refused("sae_weights.safetensors", run=two, repo=NAME)
    cfg = json.loads((two / "sae/topk/cfg.json").read_text())
    write_json(two / "sae/topk/cfg.json", {k: v for k, v in cfg.items() if not k.startswith("checksum")})
    refused("'W_dec' is missing", run=two, repo=NAME)
    assert not hub.requests
    hub.add_folder("org/bad", two)
    with pytest.raises(InputError) as info:
        saeforest.load("org/bad:topk")
    one_line(info, "sae_weights.safetensors", "'W_dec' is missing")


@pytest.mark.parametrize(
    "file", ["eval/tree/coverage.json", "index/tree/index.safetensors", "logs/tree/log.jsonl"]
)
def test_damage_is_not_published(file: str, hub: Hub, two: Path) -> None:
    data = bytearray((two / file).read_bytes())
    data[len(data) // 2] ^= 1
    (two / file).write_bytes(data)
    refused(Path(file).parent.name, run=two, repo=NAME)
    assert not hub.requests


def test_no_run_or_an_unfinished_one(hub: Hub, everything: Path, finished_run: Path) -> None:
    refused("its training is not finished", "train --resume", run=everything / "stopped", repo=NAME)
    refused("the folder of an SAE", run=finished_run / "sae", repo=NAME)
    for name in ("demo", "org/", "a/b/c", "org/na me", "org/a..b", "-x/y", "org/" + "n" * 99):
        refused(name[:50], "org/name", run=finished_run, repo=name)
    refused("license My own", "mit", run=finished_run, repo=NAME, license_id="My own")
    assert not hub.requests


def test_offline(hub: Hub, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("offline (HF_HUB_OFFLINE)", run=finished_run, repo=NAME)


def test_a_card_that_the_hub_refuses(hub: Hub, finished_run: Path) -> None:
    hub.yaml_errors = ['"license" must be one of [mit, apache-2.0]']
    refused('"license" must be one of', run=finished_run, repo=NAME, license_id="nonsense")
    assert not hub.repos[NAME].files.keys() - {".gitattributes"}


# The store that the client uses by itself


def test_through_xet(hub: Hub, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files go to the client's own store, here in a folder; the commit points to them."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    weights = (finished_run / "sae/sae_weights.safetensors").read_bytes()
    store = hub.use_xet(tmp_path / "xet", weights)
    assert push(finished_run, NAME).changed
    assert hub.repos[NAME].files["sae/sae_weights.safetensors"] == weights
    assert not hub.uploads
    assert sum(p.stat().st_size for p in store.rglob("*") if p.is_file()) >= len(weights) // 2


# The command


def test_the_command(
    hub: Hub, two: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = command(capsys)
    assert said("push", two, NAME, "--dry-run", "--license", "mit")[0] == 0
    assert not hub.requests
    status, out, err = said("push", two, NAME, "--dry-run", "--json")
    planned = json.loads(out)
    assert planned["files"]["config.yaml"] == (two / "config.yaml").stat().st_size
    assert planned["card"].startswith("---\nlibrary_name: saeforest\n")
    assert "a path of this machine" not in err
    status, out, err = said("push", two, NAME)
    assert status == 0, err
    assert out.splitlines()[1:] == [
        f'Load it with saeforest.load("{NAME}:{name}")' for name in ("tree", "topk")
    ]
    assert f"{NAME} (private): " in out.splitlines()[0]
    assert all("a path of this machine, which the release shows" in line for line in err.splitlines())
    assert len(err.splitlines()) == 2
    status, out, _ = said("push", two, NAME, "--public", "--json")
    assert {"private": False, "changed": False}.items() <= json.loads(out).items()
    monkeypatch.delenv("HF_TOKEN")
    status, out, err = said("push", two, NAME)
    assert (status, out, len(err.splitlines())) == (2, "", 1)


def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.run([str(word) for word in words])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run
