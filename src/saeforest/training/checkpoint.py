"""Checkpoints from which a run resumes exactly: weights, optimizer, counters, tree, random state, data position."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ..activations import ActivationStream
from ..errors import InputError
from ..files import (
    CHECKSUMS,
    atomic_folder,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from ..optim import flaw_of_moment, kept
from ..saes import Training
from ..schema import Checksum, Count, Name, Positive, Schema, checked
from ..structure.forest import Forest

STATE = "state.json"
#: The name of the file with the tensors, in a run with one SAE.
SINGLE = "state"
_FOLDER = re.compile(r"step-[0-9]{8,}")
_PARENT = "training.sae.parent"
_MOST_SHARDS = 100_000
_REMEDY = "delete this checkpoint's folder, and resume from an older one or start again"
#: In format 1, an SAE and its training were one object. Format 3 has a file for each shard of the features, and is
#: written only where there are several.
FORMAT_VERSION, _SHARDED = 2, 3


class Position(Schema):
    """A position in the stream of activations."""

    epoch: Count
    block: Count
    row: Count


class State(Schema):
    """The contents of a checkpoint's state.json."""

    format_version: Positive = 1
    step: Positive
    data: Position
    fingerprint: Name = ""
    about: dict[str, Any] = Field(default_factory=dict)
    """The settings and the model of the run; only a run with the same ones may resume from here."""
    n_shards: Annotated[int, Field(ge=1, le=_MOST_SHARDS)] = 1
    """The number of files for each SAE: file i of n has the rows of the features f with f % n = i."""
    checksums: dict[Name, Checksum] = Field(default_factory=dict)


class Parts(NamedTuple):
    """How the tensors of a checkpoint are written by several ranks, each its own shard of the features."""

    shards: int
    write: Callable[[Path], dict[str, str]]
    """Writes all files into a folder, and returns their checksums by name."""


def save_checkpoint(
    folder: Path,
    step: int,
    trained: Mapping[str, Training],
    place: Mapping[str, int],
    fingerprint: str = "",
    about: Mapping[str, Any] | None = None,
    parts: Parts | None = None,
) -> None:
    """Write the checkpoint `folder/step-NNNNNNNN`, then delete older ones.

    It gets its name once all of its files are written, so a process that is killed leaves the one before.

    trained: the trainings, by the name of their file without its extension.
    place: the position in the data where the next step begins (`ActivationStream.state`).
    fingerprint: identifies the data; only a run on the same data may resume from here.
    about: what else must be the same in a run that resumes from here.
    parts: how other ranks help to write the tensors. None: this process writes them, one file for each SAE.
    """
    target, shards = folder / f"step-{step:08}", parts.shards if parts else 1
    with atomic_folder(target) as temporary:
        if parts:
            checksums = parts.write(temporary)
        else:
            checksums = write_files(temporary, {name: tensors_of(t) for name, t in trained.items()})
        state = {
            "format_version": FORMAT_VERSION if shards == 1 else _SHARDED,
            "step": step,
            "data": dict(place),
            "fingerprint": fingerprint,
            "about": dict(about or {}),
            "n_shards": shards,
        }
        write_json(temporary / STATE, {**state, CHECKSUMS: checksums})
    for old in checkpoints(folder):
        if old != target:
            shutil.rmtree(old)


def write_files(
    folder: Path, tensors: Mapping[str, dict[str, Tensor]], shard: int = 0, shards: int = 1
) -> dict[str, str]:
    """Write one shard of the tensors of each training, by its name. Returns the checksums of the files by name."""
    files = {_file(folder, name, shard, shards): own for name, own in tensors.items()}
    return {file.name: write_tensors(file, own) for file, own in files.items()}


def _file(checkpoint: Path, name: str, shard: int, shards: int) -> Path:
    part = f"-{shard + 1:05}-of-{shards:05}" if shards > 1 else ""
    return checkpoint / f"{name}{part}.safetensors"


