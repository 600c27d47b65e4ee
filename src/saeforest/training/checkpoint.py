"""Checkpoints from which a run goes on exactly: weights, optimiser, counters, tree, random state, data position."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..activations import ActivationStream
from ..errors import UserError
from ..files import (
    CHECKSUMS,
    atomic_folder,
    listed_checksum,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from ..saes import SAE

_TENSORS, _STATE = "state.safetensors", "state.json"
#: What of an SAE in training a checkpoint keeps.
Trained = tuple[SAE, torch.optim.Optimizer]


def save_checkpoint(
    folder: Path,
    step: int,
    trained: Mapping[str, Trained],
    stream: ActivationStream,
    fingerprint: str = "",
) -> None:
    """Writes `folder/step-NNNNNNNN` whole, then drops older ones. `fingerprint` is of the data."""
    target = folder / f"step-{step:08}"
    with atomic_folder(target) as temporary:
        checksums = {}
        for name, (sae, optimizer) in trained.items():
            file = _file(temporary, name)
            checksums[file.name] = write_tensors(file, _tensors(sae, optimizer))
        state = {"step": step, "data": stream.state(), "fingerprint": fingerprint, CHECKSUMS: checksums}
        write_json(temporary / _STATE, state)
    for old in folder.glob("step-*"):
        if old != target:
            shutil.rmtree(old)


def _file(checkpoint: Path, name: str) -> Path:
    return checkpoint / (f"{name}.safetensors" if name else _TENSORS)


def _tensors(sae: SAE, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in sae.state_dict().items():
        # One dictionary may have two names (Matching Pursuit); a file does not let tensors share memory.
        tensors[f"sae.{name}"] = tensor.clone() if tensor.data_ptr() in places else tensor
        places.add(tensor.data_ptr())
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
    return tensors | {"torch_rng": torch.get_rng_state()}


def latest_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("step-*"), default=None)


def load_checkpoint(
    checkpoint: Path,
    trained: Mapping[str, Trained],
    stream: ActivationStream,
    fingerprint: str = "",
) -> int:
    """Brings everything back to where the checkpoint was written; returns its step.

    Raises UserError where the checkpoint is damaged, of other sizes, or of a run on other data.
    """
    state: dict[str, Any] = read_json(checkpoint / _STATE)
    if isinstance(state, dict) and state.get("fingerprint", "") != fingerprint:
        raise UserError(
            f"{checkpoint}: the text or its activations are no longer those it was written with, so the run can't go "
            "on as it would have; bring them back, or start anew in another --out"
        )
    tensors = {}
    for name in trained:
        file = _file(checkpoint, name)
        tensors[name] = read_tensors(file, listed_checksum(state, file.name))
    try:
        for name, (sae, optimizer) in trained.items():
            _restore(sae, optimizer, tensors[name])
        stream.restore({key: int(state["data"][key]) for key in stream.state()})
        return int(state["step"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{checkpoint}: does not fit this run ({str(error).splitlines()[0]}); start anew in another --out"
        ) from None


def _restore(sae: SAE, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    sae.load_state_dict({k.removeprefix("sae."): v for k, v in tensors.items() if k.startswith("sae.")})
    full = optimizer.state_dict()
    full["state"] = _optimizer_state(tensors)
    if len(full["state"]) != sum(len(group["params"]) for group in full["param_groups"]):
        raise ValueError("the optimizer's state is missing")
    optimizer.load_state_dict(full)
    torch.set_rng_state(tensors["torch_rng"])


def _optimizer_state(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".", 2)
            state.setdefault(int(i), {})[key] = tensor
    return state
