"""Checkpoints that hold codes instead of weights, and files that do not fit the model: unpacked, or refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lm_cases import DEEP, llama, one_line, save, tiny
from saeforest.errors import InputError
from saeforest.lm import load_lm

Stored = dict[str, Tensor]
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def rewrite(folder: Path, change: Callable[[str, Tensor], Stored], **settings: Any) -> str:
    """Changes every linear layer of a folder's weights, and its config.json."""
    stored: Stored = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        linear = name.endswith(tuple(f"{layer}.weight" for layer in LINEAR))
        stored |= change(name, tensor) if linear else {name: tensor}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return str(folder)


def as_it_is(name: str, weight: Tensor) -> Stored:
    return {name: weight}


def as_fp8(name: str, weight: Tensor) -> Stored:
    scale = weight.abs().amax() / 448
    return {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale.reshape(1, 1)}


def as_fp8_per_tensor(name: str, weight: Tensor) -> Stored:
    scale = weight.abs().amax() / 448
    return {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale.reshape(1)}


def as_bare_fp8(name: str, weight: Tensor) -> Stored:
    return {name: as_fp8(name, weight)[name]}


def as_int8(name: str, weight: Tensor) -> Stored:
    scale = weight.abs().amax(1) / 127
    return {
        name: (weight / scale[:, None]).round().to(torch.int8),
        name.replace("weight", "SCB"): scale * 127,
    }


def as_compressed(name: str, weight: Tensor) -> Stored:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {name: (weight / scale).round().to(torch.int8), f"{name}_scale": scale}


def as_gptq(name: str, weight: Tensor) -> Stored:
    rows, columns = weight.shape
    stem = name.removesuffix("weight")
    return {
        f"{stem}qweight": torch.ones(columns // 8, rows, dtype=torch.int32),
        f"{stem}qzeros": torch.ones(1, rows // 8, dtype=torch.int32),
        f"{stem}scales": torch.ones(1, rows, dtype=torch.float16),
        f"{stem}g_idx": torch.zeros(columns, dtype=torch.int32),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tiny(llama), tmp_path)
    return tmp_path


def test_fp8_is_unpacked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = load_lm(str(folder))
    rewrite(folder, as_fp8, quantization_config=FP8)
    for dtype in (torch.float32, torch.bfloat16):
        lm = load_lm(str(folder), dtype=dtype)
        assert lm.dtype == dtype
        for name, weight in lm.model.named_parameters():
            expected = full.model.get_parameter(name)
            assert (weight.float() - expected).abs().max() < 0.05 * expected.abs().max(), name
    assert capsys.readouterr().err == ""


INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
INT8_GROUP = {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}, "targets": ["Linear"]}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {"group_0": INT8_GROUP},
}


