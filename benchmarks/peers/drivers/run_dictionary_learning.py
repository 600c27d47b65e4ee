"""dictionary_learning: `update` of its trainers, which its `trainSAE` calls for every batch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

from ..case import Case
from .absent import stand_in

stand_in("nnsight", "LanguageModel")  # its environment has none: see environments.py

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
