"""saeforest: one step of its training loop, as `saeforest train` runs it; to encode, `SAE.encode`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

from saeforest.config import OptimConfig, TrainConfig
from saeforest.saes import SAE, MatryoshkaConfig, TopKConfig, TrainingPlan, TreeConfig, build
from saeforest.training.loop import Trainee, make_optimizer

from ..case import Case

# So many that no feature is dead and no child moves in the few steps that are measured, as in the other libraries.
_STEPS = 100_000


def new_sae(case: Case) -> SAE:
    sizes, k = case.layer_sizes, case.k_per_layer
    if case.system == "tree":
        config = TreeConfig(layer_sizes=sizes, k_per_layer=k)
    elif case.system == "matryoshka":
        # Over the batch, as the peers choose.
        config = MatryoshkaConfig(layer_sizes=sizes, k_per_layer=k, selection="batch")
    else:
        config = TopKConfig(layer_sizes=sizes, k_per_layer=k)
    sae = build(config, case.d, seed=0).to(case.device)
    sae.compute_dtype = getattr(torch, case.dtype)
    sae.prepare(TrainingPlan(_STEPS, case.batch))
    return sae


def prepare(case: Case) -> Callable[[Tensor], object]:
    sae = new_sae(case)
    if case.task == "encode":
        return sae.eval().encode
    optim = OptimConfig(batch_size=case.batch)
    trainee = Trainee("", TrainConfig(optim=optim), sae, make_optimizer(sae, optim))
    steps = count(1)
    return lambda x: trainee.step(x, next(steps), _STEPS)
