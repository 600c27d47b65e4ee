"""An index in its folder: whole, of the same SAE, and undamaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edits import edit_json
from explore_cases import (
    World,
    tiny_sae,
)
from saeforest.errors import InputError
from saeforest.explore import Index
from saeforest.explore.index.form import FORMS
from saeforest.saes import TreeSAE


def test_round_trip(world: World, tmp_path: Path) -> None:
    world.index.save(tmp_path / "run" / "index")
    loaded = Index.load(tmp_path / "run" / "index", world.sae, world.sae.forest)
    assert loaded.about == world.index.about
    assert loaded.about.model == "tiny"
    for name in ("n_fired", "n_with_parent", "value_sum", "top_value", "top_row", "cos_parent", "rank_child"):
        torch.testing.assert_close(
            getattr(loaded, name), getattr(world.index, name), equal_nan=True, rtol=0, atol=0
        )
    assert torch.equal(loaded.tokens.ids, world.tokens.ids)
    assert "NaN" not in (tmp_path / "run" / "index" / "index.json").read_text()


def one_line(error: pytest.ExceptionInfo[InputError], path: Path) -> None:
    assert "\n" not in str(error.value)
    assert f"run `saeforest index SAE --out {path}`" in str(error.value)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, World]:
    world = World(TreeSAE, 7)
    world.index.save(tmp_path / "index")
    return tmp_path, world


def test_a_missing_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no index yet") as error:
        Index.load(tmp_path / "index", tiny_sae(), tiny_sae().forest)
    one_line(error, tmp_path)


@pytest.mark.parametrize("part", ["decoder", "parent"])
def test_a_stale_index_is_noticed(saved: tuple[Path, World], part: str) -> None:
    run, world = saved
    with torch.no_grad():
        getattr(world.sae, part)[-1] = 0
    with pytest.raises(InputError, match="another SAE") as error:
        Index.load(run / "index", world.sae, world.sae.forest)
    one_line(error, run)


@pytest.mark.parametrize("name", ["index.json", "index.safetensors", "tokens.safetensors"])
@pytest.mark.parametrize("how", ["cut", "gone", "other"])
def test_a_damaged_index_is_noticed(saved: tuple[Path, World], name: str, how: str) -> None:
    run, world = saved
    path = run / "index" / name
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif how == "gone":
        path.unlink()
    else:
        path.write_text("[1]")
    with pytest.raises(InputError) as error:
        Index.load(run / "index", world.sae, world.sae.forest)
    one_line(error, run)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("n_fired", torch.zeros(3, dtype=torch.int64)),
        ("s_res", None),
        ("cos_child", torch.zeros(30, dtype=torch.int64)),
        ("top_row", torch.full((30, 3), 10**6)),
        ("top_value", torch.zeros(30, 2)),
    ],
)
def test_tensors_that_are_no_index_are_noticed(
    saved: tuple[Path, World], name: str, tensor: Tensor | None
) -> None:
    from saeforest.files import read_tensors, write_tensors

    run, world = saved
    path = run / "index" / "index.safetensors"
    tensors = read_tensors(path)
    if tensor is None:
        del tensors["cos_parent"]
    else:
        tensors[name] = tensor
    write_tensors(path, tensors)
    with pytest.raises(InputError, match="damaged") as error:
        Index.load(run / "index", world.sae, world.sae.forest)
    one_line(error, run)


@pytest.mark.parametrize("change", [{"format_version": 99}, {"n_tokens": "many"}])
def test_a_manifest_of_another_kind_is_noticed(saved: tuple[Path, World], change: dict[str, Any]) -> None:
    run, world = saved
    path = run / "index" / "index.json"
    edit_json(path, **change)
    with pytest.raises(InputError, match=next(iter(change))) as error:
        Index.load(run / "index", world.sae, world.sae.forest)
    one_line(error, run)


def test_an_index_of_the_older_version_is_refused(saved: tuple[Path, World]) -> None:
    run, world = saved
    edit_json(run / "index" / "index.json", format_version=1)
    with pytest.raises(InputError, match="older version of saeforest") as error:
        Index.load(run / "index", world.sae, world.sae.forest)
    one_line(error, run)


def test_every_tensor_comes_back(saved: tuple[Path, World]) -> None:
    run, world = saved
    loaded = Index.load(run / "index", world.sae, world.sae.forest)
    written = world.index.tensors()
    assert loaded.tensors().keys() == written.keys() >= FORMS.keys()
    for name, tensor in loaded.tensors().items():
        torch.testing.assert_close(tensor, written[name], equal_nan=True, rtol=0, atol=0)
    assert [column.name for column in loaded.about.columns] == list(loaded.columns)


def test_frozen(world: World) -> None:
    with pytest.raises(AttributeError):
        world.index.n_fired = torch.zeros(1)  # pyright: ignore[reportAttributeAccessIssue]
    assert replace(world.index.about, model="other").model == "other"
