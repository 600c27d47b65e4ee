"""A stand-in for vLLM with what saeforest calls of it.

These are `LLM`, `SamplingParams` and the connector's `load_hidden_states`. As the real one does with the speculator
`extract_hidden_states`, it writes a safetensors file for every prompt, with `token_ids` [tokens] and `hidden_states`
[tokens, layers, d], the layers in the order in which they were asked for. Later versions do that in a thread and hold a
lock on a file beside it meanwhile, and so does this, if `later`. Written from vLLM 0.18 to 0.22; it says nothing about
what the real one computes.
"""

from __future__ import annotations

import fcntl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saeforest.lm import load_lm

CONNECTOR = "vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector"
Tensors = dict[str, Tensor]


@dataclass
class FakeVllm:
    """Which version it is, what it does to the tensors of a file, and what it was asked for."""

    later: bool = False
    """Whether it is a version that writes in the background."""
    change: Callable[[Tensors], Tensors] = lambda tensors: tensors
    """What it writes instead of the right tensors."""
    shift: int = 0
    """Added to every layer id: another way to count."""
    silent: bool = False
    """Whether its outputs name no file, as in a version that does not know the speculator."""
    opened: list[dict[str, Any]] = field(default_factory=list)
    prompts: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
        """Put it where vLLM is imported from."""
        vllm, connector = ModuleType("vllm"), ModuleType(CONNECTOR)
        vllm.__spec__, connector.__spec__ = ModuleSpec("vllm", None), ModuleSpec(CONNECTOR, None)
        vllm.LLM = lambda **options: _LLM(self, **options)  # pyright: ignore[reportAttributeAccessIssue]
        vllm.SamplingParams = _SamplingParams  # pyright: ignore[reportAttributeAccessIssue]
        if self.later:
            connector.load_hidden_states = _load  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setitem(sys.modules, "vllm", vllm)
        parts = CONNECTOR.split(".")
        for n in range(2, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:n]), ModuleType(".".join(parts[:n])))
        monkeypatch.setitem(sys.modules, CONNECTOR, connector)
        return self


@dataclass(frozen=True)
class _SamplingParams:
    max_tokens: int | None = 16


class _LLM:
    """The options have the real one's names: another one is a TypeError."""

    def __init__(
        self,
        fake: FakeVllm,
        *,
        model: str,
        revision: str | None,
        dtype: str,
        enable_prefix_caching: bool,
        enable_chunked_prefill: bool,
        speculative_config: dict[str, Any],
        kv_transfer_config: dict[str, Any],
    ) -> None:
        fake.opened.append({"model": model, "revision": revision, "dtype": dtype})
        assert speculative_config["method"] == "extract_hidden_states"
        assert speculative_config["num_speculative_tokens"] == 1
        assert kv_transfer_config["kv_connector"] == "ExampleHiddenStatesConnector"
        assert kv_transfer_config["kv_role"] == "kv_producer"
        assert not enable_prefix_caching
        assert not enable_chunked_prefill
        self._fake = fake
        self._layers = speculative_config["draft_model_config"]["hf_config"][
            "eagle_aux_hidden_state_layer_ids"
        ]
        self._place = Path(kv_transfer_config["kv_connector_extra_config"]["shared_storage_path"])
        self._lm = load_lm(model, dtype=getattr(torch, dtype))

    def generate(self, prompts: list[dict[str, list[int]]], sampling: _SamplingParams) -> list[Any]:
        assert sampling.max_tokens == 1
        return [self._output(prompt["prompt_token_ids"]) for prompt in prompts]

    def _output(self, window: list[int]) -> Any:
        if self._fake.silent:
            return SimpleNamespace(kv_transfer_params=None)
        self._fake.prompts += 1
        path = self._place / f"{self._fake.prompts}.safetensors"
        tensors = self._fake.change(
            {"token_ids": torch.tensor(window), "hidden_states": self._states(window)}
        )
        if self._fake.later:
            lock = open(f"{path}.lock", "w")  # noqa: SIM115  # the thread closes it
            fcntl.flock(lock, fcntl.LOCK_EX)
            threading.Thread(target=_write_late, args=(tensors, path, lock)).start()
        else:
            save_file(tensors, path)
        return SimpleNamespace(kv_transfer_params={"hidden_states_path": str(path)})

    def _states(self, window: list[int]) -> Tensor:
        """Layer id 0 is what enters the first block, id L + 1 what leaves block L."""
        states = list[Tensor]()
        for layer in self._layers:
            n = layer + self._fake.shift
            site = self._lm.site(f"blocks.{n - 1}.hook_resid_post" if n else "blocks.0.hook_resid_pre")
            states.append(self._lm.activations(torch.tensor([window]), site)[0])
        return torch.stack(states, 1)


def _write_late(tensors: Tensors, path: Path, lock: Any) -> None:
    time.sleep(0.005)
    save_file(tensors, path)
    lock.close()


def _load(path: str) -> Tensors:
    with open(f"{path}.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        return load_file(path)
