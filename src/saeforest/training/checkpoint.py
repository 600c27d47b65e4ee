"""Checkpoints from which a run goes on exactly: weights, optimiser, counters, tree, random state, data position."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..activations import ActivationStream
from ..errors import UserError
from ..files import atomic_folder, read_json, read_tensors, write_json, write_tensors
from ..saes import SAE

_TENSORS, _STATE = "state.safetensors", "state.json"


def save_checkpoint(
    folder: Path,
    step: int,
    sae: SAE,
    optimizer: torch.optim.Optimizer,
    stream: ActivationStream,
    fingerprint: str = "",
) -> None:
    """Writes `folder/step-NNNNNNNN` whole, then drops older ones. `fingerprint` is of the data."""
    target = folder / f"step-{step:08}"
    tensors: dict[str, Tensor] = {f"sae.{k}": v for k, v in sae.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
    tensors["torch_rng"] = torch.get_rng_state()
    with atomic_folder(target) as temporary:
        write_tensors(temporary / _TENSORS, tensors)
        write_json(temporary / _STATE, {"step": step, "data": stream.state(), "fingerprint": fingerprint})
    for old in folder.glob("step-*"):
        if old != target:
            shutil.rmtree(old)


def latest_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("step-*"), default=None)


def load_checkpoint(
    checkpoint: Path,
    sae: SAE,
    optimizer: torch.optim.Optimizer,
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
    tensors = read_tensors(checkpoint / _TENSORS)
    try:
        sae.load_state_dict({k.removeprefix("sae."): v for k, v in tensors.items() if k.startswith("sae.")})
        full = optimizer.state_dict()
        full["state"] = _optimizer_state(tensors)
        if len(full["state"]) != len(full["param_groups"][0]["params"]):
            raise ValueError("the optimizer's state is missing")
        optimizer.load_state_dict(full)
        torch.set_rng_state(tensors["torch_rng"])
        stream.restore({key: int(state["data"][key]) for key in stream.state()})
        return int(state["step"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{checkpoint}: does not fit this run ({str(error).splitlines()[0]}); start anew in another --out"
        ) from None


def _optimizer_state(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".", 2)
            state.setdefault(int(i), {})[key] = tensor
    return state
