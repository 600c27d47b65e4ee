"""SAELens' folders, written here as SAELens writes them. `make interop` compares with SAELens itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saelens_folders import ARCHITECTURES, METADATA, D, F, change, configure, write_saelens
from safetensors.torch import load_file
from torch import Tensor

import saeforest
from lm_cases import one_line
from oracles.saelens import saelens_forward
from saeforest import InputError
from saeforest.interop import for_saelens
from saeforest.saes import (
    SAE,
    BatchTopKSAE,
    JumpReLUSAE,
    MatchingPursuitSAE,
    MatryoshkaSAE,
    TopKSAE,
    save_sae,
)

LOADED_AS: dict[str, type[SAE]] = {
    "standard": JumpReLUSAE,
    "gated": JumpReLUSAE,
    "topk": TopKSAE,
    "jumprelu": JumpReLUSAE,
    "matching_pursuit": MatchingPursuitSAE,
    "transcoder": BatchTopKSAE,
    "jumprelu_transcoder": BatchTopKSAE,
    "batchtopk": BatchTopKSAE,
    "matryoshka_batchtopk": MatryoshkaSAE,
}
SAES = [name for name in ARCHITECTURES if "transcoder" not in name]


@pytest.fixture
def x() -> Tensor:
    """Activations of very different scales and means."""
    rng = torch.Generator().manual_seed(9)
    scale = torch.logspace(-1, 2, 60)[:, None]
    return scale * (torch.randn(60, D, generator=rng) + torch.randn(60, 1, generator=rng))


@torch.no_grad()
def assert_as_saelens(sae: SAE, folder: Path, x: Tensor, scale: float = 1.0) -> np.ndarray[Any, Any]:
    cfg = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    tensors = {k: v.double().numpy() for k, v in load_file(folder / "sae_weights.safetensors").items()}
    codes, xhat = saelens_forward(cfg, tensors, x.numpy(), scale)
    if cfg.get("rescale_acts_by_decoder_norm") or cfg["architecture"] == "matching_pursuit":
        codes = codes / scale  # folded, it is in the norms that the codes have in them, or in the residual
    size = 1 + x.norm(dim=1, keepdim=True).numpy()  # rounding grows with the activation
    np.testing.assert_allclose(sae.encode(x).dense(F).numpy() / size, codes / size, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(sae(x).numpy() / size, xhat / size, rtol=1e-5, atol=2e-6)
    assert (codes > 0).any()
    assert (codes == 0).any()
    return codes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
def test_encodes_and_reconstructs_as_saelens(
    architecture: str, normalize: str, tmp_path: Path, x: Tensor
) -> None:
    folder = write_saelens(tmp_path / "sae", architecture, normalize_activations=normalize)
    sae = saeforest.load(folder)
    assert type(sae) is LOADED_AS[architecture]
    assert not sae.training
    assert_as_saelens(sae, folder, x)


@pytest.mark.parametrize("architecture", SAES)
def test_with_nothing_taken_off_the_input(architecture: str, tmp_path: Path, x: Tensor) -> None:
    folder = write_saelens(tmp_path / "sae", architecture, apply_b_dec_to_input=False)
    assert_as_saelens(saeforest.load(folder), folder, x)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("subtract", [True, False])
def test_rescaled_by_the_norms_of_the_decoder(
    architecture: str, rescale: bool, subtract: bool, tmp_path: Path, x: Tensor
) -> None:
    keys = {"rescale_acts_by_decoder_norm": rescale, "apply_b_dec_to_input": subtract}
    folder = write_saelens(tmp_path / "sae", architecture, **keys)
    sae = saeforest.load(folder)
    assert_as_saelens(sae, folder, x)
    norms = sae.W_dec.detach().norm(dim=1)
    assert bool(torch.allclose(norms, torch.ones(F))) is rescale


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated"])
def test_a_key_that_saelens_drops_does_nothing(architecture: str, tmp_path: Path, x: Tensor) -> None:
    plain = write_saelens(tmp_path / "plain", architecture)
    with_key = write_saelens(tmp_path / "key", architecture, rescale_acts_by_decoder_norm=True)
    assert torch.equal(saeforest.load(with_key).encode(x).values, saeforest.load(plain).encode(x).values)


@pytest.mark.parametrize("architecture", SAES)
def test_saved_and_loaded_again_it_is_the_same(architecture: str, tmp_path: Path, x: Tensor) -> None:
    first = saeforest.load(
        write_saelens(tmp_path / "theirs", architecture, normalize_activations="constant_norm_rescale")
    )
    save_sae(first, tmp_path / "ours")
    again = saeforest.load(tmp_path / "ours")
    assert type(again) is type(first)
    assert torch.equal(first.encode(x).dense(F), again.encode(x).dense(F))
    assert torch.equal(first(x), again(x))
    assert again.metadata == first.metadata
    save_sae(for_saelens(again), tmp_path / "for_saelens")
    torch.testing.assert_close(saeforest.load(tmp_path / "for_saelens")(x), first(x))


def test_an_activation_of_zeros(tmp_path: Path) -> None:
    folder = write_saelens(tmp_path / "sae", "topk", normalize_activations="constant_norm_rescale")
    assert torch.isfinite(saeforest.load(folder)(torch.zeros(1, D))).all()


# What training leaves in the folder


@pytest.mark.parametrize("trained_as", ["batchtopk", "matryoshka_batchtopk"])
def test_batchtopk_saved_as_jumprelu(trained_as: str, tmp_path: Path, x: Tensor) -> None:
    """SAELens saves the SAE in this form when training has ended."""
    details = {"k": 4.5, "matryoshka_widths": [8, 20, F]}
    metadata = METADATA | {"training_architecture": trained_as, "training_architecture_details": details}
    folder = write_saelens(tmp_path / "sae", "jumprelu", metadata=metadata)
    change(folder, threshold=torch.full((F,), 0.8))
    sae = saeforest.load(folder)
    assert type(sae) is LOADED_AS[trained_as]
    assert sae.config.k_per_layer == (5,)
    if trained_as == "matryoshka_batchtopk":
        assert sae.config.layer_sizes == (8, 12, 20)
        assert sae.forest.roots == list(range(F))
    assert_as_saelens(sae, folder, x)


@pytest.mark.parametrize(("widths", "sizes"), [(None, (F,)), ([F], (F,)), ([8], (8, F - 8))])
def test_matryoshka_widths(widths: list[int] | None, sizes: tuple[int, ...], tmp_path: Path) -> None:
    folder = write_saelens(tmp_path / "sae", "matryoshka_batchtopk")
    configure(folder, matryoshka_widths=widths)
    assert saeforest.load(folder).config.layer_sizes == sizes


def test_log_thresholds_of_earlier_checkpoints(tmp_path: Path, x: Tensor) -> None:
    folder = write_saelens(tmp_path / "sae", "jumprelu")
    threshold = load_file(folder / "sae_weights.safetensors")["threshold"].exp()
    change(folder, threshold=threshold)
    expected = saeforest.load(folder)(x)
    change(folder, threshold=None, log_threshold=threshold.log())
    torch.testing.assert_close(saeforest.load(folder)(x), expected)


@pytest.mark.parametrize("architecture", [*SAES, "transcoder"])
@pytest.mark.parametrize("given", [True, False])
def test_a_scale_that_was_not_folded(architecture: str, given: bool, tmp_path: Path, x: Tensor) -> None:
    """What a checkpoint has beside; SAELens folds it into the weights when training has ended."""
    folder = write_saelens(tmp_path / "sae", architecture, normalize_activations="expected_average_only_in")
    if not given:
        (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.25, "has_whitening": false}')
    sae = saeforest.load(folder, activation_scale=0.25 if given else None)
    assert sae.config.normalize_activations == "none"
    assert sae.metadata["saelens"]["activation_scale"] == 0.25
    if architecture == "transcoder":
        return  # the target's own scale is not in the folder
    assert_as_saelens(sae, folder, x, scale=0.25)


def test_half_precision(tmp_path: Path, x: Tensor) -> None:
    folder = write_saelens(tmp_path / "sae", "gated", dtype="torch.bfloat16")
    change(folder, **{k: v.bfloat16() for k, v in load_file(folder / "sae_weights.safetensors").items()})
    sae = saeforest.load(folder)
    assert sae.W_enc.dtype == torch.float32
    assert_as_saelens(sae, folder, x)


def test_other_files_of_the_folder_are_not_read(tmp_path: Path) -> None:
    folder = write_saelens(tmp_path / "sae", "standard")
    for name in ("sparsity.safetensors", "trainer_state.pt", "runner_cfg.json"):
        (folder / name).write_bytes(b"no such file")
    saeforest.load(folder)


def test_what_it_was_trained_on(tmp_path: Path) -> None:
    metadata = saeforest.load(write_saelens(tmp_path / "sae", "standard")).metadata
    assert metadata["model_name"] == "EleutherAI/pythia-70m-deduped", "the Hub's name, which can be loaded"
    assert metadata["hook_name"] == METADATA["hook_name"]
    assert metadata["prepend_bos"] is True
    assert "hook_head_index" not in metadata, "null says nothing"
    assert metadata["saelens"]["architecture"] == "standard"


def test_of_a_model_that_was_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = METADATA | {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    saeforest.load(write_saelens(tmp_path / "sae", "standard", metadata=metadata))
    assert "center_writing_weights" in capsys.readouterr().err


def test_measures_and_forests(tmp_path: Path) -> None:
    x = torch.randn(600, D, generator=torch.Generator().manual_seed(3))
    sae = saeforest.load(write_saelens(tmp_path / "gated", "gated"))
    assert set(saeforest.measure(sae, x, "sparsity,reconstruction")) == {"sparsity", "reconstruction"}
    assert saeforest.infer_forest(sae, x).d_sae == F
    transcoder = saeforest.load(write_saelens(tmp_path / "transcoder", "transcoder"))
    with pytest.raises(InputError, match="measured against its target, which is not among"):
        saeforest.measure(transcoder, x)


# Before 6.0


OLD = {
    "model_name": "gpt2-small",
    "hook_point": "blocks.8.hook_resid_pre",
    "hook_point_layer": 8,
    "hook_point_head_index": None,
    "context_size": 128,
    "dataset_path": "Skylion007/openwebtext",
    "architecture": None,
    "metadata": None,
    "apply_b_dec_to_input": None,
}


@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        ("standard", {"activation_fn_str": "relu", "normalize_activations": False}),
        ("standard", {"activation_fn": "relu", "sae_lens_training_version": "3.2.0", "prepend_bos": False}),
        (
            "topk",
            {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}, "sae_lens_version": "4.1.0"},
        ),
        ("gated", {"architecture": "gated", "sae_lens_version": "5.0.0"}),
        ("jumprelu", {"architecture": "jumprelu", "finetuning_scaling_factor": False}),
    ],
)
def test_folders_of_before_6(architecture: str, keys: dict[str, Any], tmp_path: Path, x: Tensor) -> None:
    folder = write_saelens(tmp_path / "sae", architecture)
    expected = saeforest.load(folder)
    configure(folder, **OLD | {"k": None, "rescale_acts_by_decoder_norm": None} | keys)
    sae = saeforest.load(folder)
    assert type(sae) is type(expected)
    assert torch.equal(sae(x), expected(x))
    assert sae.metadata["model_name"] == "gpt2"
    assert sae.metadata["hook_name"] == "blocks.8.hook_resid_pre"
    assert sae.metadata.get("prepend_bos") is keys.get("prepend_bos")
    change(folder, scaling_factor=torch.ones(F))
    assert torch.equal(saeforest.load(folder)(x), expected(x))


# What cannot be loaded


def vector(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder, **changes)


def keys(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: configure(folder, **changes)


def infinite(folder: Path) -> None:
    change(folder, b_enc=torch.full((F,), torch.inf))


REFUSED: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    "abstopk": ("topk", keys(architecture="abstopk"), ["cfg.json", "'abstopk'", "may be negative", "gated"]),
    "temporal": ("topk", keys(architecture="temporal"), ["'temporal'", "earlier tokens"]),
    "skip": ("transcoder", keys(architecture="skip_transcoder"), ["'skip_transcoder'", "skip connection"]),
    "jumprelu skip": (
        "jumprelu_transcoder",
        keys(architecture="jumprelu_skip_transcoder"),
        ["'jumprelu_skip_transcoder'", "skip connection"],
    ),
    "a plugin's": (
        "topk",
        keys(architecture="crosscoder"),
        ["cfg.json", "'crosscoder'", "expected one of standard"],
    ),
    "no architecture": (
        "topk",
        keys(architecture=None),
        ["cfg.json", "architecture None", "expected one of"],
    ),
    "a number": ("topk", keys(architecture=3), ["cfg.json", "architecture 3", "expected one of"]),
    "whitening": (
        "topk",
        keys(normalize_activations="covariance_whitening"),
        ["cfg.json", "covariance_whitening", "when training has ended"],
    ),
    "no scale": (
        "topk",
        keys(normalize_activations="expected_average_only_in"),
        ["cfg.json", "expected_average_only_in", "activation_scale"],
    ),
    "unknown normalization": (
        "topk",
        keys(normalize_activations="constant_scalar_rescale"),
        ["cfg.json", "'normalize_activations'", "'constant_scalar_rescale'"],
    ),
    "repeats": (
        "matching_pursuit",
        keys(stop_on_duplicate_support=False),
        ["cfg.json", "'stop_on_duplicate_support'"],
    ),
    "endless": (
        "matching_pursuit",
        keys(max_iterations=F + 1),
        ["cfg.json", f"max_iterations = {F + 1}", f"{F} features"],
    ),
    "tanh": (
        "standard",
        keys(metadata=None, activation_fn_str="tanh-relu"),
        ["cfg.json", "'tanh-relu'", "relu or topk"],
    ),
    "no k of before": (
        "topk",
        keys(metadata=None, activation_fn_str="topk", k=None),
        ["cfg.json", "no key 'k'"],
    ),
    "fine-tuned": (
        "standard",
        vector(scaling_factor=torch.full((F,), 1.5)),
        ["sae_weights.safetensors", "'scaling_factor'", "fine-tuned"],
    ),
    "no k": ("topk", keys(k=None), ["cfg.json", "no key 'k'"]),
    "half a feature": ("topk", keys(k=4.5), ["cfg.json", "'k' is 4.5"]),
    "k of more": ("topk", keys(k=F + 1), ["cfg.json", f"{F + 1}", f"{F}"]),
    "k in words": ("topk", keys(k="5"), ["cfg.json", "'k'"]),
    "no width": ("topk", keys(d_in=None), ["cfg.json", "'d_in' is missing"]),
    "no target": ("transcoder", keys(d_out=None), ["cfg.json", "'transcoder'", "expected d_out"]),
    "a target": ("topk", keys(d_out=D), ["cfg.json", "'topk'", "expected no d_out"]),
    "version": (
        "topk",
        keys(metadata=METADATA | {"sae_lens_version": "new"}),
        ["cfg.json", "sae_lens_version 'new'"],
    ),
    "a list": (
        "topk",
        lambda folder: (folder / "cfg.json").write_text("[]"),
        ["cfg.json", "expected a JSON object"],
    ),
    "descending widths": (
        "matryoshka_batchtopk",
        keys(matryoshka_widths=[20, 8, F]),
        ["cfg.json", "'matryoshka_widths'", "ascending"],
    ),
    "long metadata": (
        "topk",
        keys(metadata=METADATA | {"model_name": "x" * 5_000}),
        ["cfg.json", "4,096 characters"],
    ),
    "a long word": ("topk", keys(device="x" * 5_000), ["cfg.json", "4,096 characters"]),
    "missing": (
        "gated",
        vector(r_mag=None),
        ["sae_weights.safetensors", "'r_mag' is missing", "b_gate"],
    ),
    "of another": (
        "topk",
        vector(threshold=torch.zeros(F)),
        ["sae_weights.safetensors", "holds threshold", "'topk' has not"],
    ),
    "wide": (
        "topk",
        vector(W_enc=torch.zeros(D + 1, F)),
        ["sae_weights.safetensors", f"'W_enc' has shape [{D + 1}, {F}]", f"[{D}, {F}]"],
    ),
    "whole numbers": (
        "topk",
        vector(b_dec=torch.zeros(D, dtype=torch.int64)),
        ["sae_weights.safetensors", "'b_dec' has dtype torch.int64"],
    ),
    "infinite": ("topk", infinite, ["sae_weights.safetensors", "'b_enc' holds NaN or infinite"]),
    "no weights": (
        "topk",
        lambda folder: (folder / "sae_weights.safetensors").unlink(),
        ["sae_weights.safetensors", "no such file"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_loaded_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    architecture, damage, words = REFUSED[name]
    folder = write_saelens(tmp_path / "sae", architecture)
    damage(folder)
    with pytest.raises(InputError) as info:
        saeforest.load(folder)
    assert str(folder) in str(info.value)
    one_line(info, *words)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf")])
def test_a_scale_of_no_use(scale: float, tmp_path: Path) -> None:
    folder = write_saelens(tmp_path / "sae", "topk", normalize_activations="expected_average_only_in")
    with pytest.raises(InputError) as info:
        saeforest.load(folder, activation_scale=scale)
    one_line(info, "activation_scale", "above 0")


@pytest.mark.parametrize(
    "scaler", ['{"scaling_factor": -1}', '{"scaling_factor": NaN}', '{"scaling_factor": "1"}']
)
def test_a_damaged_scale(scaler: str, tmp_path: Path) -> None:
    folder = write_saelens(tmp_path / "sae", "topk", normalize_activations="expected_average_only_in")
    (folder / "activation_scaler.json").write_text(scaler)
    with pytest.raises(InputError) as info:
        saeforest.load(folder)
    one_line(info, "activation_scaler.json: scaling_factor", "above 0")


def test_a_scale_where_none_is_lacking(tmp_path: Path) -> None:
    folder = write_saelens(tmp_path / "sae", "topk")
    with pytest.raises(InputError) as info:
        saeforest.load(folder, activation_scale=2.0)
    one_line(info, "activation_scale = 2.0", "leave it out")
    save_sae(saeforest.load(folder), tmp_path / "ours")
    with pytest.raises(InputError) as info:
        saeforest.load(tmp_path / "ours", activation_scale=2.0)
    one_line(info, "activation_scale = 2.0", "no SAELens folder")
