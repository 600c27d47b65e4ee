"""Writes an SAE of every system that SAELens can load, with what it makes of some activations, into a folder.

Run by our own environment; `saelens_check.py` is run by SAELens'. Activations near a decision (a threshold, the k-th
place) are left out: rounding may decide them either way.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from saeforest.activations import ActivationStream
from saeforest.config import OptimConfig
from saeforest.interop import for_saelens
from saeforest.saes import (
    BatchTopKConfig,
    JumpReLUConfig,
    MatchingPursuitConfig,
    MatryoshkaConfig,
    RunLength,
    SystemConfig,
    TopKConfig,
    load_sae,
    save_sae,
    start_training,
)
from saeforest.training.loop import fit
from saeforest.worlds import GENERATORS

STEPS, BATCH, CLOSE = 150, 512, 1e-4


def configs(normalize: float | str) -> dict[str, SystemConfig]:
    n = {"normalize_activations": normalize, "dead_after_tokens": 20_000}
    return {
        "topk": TopKConfig((168,), (6,), **n),  # pyright: ignore[reportArgumentType]
        "topk-bias": TopKConfig((168,), (6,), encoder_bias=True, **n),  # pyright: ignore[reportArgumentType]
        "batchtopk": BatchTopKConfig((168,), (4,), **n),  # pyright: ignore[reportArgumentType]
        "matryoshka": MatryoshkaConfig((8, 32, 128), (6,), **n),  # pyright: ignore[reportArgumentType]
        "matryoshka-batch": MatryoshkaConfig((8, 32, 128), (4,), selection="batch", **n),  # pyright: ignore[reportArgumentType]
        "jumprelu": JumpReLUConfig((168,), (4,), bandwidth=0.05, **n),  # pyright: ignore[reportArgumentType]
        "matching_pursuit": MatchingPursuitConfig((168,), (6,), **n),  # pyright: ignore[reportArgumentType]
    }


def main(out: Path) -> None:
    world = GENERATORS["tree"](seed=0)
    for normalize in ("layer_norm", "constant_norm_rescale", "none", 2.5):
        for name, config in configs(normalize).items():
            optim = OptimConfig(lr=3e-3, batch_size=BATCH, precision="float32")
            training = start_training(config, world.d_in, RunLength(STEPS, BATCH), optim=optim)
            for _ in fit(training, ActivationStream(world, BATCH)):
                pass
            folder = out / f"{name}-{normalize}"
            save_sae(for_saelens(training.finish()), folder)
            write_expected(folder, world.held_out(400).x + 0.1)


@torch.no_grad()
def write_expected(folder: Path, x: torch.Tensor) -> None:
    sae = load_sae(folder)
    noise = torch.Generator().manual_seed(0)
    x = x + 0.05 * torch.randn(x.shape, generator=noise)  # some worlds have samples in which nothing fires
    code = sae.encode(x)
    doubled = sae.to(torch.float64)
    sure = torch.ones(len(x), dtype=torch.bool)
    for nudge in (1 - CLOSE, 1 + CLOSE):
        nudged = doubled.encode(x.double() * nudge).dense(sae.d_sae) > 0
        sure &= (nudged == (code.dense(sae.d_sae) > 0)).all(1)
    sae = load_sae(folder)
    x = x[sure]
    print(f"{folder.name}: {len(x)} activations, L0 {float(sae.encode(x).active().sum() / len(x)):.1f}")
    tensors = {"x": x, "f": sae.encode(x).dense(sae.d_sae), "x_hat": sae(x)}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "expected.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