@pytest.mark.parametrize(
    ("change", "settings", "part"),
    [
        (as_int8, INT8, "bitsandbytes"),
        (as_compressed, COMPRESSED, "compressed-tensors"),
        (as_gptq, {"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
        (as_gptq, {"quant_method": "awq", "bits": 4, "group_size": 128}, "awq"),
        (as_fp8, {"quant_method": "of tomorrow"}, "'of tomorrow', which transformers can't dequantize"),
        (as_fp8, {"bits": 8}, "no quant_method"),
        (as_bare_fp8, FP8, "its scale is missing"),
        (as_fp8_per_tensor, FP8, "weight_scale"),
        (as_fp8, None, "quantized (F8_E4M3), but config.json has no quantization_config"),
        (as_int8, None, "quantized (I8), but config.json has no quantization_config"),
        (as_gptq, None, "quantized (I32), but config.json has no quantization_config"),
    ],
)
def test_codes_that_cannot_be_unpacked_here_are_refused(
    change: Any, settings: dict[str, Any] | None, part: str, folder: Path
) -> None:
    for package in ("bitsandbytes", "compressed_tensors", "gptqmodel"):  # with it, the codes may be unpacked
        if settings and importlib.util.find_spec(package):
            pytest.skip(f"{package} is installed")
    rewrite(folder, change, **({} if settings is None else {"quantization_config": settings}))
    with pytest.raises(InputError) as info:
        load_lm(str(folder))
    one_line(info, f"model {str(folder)!r}: not a readable causal language model: ", part)


@pytest.mark.parametrize("settings", [FP8, INT8, COMPRESSED, {"quant_method": "gptq", "bits": 4}])
def test_full_precision_under_a_quantized_configuration_is_read(
    settings: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = load_lm(str(folder))
    lm = load_lm(rewrite(folder, as_it_is, quantization_config=settings))
    for name, weight in lm.model.named_parameters():
        assert torch.equal(weight, full.model.get_parameter(name)), name
    assert "in full precision" in capsys.readouterr().err


def test_blocks_that_do_not_fill_a_matrix_are_refused(tmp_path: Path) -> None:
    """transformers takes the block's size from the number of scales: 96 rows each here, instead of 128 and 64."""
    settings: dict[str, Any] = DEEP | {"intermediate_size": 192}
    config = LlamaConfig(**settings)
    folder = tmp_path / "blocks"
    save(tiny(lambda: LlamaForCausalLM(config)), folder)

    def in_blocks(name: str, weight: Tensor) -> Stored:
        codes = as_fp8(name, weight)
        if weight.shape[0] == 192:
            codes[f"{name}_scale_inv"] = codes[f"{name}_scale_inv"].expand(2, 1).contiguous()
        return codes

    rewrite(folder, in_blocks, quantization_config=FP8)
    with pytest.raises(InputError, match="not divisible into its blocks of") as info:
        load_lm(str(folder))
    one_line(info)


# Tensors that are too many, too few, or not numbers


def edit(folder: Path, change: Callable[[Stored], object]) -> str:
    stored = load_file(folder / "model.safetensors")
    change(stored)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.7.mlp.up_proj.weight",
        "model.embed_positions.weight",
        "lm_head.bias",
        "anything",
    ],
)
def test_tensors_without_a_place_are_refused(name: str, folder: Path) -> None:
    edit(folder, lambda stored: stored.update({name: torch.ones(16)}))
    with pytest.raises(InputError, match="does not have") as info:
        load_lm(str(folder))
    one_line(info, name)


@pytest.mark.parametrize("name", ["v_head.summary.weight", "vision_tower.blocks.0.weight", "mtp.norm.weight"])
def test_parts_that_no_language_model_has_are_left_out_with_a_line(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = torch.tensor([[3, 4, 5]])
    expected = load_lm(str(folder)).logits(ids)
    edit(folder, lambda stored: stored.update({name: torch.ones(16)}))
    assert torch.equal(load_lm(str(folder)).logits(ids), expected)
    assert f"not loaded: {name.split('.')[0]}" in capsys.readouterr().err


def test_buffers_of_older_versions_are_no_codes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    load_lm(edit(folder, lambda stored: stored.update(old)))
    assert capsys.readouterr().err == ""


def test_a_head_that_is_missing(folder: Path) -> None:
    edit(folder, lambda stored: stored.pop("lm_head.weight"))
    with pytest.raises(InputError, match=r"1 weights are missing, such as lm_head\.weight"):
        load_lm(str(folder))


def tie(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))


def test_tied_weights(folder: Path) -> None:
    """A head of its own stays its own, whatever the configuration says; without one the embedding is the head."""
    tie(folder)
    lm, stored = load_lm(str(folder)), load_file(folder / "model.safetensors")
    assert torch.equal(lm.model.get_parameter("lm_head.weight"), stored["lm_head.weight"])
    assert not torch.equal(stored["lm_head.weight"], stored["model.embed_tokens.weight"])
    edit(folder, lambda stored: stored.pop("lm_head.weight"))
    lm = load_lm(str(folder))
    assert torch.equal(lm.model.get_parameter("lm_head.weight"), stored["model.embed_tokens.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.2.mlp.down_proj.weight"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_weight_that_is_no_number_is_named(value: float, name: str, tied: bool, folder: Path) -> None:
    if tied:
        tie(folder)
        edit(folder, lambda stored: stored.pop("lm_head.weight"))
    edit(folder, lambda stored: stored[name][7].fill_(value))
    with pytest.raises(InputError, match="NaN or infinite") as info:
        load_lm(str(folder))
    one_line(info, name)


def test_weights_whose_logits_are_no_numbers(folder: Path) -> None:
    edit(folder, lambda s: (s["model.norm.weight"].fill_(1e3), s["lm_head.weight"].fill_(3e38)))
    with pytest.raises(InputError, match="logits") as info:
        load_lm(str(folder))
    one_line(info, f"model {str(folder)!r}", "from lm_head on", "float32")


def test_integer_weights_and_matrices_of_zeros(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder, lambda stored: stored["model.layers.1.mlp.up_proj.weight"].zero_())
    load_lm(str(folder))
    said = capsys.readouterr().err
    assert "1 of the model's 23 weight matrices are all zero, such as model.layers.1.mlp.up_proj" in said
    edit(folder, lambda s: s.update({"model.norm.weight": torch.ones(16, dtype=torch.int64)}))
    with pytest.raises(InputError, match=r"model\.norm\.weight is stored as I64"):
        load_lm(str(folder))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_read(dtype: torch.dtype, folder: Path) -> None:
    full = load_file(folder / "model.safetensors")
    edit(folder, lambda stored: stored.update({name: t.to(dtype) for name, t in stored.items()}))
    lm = load_lm(str(folder))
    assert lm.dtype == torch.float32
    for name, weight in lm.model.named_parameters():
        torch.testing.assert_close(weight, full[name].to(dtype).float(), rtol=0, atol=0)


def test_an_index_that_names_an_absent_shard(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    where = dict.fromkeys(stored, "model-00001-of-00002.safetensors")
    where["lm_head.weight"] = "model-00002-of-00002.safetensors"
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        InputError, match=r"names model-00002-of-00002\.safetensors, which is missing"
    ) as info:
        load_lm(str(folder))
    one_line(info)
