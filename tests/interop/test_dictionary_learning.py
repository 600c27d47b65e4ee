"""SAEs of dictionary_learning, against each class's encoder and decoder written from the format, in float64."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import saeforest
from lm_cases import one_line
from saeforest.errors import InputError
from saeforest.saes import BatchTopKSAE, JumpReLUSAE, MatryoshkaSAE, TopKSAE

D, F, K = 12, 40, 5
KINDS: dict[str, type] = {
    "AutoEncoder": JumpReLUSAE,
    "AutoEncoderNew": JumpReLUSAE,
    "GatedAutoEncoder": JumpReLUSAE,
    "JumpReluAutoEncoder": JumpReLUSAE,
    "AutoEncoderTopK": TopKSAE,
    "BatchTopKSAE": BatchTopKSAE,
    "MatryoshkaBatchTopKSAE": MatryoshkaSAE,
}


def state_of(kind: str, threshold: float = 0.7) -> dict[str, Tensor]:
    """A state dict with random weights; the decoder is not of unit norm."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    linear = {"encoder.weight": normal(F, D), "decoder.weight": normal(D, F)}
    bias = {"encoder.bias": 0.3 * normal(F)}
    plain = {"W_enc": normal(D, F), "b_enc": 0.3 * normal(F), "W_dec": normal(F, D), "b_dec": normal(D)}
    k = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(threshold)}
    return {
        "AutoEncoder": {**linear, **bias, "bias": normal(D)},
        "AutoEncoderNew": {**linear, **bias, "decoder.bias": normal(D)},
        "GatedAutoEncoder": {
            **linear,
            "decoder_bias": normal(D),
            "r_mag": 0.3 * normal(F),
            "gate_bias": 0.3 * normal(F),
            "mag_bias": 0.3 * normal(F),
        },
        "JumpReluAutoEncoder": {**plain, "threshold": normal(F)},
        "AutoEncoderTopK": {**linear, **bias, **k, "b_dec": normal(D)},
        "BatchTopKSAE": {**linear, **bias, **k, "b_dec": normal(D)},
        "MatryoshkaBatchTopKSAE": {**plain, **k, "group_sizes": torch.tensor([8, 12, 20])},
    }[kind]


