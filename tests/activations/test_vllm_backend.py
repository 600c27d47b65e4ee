"""Reading a stand-in for vLLM (`fake_vllm.py`): what is stored, what the manifest says, and what is refused."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch
from fake_vllm import FakeVllm, Tensors
from torch import Tensor

from llama_cases import LAYERS, WIDTH, MakeConfig
from saeforest import InputError
from saeforest.activations.backends import open_backend
from saeforest.files import read_json
from saeforest.lm import load_lm
from saeforest.lm.identity import ModelIdentity
from saeforest.training.harvest import run_harvest

#: The first is the last block, whose id is beyond those of the blocks; they are not in the order of their ids.
SITES = ("blocks.1.hook_resid_post", "blocks.0.hook_resid_post")


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where temporary folders are made during a test."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    return place


@pytest.mark.parametrize("later", [False, True], ids=["0.18", "0.22"])
def test_a_store_holds_what_vllm_gave(
    later: bool, tiny_config: MakeConfig, tmp_path: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounded(tensors: Tensors) -> Tensors:  # so that the rows show who computed them
        return tensors | {"hidden_states": tensors["hidden_states"].bfloat16().float()}

    fake = FakeVllm(later=later, change=rounded).install(monkeypatch)
    config = tiny_config(tokens=640, site=SITES[0])
    plain = run_harvest(config, tmp_path / "plain")
    assert plain is not None
    done = run_harvest(config, tmp_path / "store", backend="vllm")
    assert done is not None
    found, expected = done.store.shard(0), plain.store.shard(0)
    assert torch.equal(found.rows, expected.rows)
    assert torch.equal(found.x, expected.x.bfloat16().float())
    assert not torch.equal(found.x, expected.x)
    assert fake.opened == [{"model": config.model, "revision": None, "dtype": "float32"}]
    # The first batch is read once more, to be compared.
    assert fake.prompts == 640 // config.text.context + config.lm.batch_size
    about = read_json(tmp_path / "store" / "activations.json")["backend"]
    assert about["name"] == "vllm"
    parity = about["parity"][SITES[0]]
    assert 0 < parity["unexplained"] < 1e-4
    assert 0.99 < parity["cosine"] < 1
    assert parity["activations"] == int((expected.rows < config.lm.batch_size * config.text.context).sum())
    assert [p for place in places.iterdir() for p in place.iterdir()] == []  # read files are removed
    gc.collect()
    assert list(places.iterdir()) == []


def test_several_sites_are_told_apart(
    tiny_model: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeVllm().install(monkeypatch)
    lm = load_lm(str(tiny_model))
    sites = [lm.site(name) for name in SITES]
    ids = torch.randint(0, 256, (3, 7), generator=torch.Generator().manual_seed(0))
    backend = open_backend("vllm", lm, sites)
    assert backend is not None
    found, expected = backend.activations(ids, sites), lm.activations(ids, sites)
    for name in SITES:
        assert found[name].shape == (3, 7, WIDTH)
        torch.testing.assert_close(found[name], expected[name])
    assert not torch.allclose(found[SITES[0]], found[SITES[1]])


def first_half(x: Tensor) -> Tensor:
    return x[: len(x) // 2].clone()


WRONG: dict[str, tuple[FakeVllm, str]] = {
    "another way to count layers": (FakeVllm(shift=-1), "of the variance of those of transformers unexplained"),
    "other tokens": (FakeVllm(change=lambda t: t | {"token_ids": t["token_ids"] + 1}), "states of other tokens"),
    "fewer tokens": (FakeVllm(change=lambda t: {k: first_half(x) for k, x in t.items()}), "states of other tokens"),
    "states of the last tokens only": (
        FakeVllm(change=lambda t: t | {"hidden_states": first_half(t["hidden_states"])}),
        r"of shape \[16, 1, 16\]; expected 32 tokens and 1 layers",
    ),
    "no layers": (
        FakeVllm(change=lambda t: t | {"hidden_states": t["hidden_states"][:, 0].clone()}),
        r"of shape \[32, 16\]; expected 32 tokens and 1 layers",
    ),
    "not a number": (
        FakeVllm(change=lambda t: t | {"hidden_states": t["hidden_states"] * float("nan")}),
        "NaN or infinite",
    ),
    "no file": (FakeVllm(silent=True), "gave no hidden states; use vLLM 0.18 or later"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_refused_before_anything_is_stored(
    wrong: str, tiny_config: MakeConfig, tmp_path: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, said = WRONG[wrong]
    fake.install(monkeypatch)
    with pytest.raises(InputError, match=said):
        run_harvest(tiny_config(tokens=640, site=SITES[0]), tmp_path / "store", backend="vllm")
    assert not (tmp_path / "store").exists()


def test_a_revision_of_the_hub_is_named_as_vllm_names_it(
    tiny_model: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeVllm().install(monkeypatch)
    lm = load_lm(str(tiny_model))
    object.__setattr__(lm, "origin", ModelIdentity(str(tiny_model), "0123abcd"))
    object.__setattr__(lm, "name", f"{tiny_model}@main")
    open_backend("vllm", lm, [lm.site(SITES[0])])
    assert fake.opened[0]["model"] == str(tiny_model)
    assert fake.opened[0]["revision"] == "0123abcd"


def test_where_it_is_not_installed_or_cannot_read(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load_lm(str(tiny_model))
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert lm.n_layers == LAYERS
    with pytest.raises(InputError, match="vLLM is not installed"):
        open_backend("vllm", lm, [lm.site(SITES[0])])
    with pytest.raises(InputError, match=r"vLLM gives blocks\.N\.hook_resid_post only"):
        open_backend("vllm", lm, [lm.site("blocks.0.hook_mlp_out")])
    object.__setattr__(lm, "origin", ModelIdentity("smollm2-135m"))
    with pytest.raises(InputError, match="vLLM cannot read the file of this package"):
        open_backend("vllm", lm, [lm.site(SITES[0])])
