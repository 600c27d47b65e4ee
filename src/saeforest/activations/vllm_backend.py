"""Hidden states out of vLLM: UNTESTED, because nothing here has run vLLM. The parity check decides whether it is used.

Written from vLLM's documentation of its speculator `extract_hidden_states` (0.18 and later). Its layer ids count the
residual stream that *enters* a layer, so `blocks.L.hook_resid_post` is id L + 1.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor

from ..errors import InputError
from ..lm import LanguageModel, Site
from .reader import Backend

_RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_post")


def open_vllm(lm: LanguageModel, sites: Sequence[Site]) -> Backend:
    """vLLM, ready to read residual streams. Raises InputError for other sites, or if vLLM is not installed."""
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
    return _Vllm(vllm, lm.name, layers, lm.dtype)


class _Vllm:
    def __init__(self, vllm: Any, model: str, layers: dict[str, int], dtype: torch.dtype) -> None:
        self._layers, self._dtype = layers, dtype
        self._ids = sorted(set(layers.values()))
        self._place = tempfile.TemporaryDirectory(prefix="saeforest-vllm-")
        self._sampling = vllm.SamplingParams(max_tokens=1)
        self._llm = vllm.LLM(
            model=model,
            dtype=str(dtype).removeprefix("torch."),
            enable_prefix_caching=False,  # tokens in the cache would have no hidden states
            speculative_config={
                "method": "extract_hidden_states",
                "num_speculative_tokens": 1,
                "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": self._ids}},
            },
            kv_transfer_config={
                "kv_connector": "ExampleHiddenStatesConnector",
                "kv_role": "kv_producer",
                "kv_connector_extra_config": {"shared_storage_path": self._place.name},
            },
        )

    def activations(self, ids: Int[Tensor, "w ctx"], sites: Sequence[Site]) -> dict[str, Tensor]:
        prompts = [{"prompt_token_ids": window} for window in ids.tolist()]
        read: list[Tensor] = []
        for window, output in zip(ids.cpu(), self._llm.generate(prompts, self._sampling), strict=True):
            path = Path(output.kv_transfer_params["hidden_states_path"])
            tensors = load_file(path)
            path.unlink()
            states = tensors["hidden_states"]  # [tokens, layers, d]
            if tensors["token_ids"][: len(window)].tolist() != window.tolist() or states.ndim != 3:
                raise InputError(
                    "backend vllm: gave hidden states of other tokens; use the backend transformers"
                )
            read.append(states[: len(window)].to(self._dtype))
        x = torch.stack(read)
        return {site.name: x[:, :, self._ids.index(self._layers[site.name])] for site in sites}
