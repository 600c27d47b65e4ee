"""dictionary_learning: `update` of its trainers, which its `trainSAE` calls for every batch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

from ..case import Case
from ..watch import Watch
from .absent import stand_in

# Its environment has none: see environments.py.
stand_in("nnsight", "LanguageModel")
stand_in("wandb")

from dictionary_learning.trainers.matryoshka_batch_top_k import (  # noqa: E402 # pyright: ignore[reportMissingImports]
    MatryoshkaBatchTopKTrainer,
)
from dictionary_learning.trainers.top_k import (  # noqa: E402 # pyright: ignore[reportMissingImports]
    AutoEncoderTopK,
    TopKTrainer,
)

_STEPS = 100_000


def prepare(case: Case) -> Callable[[Tensor], object]:
    if case.task == "encode":
        return torch.no_grad()(AutoEncoderTopK(case.d, case.width, case.k).to(case.device).encode)

    about = {
        "steps": _STEPS,
        "activation_dim": case.d,
        "dict_size": case.width,
        "k": case.k,
        "layer": 0,
        "lm_name": "none",
        "device": case.device,
    }
    if case.system == "matryoshka":
        fractions = [size / case.width for size in case.layer_sizes]
        trainer = MatryoshkaBatchTopKTrainer(group_fractions=fractions, **about)
    else:
        trainer = TopKTrainer(**about)
    steps = count()

    def step(x: Tensor) -> object:
        # As its `trainSAE` casts, which it does on a GPU only.
        with torch.autocast(case.device, torch.bfloat16, enabled=case.dtype == "bfloat16"):
            return trainer.update(next(steps), x.to(getattr(torch, case.dtype)))

    return step


def train(case: Case, watch: Watch) -> None:
    """`trainSAE` with its `TopKTrainer`, its auxiliary loss and its learning rate."""
    from dictionary_learning.training import trainSAE  # pyright: ignore[reportMissingImports]

    class Watched(TopKTrainer):
        def __init__(self, **about: object) -> None:
            super().__init__(**about)
            self.dead_feature_threshold = watch.dead_steps * case.batch
            watch.reconstruct = self.ae

    about = {
        "trainer": Watched,
        "steps": watch.steps,
        "activation_dim": case.d,
        "dict_size": case.width,
        "k": case.k,
        "layer": 0,
        "lm_name": "none",
        "lr": watch.lr,
        "warmup_steps": watch.warmup,
        "device": case.device,
    }
    dtype = getattr(torch, case.dtype)
    trainSAE(watch.batches(), [about], watch.steps, device=case.device, autocast_dtype=dtype)
