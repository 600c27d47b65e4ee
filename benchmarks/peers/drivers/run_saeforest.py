"""saeforest: one step of its training loop, as `saeforest train` runs it; to encode, `SAE.encode`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from saeforest.activations import ActivationBatch, ActivationStream
from saeforest.activations.data import GIVEN
from saeforest.config import TrainConfig
from saeforest.optim import OptimConfig
from saeforest.saes import (
    MatryoshkaConfig,
    RunLength,
    SystemConfig,
    TopKConfig,
    TreeConfig,
    build,
    start_training,
)
from saeforest.training.loop import train as train_run

from ..case import Case
from ..watch import Watch

# So many that no feature is dead and no child moves in the few steps that are measured, as in the other libraries.
_STEPS = 100_000
#: How the optimizer differs, by the name of the system.
OPTIMS = {
    "tree": OptimConfig(),
    "tree, active rows": OptimConfig(rows="active"),
    "tree, active rows, state in bfloat16": OptimConfig(rows="active", state="bfloat16"),
    "tree, active rows, state in 8 bits": OptimConfig(rows="active", state="int8"),
    "tree, active rows, state in 8 bits, weights in bfloat16": OptimConfig(
        rows="active", state="int8", weights="bfloat16"
    ),
}


def system(case: Case) -> SystemConfig:
    sizes, k = case.layer_sizes, case.k_per_layer
    if case.system.startswith("tree"):
        return TreeConfig(layer_sizes=sizes, k_per_layer=k)
    if case.system == "matryoshka":
        # Over the batch, as the peers choose.
        return MatryoshkaConfig(layer_sizes=sizes, k_per_layer=k, selection="batch")
    if case.system == "topk, activations as they are":
        return TopKConfig(layer_sizes=sizes, k_per_layer=k, normalize_activations="none")
    return TopKConfig(layer_sizes=sizes, k_per_layer=k)


def prepare(case: Case) -> Callable[[Tensor], object]:
    precision = getattr(torch, case.dtype)
    if case.task == "encode":
        sae = build(system(case), case.d).to(case.device).eval()
        return torch.no_grad()(partial(sae.encode, precision=precision))
    run, optim = RunLength(_STEPS, case.batch), OPTIMS.get(case.system, OptimConfig())
    optim = replace(optim, batch_size=case.batch)
    return start_training(
        system(case), case.d, run, optim=optim, precision=precision, device=case.device
    ).step


class _Batches:
    """The batches of a run, as blocks of one batch each."""

    def __init__(self, watch: Watch, d: int) -> None:
        self.d_in, self.n_blocks = d, watch.steps
        self._batches: Iterator[Tensor] = watch.batches()

    def block(self, epoch: int, index: int) -> ActivationBatch:
        x = next(self._batches)
        return ActivationBatch(x, torch.arange(len(x)))


def train(case: Case, watch: Watch) -> None:
    """Its training loop, as `saeforest train` runs it."""
    sae, dead = system(case), watch.dead_steps * case.batch
    if isinstance(sae, TreeConfig):
        sae = replace(sae, allocation=replace(sae.allocation, dead_after_tokens=dead))
    else:
        sae = replace(sae, dead_after_tokens=dead)
    optim = OptimConfig(batch_size=case.batch, warmup=watch.warmup / watch.steps)
    optim = optim if watch.lr is None else replace(optim, lr=watch.lr)
    run = RunLength(watch.steps, case.batch)
    training = start_training(
        sae, case.d, run, optim=optim, precision=getattr(torch, case.dtype), device=case.device
    )
    watch.reconstruct = training.sae
    tokens = watch.steps * case.batch
    config = TrainConfig(
        model="", site="", data=GIVEN, tokens=tokens, device=case.device, sae=sae, optim=optim
    )
    (name,) = config.members()
    train_run(config, {name: training}, ActivationStream(_Batches(watch, case.d), case.batch), None)