def write(folder: Path, kind: str, state: dict[str, Tensor] | None = None, **trainer: Any) -> Path:
    folder.mkdir(parents=True)
    torch.save(state_of(kind) if state is None else state, folder / "ae.pt")
    about = {
        "dict_class": kind, "trainer_class": "Trainer", "activation_dim": D, "dict_size": F, "k": K, "layer": 4,
        "lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": "resid_post_layer_4", **trainer,
    }  # fmt: skip
    config = {"trainer": about, "buffer": {"ctx_len": 128}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def theirs(kind: str, state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Dense codes and reconstructions."""
    t = {name: tensor.double() for name, tensor in state.items()}
    x = x.double()
    match kind:
        case "AutoEncoder":
            norm = t["decoder.weight"].norm(dim=0)
            f = ((x - t["bias"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu() * norm
            return f, f @ (t["decoder.weight"] / norm).T + t["bias"]
        case "AutoEncoderNew":
            f = (x @ t["encoder.weight"].T + t["encoder.bias"]).relu()
            return f, f @ t["decoder.weight"].T + t["decoder.bias"]
        case "GatedAutoEncoder":
            a = (x - t["decoder_bias"]) @ t["encoder.weight"].T
            f = (t["r_mag"].exp() * a + t["mag_bias"]).relu() * (a + t["gate_bias"] > 0)
            return f, f @ t["decoder.weight"].T + t["decoder_bias"]
        case "JumpReluAutoEncoder":
            h = x @ t["W_enc"] + t["b_enc"]
            f = (h * (h > t["threshold"])).relu()
            return f, f @ t["W_dec"] + t["b_dec"]
        case "MatryoshkaBatchTopKSAE":
            h = ((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
            f = h * (h > t["threshold"])
            return f, f @ t["W_dec"] + t["b_dec"]
        case _:
            h = ((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
            top = h.topk(K)
            f = torch.zeros_like(h).scatter_(1, top.indices, top.values)
            f = f if kind == "AutoEncoderTopK" else h * (h > t["threshold"])
            return f, f @ t["decoder.weight"].T + t["b_dec"]


@torch.no_grad()
def assert_same(folder: Path, kind: str, state: dict[str, Tensor]) -> Any:
    sae = saeforest.load(folder)
    x = 2 * torch.randn(200, D, generator=torch.Generator().manual_seed(1))
    f, x_hat = theirs(kind, state, x)
    assert f.any()
    assert torch.allclose(sae.encode(x).dense(F).double(), f, atol=2e-5)
    assert torch.allclose(sae(x).double(), x_hat, atol=1e-4)
    return sae


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_reconstructions_are_theirs(kind: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "trainer_0", kind)
    sae = assert_same(folder, kind, state_of(kind))
    assert type(sae) is KINDS[kind]
    assert sae.metadata["model_name"] == "EleutherAI/pythia-70m-deduped"
    assert sae.metadata["hook_name"] == "blocks.4.hook_resid_post"
    assert sae.metadata["dictionary_learning"]["buffer"] == {"ctx_len": 128}
    if kind == "MatryoshkaBatchTopKSAE":
        assert sae.forest.layer_sizes == (8, 12, 20)
    if kind in ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        assert sae.config.k_per_layer == (K,)
    saeforest.save(sae, tmp_path / "again")
    x = torch.randn(20, D)
    assert torch.equal(saeforest.load(tmp_path / "again")(x), sae(x))


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_a_threshold_that_training_never_set_is_none(kind: str, tmp_path: Path) -> None:
    state = state_of(kind, threshold=-1.0)
    assert_same(write(tmp_path / "sae", kind, state), kind, state)


def test_an_older_top_k_file_without_k(tmp_path: Path) -> None:
    state = state_of("AutoEncoderTopK")
    del state["k"], state["threshold"]
    assert_same(write(tmp_path / "sae", "AutoEncoderTopK", state), "AutoEncoderTopK", state)


class Command:
    """What an unpickler that trusts its file would run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    folder, mark = write(tmp_path / "sae", "AutoEncoderTopK"), tmp_path / "ran"
    for save in (
        lambda data: torch.save(data, folder / "ae.pt"),
        lambda data: (folder / "ae.pt").write_bytes(pickle.dumps(data)),
    ):
        save({"encoder.weight": Command(mark)})
        with pytest.raises(InputError, match="not a whole file of tensors alone"):
            saeforest.load(folder)
        assert not mark.exists()


def change(folder: Path, **tensors: Any) -> None:
    state = torch.load(folder / "ae.pt", weights_only=True) | tensors
    torch.save({k: v for k, v in state.items() if v is not None}, folder / "ae.pt")


def configure(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["trainer"] = {k: v for k, v in {**config["trainer"], **keys}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json", "no such file"]),
    "no class": (lambda f: configure(f, dict_class=None), ["config.json", "'trainer.dict_class' is missing"]),
    "other class": (lambda f: configure(f, dict_class="Crosscoder"), ["'Crosscoder'", "AutoEncoderTopK"]),
    "other k": (lambda f: configure(f, k=6), ["k is 5 in ae.pt, but 6"]),
    "cut off": (
        lambda f: (f / "ae.pt").write_bytes((f / "ae.pt").read_bytes()[:-50]),
        ["ae.pt", "not a whole"],
    ),
    "no encoder": (lambda f: change(f, **{"encoder.weight": None}), ["no matrix 'encoder.weight'"]),
    "no bias": (lambda f: change(f, b_dec=None), ["'b_dec' is missing"]),
    "other width": (lambda f: change(f, b_dec=torch.zeros(3)), ["'b_dec' has shape [3]", "[12]"]),
    "more": (lambda f: change(f, extra=torch.zeros(3)), ["holds extra"]),
    "a list": (lambda f: torch.save([1, 2], f / "ae.pt"), ["expected tensors by their names"]),
    "NaN": (lambda f: change(f, b_dec=torch.full((D,), torch.nan)), ["'b_dec' holds NaN"]),
    "a real k": (lambda f: change(f, k=torch.tensor(5.5)), ["tensor 'k'", "whole number"]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    damage, words = DAMAGE[name]
    folder = write(tmp_path / "sae", "AutoEncoderTopK")
    damage(folder)
    with pytest.raises(InputError) as info:
        saeforest.load(folder)
    one_line(info, *words)


def test_group_sizes_that_do_not_add_up(tmp_path: Path) -> None:
    folder = write(tmp_path / "sae", "MatryoshkaBatchTopKSAE")
    change(folder, group_sizes=torch.tensor([8, 12]))
    with pytest.raises(InputError, match="'group_sizes': expected whole numbers that add up to 40"):
        saeforest.load(folder)