def tensors_of(training: Training) -> dict[str, Tensor]:
    """All that a checkpoint keeps of a training, by name."""
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in training.state_dict().items():
        # The same matrix may have two names (in Matching Pursuit), but tensors in a file must not share memory.
        tensors[f"training.{name}"] = tensor.clone() if tensor.data_ptr() in places else tensor
        places.add(tensor.data_ptr())
    for i, state in training.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
    return tensors | {"torch_rng": torch.get_rng_state()}


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(filter(is_checkpoint, folder.glob("step-*")), key=_step_of)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder has the name of a checkpoint."""
    return _FOLDER.fullmatch(folder.name) is not None and folder.is_dir()


def _step_of(checkpoint: Path) -> int:
    # We never write more digits than this; a folder with more is refused when its state is read.
    return int(checkpoint.name.removeprefix("step-")[:32])


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a folder; None if there is none."""
    return next(reversed(checkpoints(folder)), None)


def is_saved(folder: Path, step: int) -> bool:
    """Whether there is a checkpoint of this step."""
    return is_checkpoint(folder / f"step-{step:08}")


def read_state(checkpoint: Path) -> State:
    """Read state.json of a checkpoint. Raises InputError if it is missing, damaged or of another format."""
    path = checkpoint / STATE
    state = checked(State, read_json(path), path, _REMEDY)
    if state.format_version not in (FORMAT_VERSION, _SHARDED):
        raise InputError(
            f"{path}: checkpoint of format {state.format_version}, but this saeforest reads formats {FORMAT_VERSION} "
            f"and {_SHARDED}; finish the run with the version that began it, or delete this checkpoint's folder and "
            "train again"
        )
    if state.step != _step_of(checkpoint):
        raise InputError(
            f"{path}: key 'step' is {state.step}, but the folder is named {checkpoint.name}; {_REMEDY}"
        )
    return state


def load_checkpoint(
    checkpoint: Path,
    trained: Mapping[str, Training],
    stream: ActivationStream,
    fingerprint: str = "",
) -> int:
    """Restore the trainings and the stream to their state at a checkpoint. Returns its step.

    Nothing is changed before everything has been checked.

    Raises InputError if the checkpoint is damaged, has other sizes, or belongs to a run on other data.
    """
    state = read_state(checkpoint)
    if state.fingerprint != fingerprint:
        raise InputError(
            f"{checkpoint}: the text or its activations have changed since this checkpoint was written, so the run "
            "cannot be resumed; restore them, or start again in another folder"
        )
    n_steps = min(training.run.n_steps for training in trained.values())
    if state.step > n_steps:
        raise InputError(f"{checkpoint}: step {state.step:,}, but the run has {n_steps:,} steps; {_REMEDY}")
    if state.data.block > stream.blocks.n_blocks:
        raise InputError(
            f"{checkpoint / STATE}: key 'data.block' is {state.data.block:,}, but an epoch has "
            f"{stream.blocks.n_blocks:,} blocks of activations; {_REMEDY}"
        )
    tensors = {}
    for name, training in trained.items():
        tensors[name] = _read(checkpoint, name, state)
        _check(tensors[name], training, state.step, _file(checkpoint, name, 0, state.n_shards))
    for name, training in trained.items():
        restore(training, tensors[name])
    stream.restore(state.data.model_dump())
    return state.step


def _read(checkpoint: Path, name: str, state: State) -> dict[str, Tensor]:
    """The tensors of a training. Where they are in shards, rows are put back in the order of features."""
    files = [_file(checkpoint, name, shard, state.n_shards) for shard in range(state.n_shards)]
    shards = [read_tensors(file, state.checksums.get(file.name), _REMEDY) for file in files]
    whole = shards[0]
    for key in sorted({key for shard in shards[1:] for key in shard}):
        parts = [shard.get(key, torch.empty(0)) for shard in shards]
        n, of, dtype = sum(part.shape[:1].numel() for part in parts), parts[0].shape[1:], parts[0].dtype
        for i, (file, part) in enumerate(zip(files, parts, strict=True)):
            expected = torch.Size([len(range(i, n, len(parts))), *of])
            if (part.shape, part.dtype) != (expected, dtype):
                raise InputError(
                    f"{file}: tensor '{key}' is {_kind(part.shape, part.dtype)}; beside the other shards it would be "
                    f"{_kind(expected, dtype)}; {_REMEDY}"
                )
        whole[key] = torch.empty(n, *of, dtype=dtype)
        for i, part in enumerate(parts):
            whole[key][i :: len(parts)] = part
    return whole


