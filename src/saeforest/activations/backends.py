"""What computes activations: transformers, or a faster engine that must first give the same as transformers does.

A faster engine may number layers differently, leave out a last norm, skip tokens that it has seen before, or round
differently. So before a worker uses it, it reads the first batch of the text beside transformers, and is refused unless
it explains nearly all of the variance of what transformers gives. Every worker has an engine of its own, so each
compares it, on the same windows; what the first of them found stands in the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..lm import LanguageModel, Site
from ..text import Tokens
from .reader import ActivationReader, Backend

#: The largest fraction of the variance of the reference that a backend may leave unexplained. Rounding to bfloat16
#: leaves less than a hundredth of that, and the neighboring layer more (tests/activations/test_backends.py).
MOST_UNEXPLAINED = 0.01


#: The function that opens each backend but transformers.
BACKENDS: dict[str, str] = {"vllm": "vllm_backend:open_vllm"}


def open_backend(name: str, lm: LanguageModel, sites: Sequence[Site]) -> Backend | None:
    """The backend of this name; None for transformers. Raises InputError if it cannot read these sites."""
    if name == "transformers":
        return None
    module, _, function = BACKENDS[name].partition(":")
    opened: Callable[[LanguageModel, Sequence[Site]], Backend] = getattr(
        import_module(f".{module}", __package__), function
    )
    return opened(lm, sites)


@dataclass(frozen=True)
class Parity:
    """How close a backend comes to transformers at one site, at positions that are kept."""

    unexplained: float
    """Squared differences, as a fraction of the variance of what transformers gives."""
    cosine: float
    """The smallest cosine of a row with that of transformers, both without the mean row of transformers."""
    activations: int
    """Number of activations that were compared."""

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "unexplained": round(self.unexplained, 8),
            "cosine": round(self.cosine, 6),
            "activations": self.activations,
        }


def compared(found: Float[Tensor, "n d"], expected: Float[Tensor, "n d"]) -> Parity:
    """How close activations come to the expected ones."""
    found, expected = found.double(), expected.double()
    mean = expected.mean(0)
    variance = (expected - mean).square().sum()
    cosines = torch.cosine_similarity(found - mean, expected - mean, dim=1)
    unexplained = (found - expected).square().sum() / variance
    return Parity(float(unexplained), float(cosines.min()), len(found))


def check_parity(reader: ActivationReader, tokens: Tokens, name: str) -> dict[str, Any]:
    """Compare the reader's backend with transformers on the first batch of a text. Returns what the manifest says.

    Raises InputError if they differ at any site.
    """
    backend, windows = reader.backend, torch.arange(min(reader.batch_size, len(tokens.ids)))
    found = reader.read(tokens, windows)
    reader.backend = None
    try:
        expected = reader.read(tokens, windows)
    finally:
        reader.backend = backend
    if not torch.equal(found.rows, expected.rows):
        raise InputError(
            f"backend {name}: leaves out other positions than transformers; use the backend transformers"
        )
    pairs = {reader.site.name: (found.x, expected.x)}
    pairs |= {site: (found.others[site], x) for site, x in expected.others.items()}
    result: dict[str, Any] = {}
    for site, (x, reference) in pairs.items():
        if x.shape != reference.shape:
            raise InputError(
                f"backend {name}: activations of width {x.shape[1]} at {site}, not {reference.shape[1]}; use the "
                "backend transformers"
            )
        parity = compared(x, reference)
        if not parity.unexplained <= MOST_UNEXPLAINED:
            raise InputError(
                f"backend {name}: its activations at {site} leave {parity.unexplained:.2g} of the variance of those of "
                f"transformers unexplained; expected at most {MOST_UNEXPLAINED:g}; use the backend transformers"
            )
        result[site] = parity.to_dict()
    return {"name": name, "parity": result}
