"""Hidden states out of vLLM: UNTESTED, because nothing here has run vLLM. The parity check decides whether it is used.

Written from the documentation and source of its speculator `extract_hidden_states` (0.18 and later), which writes a
file for every prompt. Its layer ids count the residual stream that *enters* a layer, so `blocks.L.hook_resid_post` is
id L + 1. The tests run this on a stand-in for vLLM with the same interface (tests/activations/fake_vllm.py).
"""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor

from ..errors import InputError
from ..lm import LanguageModel, Site
from ..lm.identity import EMBEDDED, ModelIdentity
from .reader import Backend

_RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_post")
_CONNECTOR = "vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector"


def open_vllm(lm: LanguageModel, sites: Sequence[Site]) -> Backend:
    """vLLM, ready to read residual streams. Raises InputError if it cannot be used.

    It reads the residual stream behind a block of a model that transformers can load too, and must be installed.
    """
    if lm.identity.name == EMBEDDED:
        raise InputError(
            f"model {EMBEDDED}: vLLM cannot read the file of this package; use the backend transformers, or the model "
            "from the Hub"
        )
    layers: dict[str, int] = {}
    for site in sites:
        if (found := _RESIDUAL.fullmatch(site.name)) is None:
            raise InputError(
                f"site {site.name}: vLLM gives blocks.N.hook_resid_post only; use the backend transformers"
            )
        layers[site.name] = int(found[1]) + 1
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise InputError(
            "backend vllm: vLLM is not installed; install it, or use the backend transformers"
        ) from None
    return _Vllm(vllm, lm.identity, layers, lm.dtype)


class _Vllm:
    def __init__(self, vllm: Any, model: ModelIdentity, layers: dict[str, int], dtype: torch.dtype) -> None:
        self._layers, self._dtype = layers, dtype
        self._ids = sorted(set(layers.values()))
        place = tempfile.mkdtemp(prefix="saeforest-vllm-")
        weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)
        self._sampling = vllm.SamplingParams(max_tokens=1)
        self._load = _loader()
        self._llm = vllm.LLM(
            model=model.name,
            revision=model.revision or None,
            dtype=str(dtype).removeprefix("torch."),
            enable_prefix_caching=False,  # tokens in the cache would have no hidden states
            enable_chunked_prefill=False,  # some versions give the states of the last chunk only
            speculative_config={
                "method": "extract_hidden_states",
                "num_speculative_tokens": 1,
                "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": self._ids}},
            },
            kv_transfer_config={
                "kv_connector": "ExampleHiddenStatesConnector",
                "kv_role": "kv_producer",
                "kv_connector_extra_config": {"shared_storage_path": place},
            },
        )

    def activations(self, ids: Int[Tensor, "w ctx"], sites: Sequence[Site]) -> dict[str, Tensor]:
        prompts = [{"prompt_token_ids": window} for window in ids.tolist()]
        outputs = self._llm.generate(prompts, self._sampling)
        x = torch.stack([self._states(*pair) for pair in zip(ids.cpu(), outputs, strict=True)])
        return {site.name: x[:, :, self._ids.index(self._layers[site.name])] for site in sites}

    def _states(self, window: Int[Tensor, "ctx"], output: Any) -> Tensor:
        """The states of a window, `[ctx, layers, d]`. Raises InputError if the file holds anything else."""
        path = (output.kv_transfer_params or {}).get("hidden_states_path")
        if path is None:
            raise InputError(
                "backend vllm: gave no hidden states; use vLLM 0.18 or later, or the backend transformers"
            )
        tensors = self._load(path)
        for name in (path, f"{path}.lock"):
            Path(name).unlink(missing_ok=True)
        tokens, states = tensors["token_ids"][: len(window)], tensors["hidden_states"][: len(window)]
        if tokens.tolist() != window.tolist():
            raise InputError("backend vllm: gave hidden states of other tokens; use the backend transformers")
        if states.ndim != 3 or states.shape[:2] != (len(window), len(self._ids)):
            raise InputError(
                f"backend vllm: gave hidden states of shape {[*states.shape]}; expected {len(window)} tokens and "
                f"{len(self._ids)} layers; use the backend transformers"
            )
        return states.to(self._dtype)


def _loader() -> Callable[[str], dict[str, Tensor]]:
    """What reads a file of hidden states. Later versions write it in the background, and theirs waits for that."""
    try:
        return import_module(_CONNECTOR).load_hidden_states
    except (ImportError, AttributeError):
        return load_file