def restore(training: Training, tensors: dict[str, Tensor]) -> None:
    """Bring a training to the state of which `tensors_of` gave these tensors."""
    own = {k.removeprefix("training."): v for k, v in tensors.items() if k.startswith("training.")}
    training.load_state_dict(own)
    full = training.optimizer.state_dict()
    full["state"] = _optimizer_state(tensors)
    training.optimizer.load_state_dict(full)
    torch.set_rng_state(tensors["torch_rng"])


def _optimizer_state(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".", 2)
            state.setdefault(int(i), {})[key] = tensor
    return state


# Tensors are checked before any kernel uses them, because compiled kernels do not check bounds.


def _expected(training: Training) -> Iterator[tuple[str, torch.Size, torch.dtype]]:
    for name, tensor in training.state_dict().items():
        yield f"training.{name}", tensor.shape, tensor.dtype
    groups = training.optimizer.param_groups
    weights = [(weight, group) for group in groups for weight in group["params"]]
    for i, (weight, group) in enumerate(weights):
        yield f"optimizer.{i}.step", torch.Size(), torch.float32
        for name, (shape, dtype) in kept(weight, group).items():
            yield f"optimizer.{i}.{name}", shape, dtype
    rng = torch.get_rng_state()
    yield "torch_rng", rng.shape, rng.dtype


def _check(tensors: Mapping[str, Tensor], training: Training, step: int, path: Path) -> None:
    """Raise InputError unless these are the tensors of this training after `step` steps."""
    expected = {name: (shape, dtype) for name, shape, dtype in _expected(training)}
    other = (
        "the checkpoint does not fit this run; restore its configuration, or start again in another folder"
    )
    for name, (shape, dtype) in expected.items():
        if name not in tensors:
            raise InputError(f"{path}: tensor '{name}' is missing; {other}")
        found = tensors[name]
        if (found.shape, found.dtype) != (shape, dtype):
            raise InputError(
                f"{path}: tensor '{name}' is {_kind(found.shape, found.dtype)}; expected {_kind(shape, dtype)}; {other}"
            )
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise InputError(f"{path}: tensor '{unknown[0]}' is not part of this run; {other}")
    for name, tensor in tensors.items():
        if problem := _damage(name, tensor, step, training.sae.d_sae):
            raise InputError(f"{path}: tensor '{name}' {problem}, so the checkpoint is damaged; {_REMEDY}")
    try:
        Forest(tensors[_PARENT], training.sae.config.layer_sizes)
    except InputError as error:
        raise InputError(f"{path}: {error}; {_REMEDY}") from None
    try:
        torch.Generator().set_state(tensors["torch_rng"])
    except RuntimeError:
        raise InputError(
            f"{path}: tensor 'torch_rng' is not a random generator's state, so the checkpoint is damaged; {_REMEDY}"
        ) from None


def _kind(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{list(shape)} of {str(dtype).removeprefix('torch.')}"


def _damage(name: str, tensor: Tensor, step: int, d_sae: int) -> str:
    """What is wrong with the values of a tensor, in words; empty if nothing is."""
    if name in ("torch_rng", _PARENT) or not tensor.numel():
        return ""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        return "holds NaN or infinite values"
    if name.startswith("optimizer.") and tensor.dtype in (torch.int8, torch.uint8):
        return flaw_of_moment(name, tensor)
    if name.endswith("_ids"):
        inside = bool(((tensor >= 0) & (tensor <= d_sae)).all())  # d_sae itself is an empty slot
        return "" if inside else f"holds ids of features outside 0 to {d_sae:,}"
    counter = not tensor.is_floating_point() or name.endswith(".step")
    if counter and not bool(((tensor >= 0) & (tensor <= step)).all()):
        return f"counts steps, but holds numbers outside 0 to {step:,}"
    if name.endswith(".exp_avg_sq") and bool((tensor < 0).any()):
        return "holds squares, but some of them are negative"
    return ""
