"""SAELens: `SAETrainer.step`, which its `fit` calls for every batch; to encode, its inference class."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from sae_lens import (  # pyright: ignore[reportMissingImports]
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    SAETrainer,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig  # pyright: ignore[reportMissingImports]
from torch import Tensor

from ..case import Case
from ..watch import Watch

_STEPS, _LR = 100_000, 1e-4


def prepare(case: Case) -> Callable[[Tensor], object]:
    sizes = {"d_in": case.d, "d_sae": case.width, "k": case.k, "device": case.device}
    autocast = torch.autocast(case.device, torch.bfloat16, enabled=case.dtype == "bfloat16")
    if case.task == "encode":
        encoder = TopKSAE(TopKSAEConfig(**sizes)).eval()

        @torch.no_grad()
        def encode(x: Tensor) -> Tensor:
            with autocast:
                return encoder.encode(x)

        return encode

    if case.system == "matryoshka":
        widths = list(accumulate(case.layer_sizes))
        config = MatryoshkaBatchTopKTrainingSAEConfig(matryoshka_widths=widths, **sizes)
        sae = MatryoshkaBatchTopKTrainingSAE(config)
    else:
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(**sizes))
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=_STEPS * case.batch,
            train_batch_size_samples=case.batch,
            lr_end=_LR,
            lr=_LR,
            device=case.device,
            autocast=case.dtype == "bfloat16",
        ),
        sae,
        data_provider=iter(()),
    )

    def step(x: Tensor) -> None:
        trainer.maybe_reset_sparsity()
        trainer.step(x)
        trainer.n_training_steps += 1

    return step


def train(case: Case, watch: Watch) -> None:
    """`SAETrainer.fit`, with its auxiliary loss and its learning rate."""
    sizes = {"d_in": case.d, "d_sae": case.width, "k": case.k, "device": case.device}
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(**sizes))
    watch.reconstruct = sae
    lr = SAETrainerConfig.lr if watch.lr is None else watch.lr
    config = SAETrainerConfig(
        total_training_samples=watch.steps * case.batch,
        train_batch_size_samples=case.batch,
        lr=lr,
        lr_end=lr,
        lr_warm_up_steps=watch.warmup,
        dead_feature_window=watch.dead_steps,
        device=case.device,
        autocast=case.dtype == "bfloat16",
    )
    SAETrainer(config, sae, data_provider=watch.batches()).fit()
