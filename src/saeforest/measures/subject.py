"""What a measure is given: an SAE, and the data that the measure declares it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from ..activations import ActivationReader
from ..hf_types import PreTrainedTokenizerBase
from ..judges import Judge
from ..saes import SAE
from ..structure.forest import Forest
from ..structure.pairs import PairStatistics
from ..text import Tokens
from .contexts import Embed
from .first_letters import FirstLetters
from .needs import Need
from .pooled import LabeledCodes
from .probes import Probes


class MeasuredText(NamedTuple):
    """The measured tokens and their tokenizer."""

    tokens: Tokens
    tokenizer: PreTrainedTokenizerBase


class Firings(NamedTuple):
    """Which features fire on each measured activation.

    rows:  `[n]` each activation's flat position in the measured tokens, ascending.
    pairs: firings of each feature, and of pairs of features, on these activations.
    """

    rows: Int[Tensor, "n"]
    pairs: PairStatistics


@dataclass(frozen=True, eq=False)
class Subject:
    """An SAE to measure, and the data that its measure needs. `n` is the number of measured activations.

    sae:      the SAE.
    settings: the settings that every record repeats: which SAE, on which data.
    supplies: for each declared need, a function that returns the data.

    A property names its need in parentheses. Raises LookupError if the measure reads one it did not declare.
    """

    sae: SAE
    settings: Mapping[str, Any]
    supplies: Mapping[Need, Callable[[], Any]]

    def _supplied(self, need: Need) -> Any:
        if need not in self.supplies:
            declared = ", ".join(self.supplies) or "nothing"
            raise LookupError(f"a measure asks for '{need}', but declares {declared} as its needs")
        return self.supplies[need]()

    @property
    def tokens(self) -> Tokens:
        """The measured text (text)."""
        return self._supplied("text").tokens

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the measured text (text)."""
        return self._supplied("text").tokenizer

    @property
    def rows(self) -> Int[Tensor, "n"]:
        """Each activation's flat position in the measured tokens, ascending (firings)."""
        return self._supplied("firings").rows

    @property
    def pairs(self) -> PairStatistics:
        """Firings of each feature, and of pairs of features, on the `n` activations (firings)."""
        return self._supplied("firings").pairs

    @property
    def x(self) -> Float[Tensor, "n d_in"]:
        """The activations, on the CPU, in the language model's dtype (activations)."""
        return self._supplied("activations")

    @property
    def probes(self) -> Probes:
        """Probes for the directions of the features' concepts (probes)."""
        return self._supplied("probes")

    @property
    def labeled(self) -> LabeledCodes:
        """Labeled texts and their codes (labeled_texts). Raises InputError if the texts cannot be used."""
        return self._supplied("labeled_texts")

    @property
    def first_letters(self) -> FirstLetters:
        """Words and their first letters (first_letters). Raises TooFewWords if the tokenizer has too few."""
        return self._supplied("first_letters")

    @property
    def reader(self) -> ActivationReader:
        """The language model at the SAE's site, with the positions that are left out (language_model)."""
        return self._supplied("language_model")

    @property
    def embed(self) -> Embed:
        """Gives the vector with which the language model begins for each token, whatever its context (embedding)."""
        return self._supplied("embedding")

    @property
    def judge(self) -> Judge | None:
        """The judge, opened on first use; None if none is configured (judge)."""
        return self._supplied("judge")

    @property
    def log(self) -> Path | None:
        """Folder with the log.jsonl of the SAE's training; None if unknown (training_log)."""
        return self._supplied("training_log")

    @property
    def forest(self) -> Forest:
        """The SAE's own forest or, for a flat SAE, one inferred from text that is not measured (forest)."""
        return self._supplied("forest")
