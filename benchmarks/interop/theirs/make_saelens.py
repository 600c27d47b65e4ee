"""Writes SAEs of every architecture with SAELens, and what it makes of some activations, into a folder.

    PYTHON_WITH_SAE_LENS -m benchmarks.interop.theirs.make_saelens FOLDER

Every SAE is built, and saved, by SAELens' own code, with random weights. Activations near a decision (a threshold, the
k-th place) are left out: rounding may decide them either way.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

D, D_OUT, F, ROWS, CLOSE = 24, 17, 96, 300, 1e-4
CFG, EXPECTED = "cfg.json", "expected.safetensors"
NORMALIZED = ("none", "layer_norm", "constant_norm_rescale")


def main(out: Path) -> None:
    warnings.simplefilter("ignore")
    x = activations()
    for normalize in NORMALIZED:
        for subtract in (True, False):
            for name, make in inference(normalize, subtract).items():
                folder = out / f"{name}-{normalize}-{'less-b_dec' if subtract else 'raw'}"
                make().save_model(folder)
                write_expected(folder, folder, x)
    for name, make in training().items():
        finished, checkpoint = out / f"{name}-finished", out / f"{name}-checkpoint"
        sae = make()
        sae.save_inference_model(finished)
        write_expected(finished, finished, x)
        sae.save_model(checkpoint)
        write_expected(checkpoint, finished, x)
        with_scale(make, out / f"{name}-scaled", x)
    for name, keys in before_6().items():
        folder = out / f"{name}-before-6"
        shutil.copytree(out / f"{name}-none-less-b_dec", folder)
        rewrite(folder / CFG, keys)
        write_expected(folder, folder, x)


def inference(normalize: str, subtract: bool) -> dict[str, Callable[[], Any]]:
    """Of each architecture an SAE for inference."""
    import sae_lens as s  # pyright: ignore[reportMissingImports]
    from sae_lens.saes import (  # pyright: ignore[reportMissingImports]
        GatedSAEConfig,
        JumpReLUTranscoder,
        JumpReLUTranscoderConfig,
        MatchingPursuitSAEConfig,
        Transcoder,
        TranscoderConfig,
    )

    shared = {"d_in": D, "d_sae": F, "normalize_activations": normalize, "apply_b_dec_to_input": subtract}
    pursuit = {"residual_threshold": 0.5, "max_iterations": 9}
    found: dict[str, Callable[[], Any]] = {
        "standard": lambda: filled(s.StandardSAE(s.StandardSAEConfig(**shared))),
        "gated": lambda: filled(s.GatedSAE(GatedSAEConfig(**shared))),
        "jumprelu": lambda: filled(s.JumpReLUSAE(s.JumpReLUSAEConfig(**shared))),
        "topk": lambda: filled(s.TopKSAE(s.TopKSAEConfig(k=7, **shared))),
        "topk-rescaled": lambda: filled(
            s.TopKSAE(s.TopKSAEConfig(k=7, rescale_acts_by_decoder_norm=True, **shared))
        ),
        "matching_pursuit": lambda: filled(
            s.MatchingPursuitSAE(MatchingPursuitSAEConfig(**pursuit, **shared))
        ),
        "endless_pursuit": lambda: filled(
            s.MatchingPursuitSAE(MatchingPursuitSAEConfig(residual_threshold=0.0, **shared))
        ),
    }
    if not subtract:
        found |= {
            "transcoder": lambda: filled(Transcoder(TranscoderConfig(d_out=D_OUT, **shared))),
            "jumprelu_transcoder": lambda: filled(
                JumpReLUTranscoder(JumpReLUTranscoderConfig(d_out=D_OUT, **shared))
            ),
        }
    return found


def training(normalize: str = "none") -> dict[str, Callable[[], Any]]:
    """Of each architecture an SAE in training."""
    import sae_lens as s  # pyright: ignore[reportMissingImports]

    shared = {"d_in": D, "d_sae": F, "normalize_activations": normalize}
    widths = [8, 32, F]
    matryoshka = s.MatryoshkaBatchTopKTrainingSAE, s.MatryoshkaBatchTopKTrainingSAEConfig
    pursuit = s.MatchingPursuitTrainingSAE, s.MatchingPursuitTrainingSAEConfig
    return {
        "standard-trained": lambda: filled(s.StandardTrainingSAE(s.StandardTrainingSAEConfig(**shared))),
        "gated-trained": lambda: filled(s.GatedTrainingSAE(s.GatedTrainingSAEConfig(**shared))),
        "jumprelu-trained": lambda: filled(s.JumpReLUTrainingSAE(s.JumpReLUTrainingSAEConfig(**shared))),
        "topk-trained": lambda: filled(s.TopKTrainingSAE(s.TopKTrainingSAEConfig(k=7, **shared))),
        "batchtopk-trained": lambda: filled(
            s.BatchTopKTrainingSAE(s.BatchTopKTrainingSAEConfig(k=6.5, **shared))
        ),
        "batchtopk-plain-trained": lambda: filled(
            s.BatchTopKTrainingSAE(
                s.BatchTopKTrainingSAEConfig(k=6.5, rescale_acts_by_decoder_norm=False, **shared)
            )
        ),
        "matryoshka-trained": lambda: filled(
            matryoshka[0](matryoshka[1](k=6.5, matryoshka_widths=list(widths), **shared))
        ),
        "matching_pursuit-trained": lambda: filled(
            pursuit[0](pursuit[1](residual_threshold=0.5, max_iterations=9, decoder_init_norm=1.0, **shared))
        ),
    }


def before_6() -> dict[str, dict[str, Any]]:
    """The keys that folders had before SAELens 6; None takes one away."""
    old = {
        "metadata": None,
        "hook_point": "blocks.8.hook_resid_pre",
        "model_name": "gpt2-small",
        "prepend_bos": True,
    }
    relu, topk = (
        {"activation_fn_str": "relu"},
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}},
    )
    return {
        "standard": old | relu | {"architecture": None, "normalize_activations": False},
        "gated": old | relu,
        "jumprelu": old | relu | {"finetuning_scaling_factor": False},
        "topk": old | topk | {"architecture": None, "k": None, "rescale_acts_by_decoder_norm": None},
    }


def with_scale(make: Callable[[], Any], folder: Path, x: Tensor) -> None:
    """A checkpoint of an SAE whose activations are scaled, and what it is when the scale has been folded."""
    from sae_lens.training.activation_scaler import ActivationScaler  # pyright: ignore[reportMissingImports]

    sae = make()
    sae.cfg.normalize_activations = "expected_average_only_in"
    sae.save_model(folder)
    ActivationScaler(scaling_factor=0.37).save(str(folder / "activation_scaler.json"))
    sae.fold_activation_norm_scaling_factor(0.37)
    folded = folder.parent / f".{folder.name}"
    sae.save_inference_model(folded)
    write_expected(folder, folded, x)
    shutil.rmtree(folded)


@torch.no_grad()
def filled(sae: Any) -> Any:
    """The SAE with random weights of ordinary size, and a decoder that is not of unit norm."""
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = "pythia-70m-deduped", "blocks.3.hook_resid_post"
    rng = torch.Generator().manual_seed(0)
    for name, tensor in sorted(sae.state_dict().items()):
        drawn = torch.randn(tensor.shape, generator=rng, dtype=torch.float64)
        match name:
            case "W_enc":
                drawn = drawn / D**0.5
            case "W_dec":
                size = (
                    1 + 0.01 * drawn[:, :1] if "Pursuit" in type(sae).__name__ else 0.5 + drawn[:, :1].abs()
                )
                drawn = torch.nn.functional.normalize(drawn, dim=1) * size
            case "topk_threshold":
                drawn = torch.tensor(0.8)
            case _:
                drawn = 0.5 * drawn
        tensor.copy_(drawn)
    return sae


def activations() -> Tensor:
    """Of very different scales and means."""
    rng = torch.Generator().manual_seed(1)
    scale = torch.logspace(-1, 2, ROWS)[:, None]
    return scale * (torch.randn(ROWS, D, generator=rng) + torch.randn(ROWS, 1, generator=rng))


@torch.no_grad()
def write_expected(folder: Path, read: Path, x: Tensor) -> None:
    """What SAELens makes of the folder `read`, beside the SAE that ours is to read."""
    from sae_lens import SAE  # pyright: ignore[reportMissingImports]

    sae, wide = SAE.load_from_disk(read), SAE.load_from_disk(read, dtype="float64")
    sure = torch.ones(len(x), dtype=torch.bool)
    for nudge in (1 - CLOSE, 1 + CLOSE):
        sure &= ((wide.encode(x.double() * nudge) > 0) == (sae.encode(x) > 0)).all(1)
    x = x[sure]
    f = sae.encode(x)
    tensors = {"x": x, "f": f, "x_hat": sae.decode(f)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / EXPECTED)
    assert len(x) >= 100, f"{folder.name}: {len(x)} activations are sure"


def rewrite(path: Path, keys: dict[str, Any]) -> None:
    cfg = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in cfg.items() if value is not None}))
    weights = path.parent / "sae_weights.safetensors"
    save_file(load_file(weights) | {"scaling_factor": torch.ones(F)}, weights)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    print("[]")
